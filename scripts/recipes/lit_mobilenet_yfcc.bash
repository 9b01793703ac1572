#!/usr/bin/env bash
# MobileNetV3 with a two-layer head learns CLIP's locked text space on 14M pairs of YFCC, batch 1024 (third command).
# The run's published name says its image tower is frozen too; its flags train it, and the published log agrees with them.
exec bash "$(dirname "$0")/../align.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-mobilenet_v3_large-CLIP-text-bs1024-YFCC-8ep-lr1e-5}" "${PORT:-9590}" "${NPROC:-8}" \
    --train-data data/yfcc/pairs.csv --dataset-size 14000000 --episode-size 2000000 \
    --epochs 56 --save-frequency 56 --batch-size 128 --workers 8 --lr 1e-5 --warmup 2000 --wd 0.5 --max-grad-norm 5 \
    --image-model mobilenet_v3_large --image-model-builder torchvision --pretrained-image-model --image-head-n-layers 2 \
    --text-model RN50 --text-model-tag openai --text-model-builder openclip --pretrained-text-model --lock-text-model \
    --cache-dir cache/weights --loss InfoNCE "$@"
