#!/usr/bin/env bash
# Mine hard negatives: bash scripts/mine_negatives.bash GPUS NAME PORT NPROC flags...   (NAME: the .tsv to write)
exec bash "$(dirname "$0")/launch.bash" mine_negatives "${1-}" "${3-}" "${4-}" --output "${2-}" "${@:5}"
