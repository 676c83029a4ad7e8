#!/usr/bin/env bash
# Builds the library with the feature `cuda`, on a machine that needs no GPU and no CUDA toolkit:
#   scripts/cuda-build.sh [--tests] [CARGO OPTION ...]
#
# The toolkit comes from NVIDIA's Python packages, into a virtual environment below the build
# directory. The result is BUILD/cuda/release/libsiren.so, where BUILD is CARGO_TARGET_DIR or
# target: one file for machines with and without a GPU. With --tests it is also
# BUILD/cuda/release/siren-gpu-tests, the tests of the kernels on a GPU, which need no Rust there.
# tests/cuda/check.sh checks both at the end. Exit status 77: the toolkit cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

with_tests=
if [ "${1-}" = --tests ]; then
    with_tests=1 && shift
fi
build=${CARGO_TARGET_DIR:-$PWD/target}/cuda
venv=$build/toolkit
if [ ! -x "$venv/bin/pip" ]; then
    python3 -m venv "$venv" || exit 77
fi
# PTX of a newer toolkit would need a newer driver: 13.0 is the oldest one that is served.
"$venv/bin/pip" install -q nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 || exit 77

root=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
[ -e "$root/lib64" ] || ln -s lib "$root/lib64"
export CUDA_HOME=$root CUDA_PATH=$root CUDA_ROOT=$root CUDA_TOOLKIT_ROOT_DIR=$root
export NVCC=$root/bin/nvcc PATH=$root/bin:$PATH
# What candle compiles is PTX of this architecture, which every later GPU's driver compiles when it
# is loaded; 90 would mean sm_90a, which runs on Hopper alone.
export CUDA_COMPUTE_CAP=80
export CARGO_TARGET_DIR=$build

cargo build --release --package libsiren --lib --features cuda "$@"
tests=
if [ -n "$with_tests" ]; then
    tests=$build/release/siren-gpu-tests
    said=$(cargo test --release --no-run --package libsiren --lib --features cuda "$@" 2>&1) ||
        { echo "$said" >&2 && exit 1; }
    cp --remove-destination "$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$said")" "$tests"
fi
tests/cuda/check.sh "$build/release/libsiren.so" $tests
ls -l "$build/release/libsiren.so" $tests
