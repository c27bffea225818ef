#!/usr/bin/env bash
# Installs the wheel of FrameScribe for workers into the Python of the PATH: what docker/Dockerfile runs, and its test.
#   docker/install.sh WHEEL CONSTRAINTS
#   TORCH_INDEX=URL   a package index to take PyTorch from, for example one of CPU builds; PyPI's is the CUDA build
set -euo pipefail

wheel=$1 constraints=$2
python -m pip install --disable-pip-version-check --no-cache-dir uv
if [ -n "${TORCH_INDEX:-}" ]; then
    python -m uv pip install --python "$(command -v python)" --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' "$constraints")"
    grep -v -E '^(torch|triton|cuda-|nvidia-)' "$constraints" >/tmp/constraints.txt
    constraints=/tmp/constraints.txt
fi
# Clients of every store, and Google's packages for Dataflow: an image serves wherever it is started.
python -m uv pip install --python "$(command -v python)" --constraint "$constraints" "framescribe[s3,gs,az,gcp] @ file://$(realpath "$wheel")"
python -m pip check --disable-pip-version-check
framescribe --version
