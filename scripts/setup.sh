#!/usr/bin/env bash
# Installs the Debian packages that the build and the tests need and that are missing.
set -euo pipefail

# command -> package
declare -A need=(
  [cc]=gcc [c++]=g++ [make]=make [pkg-config]=pkg-config [cmake]=cmake
  [npm]=npm
  [valgrind]=valgrind [readelf]=binutils [curl]=curl [clang++]=clang
)
missing=()
for command in "${!need[@]}"; do
  command -v "$command" >/dev/null 2>&1 || missing+=("${need[$command]}")
done
# The tests of the Python binding make an environment of their own.
if command -v python3 >/dev/null 2>&1; then
  python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)
else
  missing+=(python3 python3-venv)
fi
# A header that only the tests of the C++ wrapper need.
[ -e /usr/include/nlohmann/json.hpp ] || missing+=(nlohmann-json3-dev)
# The C# tests compile against Mono's assemblies, and fetch their runtime into a virtual environment.
[ -d /usr/lib/mono/4.7.2-api ] || missing+=(mono-devel)
if ! command -v cargo >/dev/null 2>&1; then
  echo "Rust is missing: install a stable toolchain (1.95 or later) with rustup, then try again." >&2
  exit 1
fi
if [ "${#missing[@]}" -eq 0 ]; then
  exit 0
fi
echo "missing: ${missing[*]}"
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" -ne 0 ]; then
  echo "Install them (on Debian: apt-get install ${missing[*]}), or go on without: the checks that need them say SKIPPED." >&2
  # Nothing can be built without a C compiler.
  command -v cc >/dev/null 2>&1
  exit
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
