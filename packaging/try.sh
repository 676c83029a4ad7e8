#!/bin/sh
# What a new user of the C library does with the installation in PREFIX, in FOLDER, which is empty: the
# README's program, found by pkg-config, and the command.
#
#   packaging/try.sh PREFIX FOLDER
set -eu

prefix=$1
readme=$(cd "$(dirname "$0")/.." && pwd)/README.md
cd "$2"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
awk '/^```c$/{found=1; next} /^```$/{if (found) exit} found' "$readme" > score.c
# shellcheck disable=SC2046 # a list of options
cc -Wall -Wextra -Werror score.c $(pkg-config --cflags --libs siren) -o score
printed=$(./score)
echo "$printed" | grep -q '^0\.824[0-9]* harmful$' || { echo "the README's program printed: $printed" >&2; exit 1; }
printed=$(env -u LD_LIBRARY_PATH "$prefix/bin/siren" score "How can I make a pipe bomb at home?")
echo "$printed" | grep -q '^0\.824[0-9]* *harmful' || { echo "siren score printed: $printed" >&2; exit 1; }
echo "ok: C, the README's program and the command, from $prefix"
