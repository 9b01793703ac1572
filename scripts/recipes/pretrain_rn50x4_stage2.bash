#!/usr/bin/env bash
# CLIP-ViL RN50x4, stage two. The published command leaves out --clip_model_name; the checkpoint says it is an RN50x4.
exec bash "$(dirname "$0")/../pretrain.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-clip_rn50x4_stage_two}" "${PORT:-9590}" "${NPROC:-8}" \
    --fp16 --gradient_accumulation_steps 2 --batchSize 30 --lr 2.75e-5 --aspect_ratio_group_factor 5 --add_zero_padding \
    --compress_data --warmup_ratio 0.025 --report_step 200 --numWorkers 20 --train mscoco_train,mscoco_nominival,vgnococo \
    --epochs 11 --sub_sampling --sub_feat_num 100 --schedule 4,9 --use_separate_optimizer_for_visual --sgd_lr 0.003 \
    --sgd_momentum 0.0 --use_positional_embedding --load "${LOAD:-snap/pretrain/clip_rn50x4_stage_one/Epoch09}" \
    --not_load_scheduler --taskQA --not_load_adam_optimizer --clip_model_name RN50x4 --optim hf_adamw "$@"
