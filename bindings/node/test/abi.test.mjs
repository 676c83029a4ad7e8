// The description of the ABI, whose file is made of the library.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import test from 'node:test';
import * as siren from '../lib/index.mjs';
import { json } from './support.mjs';

const require = createRequire(import.meta.url);
const abi = json('include/siren-abi.json');

test('every struct is laid out as the library has it', () => {
  const { layouts } = require('../lib/layout.cjs');
  assert.deepEqual(
    layouts,
    Object.fromEntries(
      Object.entries(abi.structs).map(([name, { size, offsets }]) => [name, { size, at: offsets }]),
    ),
  );
});

test('every status has its number, its name, and a class of its own', () => {
  const { statuses, errorOf } = require('../lib/errors.cjs');
  const { native } = require('../lib/native.cjs');
  assert.deepEqual(Object.fromEntries(statuses.map(([name], number) => [name, number])), abi.statuses);
  const classes = new Set();
  for (const [name, number] of Object.entries(abi.statuses)) {
    assert.equal(native().siren_status_name(number), name);
    if (number === 0) continue;
    const error = errorOf(number, 'why');
    assert.ok(error instanceof siren.SirenError && error instanceof Error);
    assert.equal(siren[error.constructor.name], error.constructor);
    assert.equal(`${error.code} ${error.status} ${error.message}`, `${name} ${number} why`);
    classes.add(error.constructor);
  }
  assert.equal(classes.size, statuses.length - 1);
  assert.equal(errorOf(31, 'why').code, 'unknown');
  assert.throws(() => errorOf(0, 'why'), RangeError);
});

test('the ABI is the one that this package was made for', () => {
  const { ABI, native } = require('../lib/native.cjs');
  assert.deepEqual(ABI, abi.abi);
  assert.equal(native().siren_abi_version(), (ABI.major << 16) | ABI.minor);
  assert.match(siren.version(), /^\d+\.\d+\.\d+$/);
});

test('import and require give the same objects', () => {
  const required = require('../lib/index.cjs');
  assert.deepEqual(Object.keys(siren).sort(), Object.keys(required).sort());
  for (const name of Object.keys(required)) assert.equal(siren[name], required[name]);
});
