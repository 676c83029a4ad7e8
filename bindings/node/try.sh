#!/bin/sh
# What a new user does with the package TGZ, in FOLDER, which is empty: the README's lines, as an ES module
# and as CommonJS. A package without the library finds it by LD_LIBRARY_PATH.
#
#   bindings/node/try.sh TGZ FOLDER
set -eu

package=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
readme=$(cd "$(dirname "$0")" && pwd)/README.md
cd "$2"
npm init -y > npm.log 2>&1
npm install --no-package-lock --no-audit --no-fund --ignore-scripts --prefer-offline "$package" > npm.log 2>&1 \
    || { cat npm.log >&2; exit 1; }
awk '/^```js$/{found=1; next} /^```$/{if (found) exit} found' "$readme" > index.mjs
sed "s/^import { open } from 'libsiren';/const { open } = require('libsiren'); (async () => {/; \$a })();" index.mjs > index.cjs
for program in index.mjs index.cjs; do
    printed=$(node $program)
    echo "$printed" | grep -q '^0\.824[0-9]* harmful$' \
        || { echo "the README's program ($program) printed: $printed" >&2; exit 1; }
done
echo "ok: Node, the README's program, ES module and CommonJS"
