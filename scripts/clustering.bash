#!/usr/bin/env bash
# k-means of image features: bash scripts/clustering.bash GPUS NAME PORT NPROC flags...   -> snap/clustering/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/clustering/$name
exec bash "$(dirname "$0")/launch.bash" clustering "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
