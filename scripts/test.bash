#!/usr/bin/env bash
# Install the requirements of the tests and run them on all cores: bash scripts/test.bash [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.bash requirements.txt tests/requirements.txt
workers=$(env -u OMP_NUM_THREADS nproc)  # nproc counts no more cores than OMP_NUM_THREADS
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-} OMP_NUM_THREADS=${OMP_NUM_THREADS-1}
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile "$@"
