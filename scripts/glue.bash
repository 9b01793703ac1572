#!/usr/bin/env bash
# Fine-tune on GLUE: bash scripts/glue.bash GPUS NAME PORT NPROC flags...   -> snap/glue/NAME
exec bash "$(dirname "$0")/named_run.bash" glue "$@"
