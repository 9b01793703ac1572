#!/usr/bin/env bash
# CLIP-ViL RN50, stage two: from stage one's ninth epoch, with the question answering loss, 11 epochs.
exec bash "$(dirname "$0")/../pretrain.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-clip_rn50_stage_two}" "${PORT:-9590}" "${NPROC:-8}" \
    --fp16 --gradient_accumulation_steps 2 --batchSize 32 --lr 5e-5 --aspect_ratio_group_factor 5 --add_zero_padding \
    --compress_data --warmup_ratio 0.025 --report_step 200 --numWorkers 20 --train mscoco_train,mscoco_nominival,vgnococo \
    --epochs 11 --sub_sampling --sub_feat_num 100 --schedule 4,8 --use_separate_optimizer_for_visual --sgd_lr 0.003 \
    --sgd_momentum 0.0 --use_positional_embedding --load "${LOAD:-snap/pretrain/clip_rn50_stage_one/Epoch09}" \
    --not_load_scheduler --taskQA --not_load_adam_optimizer --optim hf_adamw "$@"
