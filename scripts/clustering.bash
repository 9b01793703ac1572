#!/usr/bin/env bash
# k-means of image features: bash scripts/clustering.bash GPUS NAME PORT NPROC flags...   -> snap/clustering/NAME
exec bash "$(dirname "$0")/named_run.bash" clustering "$@"
