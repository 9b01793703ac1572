#!/usr/bin/env bash
# k-nearest-neighbour classification: bash scripts/knn.bash GPUS NAME PORT NPROC flags...   -> snap/knn/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/knn/$name
exec bash "$(dirname "$0")/launch.bash" knn "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
