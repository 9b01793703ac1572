#!/usr/bin/env bash
# Train a dual encoder with prototypes: bash scripts/protoclip.bash GPUS NAME PORT NPROC flags...   -> snap/protoclip/NAME
exec bash "$(dirname "$0")/named_run.bash" protoclip "$@"
