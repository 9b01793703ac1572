#!/usr/bin/env bash
# Fine-tune with mined hard negatives: bash scripts/negclip.bash GPUS NAME PORT NPROC flags...   -> snap/negclip/NAME
exec bash "$(dirname "$0")/named_run.bash" negclip "$@"
