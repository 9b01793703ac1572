#!/usr/bin/env bash
# Install what the tests need and run them: bash scripts/test.bash [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.bash requirements.txt tests/requirements.txt
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}
exec .venv/bin/python -m pytest "$@"
