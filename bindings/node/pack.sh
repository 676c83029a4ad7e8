#!/bin/sh
# Makes the package's tgz in the folder OUT. With PREFIX, an installation of libsiren, the package carries
# the library of this machine's kind and the demo guard, and needs nothing else.
#
#   bindings/node/pack.sh OUT [PREFIX]
set -eu

mkdir -p "$1"
out=$(cd "$1" && pwd)
prefix=${2:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -R "$root/bindings/node/lib" "$root/bindings/node/package.json" "$root/bindings/node/README.md" "$root/LICENSE" "$stage"
if [ -n "$prefix" ]; then
    carried=$stage/native/linux-$(node -p process.arch)
    mkdir -p "$carried/lib" "$carried/share/libsiren"
    cp -L "$prefix/lib/libsiren.so.0" "$carried/lib"
    cp -R "$prefix/share/libsiren/models" "$carried/share/libsiren"
fi
cd "$stage"
npm pack --silent --pack-destination "$out"
