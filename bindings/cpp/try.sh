#!/bin/sh
# What a new user does with the installation in PREFIX, in FOLDER, which is empty: the README's program,
# found by pkg-config. CXX is the compiler.
#
#   bindings/cpp/try.sh PREFIX FOLDER
set -eu

prefix=$1
readme=$(cd "$(dirname "$0")" && pwd)/README.md
cd "$2"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
awk '/^```cpp$/{found=1; next} /^```$/{if (found) exit} found' "$readme" > score.cpp
# shellcheck disable=SC2046 # a list of options
${CXX:-c++} -std=c++17 -Wall -Wextra -Werror score.cpp -o score $(pkg-config --cflags --libs siren)
printed=$(./score)
echo "$printed" | grep -q '^0\.824[0-9]* harmful$' || { echo "the README's program printed: $printed" >&2; exit 1; }
echo "ok: C++, the README's program, ${CXX:-c++}"
