#!/usr/bin/env bash
# Retrieval both ways: bash scripts/retrieval.bash GPUS NAME PORT NPROC --test ... --load ...   -> snap/retrieval/NAME
exec bash "$(dirname "$0")/named_run.bash" retrieval "$@"
