#!/usr/bin/env bash
# Retrieval fine-tuning of S-SMKE on COCO: image-text contrast on the final output, 1,024 pairs, 5 epochs, one GPU.
exec bash "$(dirname "$0")/../distill.bash" "${GPUS:-0}" "${NAME:-s_smke_retrieval_coco}" "${PORT:-9590}" "${NPROC:-1}" \
    --train_data mscoco_captions@train --valid_data mscoco_captions@val --load "${LOAD:-snap/distill/s_smke/best.pt}" \
    --bert "${BERT:-cache/weights/bert-base-uncased}" --teacher none --kd none --itc_layers final --jitter 0 \
    --batch_size 1024 --epochs 5 --lr 3e-5 --weight_decay 0.01 --warmup_ratio 0.1 --fp16 --seed 42 "$@"
