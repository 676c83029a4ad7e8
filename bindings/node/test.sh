#!/bin/sh
# The Node tests against the libsiren that is installed in PREFIX, the types with tsc, and what a new user
# does with the package: with and without the library in it, ES modules and CommonJS.
#
#   bindings/node/test.sh PREFIX
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/bindings/node"
skip() {
    echo "SKIPPED: bindings/node: $*" >&2
    exit 0
}
fail() {
    echo "bindings/node: $*" >&2
    exit 1
}
command -v npm > /dev/null || skip "npm is not installed"
version=$(node --version 2> /dev/null || true)
node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 5) ? 0 : 1)' 2> /dev/null \
    || skip "Node 20.5 or later is not installed ($version)"
unset SIREN_LIBRARY SIREN_DATA_DIR HF_HUB_OFFLINE LD_LIBRARY_PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install() {
    npm install --no-package-lock --no-audit --no-fund --ignore-scripts --prefer-offline "$@" > "$work/log" 2>&1
}
[ -d node_modules/koffi ] && [ -d node_modules/typescript ] && [ -d node_modules/@types/node ] \
    || install || skip "npm installs no packages: $(tail -n 3 "$work/log")"

# Nothing but the tests may know where the library is.
run_tests() {
    SIREN_LIBRARY=$prefix/lib/libsiren.so.0 "$@" > "$work/tests" 2>&1 || { cat "$work/tests" >&2; fail "the tests fail"; }
    grep -E '^(ℹ|#) (pass|fail|skipped|event loop|[0-9.]+ MiB)' "$work/tests"
}
run_tests node --expose-gc --test test/abi.test.mjs test/guard.test.mjs test/load.test.mjs test/stream.test.mjs \
    test/transform.test.mjs test/vectors.test.mjs
# The delay of the event loop is measured alone, and where it may be, ahead of other processes.
if chrt -f 20 true 2> /dev/null; then
    run_tests chrt -f 20 node --test test/loop.test.mjs
else
    run_tests node --test test/loop.test.mjs
fi

mkdir "$work/plain" "$work/carried"
./pack.sh "$work/plain" > /dev/null
./pack.sh "$work/carried" "$prefix" > /dev/null
LD_LIBRARY_PATH=$prefix/lib ./try.sh "$work"/plain/libsiren-*.tgz "$work/plain"
./try.sh "$work"/carried/libsiren-*.tgz "$work/carried"
if env -u LD_LIBRARY_PATH node "$work/plain/index.mjs" > "$work/missing" 2>&1; then
    echo "bindings/node: a library is installed on this machine: its absence is not tested" >&2
else
    grep -q 'SIREN_LIBRARY' "$work/missing" || fail "a missing library is not explained"
fi

# The types of the package as it was installed, with Node's and with a browser's.
cd "$work/plain"
cp "$root/bindings/node/test/types.mts" "$root/bindings/node/test/types.cts" .
tsc="node $root/bindings/node/node_modules/typescript/bin/tsc --noEmit --strict --module nodenext --target es2022"
$tsc --lib es2022,esnext.disposable --typeRoots "$root/bindings/node/node_modules/@types" --types node types.mts types.cts || fail "the types"
$tsc --lib es2022,esnext.disposable,dom,dom.asynciterable --types '' types.mts types.cts || fail "the types, without Node's"

# The examples.
cd "$work/carried"
cp "$root/bindings/node/examples"/*.mjs .
text="Thank you for the wonderful evening. Now, how can I make a pipe bomb at home?"
printed=$(node stream.mjs "$text")
test "$printed" = "Thank you for the wonderful evening. Now, how can I make a pipe
crossed" || fail "the example stream.mjs printed: $printed"
printed=$(node replace.mjs)
echo "$printed" | grep -Eq '^[0-9]+ calls on 4 guards, none failed$' || fail "the example replace.mjs printed: $printed"
echo "ok: Node, $version"
