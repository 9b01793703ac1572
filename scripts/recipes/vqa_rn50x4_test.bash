#!/usr/bin/env bash
# Score a fine-tuned RN50x4 on minival (published: 73.91), or write test_predict.json: SPLIT=test.
exec bash "$(dirname "$0")/../finetune_vqa.bash" "${GPUS:-0}" "${NAME:-vqa_clip_rn50x4}" "${PORT:-9590}" 1 --batchSize 32 \
    --use_positional_embedding --clip_model_name RN50x4 --load "${LOAD:-snap/vqa/vqa_clip_rn50x4/BEST}" \
    --test "${SPLIT:-minival}" "$@"
