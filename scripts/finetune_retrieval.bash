#!/usr/bin/env bash
# Fine-tune the fused encoder for retrieval: bash scripts/finetune_retrieval.bash GPUS NAME PORT NPROC --load ... flags...
exec bash "$(dirname "$0")/named_run.bash" finetune_retrieval "${@:1:4}" \
    --input_raw_images --use_clip --numWorkers 10 --batchSize 16 --optim hf_adamw \
    --lr 1e-5 --epochs 5 --llayers 12 --xlayers 0 --rlayers 0 --visualbert_style --vqa_style_transform \
    --clip_model_name RN50 --fp16 --add_zero_padding "${@:5}"
