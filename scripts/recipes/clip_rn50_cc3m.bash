#!/usr/bin/env bash
# CLIP from scratch: RN50 on 2.5M pairs of CC3M, 8 GPUs, 32 episodes, batch 512 (dual-encoder seed, first command).
exec bash "$(dirname "$0")/../align.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-CLIP-from-scratch-bs512-CC2.5M-32ep}" "${PORT:-9590}" "${NPROC:-8}" \
    --train-data data/cc3m/pairs.csv --dataset-size 2500000 --episode-size 2500000 \
    --epochs 32 --save-frequency 32 --batch-size 64 --workers 8 --lr 5e-4 --warmup 2000 --wd 0.5 --max-grad-norm 5 \
    --image-model RN50 --image-model-builder OpenCLIP --image-head-n-layers 0 \
    --text-model RN50 --text-model-builder OpenCLIP --text-head-n-layers 0 --loss InfoNCE "$@"
