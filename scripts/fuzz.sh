#!/usr/bin/env bash
# Runs the fuzz targets under AddressSanitizer: scripts/fuzz.sh [SECONDS] [TARGET ...]
#
# SECONDS (60) are shared by the targets, all of fuzz/targets by default. Exits 1 when one crashes,
# hangs or asks for too much memory; what it was fed then lies under the printed path. The corpus
# that grew is kept in the build directory and used again.
#
# cargo-fuzz is not needed, and neither is a nightly toolchain: RUSTC_BOOTSTRAP lets the stable one
# sanitize. libFuzzer is compiled from the crate libfuzzer-sys, so a C++ compiler is.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz/targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

skip() {
    echo "SKIPPED: fuzzing: $1"
    exit 0
}

if ! command -v c++ >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get install -y --no-install-recommends g++ >/dev/null 2>&1; } ||
        skip "no C++ compiler for libFuzzer, and g++ could not be installed"
fi
host=$(rustc -vV | sed -n 's/^host: //p')
runtimes=$(rustc --print sysroot)/lib/rustlib/$host/lib
ls "$runtimes"/librustc*rt.asan.a >/dev/null 2>&1 ||
    skip "this Rust toolchain has no AddressSanitizer runtime"

build=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
# As cargo-fuzz has them: coverage counters and comparisons for libFuzzer, and the sanitizer.
flags="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# An explicit target keeps build scripts and macros free of the flags.
RUSTC_BOOTSTRAP=1 RUSTFLAGS=$(echo $flags) CARGO_TARGET_DIR=$build \
    nice cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml -p libsiren-fuzz --target "$host"

# Files that are written thousands of times a second belong into memory.
scratch=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/siren-fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch

each=$((seconds / ${#targets[@]}))
[ "$each" -ge 1 ] || each=1
passed=0
failed=0
for target in "${targets[@]}"; do
    corpus=$build/corpus/$target
    artifacts=$build/artifacts/$target/
    log=$build/$target.log
    mkdir -p "$corpus" "$artifacts"
    # The guards' own threads and caches make every run look like a leak: looking costs nine tenths
    # of the time.
    case $target in
        abi | stream) leaks=0 ;;
        *) leaks=1 ;;
    esac
    if ASAN_OPTIONS="detect_odr_violation=0:${ASAN_OPTIONS:-}" \
        "$build/$host/release/$target" -max_total_time="$each" -timeout=30 -max_len=8192 -detect_leaks=$leaks \
        -malloc_limit_mb=128 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$artifacts" "$corpus" "fuzz/seeds/$target" >"$log" 2>&1; then
        passed=$((passed + 1))
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "fuzz $target: $runs runs in $each s, $(ls "$corpus" | wc -l) inputs kept, no crash"
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
        echo "fuzz $target: FAILED; inputs under $artifacts, the whole log in $log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
