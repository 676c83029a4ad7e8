#!/usr/bin/env bash
# Builds what a release has for this machine's kind of Linux into dist/, checks it, and tries each package in an
# empty folder as its users do: scripts/release.sh [--skip-build]
#
#   libsiren-VERSION-linux-ARCH.tar.gz   an installation: library, shared and static, headers for C and C++,
#                                        pkg-config and CMake files, the command, the demo guard
#   libsiren-VERSION-*.whl               Python
#   libsiren-VERSION.tgz                 Node
#   nuget/                               .NET: a folder feed
#   libsiren-go-VERSION.tar.gz           Go: the module, to be taken by a replace
#   SHA256SUMS, SIZES
#
# The binaries need glibc 2.28 (GLIBC) or later: cargo-zigbuild links them, and comes with auditwheel from PyPI
# into the build directory. What a package lacks a tool for is left out and says SKIPPED, once more at the end;
# anything that is wrong ends with status 1. --skip-build takes the binaries of the last run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

case ${1:-} in
'') build=1 ;;
--skip-build) build= ;;
*) sed -n '2,16p' "$0" && exit 2 ;;
esac
export GLIBC=${GLIBC:-2.28}
dist=$root/dist
target=${CARGO_TARGET_DIR:-$root/target}
venv=$target/release-tools
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
prefix=$target/release-prefix/libsiren-$version-linux-$(uname -m)
unset SIREN_LIBRARY SIREN_DATA_DIR HF_HUB_OFFLINE PYTHONPATH LD_LIBRARY_PATH PKG_CONFIG_PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
skipped=()
skip() {
    echo "SKIPPED: $1" >&2
    skipped+=("$1")
}
# An empty folder.
folder() {
    mkdir "$work/$1"
    echo "$work/$1"
}
# The same bytes whoever packs: gzip without a time, sorted names, no owner.
pack() {
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -C "$2" -c "${@:3}" | gzip -n > "$1"
}

echo "== versions"
packaging/check.py versions

echo "== tools"
wanted="cargo-zigbuild==0.24.1 ziglang==0.17.1 auditwheel==6.8.2 setuptools>=77"
if [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086 # the tools are words
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" > "$venv/wanted"
fi
export PATH=$venv/bin:$PATH

if [ -n "$build" ]; then
    echo "== build, for glibc $GLIBC"
    make --no-print-directory -f packaging/install.mk dist
fi
echo "== installation"
rm -rf "$dist" "$target/release-prefix"
mkdir -p "$dist"
# Wherever it is unpacked, its .pc files find it.
# shellcheck disable=SC2016 # pkg-config's variable
make --no-print-directory -f packaging/install.mk install-only PREFIX="$prefix" PC_PREFIX='$${pcfiledir}/../..' > /dev/null
cp LICENSE CHANGELOG.md "$prefix"
packaging/check.py binaries "$prefix" --glibc "$GLIBC"
tests/abi/install.sh release --skip-build
pack "$dist/$(basename "$prefix").tar.gz" "$(dirname "$prefix")" "$(basename "$prefix")"
unpacked=$(folder installation)
tar xzf "$dist/$(basename "$prefix").tar.gz" -C "$unpacked" --strip-components=1
packaging/try.sh "$unpacked" "$(folder c)"
bindings/cpp/try.sh "$unpacked" "$(folder cpp)"

echo "== Python"
wheel=$("$venv/bin/python" bindings/python/build_wheel.py "$prefix" "$dist" --glibc "$GLIBC")
auditwheel show "$wheel" > "$work/audit"
tag=$(expr "$wheel" : '.*-\(manylinux_[0-9_]*_[a-z0-9_]*\)\.whl')
tr '\n' ' ' < "$work/audit" | grep -q "platform tag: \"$tag\"" || { cat "$work/audit" >&2; exit 1; }
echo "ok: auditwheel says $tag"
bindings/python/try.sh "$wheel" "$(folder python)"

echo "== Node"
if command -v npm > /dev/null; then
    bindings/node/pack.sh "$dist" "$prefix" > /dev/null
    bindings/node/try.sh "$dist/libsiren-$version.tgz" "$(folder node)"
else
    skip "the package for Node: npm is not installed"
fi

echo "== .NET"
toolchain=${SIREN_DOTNET_TOOLCHAIN:-$target/dotnet-toolchain}
if [ "$(uname -m)" != x86_64 ]; then
    skip "the package for .NET: it is made for x86-64 alone"
elif bindings/dotnet/toolchain/setup.sh "$toolchain" > "$work/dotnet.log" 2>&1; then
    bindings/dotnet/packaging/pack.sh "$dist/nuget" "$prefix" "$(folder built)" "$toolchain" > /dev/null
    [ -d "$work/built/net472" ] || skip "the part of the package for .NET that is not for .NET 8: Mono (mono-devel) is not installed"
    bindings/dotnet/try.sh "$dist/nuget" "$(folder dotnet)" "$toolchain"
else
    cat "$work/dotnet.log" >&2
    skip "the package for .NET: the runtime and the compiler cannot be had (see above)"
fi

echo "== Go"
module=$(folder module)/libsiren-go-$version
mkdir "$module"
cp -R bindings/go/. "$module"
find "$module" -type f \( -name '*_test.go' -o -name test.sh -o -name try.sh -o -name coverage.json \) -delete
cp LICENSE "$module"
pack "$dist/$(basename "$module").tar.gz" "$work/module" "$(basename "$module")"
case $(go env GOVERSION 2>/dev/null || true) in
go1.2[5-9]* | go1.[3-9][0-9]*) bindings/go/try.sh "$module" "$(folder go)" "$unpacked" ;;
*) skip "trying the module for Go: Go 1.25 or later is not installed" ;;
esac

echo "== packages"
packaging/check.py packages "$dist" "$prefix/lib/libsiren.so.$version"
cd "$dist"
find . -type f -printf '%P\n' | sort | xargs sha256sum > "$work/sums"
find . -type f -printf '%s\t%P\n' | sort -k 2 > "$work/sizes"
mv "$work/sums" SHA256SUMS
mv "$work/sizes" SIZES
sha256sum --check --quiet SHA256SUMS
cat SIZES

echo "== other platforms (docs/platforms.md)"
sed -n '/^| platform/,/^$/p' "$root/docs/platforms.md"
for what in "${skipped[@]}"; do
    echo "SKIPPED: $what" >&2
done
echo "ok: $dist"
