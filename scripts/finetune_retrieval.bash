#!/usr/bin/env bash
# Fine-tune the fused encoder for retrieval: bash scripts/finetune_retrieval.bash GPUS NAME PORT NPROC --load ... --train_data ...
# NAME is a folder when it holds a slash, otherwise snap/finetune_retrieval/NAME. Flags given here come last and override the defaults.
name=${2-}
[[ $name == */* ]] || name=snap/finetune_retrieval/$name
exec bash "$(dirname "$0")/launch.bash" finetune_retrieval "${1-}" "${3-}" "${4-}" \
    --input_raw_images --use_clip --numWorkers 10 --batchSize 16 --optim hf_adamw \
    --lr 1e-5 --epochs 5 --llayers 12 --xlayers 0 --rlayers 0 --visualbert_style --vqa_style_transform \
    --clip_model_name RN50 --fp16 --add_zero_padding --tqdm --output "$name" "${@:5}"
