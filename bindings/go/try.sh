#!/bin/sh
# What a new user does with the module in the folder MODULE, in FOLDER, which is empty: the README's
# program, through a replace, with and without cgo. PREFIX has the library.
#
#   bindings/go/try.sh MODULE FOLDER PREFIX
set -eu

module=$(cd "$1" && pwd)
export PKG_CONFIG_PATH="$3/lib/pkgconfig" LD_LIBRARY_PATH="$3/lib"
cd "$2"
version=$(sed -n 's/.*-require libsiren\/siren@\(v[0-9.]*\).*/\1/p' "$module/README.md")
awk '/^```go$/{found=1; next} /^```$/{if (found) exit} found' "$module/README.md" > main.go
go mod init example > /dev/null 2>&1
go mod edit -require "libsiren/siren@$version" -replace "libsiren/siren=$module"
go mod tidy > tidy.log 2>&1 || { cat tidy.log >&2; exit 1; }
for cgo in 1 0; do
    printed=$(CGO_ENABLED=$cgo go run .)
    echo "$printed" | grep -q '^0\.824[0-9]* harmful$' \
        || { echo "the README's program (CGO_ENABLED=$cgo) printed: $printed" >&2; exit 1; }
done
echo "ok: Go, the README's program, with and without cgo"
