#!/usr/bin/env bash
# Compositional probes: bash scripts/probes.bash GPUS NAME PORT NPROC --probes ... --load ...   -> snap/probes/NAME
exec bash "$(dirname "$0")/named_run.bash" probes "$@"
