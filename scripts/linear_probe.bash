#!/usr/bin/env bash
# Linear probe: bash scripts/linear_probe.bash GPUS NAME PORT NPROC flags...   -> snap/linear_probe/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/linear_probe/$name
exec bash "$(dirname "$0")/launch.bash" linear_probe "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
