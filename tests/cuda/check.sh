#!/usr/bin/env bash
# What holds of a library that was built with the feature `cuda`, on a machine without a GPU:
#   tests/cuda/check.sh LIBRARY [TESTS]
# It needs no CUDA file and no C++ library to be loaded, hides all but siren_*, scores on the CPU,
# and says what a GPU lacks: of the driver (there is none, or one that the test makes), the device,
# the libraries. On a driver whose GPU is the CPU (emulated.cpp) it opens and scores. TESTS are its
# unit tests with the same feature: those that need a GPU are skipped, and pass on that driver.
set -euo pipefail
cd "$(dirname "$0")/../.."

library=$(realpath "$1")
tests=${2:+$(realpath "$2")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

fail() {
    echo "FAILED: $1" >&2
    failed=1
}

# Its files, by name.
needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
for name in $needed; do
    case $name in
    libc.so.6 | libm.so.6 | libgcc_s.so.1 | ld-linux-x86-64.so.2) ;;
    *) fail "the library needs $name: $needed" ;;
    esac
done
undefined=$(nm -D --undefined-only "$library" | awk '{ print $NF }')
if grep -E '^(__)?(cu|nvrtc)|^_Z|CXXABI|GLIBCXX' <<<"$undefined"; then
    fail "symbols of CUDA or C++ are undefined"
fi
if nm -D --defined-only "$library" | awk '{ print $NF }' | grep -v '^siren_'; then
    fail "more than siren_* is exported"
fi

cc -Wall -Iinclude tests/cuda/open.c -o "$work/open" -ldl

# expect NAME=VALUE... -- DEVICE PATTERN: what opening says.
expect() {
    local settings=()
    while [ "$1" != -- ]; do
        settings+=("$1") && shift
    done
    local said
    said=$(env -u LD_LIBRARY_PATH "${settings[@]}" "$work/open" "$library" models/demo "$2") || true
    if [[ $said == $3 ]]; then
        echo "$2 (${settings[*]:-no driver}): $said" | sed "s|$work|WORK|g"
    else
        fail "device $2 (${settings[*]:-no driver}): expected $3, found $said"
    fi
}

mkdir "$work/driver" "$work/libraries"
cc -shared -fPIC tests/cuda/driver.c -o "$work/driver/libcuda.so.1"
for name in cublas.so.13 cublasLt.so.13 curand.so.10; do
    echo | cc -shared -x c - -o "$work/libraries/lib$name"
done
fake=LD_LIBRARY_PATH=$work/driver
whole=$fake:$work/libraries

if ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    echo "SKIPPED: what opening says without a driver, since there is one"
else
    expect -- cuda 'unsupported: CUDA device 0: no driver: tried libcuda.so.1: *'
    expect -- auto 'opened: *'
    expect -- cpu 'opened: *'
fi
expect $fake FAKE_VERSION=11000 -- cuda \
    'unsupported: CUDA device 0: the driver serves CUDA 11.0, expected * or later'
expect $fake FAKE_INIT=999 -- cuda \
    "unsupported: CUDA device 0: the driver's cuInit failed (CUDA_ERROR_UNKNOWN, code 999)"
expect $fake FAKE_INIT=3 -- cuda "unsupported: CUDA device 0: the driver's cuInit failed (code 3)"
expect $fake FAKE_INIT=100 -- cuda 'unsupported: CUDA device 0: the driver finds no device'
expect $fake FAKE_COUNT=0 -- cuda \
    'unsupported: CUDA device 0: the driver finds 0 devices, expected an index below that'
expect $fake FAKE_COUNT=1 -- cuda:1 \
    'unsupported: CUDA device 1: the driver finds 1 device, expected an index below that'
expect $fake FAKE_CAPABILITY=75 -- cuda \
    'unsupported: CUDA device 0: its compute capability is 7.5, expected 8.0 or later'
expect $fake FAKE_CAPABILITY=75 -- auto 'opened: *'
expect $fake FAKE_VERSION=11000 -- auto 'opened: *'
if ! ldconfig -p 2>/dev/null | grep -q libcublas; then
    expect $fake -- cuda \
        'unsupported: CUDA device 0: cuBLAS is missing: tried libcublas.so.13, libcublas.so.12: *'
fi
# Own kernels do without cuRAND, candle does not.
if ! ldconfig -p 2>/dev/null | grep -q libcurand; then
    mkdir "$work/products"
    ln -s "$work"/libraries/libcublas* "$work/products"
    expect $fake:$work/products -- cuda \
        "unsupported: CUDA device 0: the driver's cuDevicePrimaryCtxRetain failed (code 100)"
    expect $fake:$work/products -- candle-cuda \
        'unsupported: CUDA device 0: cuRAND is missing: tried libcurand.so.10: *'
fi
# A driver that lacks a function is no crash either.
expect $whole -- cuda \
    "unsupported: CUDA device 0: the driver's cuDevicePrimaryCtxRetain failed (code 100)"
expect $whole -- candle-cuda 'unsupported: CUDA device 0: *CUDA_ERROR_NO_DEVICE*'
expect $whole -- auto 'opened: *'

# A driver whose GPU is the CPU: the score is bf16's, and not the 0.8244 of opening on the CPU.
mkdir "$work/emulated"
"${CXX:-c++}" -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC tests/cuda/emulated.cpp \
    -o "$work/emulated/libcuda.so.1"
for name in cublas.so.13 cublasLt.so.13; do
    ln -s libcuda.so.1 "$work/emulated/lib$name"
done
emulated=(LD_LIBRARY_PATH="$work/emulated" SIREN_REQUIRE_GPU=1)
expect "${emulated[@]}" -- cuda 'opened: 0.8237*'
expect "${emulated[@]}" -- auto 'opened: 0.8237*'
expect "${emulated[@]}" FAKE_MODULE=209 -- cuda \
    "unsupported: CUDA device 0: attention.cu: the driver's cuModuleLoadData failed *"
expect "${emulated[@]}" FAKE_FAULT=700 -- cuda '*CUDA_ERROR_ILLEGAL_ADDRESS*'

# on_gpu WHAT STATUS SETTING... -- PATTERN...: how the tests end, and lines of what they say.
on_gpu() {
    local what=$1 expected=$2 settings=() said status=0
    shift 2
    while [ "$1" != -- ]; do
        settings+=("$1") && shift
    done
    shift
    said=$(env -u LD_LIBRARY_PATH "${settings[@]}" "$tests" real_gpu:: 2>&1) || status=$?
    for pattern in "$@"; do
        if [ $status -ne "$expected" ] || ! grep -q -e "$pattern" <<<"$said"; then
            fail "tests, $what: status $status, expected $expected and '$pattern': $said"
            return
        fi
        echo "tests, $what: $(grep -m1 -o -e "$pattern" <<<"$said")"
    done
}

if [ -n "$tests" ]; then
    if ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
        on_gpu 'no driver' 0 -- 'SKIPPED: no GPU: CUDA device 0: no driver: .*' '.* 0 failed'
    fi
    on_gpu 'the CPU as a GPU' 0 "${emulated[@]}" -- '.* 0 failed'
    on_gpu 'a GPU that the kernels are not for' 101 "${emulated[@]}" FAKE_MODULE=209 -- \
        "CUDA device 0: attention.cu: the driver's cuModuleLoadData failed (CUDA_ERROR_NO_BINARY_FOR_GPU, code 209)"
    on_gpu 'a kernel that is not there' 101 "${emulated[@]}" FAKE_LACKS=gate_bf16 -- \
        'CUDA device 0: the build lacks kernels: gate_bf16'
    # Whichever call comes next, on any of the tests' threads, is told.
    on_gpu 'a kernel that fails' 101 "${emulated[@]}" FAKE_FAULT=700 -- \
        "the driver's cu[A-Za-z]* failed (CUDA_ERROR_ILLEGAL_ADDRESS, code 700)"
fi

[ $failed -eq 0 ] && echo "ok"
