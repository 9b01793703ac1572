#!/usr/bin/env bash
# Compositional probes: bash scripts/probes.bash GPUS OUTPUT PORT NPROC flags...   (OUTPUT: the folder for results)
exec bash "$(dirname "$0")/launch.bash" probes "${1-}" "${3-}" "${4-}" --output "${2-}" "${@:5}"
