#!/usr/bin/env bash
# Fine-tune on SNLI-VE, or test: bash scripts/finetune_snli_ve.bash GPUS NAME PORT NPROC flags...   -> snap/snli_ve/NAME
exec bash "$(dirname "$0")/named_run.bash" snli_ve "${@:1:4}" \
    --train train --valid dev --input_raw_images --use_clip --numWorkers 10 --batchSize 2 --optim hf_adamw \
    --lr 1e-5 --epochs 10 --llayers 12 --xlayers 0 --rlayers 0 --visualbert_style --vqa_style_transform \
    --clip_model_name RN50 --fp16 --add_zero_padding "${@:5}"
