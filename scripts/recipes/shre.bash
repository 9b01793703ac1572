#!/usr/bin/env bash
# SHRe with a shared Transformer layer: the class logits of a supervised ResNet-50 are the target of image and caption.
exec bash "$(dirname "$0")/../distill.bash" "${GPUS:-0,1}" "${NAME:-shre}" "${PORT:-9590}" "${NPROC:-2}" \
    --train_data "${TRAIN:-mscoco_captions@train,data/cc3m.tsv,data/cc12m.tsv}" --valid_data mscoco_captions@val \
    --bert "${BERT:-cache/weights/bert-base-uncased}" --data2vec2_ckpt "${DATA2VEC2:-cache/weights/base_imagenet.pt}" \
    --teacher supervised --teacher_name resnet50.a1_in1k --teacher_ckpt "${TEACHER:-cache/weights/resnet50.a1_in1k.safetensors}" \
    --token_types off --no-mask_same_image --init normal --batch_size 256 --epochs 7 --fp16 --seed 42 "$@"
