#!/usr/bin/env bash
# k-nearest-neighbour classification: bash scripts/knn.bash GPUS NAME PORT NPROC flags...   -> snap/knn/NAME
exec bash "$(dirname "$0")/named_run.bash" knn "$@"
