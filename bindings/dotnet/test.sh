#!/bin/sh
# The C# tests against the libsiren that is installed in PREFIX: on .NET 8, and the netstandard2.0 build under
# Mono; and what a new user does. No SDK is needed: toolchain/setup.sh fetches what compiles.
#
#   bindings/dotnet/test.sh PREFIX
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/bindings/dotnet"
tools=${SIREN_DOTNET_TOOLCHAIN:-${CARGO_TARGET_DIR:-$root/target}/dotnet-toolchain}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "bindings/dotnet: $*" >&2
    exit 1
}
toolchain/setup.sh "$tools" > "$work/log" 2>&1 || {
    cat "$work/log" >&2
    echo "SKIPPED: bindings/dotnet: the runtime and the compiler cannot be had (see above)" >&2
    exit 0
}
unset SIREN_LIBRARY SIREN_DATA_DIR HF_HUB_OFFLINE
export SIREN_SOURCE="$root" DOTNET_CLI_TELEMETRY_OPTOUT=1
. toolchain/compile.sh
tests="tests/*.cs tests/runner/*.cs examples/ChatGuard/CurrentGuard.cs"

mkdir "$work/net8.0" "$work/net472" "$work/user"
# shellcheck disable=SC2086 # lists of files
{
    modern -lib -doc -out:"$work/net8.0/Siren.dll" src/*.cs
    modern -ref:"$work/net8.0/Siren.dll" -out:"$work/net8.0/Siren.Tests.dll" $tests
    modern -ref:"$work/net8.0/Siren.dll" -out:"$work/net8.0/ChatGuard.dll" examples/ChatGuard/*.cs
}
runs_on "$work/net8.0/Siren.Tests.dll"
runs_on "$work/net8.0/ChatGuard.dll"
echo ".NET $(basename "$framework"):"
LD_LIBRARY_PATH="$prefix/lib" "$dotnet" "$work/net8.0/Siren.Tests.dll" || fail "tests failed"
text="Thank you for the wonderful evening. Now, how can I make a pipe bomb at home?"
shown=$(printf %s "$text" | LD_LIBRARY_PATH="$prefix/lib" "$dotnet" "$work/net8.0/ChatGuard.dll")
test "$shown" = "Thank you for the wonderful evening. Now, how can I make a pipe
stopped: harmful" || fail "the example shows: $shown"
frameworks="lib/net8.0=$work/net8.0"
if has_mono; then
    # shellcheck disable=SC2086
    {
        classic -lib -doc -out:"$work/net472/Siren.dll" src/*.cs
        classic -ref:"$work/net472/Siren.dll" -out:"$work/net472/Siren.Tests.exe" $tests
    }
    cp "$tools"/netfx/*.dll "$work/net472"
    echo "Mono:"
    LD_LIBRARY_PATH="$prefix/lib" mono "$work/net472/Siren.Tests.exe" || fail "tests failed under Mono"
    frameworks="$frameworks lib/net472=$work/net472"
else
    echo "SKIPPED: bindings/dotnet: Mono with its 4.7.2 assemblies (mono-devel) is not installed: netstandard2.0 is not tested" >&2
fi

# A new user: an empty folder, the package from the feed as an SDK lays it out, the ten lines of the README;
# nothing tells where the library is. Then without it.
# shellcheck disable=SC2086
python3 packaging/pack.py "$work/feed" "$prefix" $frameworks > /dev/null
awk '/^```csharp$/{found=1; next} /^```$/{if (found) exit} found' README.md > "$work/user/Program.cs"
cd "$work/user"
python3 -m zipfile -e "$work"/feed/libsiren/*/*.nupkg package
cp -r package/lib/net8.0/Siren.dll package/runtimes package/share .
modern -ref:Siren.dll -out:example.dll Program.cs
runs_on example.dll
"$dotnet" example.dll > out || fail "the README's program failed"
grep -Eq '^0\.[0-9]+ harmful$' out || fail "the README's program printed: $(cat out)"
rm -r runtimes
if "$dotnet" example.dll > out 2>&1; then
    fail "the README's program runs without a library"
fi
grep -q "/runtimes/linux-x64/native/libsiren.so: not there" out || fail "a missing library says: $(cat out)"
echo "ok: C#"
