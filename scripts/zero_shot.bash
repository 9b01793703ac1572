#!/usr/bin/env bash
# Zero-shot classification: bash scripts/zero_shot.bash GPUS NAME PORT NPROC flags...   -> snap/zero_shot/NAME
exec bash "$(dirname "$0")/named_run.bash" zero_shot "$@"
