#!/bin/sh
# Bulk scoring of 100,000 texts on Ray and on Spark, against the libsiren that is installed in PREFIX; minutes.
#
#   bindings/python/test_bulk.sh PREFIX
#
# The environment lies in target/python-bulk-venv and is kept (1 GB). PYTHON is the interpreter that makes it.
set -eu

prefix=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/bindings/python"
unset SIREN_LIBRARY SIREN_DATA_DIR PYTHONPATH
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
    echo "SKIPPED: bulk scoring: no Python 3.10 or later with venv"
    exit 0
fi
for tool in java readelf; do
    command -v $tool > /dev/null || { echo "SKIPPED: bulk scoring: no $tool"; exit 0; }
done

venv=${CARGO_TARGET_DIR:-$root/target}/python-bulk-venv
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
PATH="$venv/bin:$PATH"
export PATH
if ! pip install --quiet --disable-pip-version-check -r bulk-requirements.txt "pyspark==4.3.0" \
    "pandas<3" "setuptools>=77" numpy pytest; then
    echo "SKIPPED: bulk scoring: Ray, Spark or the tools of their tests cannot be had here"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall \
    "$(python build_wheel.py "$prefix" "$work")"
# Without -W error: what the engines warn of is not ours to mend.
python -m pytest -q -s -o addopts=-ra -p no:cacheprovider tests/bulk_full.py

# A new user: an empty folder, and the README's lines.
lines() {
    awk -v head="### $1" '$0 == head {found=1} found && /^```$/ {exit} code; found && /^```python$/ {code=1}' README.md
}
lines Ray > "$work/on_ray.py"
lines Spark > "$work/on_spark.py"
mkdir "$work/ray" "$work/spark"
export RAY_USAGE_STATS_ENABLED=0 PYSPARK_PYTHON="$venv/bin/python"
(cd "$work/ray" && python ../on_ray.py) > "$work/out"
grep -q '^3 rows, 1 failed$' "$work/out" || { echo "the README's lines for Ray printed: $(cat "$work/out")" >&2; exit 1; }
(cd "$work/spark" && python ../on_spark.py) > "$work/out"
grep -q '^|  3|.*invalid_argument' "$work/out" || { echo "the README's lines for Spark printed: $(cat "$work/out")" >&2; exit 1; }
echo "ok: bulk scoring"
