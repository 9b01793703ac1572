#!/usr/bin/env bash
# CLIP-ViL RN50, stage one: 8 GPUs, batch 512. The schedule is laid out for 20 epochs and the run stops after 9.
exec bash "$(dirname "$0")/../pretrain.bash" "${GPUS:-0,1,2,3,4,5,6,7}" "${NAME:-clip_rn50_stage_one}" "${PORT:-9590}" "${NPROC:-8}" \
    --fp16 --gradient_accumulation_steps 2 --batchSize 32 --lr 1e-4 --aspect_ratio_group_factor 5 --add_zero_padding \
    --compress_data --warmup_ratio 0.025 --report_step 200 --numWorkers 20 --train mscoco_train,mscoco_nominival,vgnococo \
    --epochs 20 --sub_sampling --sub_feat_num 100 --schedule 12,17 --use_separate_optimizer_for_visual --sgd_lr 0.003 \
    --sgd_momentum 0.0 --use_positional_embedding --stop_after_epoch 9 --optim hf_adamw "$@"
