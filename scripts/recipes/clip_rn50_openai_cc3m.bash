#!/usr/bin/env bash
# The same from OpenAI's weights, which lie in cache/weights: 28 plain epochs, batch 800 (second command).
exec bash "$(dirname "$0")/../align.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-CLIP-from-RN50-bs800-28ep}" "${PORT:-9590}" "${NPROC:-8}" \
    --train-data data/cc3m/pairs.csv --dataset-size 2500000 --episode-size 0 \
    --epochs 28 --save-frequency 28 --batch-size 100 --workers 8 --lr 1e-4 --warmup 2000 --wd 0.5 --max-grad-norm 5 \
    --image-model RN50 --image-model-tag openai --image-model-builder OpenCLIP --pretrained-image-model \
    --text-model RN50 --text-model-tag openai --text-model-builder OpenCLIP --pretrained-text-model \
    --cache-dir cache/weights --loss InfoNCE "$@"
