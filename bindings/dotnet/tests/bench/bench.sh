#!/bin/sh
# What a call costs in C, on .NET 8 and under Mono, against the libsiren that is installed in PREFIX.
#
#   bindings/dotnet/tests/bench/bench.sh PREFIX
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../../../.." && pwd)
cd "$root/bindings/dotnet"
tools=${SIREN_DOTNET_TOOLCHAIN:-${CARGO_TARGET_DIR:-$root/target}/dotnet-toolchain}
toolchain/setup.sh "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. toolchain/compile.sh
export LD_LIBRARY_PATH="$prefix/lib"
mkdir "$work/net8.0" "$work/net472"
cc -O2 -I"$prefix/include" tests/bench/bench.c -o "$work/bench" -L"$prefix/lib" -lsiren
modern -lib -out:"$work/net8.0/Siren.dll" src/*.cs
modern -ref:"$work/net8.0/Siren.dll" -out:"$work/net8.0/Bench.dll" tests/bench/Bench.cs
runs_on "$work/net8.0/Bench.dll"
echo "C:"
"$work/bench"
echo ".NET 8:"
"$dotnet" "$work/net8.0/Bench.dll"
if has_mono; then
    classic -lib -out:"$work/net472/Siren.dll" src/*.cs
    classic -ref:"$work/net472/Siren.dll" -out:"$work/net472/Bench.exe" tests/bench/Bench.cs
    cp "$tools"/netfx/*.dll "$work/net472"
    echo "Mono:"
    mono "$work/net472/Bench.exe"
fi
