#!/usr/bin/env bash
# The name under which the published instructions call finetune_vqa.bash; they print a stray number after NPROC.
if [[ ${5-} =~ ^[0-9]+$ ]]; then
    echo "ignoring the stray argument $5 of the published command" >&2
    set -- "${@:1:4}" "${@:6}"
fi
exec bash "$(dirname "$0")/finetune_vqa.bash" "$@"
