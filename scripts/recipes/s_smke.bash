#!/usr/bin/env bash
# S-SMKE as published: COCO, CC3M and CC12M, 512 pairs on two GPUs, 7 epochs, independent views, a bank of 65,536.
exec bash "$(dirname "$0")/../distill.bash" "${GPUS:-0,1}" "${NAME:-s_smke}" "${PORT:-9590}" "${NPROC:-2}" \
    --train_data "${TRAIN:-mscoco_captions@train,data/cc3m.tsv,data/cc12m.tsv}" --valid_data mscoco_captions@val \
    --bert "${BERT:-cache/weights/bert-base-uncased}" --data2vec2_ckpt "${DATA2VEC2:-cache/weights/base_imagenet.pt}" \
    --teacher beitv2 --teacher_ckpt "${BEITV2:-cache/weights/beitv2_base_patch16_224_pt1k.pth}" \
    --teacher_view independent --kd bank --bank_size 65536 --bank_init random --bank_candidates local \
    --no-mask_same_image --init normal --batch_size 256 --epochs 7 --base_lr 1e-4 --warmup_ratio 0.1 \
    --weight_decay 0.01 --fp16 --seed 42 "$@"
