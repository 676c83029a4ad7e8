#!/bin/sh
# Compiles the binding into BUILD/net8.0 and, where Mono's assemblies are, BUILD/net472, and packs what came of
# it with the installation in PREFIX into the folder feed FEED. No SDK is needed: TOOLS is the folder that
# toolchain/setup.sh made.
#
#   bindings/dotnet/packaging/pack.sh FEED PREFIX BUILD TOOLS
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
tools=$4
. "$here/toolchain/compile.sh"
mkdir -p "$3/net8.0"
modern -lib -doc -out:"$3/net8.0/Siren.dll" "$here"/src/*.cs
set -- "$1" "$2" "$3" "lib/net8.0=$3/net8.0"
if has_mono; then
    mkdir -p "$3/net472"
    classic -lib -doc -out:"$3/net472/Siren.dll" "$here"/src/*.cs
    set -- "$@" "lib/net472=$3/net472"
fi
feed=$1 prefix=$2
shift 3
python3 "$here/packaging/pack.py" "$feed" "$prefix" "$@"
