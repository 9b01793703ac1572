#!/usr/bin/env bash
# Train a dual encoder: bash scripts/align.bash GPUS NAME PORT NPROC flags...   -> snap/align/NAME
exec bash "$(dirname "$0")/named_run.bash" align "$@"
