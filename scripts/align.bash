#!/usr/bin/env bash
# Train a dual encoder: bash scripts/align.bash GPUS NAME PORT NPROC flags...   -> snap/align/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/align/$name
exec bash "$(dirname "$0")/launch.bash" align "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
