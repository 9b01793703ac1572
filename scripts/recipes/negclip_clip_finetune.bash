#!/usr/bin/env bash
# negclip_clip_finetune as published: ViT-L/14@336 with LoRA of rank 16, 500 updates. Lower --batch-size on less memory
# (its log: about 18 GB after that).
exec bash "$(dirname "$0")/../negclip.bash" "${GPUS:-0}" "${NAME:-negclip_clip_finetune}" "${PORT:-9590}" "${NPROC:-1}" \
    --train-negatives "${TABLE:-data/coco/train_neg_clip.tsv}" --images-dir data/mscoco --valid-data mscoco_captions@val \
    --image-model ViT-L-14-336 --pretrained-image-model --text-model ViT-L-14-336 --pretrained-text-model \
    --cache-dir cache/weights --lora-r 16 --lora-alpha 32 --lora-dropout 0.1 --batch-size 1024 --max-seq-length 64 \
    --epochs 20 --max-steps 500 --checkpoint-steps 50 --lr 1e-5 --warmup 50 --wd 0.1 --precision fp16 \
    --grad-checkpointing --seed 2024 "$@"
