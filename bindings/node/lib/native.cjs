'use strict';
// Finds the library and declares its functions.

const fs = require('node:fs');
const path = require('node:path');
const koffi = require('koffi');

const ABI = { major: 0, minor: 3 };
const SONAME = 'libsiren.so.0';

// Parameters: p a pointer or a handle, which goes as a number (what it points to is laid out in
// layout.cjs), n a size. All give a status.
const FUNCTIONS = {
  siren_open: 'ppp',
  siren_free: 'p',
  siren_warmup: 'pp',
  siren_info: 'ppp',
  siren_info_json: 'ppnpp',
  siren_stats: 'ppp',
  siren_stats_prometheus: 'ppnpp',
  siren_audit_json: 'ppppnpp',
  siren_score_async: 'pppppp',
  siren_score_batch_async: 'ppnpppp',
  siren_cancel_token_new: 'pp',
  siren_cancel: 'pp',
  siren_cancel_token_free: 'p',
  siren_stream_new: 'pppp',
  siren_stream_push_async: 'ppnpppp',
  siren_stream_finish_async: 'ppppp',
  siren_stream_reset: 'pp',
  siren_stream_fork: 'ppp',
  siren_stream_free: 'p',
};
const PARAMETERS = { p: 'uintptr_t', n: 'size_t' };

const CALLBACKS = {
  score: ['uintptr_t', 'int32_t', 'uintptr_t', 'uintptr_t'],
  batch: ['uintptr_t', 'int32_t', 'uintptr_t', 'uintptr_t', 'size_t', 'uintptr_t'],
  progress: ['uintptr_t', 'uintptr_t', 'size_t', 'uint64_t', 'uint64_t'],
};

/** Where the library may be, in this order: what SIREN_LIBRARY names and nothing else; in this package. */
function candidates() {
  const named = process.env.SIREN_LIBRARY;
  if (named) return [named];
  const platform = `${process.platform}-${process.arch}`;
  const carried = path.join(__dirname, '../native', platform, 'lib', SONAME);
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
  const help = `Install it, or name ${SONAME} in SIREN_LIBRARY. Tried:`;
  throw new Error(`libsiren: the library was not found. ${help}\n${tried.join('\n')}`);
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
  const functions = {
    siren_abi_version: library.func('siren_abi_version', 'uint32_t', []),
    siren_version: library.func('siren_version', 'str', []),
    siren_status_name: library.func('siren_status_name', 'str', ['int32_t']),
  };
  const version = functions.siren_abi_version();
  const [major, minor] = [version >>> 16, version & 0xffff];
  if (major !== ABI.major || minor < ABI.minor) {
    const needed = `${ABI.major}.${ABI.minor} or a later minor`;
    throw new Error(`libsiren: the library's ABI is ${major}.${minor}; this package needs ${needed}`);
  }
  for (const [name, parameters] of Object.entries(FUNCTIONS)) {
    const types = [...parameters].map((parameter) => PARAMETERS[parameter]);
    functions[name] = library.func(name, 'int32_t', types);
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
