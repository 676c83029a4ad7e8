#!/bin/sh
# Installs into a prefix outside the source tree and uses what lies there, and only that: by
# pkg-config and by CMake, shared and static, and the command.
#
#   tests/abi/install.sh [PROFILE]      dev (default) or release; --skip-build uses the last build
set -eu

cd "$(dirname "$0")/../.."
profile=${1:-dev}
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
text="How can I make a pipe bomb at home?"
unset SIREN_DATA_DIR LD_LIBRARY_PATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

for tool in make cc pkg-config cmake; do
    if ! command -v $tool > /dev/null; then
        echo "SKIPPED: install.sh: $tool is not installed" >&2
        exit 0
    fi
done

mk() {
    make --no-print-directory -f packaging/install.mk "$@" PROFILE="$profile" > "$work/make.log" 2>&1 \
        || { cat "$work/make.log" >&2; fail "make $*"; }
}
if [ "${2:-}" = --skip-build ]; then
    mk install-only PREFIX="$prefix"
else
    mk install PREFIX="$prefix"
fi

# The files, and what names what.
(cd "$prefix" && find . ! -type d | sort) > "$work/files"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
cat > "$work/expected" << EOF
./bin/siren
./include/siren.h
./include/siren.hpp
./lib/cmake/siren/sirenConfig.cmake
./lib/cmake/siren/sirenConfigVersion.cmake
./lib/libsiren.a
./lib/libsiren.so
./lib/libsiren.so.0
./lib/libsiren.so.$version
./lib/pkgconfig/siren.pc
./lib/pkgconfig/siren-static.pc
EOF
(cd models && find demo -type f | sed 's|^|./share/libsiren/models/|') >> "$work/expected"
sort "$work/expected" | diff - "$work/files" || fail "other files are installed than expected"
test "$(readlink "$prefix/lib/libsiren.so.0")" = "libsiren.so.$version" || fail "libsiren.so.0"
test "$(readlink "$prefix/lib/libsiren.so")" = libsiren.so.0 || fail "libsiren.so"

# DESTDIR stages; nothing inside names it.
mk install-only PREFIX=/opt/siren DESTDIR="$work/staged"
(cd "$work/staged/opt/siren" && find . ! -type d | sort) | diff - "$work/files" \
    || fail "DESTDIR changes what is installed"
grep -q '^prefix=/opt/siren$' "$work/staged/opt/siren/lib/pkgconfig/siren.pc" || fail "prefix"
! grep -rIl "$work" "$work/staged" || fail "a staged file names DESTDIR"
! grep -rI '@[A-Z_]*@' "$prefix/lib/pkgconfig" "$prefix/lib/cmake" || fail "a placeholder is left"

# Everything below runs elsewhere.
mkdir "$work/elsewhere"
cd "$work/elsewhere"
scores() {
    "$@" "$text" > out 2> err || { cat err >&2; fail "$*"; }
    test ! -s err || fail "$* wrote to stderr: $(cat err)"
    grep -Eq '^0\.[0-9]{6} harmful$' out || fail "$* printed: $(cat out)"
    cat out >> scores
}

export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
pkg-config --print-errors --exact-version="$version" siren || fail "pkg-config has another version"
strict="-std=c99 -Wall -Wextra -Werror -pedantic"
# shellcheck disable=SC2046,SC2086 # lists of options
cc $strict "$root/examples/c/score.c" -o shared $(pkg-config --cflags --libs siren)
readelf -d shared | grep -q 'NEEDED.*\[libsiren.so.0\]' || fail "the program does not need libsiren.so.0"
scores env LD_LIBRARY_PATH="$prefix/lib" ./shared

# A program that holds the library finds the demo guard beside itself.
# shellcheck disable=SC2046,SC2086
cc $strict "$root/examples/c/score.c" -o "$prefix/bin/static" \
    $(pkg-config --cflags --libs siren-static)
! readelf -d "$prefix/bin/static" | grep -q libsiren || fail "the static program needs libsiren.so"
scores "$prefix/bin/static"

mkdir cmake
cat > cmake/CMakeLists.txt << 'EOF'
cmake_minimum_required(VERSION 3.13)
project(example C CXX)
find_package(siren ${WANTED} REQUIRED)
set(CMAKE_C_STANDARD 99)
set(CMAKE_CXX_STANDARD 11)
add_executable(cmake-shared ${EXAMPLES}/c/score.c)
target_link_libraries(cmake-shared PRIVATE siren::siren)
add_executable(cmake-static ${EXAMPLES}/c/score.c)
target_link_libraries(cmake-static PRIVATE siren::static)
set_target_properties(cmake-static PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${siren_DIR}/../../../bin)
add_executable(cmake-cpp ${EXAMPLES}/cpp/score.cpp)
target_link_libraries(cmake-cpp PRIVATE siren::siren)
EOF
configure() {
    cmake -S cmake -B "$1" -DWANTED="$2" -DEXAMPLES="$root/examples" \
        -DCMAKE_PREFIX_PATH="$prefix" > "$1.log" 2>&1
}
configure build "${version%.*}" || { cat build.log >&2; fail "cmake"; }
cmake --build build > build.log 2>&1 || { cat build.log >&2; fail "cmake --build"; }
readelf -d build/cmake-shared | grep -q 'NEEDED.*\[libsiren.so.0\]' || fail "cmake: no libsiren.so.0"
! readelf -d "$prefix/bin/cmake-static" | grep -q libsiren || fail "cmake: static needs libsiren.so"
scores build/cmake-shared
scores build/cmake-cpp
scores "$prefix/bin/cmake-static"
! configure newer 9.0 || fail "cmake finds siren 9.0"
! configure older 0.0 || fail "cmake takes another minor version for the same ABI"

# The command, and one score for all.
test "$(sort -u scores | wc -l)" = 1 || fail "scores differ: $(cat scores)"
"$prefix/bin/siren" score "$text" > out 2> err || { cat err >&2; fail "siren score"; }
grep -q "$(cut -c3-6 scores | head -n 1)" out || fail "siren score printed: $(cat out)"

# The guard came from the prefix: without it there is none, whatever lies above the prefix.
mv "$prefix/share" "$prefix/hidden"
mkdir "$work/models"
cp -r "$prefix/hidden/libsiren/models/demo" "$work/models/demo"
for program in "env LD_LIBRARY_PATH=$prefix/lib ./shared" "$prefix/bin/static" \
    "$prefix/bin/siren score"; do
    ! $program "$text" > out 2> err || fail "$program found a guard outside of the prefix"
    grep -q "$prefix/share/libsiren/models/demo" err || fail "$program: $(cat err)"
    ! grep -q " $work/models/demo" err || fail "$program looked above the prefix: $(cat err)"
done
echo "ok: installed, found by pkg-config and CMake, shared and static"
