#!/usr/bin/env bash
# NegCLIP (arXiv:2210.01936): OpenAI's ViT-B/32 on COCO with mined negatives, batch 256, 5 epochs, one GPU.
exec bash "$(dirname "$0")/../negclip.bash" "${GPUS:-0}" "${NAME:-negclip_vit_b32}" "${PORT:-9590}" "${NPROC:-1}" \
    --train-negatives "${TABLE:-data/coco/train_neg_clip.tsv}" --images-dir data/mscoco --valid-data mscoco_captions@val \
    --image-model ViT-B-32 --pretrained-image-model --text-model ViT-B-32 --pretrained-text-model --cache-dir cache/weights \
    --batch-size 256 --epochs 5 --lr 1e-6 --warmup 50 --wd 0.2 --beta1 0.9 --beta2 0.98 --eps 1e-6 --precision amp "$@"
