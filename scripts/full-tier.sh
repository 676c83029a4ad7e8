#!/usr/bin/env bash
# The checks that are too slow or need too much for every change:
#   scripts/full-tier.sh [--fuzz-seconds N] [--soak-seconds N] [STEP ...]
#
#   tsan     ThreadSanitizer, with an instrumented standard library: the library's unit tests, and
#            the load program, for a minute
#   aarch64  unit and parity tests, cross-compiled and run by qemu-user
#   miri     the modules that Miri can run: JSON, cleaning, word boundaries, windows, configuration,
#            queue, callbacks, handles
#   soak     the load program: 64 callers and 256 streams for SOAK_SECONDS (600)
#   kernels  the GPU's kernels on the emulator under AddressSanitizer and UBSan: every buffer of the
#            GPU, and a block's shared memory, is an allocation of the size that was asked for
#   cuda     --features cuda compiles and links, without a GPU; what it makes loads and scores without
#            CUDA and says what is missing, and its GPU tests pass on an emulated driver
#            (scripts/cuda-build.sh)
#   bulk     100,000 texts through the Python binding on Ray and on Spark, with workers and drivers killed
#   fuzz     every fuzz target, FUZZ_SECONDS (1800) in all
#
# All steps by default. A step runs, or says SKIPPED and why; the table at the end has them all,
# and the exit status is 1 when one failed. What a step lacks is installed where that can be done.
# Each step but soak builds in a directory of its own below the build directory.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=()
fuzz_seconds=1800
soak_seconds=600
while [ $# -gt 0 ]; do
    case $1 in
    --fuzz-seconds) fuzz_seconds=$2 && shift 2 ;;
    --soak-seconds) soak_seconds=$2 && shift 2 ;;
    tsan | aarch64 | miri | soak | kernels | cuda | bulk | fuzz) steps+=("$1") && shift ;;
    *) sed -n '2,21p' "$0" && exit 2 ;;
    esac
done
[ ${#steps[@]} -gt 0 ] || steps=(tsan aarch64 miri soak kernels cuda bulk fuzz)

build=${CARGO_TARGET_DIR:-$PWD/target}/full-tier
host=$(rustc -vV | sed -n 's/^host: //p')
logs=$build/logs
mkdir -p "$logs"

# Ends a step that cannot run here.
skip() {
    echo "SKIPPED: $1"
    exit 77
}

# Installs Debian packages where that can be done.
packages() {
    [ "$(id -u)" = 0 ] && apt-get install -y --no-install-recommends "$@" >/dev/null
}

tsan() {
    rustup component add rust-src || skip "rust-src cannot be had, and std must be instrumented too"
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread" CARGO_TARGET_DIR=$build/tsan
    export TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS:-}"
    cargo test -Zbuild-std --target "$host" --no-default-features \
        --package libsiren --package siren-load --lib --test small \
        -- --skip some_seconds --skip kernels::cuda --skip guard::on_gpu &&
        "$CARGO_TARGET_DIR/$host/debug/siren-load" tests/parity/fixtures/qwen3-short \
            --seconds 60 --callers 16 --streams 64 --sanitizer
}

aarch64() {
    local target=aarch64-unknown-linux-gnu
    rustup target add $target || skip "the standard library for $target cannot be had"
    { command -v aarch64-linux-gnu-gcc && command -v qemu-aarch64; } >/dev/null ||
        packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ||
        skip "no cross compiler or qemu-user, and they could not be installed"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
    # Emulated code is some ten times as slow: build first, so that what is bounded is the tests.
    local run=(cargo test --target $target --no-default-features --package libsiren --lib --test parity)
    export CARGO_TARGET_DIR=$build/aarch64
    # The feature cuda is for x86-64 alone, and so is what stands for a GPU in its tests.
    local tests=(-- --skip kernels::cuda --skip guard::on_gpu --skip as_gpu)
    "${run[@]}" --no-run && timeout "$((45 * 60))" "${run[@]}" "${tests[@]}"
}

# Not run: kernels (SIMD intrinsics), the tokenizer itself (C), memory maps, anything that scores.
miri_tests=(
    json::tests
    text::clean::tests
    text::tokenizer::tests::an_added_token_that_ends_between
    text::tokenizer::tests::boundaries_stand_before
    windows::tests
    backbone::config::tests
    schedule::
    ffi::
)

miri() {
    rustup component add --toolchain nightly miri rust-src ||
        skip "Miri for the nightly toolchain cannot be had"
    # The time and files of the host are asked for by the harness and by temporary directories.
    CARGO_TARGET_DIR=$build/miri MIRIFLAGS="-Zmiri-disable-isolation" \
        cargo +nightly miri test --no-default-features --package libsiren --lib -- "${miri_tests[@]}"
}

soak() {
    make soak SOAK_SECONDS="$soak_seconds"
}

# The test program itself is not instrumented: the sanitizer's library comes first, so that the
# program's allocations are watched too.
kernels() {
    local runtime
    runtime=$("${CXX:-c++}" -print-file-name=libasan.so)
    [ -e "$runtime" ] || skip "the C++ compiler has no AddressSanitizer"
    local host_name=${host^^}
    export "CARGO_TARGET_${host_name//-/_}_RUNNER=env LD_PRELOAD=$runtime"
    export SIREN_EMULATOR_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"
    # What the tests and the compiler that they call leave to the end of the process is no leak.
    export ASAN_OPTIONS=detect_leaks=0 CARGO_TARGET_DIR=$build/kernels
    cargo test --no-default-features --package libsiren --lib kernels::cuda::
}

cuda() {
    local status=0
    CARGO_TARGET_DIR=$build scripts/cuda-build.sh --tests || status=$?
    [ $status -ne 77 ] || skip "the CUDA toolkit's packages cannot be had"
    return $status
}

bulk() {
    make install PREFIX="$build/bulk-prefix" >/dev/null
    bindings/python/test_bulk.sh "$build/bulk-prefix"
}

fuzz() {
    CARGO_TARGET_DIR=$build scripts/fuzz.sh "$fuzz_seconds"
}

failed=0
table=
for step in "${steps[@]}"; do
    log=$logs/$step.log
    echo "== $step"
    begun=$SECONDS
    (set -e; $step) 2>&1 | tee "$log"
    case ${PIPESTATUS[0]} in
    0) if grep -q '^SKIPPED' "$log"; then result=$(grep -m1 '^SKIPPED' "$log"); else result=ok; fi ;;
    77) result=$(grep '^SKIPPED' "$log" | tail -1) ;;
    *) result=FAILED && failed=$((failed + 1)) ;;
    esac
    minutes=$(awk "BEGIN { printf \"%.1f\", ($SECONDS - $begun) / 60 }")
    table+=$(printf '%-8s %5s min  %s' "$step" "$minutes" "$result")$'\n'
done
printf '\n%s' "$table"
[ "$failed" -eq 0 ]
