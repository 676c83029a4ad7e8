#!/bin/sh
# The Go tests against the libsiren that is installed in PREFIX: cgo shared, static, with the race
# detector, and without cgo; a while of fuzzing; and what a new user does.
#
#   bindings/go/test.sh PREFIX
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/bindings/go"
version=$(go env GOVERSION 2> /dev/null || true)
case $version in
    go1.2[5-9]* | go1.[3-9][0-9]*) ;;
    *)
        echo "SKIPPED: bindings/go: Go 1.25 or later is not installed ($version)" >&2
        exit 0
        ;;
esac
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib"
unset SIREN_LIBRARY SIREN_DATA_DIR HF_HUB_OFFLINE

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/user"

unformatted=$(gofmt -l .)
test -z "$unformatted" || { echo "gofmt: $unformatted" >&2; exit 1; }
go vet ./...
CGO_ENABLED=0 go vet ./...
go test -count=1 ./...
CGO_ENABLED=0 go test -count=1 ./...
go test -count=1 -race ./...
# Linked in, it needs no library at run time.
go test -tags siren_static -c -o "$work/static.test" .
env -u LD_LIBRARY_PATH "$work/static.test"
# Runs are counted: to stop at a time is a race that Go before 1.27 may lose (golang/go#75804). Making
# inputs smaller would take up to a minute each.
for target in FuzzScore:100000 FuzzStream:3000; do
    go test -run '^$' -fuzz "^${target%:*}\$" -fuzztime "${target#*:}x" -fuzzminimizetime 10x .
done

./try.sh . "$work/user" "$prefix"
echo "ok: Go, $version"
