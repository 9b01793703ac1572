#!/usr/bin/env bash
# Pre-train the fused encoder: bash scripts/pretrain.bash GPUS NAME PORT NPROC flags...   -> snap/pretrain/NAME
# Flags given here come last and override the defaults below.
exec bash "$(dirname "$0")/launch.bash" pretrain "${1-}" "${3-}" "${4-}" \
    --taskMaskLM --taskMatched --visualLosses obj,attr,feat --wordMaskRate 0.15 \
    --train mscoco_train,mscoco_nominival,vgnococo --valid mscoco_minival --batchSize 256 --optim hf_adamw --lr 1e-4 --epochs 20 \
    --llayers 12 --xlayers 0 --rlayers 0 --visualbert_style --input_raw_images --vqa_style_transform --objMaskRate 0.0 \
    --numWorkers 0 --clip_model_name RN50 --use_clip --add_zero_padding --tqdm --output "snap/pretrain/${2-}" "${@:5}"
