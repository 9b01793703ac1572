#!/usr/bin/env bash
# Fine-tune with mined hard negatives: bash scripts/negclip.bash GPUS NAME PORT NPROC flags...   -> snap/negclip/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/negclip/$name
exec bash "$(dirname "$0")/launch.bash" negclip "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
