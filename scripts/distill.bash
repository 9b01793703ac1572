#!/usr/bin/env bash
# Distil into a dual encoder (S-SMKE): bash scripts/distill.bash GPUS NAME PORT NPROC flags...   -> snap/distill/NAME
exec bash "$(dirname "$0")/named_run.bash" distill "$@"
