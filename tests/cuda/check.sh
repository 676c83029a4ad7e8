#!/usr/bin/env bash
# What holds of a library that was built with the feature `cuda`, on a machine without a GPU:
#   tests/cuda/check.sh LIBRARY
# It needs no CUDA file and no C++ library to be loaded, hides all but siren_*, scores on the CPU,
# and says what a GPU lacks: of the driver (there is none, or one that the test makes), the device,
# the libraries.
set -euo pipefail
cd "$(dirname "$0")/../.."

library=$(realpath "$1")
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
# A driver that lacks a function is no crash either.
expect $whole -- cuda 'unsupported: CUDA device 0: *CUDA_ERROR_NO_DEVICE*'
expect $whole -- auto 'opened: *'

[ $failed -eq 0 ] && echo "ok"
