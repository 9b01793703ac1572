#!/usr/bin/env bash
# CLIP-ViL RN50x4 on GQA: 4 GPUs, batch 256, 5 epochs. Published: 61.42 test-dev, 62.93 test-std.
exec bash "$(dirname "$0")/../finetune_gqa.bash" "${GPUS:-0,1,2,3}" "${NAME:-gqa_clip_rn50x4}" "${PORT:-9590}" "${NPROC:-4}" \
    --fp16 --batchSize 8 --gradient_accumulation_steps 8 --lr 5e-5 --warmup_ratio 0.05 --epochs 5 --schedule 3 \
    --use_separate_optimizer_for_visual --sgd_lr 0.001 --sgd_momentum 0.0 --loss_scale 500 --use_positional_embedding \
    --clip_model_name RN50x4 --loadLXMERTQA "${LOAD:-snap/pretrain/clip_rn50x4_stage_two/Epoch11}" --optim hf_adamw "$@"
