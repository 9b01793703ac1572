#!/usr/bin/env bash
# The nine GLUE tasks with S-SMKE's text encoder and the published settings, one GPU.
exec bash "$(dirname "$0")/../glue.bash" "${GPUS:-0}" "${NAME:-s_smke}" "${PORT:-9590}" "${NPROC:-1}" \
    --task all --glue "${GLUE:-data/glue}" --load "${LOAD:-snap/distill/s_smke/best.pt}" \
    --bert "${BERT:-cache/weights/bert-base-uncased}" --compat_batch_means --fp16 --seed 42 "$@"
