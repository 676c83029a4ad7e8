#!/bin/sh
# The sweep, streams, calls and threads under AddressSanitizer, library included. Needs clang or gcc.
#
#   tests/abi/asan.sh
#
# Builds the static library anew, without the hub, into a target directory of its own.
set -eu

cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
built=${CARGO_TARGET_DIR:-target}/asan
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A compiler that has the sanitizer's runtime, which distributions package apart.
compiler=
echo 'int main(void) { return 0; }' > "$work/empty.c"
for candidate in clang gcc; do
    if "$candidate" -fsanitize=address "$work/empty.c" -o "$work/empty" 2> /dev/null; then
        compiler=$candidate
        break
    fi
done
if [ -z "$compiler" ]; then
    echo "SKIPPED: asan.sh: neither clang nor gcc links with -fsanitize=address" >&2
    exit 0
fi

# RUSTC_BOOTSTRAP lets the stable compiler take -Z.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$built" \
    cargo rustc --locked --package libsiren --lib --crate-type staticlib \
    --no-default-features --target $target

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
for program in sweep streams calls threads; do
    $compiler -std=c99 -g -O1 -Wall -Wextra -Werror -fsanitize=address -fno-omit-frame-pointer \
        -Iinclude -Itests/abi "tests/abi/$program.c" -o "$work/$program" \
        "$built/$target/debug/libsiren.a" -lgcc_s -lpthread -lm -ldl
done
ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
export ASAN_OPTIONS
"$work/sweep" models/demo "$version"
"$work/streams" models/demo
"$work/calls" models/demo
"$work/threads" models/demo
echo "ok: no error under AddressSanitizer ($compiler)"
