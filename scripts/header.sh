#!/usr/bin/env bash
# Writes the generated C header and the layout file into include/.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --quiet --example header -- include
