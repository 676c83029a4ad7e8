'use strict';
// What a call hands to the library and gets from it: texts, options, results and errors in memory.

const { layouts, readU64, writeU64 } = require('./layout.cjs');
const { Memory, addressOf, native } = require('./native.cjs');
const { errorOf, failure } = require('./errors.cjs');

/** Texts up to this size are written to memory that is always there. */
const SCRATCH = 1 << 16;
const scratch = new Memory(SCRATCH);

/** A struct of siren.h with its `struct_size` set and all else 0. */
function record(name) {
  const memory = new Memory(layouts[name].size);
  if ('struct_size' in layouts[name].at) memory.view.setUint32(0, layouts[name].size, true);
  return memory;
}

function described(value) {
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : typeof value;
}

/** Refuses what is no object, and options that do not exist: a misspelt threshold must not be none. */
function checkOptions(what, options, known) {
  if (options === undefined) return {};
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`${what}: the options are ${described(options)}, expected an object`);
  }
  for (const name in options) {
    if (!known.has(name))
      throw new TypeError(`${what}: there is no option "${name}"; there are ${[...known].join(', ')}`);
  }
  return options;
}

function whole(name, value, least = 0) {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new TypeError(`${name} is ${String(value)}, expected a whole number from ${least}`);
  }
  return value;
}

function flag(name, value) {
  if (typeof value !== 'boolean')
    throw new TypeError(`${name} is ${described(value)}, expected true or false`);
  return value ? 1 : 0;
}

function lone(name) {
  return failure('invalid_utf8', `${name} holds half of a surrogate pair, which no UTF-8 stands for`);
}

/**
 * Texts of one call, brought to memory as UTF-8, which must live until `release`. Those of a call that
 * copies them before it returns go into the scratch memory, as far as it goes; bytes stay where they are.
 */
class Texts {
  #used;
  #kept = [];

  /** @param {boolean} lasting the call goes on when it has returned */
  constructor(lasting = false) {
    this.#used = lasting ? SCRATCH : 0;
  }

  release() {
    this.#kept.length = 0;
  }

  /** Writes a siren_text at `at`; an absent one when `value` is undefined. */
  put(view, at, name, value) {
    if (value === undefined) {
      writeU64(view, at, 0);
      writeU64(view, at + 8, 0);
      return;
    }
    const [address, length] = this.place(name, value);
    writeU64(view, at, address);
    writeU64(view, at + 8, length);
  }

  /** @returns {[number, number]} address and length; the address is never 0 */
  place(name, value) {
    if (value instanceof Uint8Array) {
      if (value.length === 0) return [scratch.address, 0];
      this.#kept.push(value);
      return [addressOf(value), value.length];
    }
    if (typeof value !== 'string') {
      throw new TypeError(`${name} is ${described(value)}, expected a string or a Uint8Array`);
    }
    if (!value.isWellFormed()) throw lone(name);
    if (value.length * 3 <= SCRATCH - this.#used) {
      const start = this.#used;
      const length = scratch.bytes.write(value, start, 'utf8');
      this.#used += length;
      return [scratch.address + start, length];
    }
    const bytes = Buffer.from(value);
    this.#kept.push(bytes);
    return [bytes.length === 0 ? scratch.address : addressOf(bytes), bytes.length];
  }
}

const PARTS = new Set(['text', 'prompt', 'response']);

/** Writes a siren_input at `at`: a text, or an object with `text`, or with `prompt` and `response`. */
function writeInput(view, at, input, texts) {
  const offsets = layouts.siren_input.at;
  view.setUint32(at, layouts.siren_input.size, true);
  view.setUint32(at + offsets.reserved, 0, true);
  let parts = input;
  if (typeof input === 'string' || input instanceof Uint8Array) {
    parts = { text: input };
  } else if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    throw new TypeError(
      `the input is ${described(input)}, expected a text or an object with text, or prompt and response`,
    );
  } else {
    checkOptions('the input', input, PARTS);
  }
  for (const name of PARTS) texts.put(view, at + offsets[name], name, parts[name]);
}

const WINDOWS = new Set(['tokens', 'stride']);

/** `windows` of a call's or a stream's options; both structs have these fields. */
function writeWindows(view, at, windows) {
  const { tokens = 0, stride = 0 } =
    windows === true || windows === false ? {} : checkOptions('windows', windows, WINDOWS);
  view.setUint32(at.windows, windows === undefined || windows === false ? 0 : 1, true);
  writeU64(view, at.window_tokens, whole('windows.tokens', tokens));
  writeU64(view, at.window_stride, whole('windows.stride', stride));
}

function writeThreshold(view, at, threshold) {
  if (threshold !== undefined && typeof threshold !== 'number') {
    throw new TypeError(`threshold is ${described(threshold)}, expected a number from 0 to 1`);
  }
  view.setUint32(at.has_threshold, threshold === undefined ? 0 : 1, true);
  view.setFloat64(at.threshold, threshold ?? 0, true);
}

/** Milliseconds for the library, which knows whole ones from 1; 0 is none. */
function milliseconds(timeout) {
  if (timeout === undefined || timeout === Infinity) return 0;
  if (typeof timeout !== 'number' || !(timeout >= 0)) {
    throw new TypeError(`timeout is ${String(timeout)}, expected milliseconds from 0`);
  }
  return Math.max(1, Math.min(Number.MAX_SAFE_INTEGER, Math.ceil(timeout)));
}

function readWindow(view, at) {
  const count = readU64(view, at.windows);
  if (count === 0) return null;
  return {
    count,
    index: readU64(view, at.window_index),
    start: readU64(view, at.window_start),
    end: readU64(view, at.window_end),
  };
}

/** The result at `base`. */
function readResult(memory, base = 0) {
  const view = base === 0 ? memory.view : new DataView(memory.view.buffer, base);
  const { at } = layouts.siren_result;
  return {
    score: view.getFloat64(at.score, true),
    threshold: view.getFloat64(at.threshold, true),
    harmful: view.getUint32(at.is_harmful, true) !== 0,
    truncated: view.getUint32(at.truncated, true) !== 0,
    tokens: readU64(view, at.tokens),
    window: readWindow(view, at),
  };
}

/** The opposite, for records of audits. */
function writeResult(view, result) {
  const { at } = layouts.siren_result;
  view.setFloat64(at.score, result.score, true);
  view.setFloat64(at.threshold, result.threshold, true);
  view.setUint32(at.is_harmful, result.harmful ? 1 : 0, true);
  view.setUint32(at.truncated, result.truncated ? 1 : 0, true);
  writeU64(view, at.tokens, whole('result.tokens', result.tokens));
  writeU64(view, at.windows, result.window?.count ?? 0);
  writeU64(view, at.window_index, result.window?.index ?? 0);
  writeU64(view, at.window_start, result.window?.start ?? 0);
  writeU64(view, at.window_end, result.window?.end ?? 0);
}

function readPush({ view }, tokenScores) {
  const { at } = layouts.siren_push_result;
  const crossed = view.getUint32(at.crossed, true) !== 0;
  const result = {
    score: view.getFloat64(at.score, true),
    threshold: view.getFloat64(at.threshold, true),
    harmful: view.getUint32(at.is_harmful, true) !== 0,
    truncated: view.getUint32(at.truncated, true) !== 0,
    tokens: readU64(view, at.tokens),
    crossing: crossed
      ? { token: readU64(view, at.crossing_token), byte: readU64(view, at.crossing_byte) }
      : null,
    cleared: readU64(view, at.cleared_bytes),
    window: readWindow(view, at),
  };
  if (tokenScores) {
    result.firstScored = readU64(view, at.first_scored);
    result.tokenScoresCount = readU64(view, at.token_scores_count);
    result.tokenScores = tokenScores.subarray(0, result.tokenScoresCount);
  }
  return result;
}

function readError({ view, bytes }) {
  const { at, size } = layouts.siren_error;
  const length = Math.min(readU64(view, at.message_length), size - at.message - 1);
  return errorOf(view.getInt32(at.status, true), bytes.toString('utf8', at.message, at.message + length));
}

/** The error that synchronous calls write to. */
const failed = record('siren_error');

/** @throws SirenError unless `status` is 0, with the message in `error` */
function check(status, error = failed) {
  if (status !== 0) throw readError(error);
}

/** The text of one of the functions that write JSON or text: they are asked for its length first. */
function textOf(call) {
  const length = new Memory(8);
  let status = call(0, 0, length.address, failed.address);
  check(status);
  for (;;) {
    // Numbers in it may grow between the two calls.
    const buffer = new Memory(readU64(length.view, 0) + 64);
    status = call(buffer.address, buffer.bytes.length, length.address, failed.address);
    const size = readU64(length.view, 0);
    if (status === 0) return buffer.bytes.toString('utf8', 0, size);
    if (size < buffer.bytes.length) check(status);
  }
}

/** Copies a struct of the library's own. */
const fetch = (memory, address, size = memory.bytes.length) => native().copy(memory.address, address, size);

module.exports = {
  Texts,
  check,
  checkOptions,
  described,
  failed,
  fetch,
  flag,
  lone,
  milliseconds,
  readError,
  readPush,
  readResult,
  record,
  textOf,
  whole,
  writeInput,
  writeResult,
  writeThreshold,
  writeWindows,
};
