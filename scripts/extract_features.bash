#!/usr/bin/env bash
# Extract grid features: bash scripts/extract_features.bash GPUS OUTPUT PORT NPROC flags...   (OUTPUT: a .lmdb or .h5)
exec bash "$(dirname "$0")/launch.bash" extract_features "${1-}" "${3-}" "${4-}" --tqdm --output "${2-}" "${@:5}"
