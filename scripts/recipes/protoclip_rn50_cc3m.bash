#!/usr/bin/env bash
# ProtoCLIP (arXiv:2206.10996): RN50 on CC3M with prototypes of each episode and back translation.
exec bash "$(dirname "$0")/../protoclip.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-ProtoCLIP-RN50-CC2.5M}" "${PORT:-9590}" "${NPROC:-8}" \
    --train-data data/cc3m/pairs.csv --dataset-size 2500000 --episode-size 200000 --augmentation protoclip-light-augmentation \
    --epochs 400 --save-frequency 50 --batch-size 64 --workers 8 --lr 5e-4 --warmup 2000 --wd 0.5 --max-grad-norm 10 \
    --image-model RN50 --image-model-builder openclip --text-model RN50 --text-model-builder openclip --loss InfoNCE \
    --w-clip 1 --w-proto 1 --w-proto-external 1 --external-teacher "${TEACHER:-data/cc3m/roberta_large_pca64.npy}" \
    --PBT --k 20000 --kmeans-nredo 3 --target-temperature 0.01 --infonce-warmup-epoch 1 --lit-start-epoch 399 "$@"
