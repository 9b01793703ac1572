#!/usr/bin/env bash
# Run one program with its run folder: bash scripts/named_run.bash PROGRAM GPUS NAME PORT NPROC flags...
# The run folder is snap/PROGRAM/NAME, or NAME if it contains a slash. The last value of a repeated flag is used.
program=${1-} name=${3-}
[[ $name == */* ]] || name=snap/$program/$name
exec bash "$(dirname "$0")/launch.bash" "$program" "${2-}" "${4-}" "${5-}" --tqdm --output "$name" "${@:6}"
