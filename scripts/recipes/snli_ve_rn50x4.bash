#!/usr/bin/env bash
# CLIP-ViL RN50x4 on SNLI-VE: 4 GPUs, batch 256, 2 epochs. Published: 80.61 dev, 80.20 test-P.
exec bash "$(dirname "$0")/../finetune_snli_ve.bash" "${GPUS:-0,1,2,3}" "${NAME:-snli_ve_clip_rn50x4}" "${PORT:-9590}" "${NPROC:-4}" \
    --fp16 --batchSize 8 --gradient_accumulation_steps 8 --lr 5e-5 --warmup_ratio 0.05 --epochs 2 --schedule 1 \
    --use_separate_optimizer_for_visual --sgd_lr 0.001 --sgd_momentum 0.0 --use_positional_embedding \
    --clip_model_name RN50x4 --loadLXMERT "${LOAD:-snap/pretrain/clip_rn50x4_stage_two/Epoch11}" --optim hf_adamw "$@"
