#!/usr/bin/env bash
# LXMERT's NLVR2 settings (BertAdam, batch 32, 4 epochs, 5e-5) on a CLIP-ViL RN50x4: 4 GPUs. No figure was published for CLIP-ViL.
exec bash "$(dirname "$0")/../finetune_nlvr2.bash" "${GPUS:-0,1,2,3}" "${NAME:-nlvr2_clip_rn50x4}" "${PORT:-9590}" "${NPROC:-4}" \
    --fp16 --batchSize 8 --lr 5e-5 --epochs 4 --schedule 2 --use_separate_optimizer_for_visual --sgd_lr 0.001 \
    --sgd_momentum 0.0 --use_positional_embedding --clip_model_name RN50x4 \
    --loadLXMERT "${LOAD:-snap/pretrain/clip_rn50x4_stage_two/Epoch11}" --optim bert "$@"
