'use strict';
// Finds the library and declares its functions.

const fs = require('node:fs');
const path = require('node:path');
const koffi = require('koffi');

const ABI = { major: 0, minor: 2 };
const SONAME = 'libsiren.so.0';

// Pointers and handles go as numbers: what they point to is laid out in layout.cjs.
const FUNCTIONS = {
  siren_abi_version: ['uint32_t', []],
  siren_version: ['str', []],
  siren_status_name: ['str', ['int32_t']],
  siren_open: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_free: ['int32_t', ['uintptr_t']],
  siren_warmup: ['int32_t', ['uintptr_t', 'uintptr_t']],
  siren_info: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_info_json: ['int32_t', ['uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t']],
  siren_stats: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_stats_prometheus: ['int32_t', ['uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t']],
  siren_audit_json: [
    'int32_t',
    ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t'],
  ],
  siren_score_async: [
    'int32_t',
    ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t'],
  ],
  siren_score_batch_async: [
    'int32_t',
    ['uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t'],
  ],
  siren_cancel_token_new: ['int32_t', ['uintptr_t', 'uintptr_t']],
  siren_cancel: ['int32_t', ['uintptr_t', 'uintptr_t']],
  siren_cancel_token_free: ['int32_t', ['uintptr_t']],
  siren_stream_new: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_stream_push_async: [
    'int32_t',
    ['uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t'],
  ],
  siren_stream_finish: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_stream_reset: ['int32_t', ['uintptr_t', 'uintptr_t']],
  siren_stream_fork: ['int32_t', ['uintptr_t', 'uintptr_t', 'uintptr_t']],
  siren_stream_free: ['int32_t', ['uintptr_t']],
};

const CALLBACKS = {
  score: ['uintptr_t', 'int32_t', 'uintptr_t', 'uintptr_t'],
  batch: ['uintptr_t', 'int32_t', 'uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t'],
  progress: ['uintptr_t', 'uintptr_t', 'size_t', 'uint64_t', 'uint64_t'],
};

/** Where the library may be, in this order: what SIREN_LIBRARY names and nothing else; in this package. */
function candidates() {
  const named = process.env.SIREN_LIBRARY;
  if (named) return [named];
  const carried = path.join(
    __dirname,
    '..',
    'native',
    `${process.platform}-${process.arch}`,
    'lib',
    SONAME,
  );
  return [...(fs.existsSync(carried) ? [carried] : []), SONAME];
}

function open() {
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) {
    throw new Error(`libsiren: ${process.platform}-${process.arch} is not supported; 64-bit Linux is`);
  }
  const tried = [];
  for (const name of candidates()) {
    try {
      return koffi.load(name);
    } catch (error) {
      tried.push(`  ${name}: ${error.message}`);
    }
  }
  throw new Error(
    `libsiren: the library was not found. Install it, or name ${SONAME} in SIREN_LIBRARY. Tried:\n${tried.join('\n')}`,
  );
}

let loaded;

/**
 * The functions by name, loaded at the first call, with `callbacks` (their types) and `copy(to, from, bytes)`.
 *
 * @throws Error when there is no library, or one of another ABI
 */
function native() {
  if (loaded) return loaded;
  const library = open();
  const version = library.func('siren_abi_version', ...FUNCTIONS.siren_abi_version)();
  const [major, minor] = [version >>> 16, version & 0xffff];
  if (major !== ABI.major || minor < ABI.minor) {
    throw new Error(
      `libsiren: the library's ABI is ${major}.${minor}; this package needs ${ABI.major}.${ABI.minor} or a later minor`,
    );
  }
  const functions = {};
  for (const [name, [result, parameters]] of Object.entries(FUNCTIONS)) {
    functions[name] = library.func(name, result, parameters);
  }
  functions.copy = koffi.load(null).func('memcpy', 'void', ['uintptr_t', 'uintptr_t', 'size_t']);
  loaded = functions;
  return loaded;
}

/** Makes a C function of `call`, for as long as nobody hands it to `unregister`. */
const register = (kind, call) => koffi.register(call, koffi.pointer(koffi.proto('void', CALLBACKS[kind])));

/** Memory that does not move, at `address`, as a Buffer and as a DataView. */
class Memory {
  constructor(size) {
    const buffer = new ArrayBuffer(size);
    this.bytes = Buffer.from(buffer);
    this.view = new DataView(buffer);
    this.address = addressOf(this.bytes);
  }
}

/** Where the bytes of a Buffer or typed array lie: as long as it is referred to. */
const addressOf = (bytes) => Number(koffi.address(bytes));

module.exports = { ABI, SONAME, native, register, unregister: koffi.unregister, Memory, addressOf };
