#!/usr/bin/env bash
# Classify images with the encoder of S-SMKE: bash scripts/imagenet.bash GPUS NAME PORT NPROC flags...   -> snap/imagenet/NAME
exec bash "$(dirname "$0")/named_run.bash" imagenet "$@"
