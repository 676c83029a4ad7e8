#!/bin/sh
# What a new user does with WHEEL, in FOLDER, which is empty: an environment without any other package, the
# README's lines. PYTHON makes the environment.
#
#   bindings/python/try.sh WHEEL FOLDER
set -eu

wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
readme=$(cd "$(dirname "$0")" && pwd)/README.md
cd "$2"
"${PYTHON:-python3}" -m venv plain
plain/bin/pip install --quiet --disable-pip-version-check --no-index "$wheel"
awk '/^```python$/{found=1; next} /^```$/{if (found) exit} found' "$readme" > main.py
printed=$(plain/bin/python -W error main.py)
echo "$printed" | grep -q '^0\.824[0-9]* harmful$' || { echo "the README's program printed: $printed" >&2; exit 1; }
echo "ok: Python, the README's program, $(basename "$wheel")"
