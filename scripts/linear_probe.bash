#!/usr/bin/env bash
# Linear probe: bash scripts/linear_probe.bash GPUS NAME PORT NPROC flags...   -> snap/linear_probe/NAME
exec bash "$(dirname "$0")/named_run.bash" linear_probe "$@"
