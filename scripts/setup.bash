#!/usr/bin/env bash
# Create .venv and install the packages of the given requirements files, unless they are installed already.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ! -x .venv/bin/python ]]; then
    for python in "${PYTHON:-}" python3.12 python3.11 python3; do
        if [[ -n $python ]] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            break
        fi
        python=""
    done
    if [[ -z $python ]]; then echo "Python 3.11 or 3.12 is needed; set PYTHON to one" >&2; exit 2; fi
    "$python" -m venv .venv
fi
stamp=.venv/installed-$(cat "$@" | sha256sum | cut -c1-16)
if [[ ! -e $stamp ]]; then
    echo "installing $* into .venv (torch is large: a minute or two)"
    arguments=()
    for file in "$@"; do arguments+=(-r "$file"); done
    if command -v uv >/dev/null; then
        uv pip install --quiet --python .venv/bin/python "${arguments[@]}"
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "${arguments[@]}"
    fi
    touch "$stamp"
fi
