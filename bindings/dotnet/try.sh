#!/bin/sh
# What a new user does with the package in the folder feed FEED, in FOLDER, which is empty, laid out as an SDK
# does it: the README's program; nothing tells where the library is. Then without it. No SDK is needed:
# TOOLS is the folder that toolchain/setup.sh made.
#
#   bindings/dotnet/try.sh FEED FOLDER TOOLS
set -eu

here=$(cd "$(dirname "$0")" && pwd)
package=$(cd "$1" && echo "$PWD"/libsiren/*/*.nupkg)
tools=$3
. "$here/toolchain/compile.sh"
cd "$2"
fail() {
    echo "bindings/dotnet: $*" >&2
    exit 1
}
python3 -m zipfile -e "$package" package
cp -r package/lib/net8.0/Siren.dll package/runtimes package/share .
awk '/^```csharp$/{found=1; next} /^```$/{if (found) exit} found' "$here/README.md" > Program.cs
modern -ref:Siren.dll -out:example.dll Program.cs
runs_on example.dll
printed=$("$dotnet" example.dll) || fail "the README's program failed"
echo "$printed" | grep -q '^0\.824[0-9]* harmful$' || fail "the README's program printed: $printed"
rm -r runtimes
if "$dotnet" example.dll > out 2>&1; then
    fail "the README's program runs without a library"
fi
grep -q "/runtimes/linux-x64/native/libsiren.so: not there" out || fail "a missing library says: $(cat out)"
echo "ok: C#, the README's program, $(basename "$package")"
