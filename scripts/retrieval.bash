#!/usr/bin/env bash
# Retrieval both ways: bash scripts/retrieval.bash GPUS NAME PORT NPROC --test ... --load ...   -> snap/retrieval/NAME
# NAME is a folder when it holds a slash. Flags given here come last and override the defaults below.
name=${2-}
[[ $name == */* ]] || name=snap/retrieval/$name
exec bash "$(dirname "$0")/launch.bash" retrieval "${1-}" "${3-}" "${4-}" --tqdm --output "$name" "${@:5}"
