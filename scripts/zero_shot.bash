#!/usr/bin/env bash
# Zero-shot classification: bash scripts/zero_shot.bash GPUS NAME PORT NPROC flags...   -> snap/zero_shot/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/zero_shot/$name
exec bash "$(dirname "$0")/launch.bash" zero_shot "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
