#!/usr/bin/env bash
# Fine-tuning of S-SMKE's image encoder on ImageNet: 15 epochs of 256 images, layer decay 0.81. --linear_eval: the head alone.
exec bash "$(dirname "$0")/../imagenet.bash" "${GPUS:-0}" "${NAME:-s_smke}" "${PORT:-9590}" "${NPROC:-1}" \
    --dataset "${IMAGENET:-data/imagenet}" --load "${LOAD:-snap/distill/s_smke/best.pt}" --epochs 15 --batch_size 256 \
    --lr 1e-3 --layer_decay 0.81 --weight_decay 0.01 --warmup_ratio 0.1 --compat_mean_loss --fp16 --seed 42 "$@"
