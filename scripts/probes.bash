#!/usr/bin/env bash
# Compositional probes: bash scripts/probes.bash GPUS NAME PORT NPROC --probes ... --load ...   -> snap/probes/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/probes/$name
exec bash "$(dirname "$0")/launch.bash" probes "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
