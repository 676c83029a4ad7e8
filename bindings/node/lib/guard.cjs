'use strict';

const { isMainThread } = require('node:worker_threads');
const { layouts, readU64, writeU64 } = require('./layout.cjs');
const { Memory, native, register, unregister } = require('./native.cjs');
const { call, cancellable, checkAnswer, opening, reader, short } = require('./calls.cjs');
const calls = require('./calls.cjs');
const { failure, errorOf, statuses } = require('./errors.cjs');
const { BusyError } = require('./errors.cjs').classes;
const frames = require('./frames.cjs');

/** Makes guards and streams here, and nowhere else. */
const OWN = Symbol('own');

/** Frees what nobody closed; off the event loop, which large guards would hold up. */
const forgotten = new FinalizationRegistry(({ free, handle }) => {
  short.run(free, handle).catch(() => {});
});

/**
 * The calls of one guard, its streams' included, and those that wait until the guard's queue has room.
 */
class Load {
  #running = 0;
  #waiting = new Set();

  /**
   * Runs `start`; again, with `wait`, as long as the guard is busy and a call ends that makes room.
   *
   * @param {(timeout: number) => Promise<T>} start given what is left of the timeout in milliseconds; 0: none
   * @template T
   */
  async run(start, { wait, signal, timeout }) {
    const limit = frames.milliseconds(timeout);
    const retries = wait !== undefined && frames.flag('wait', wait) === 1;
    const until = limit === 0 ? Infinity : performance.now() + limit;
    let left = limit;
    for (;;) {
      this.#running += 1;
      try {
        const outcome = await start(left);
        this.#ended();
        return outcome;
      } catch (error) {
        // A call that found no room makes none: only another that runs will.
        if (!(error instanceof BusyError)) this.#ended();
        else if (--this.#running === 0) this.#next();
        if (!(retries && error instanceof BusyError && this.#running > 0)) throw error;
      }
      calls.checkSignal(signal);
      await this.#room(signal, until);
      if (limit !== 0) left = Math.max(1, Math.ceil(until - performance.now()));
    }
  }

  #ended() {
    this.#running -= 1;
    this.#next();
  }

  #next() {
    const [first] = this.#waiting;
    if (first) first();
  }

  /** Resolves when a call has ended. */
  #room(signal, until) {
    return new Promise((resolve, reject) => {
      const left = Math.max(0, until - performance.now());
      // Timers know no more than 31 bits; so long a deadline is the library's, when the call has room.
      const timer = left > 0x7fffffff ? undefined : setTimeout(late, left);
      const end = (settle, value) => {
        this.#waiting.delete(go);
        clearTimeout(timer);
        calls.unwatch(signal, abort);
        settle(value);
      };
      const go = () => end(resolve);
      const abort = () => end(reject, calls.cancelled(signal));
      function late() {
        end(reject, failure('deadline_exceeded', 'the deadline passed before the queue had room'));
      }
      this.#waiting.add(go);
      calls.watch(signal, abort);
    });
  }
}

const SCORE_OPTIONS = new Set(['threshold', 'windows', 'timeout', 'wait', 'signal']);
const scoreOptions = frames.record('siren_score_options');
const oneInput = frames.record('siren_input');
const readScore = reader('siren_result', frames.readResult);

function writeScoreOptions(options, token, timeout) {
  const { at } = layouts.siren_score_options;
  const { view } = scoreOptions;
  frames.writeThreshold(view, at, options.threshold);
  frames.writeWindows(view, at, options.windows);
  view.setBigUint64(at.cancel, token, true);
  writeU64(view, at.timeout_ms, timeout);
}

const item = frames.record('siren_result');
const itemError = frames.record('siren_error');

/** Reads the answer of `siren_score_batch_async`. */
function readBatch(status, results, errors, count, error) {
  checkAnswer(status, error);
  const list = [];
  if (count === 0) return list;
  const pointers = new Memory(2 * 8 * count);
  const { copy } = native();
  copy(pointers.address, results, 8 * count);
  copy(pointers.address + 8 * count, errors, 8 * count);
  for (let i = 0; i < count; i += 1) {
    const wrong = readU64(pointers.view, 8 * (count + i));
    if (wrong !== 0) {
      frames.fetch(itemError, wrong);
      list.push({ result: null, error: frames.readError(itemError) });
      continue;
    }
    frames.fetch(item, readU64(pointers.view, 8 * i));
    const status = item.view.getInt32(layouts.siren_result.at.status, true);
    if (status === 0) list.push({ result: frames.readResult(item), error: null });
    else list.push({ result: null, error: errorOf(status, 'the library says no more') });
  }
  return list;
}

/** An open guard: see `open`. Any number of calls may run at once. */
class Guard {
  /** null when closed */
  #handle;
  #load = new Load();

  constructor(own, handle) {
    if (own !== OWN) throw new TypeError('a Guard is made by open()');
    this.#handle = handle;
    forgotten.register(this, { free: 'siren_free', handle }, this);
  }

  /** Scores one text. */
  async score(input, options) {
    options = frames.checkOptions('score', options, SCORE_OPTIONS);
    const { signal } = options;
    return this.#load.run(
      (timeout) =>
        cancellable(signal, (token) =>
          call(
            'score',
            (callback, number) => {
              const texts = new frames.Texts();
              frames.writeInput(oneInput.view, 0, input, texts);
              writeScoreOptions(options, token, timeout);
              const status = native().siren_score_async(
                this.#open(),
                oneInput.address,
                scoreOptions.address,
                callback,
                number,
                frames.failed.address,
              );
              texts.release();
              return status;
            },
            readScore,
          ),
        ),
      options,
    );
  }

  /** Scores many texts. Each has its own result, or its own error. */
  async scoreBatch(inputs, options) {
    options = frames.checkOptions('scoreBatch', options, SCORE_OPTIONS);
    if (!Array.isArray(inputs))
      throw new TypeError(`the inputs are ${frames.described(inputs)}, expected an array`);
    const { signal } = options;
    return this.#load.run(
      (timeout) =>
        cancellable(signal, (token) =>
          call(
            'batch',
            (callback, number) => {
              const texts = new frames.Texts();
              const { size } = layouts.siren_input;
              const array = new Memory(size * Math.max(1, inputs.length));
              for (let i = 0; i < inputs.length; i += 1)
                frames.writeInput(array.view, i * size, inputs[i], texts);
              writeScoreOptions(options, token, timeout);
              const status = native().siren_score_batch_async(
                this.#open(),
                array.address,
                inputs.length,
                scoreOptions.address,
                callback,
                number,
                frames.failed.address,
              );
              texts.release();
              return status;
            },
            readBatch,
          ),
        ),
      options,
    );
  }

  /** Opens a stream: a growing text, after an optional prompt. */
  stream(options) {
    const { Stream } = require('./stream.cjs');
    return Stream.open(OWN, this.#open(), this.#load, options);
  }

  /** A TransformStream in front of a model's chunks. */
  transform(options) {
    const { GuardTransformStream } = require('./transform.cjs');
    return new GuardTransformStream(this, options);
  }

  /** Runs one short text, so that the first call is as fast as the second. */
  async warmup() {
    const error = frames.record('siren_error');
    frames.check(await short.run('siren_warmup', this.#open(), error), error);
  }

  /** What the guard is made of. */
  info() {
    const info = frames.record('siren_guard_info');
    frames.check(native().siren_info(this.#open(), info.address, frames.failed.address));
    const { at, size } = layouts.siren_guard_info;
    const { view, bytes } = info;
    const name = (from, to) =>
      bytes.toString('utf8', from, bytes.indexOf(0, from) < to ? bytes.indexOf(0, from) : to);
    return {
      threads: view.getUint32(at.threads, true),
      maxLength: readU64(view, at.max_length),
      defaultThreshold: view.getFloat64(at.default_threshold, true),
      layersRun: view.getUint32(at.layers_run, true),
      layers: view.getUint32(at.layers, true),
      hiddenSize: readU64(view, at.hidden_size),
      neurons: readU64(view, at.neurons),
      weightBytes: readU64(view, at.weight_bytes),
      maxTextBytes: readU64(view, at.max_text_bytes),
      maxBatch: readU64(view, at.max_batch),
      kvTokenBytes: readU64(view, at.kv_token_bytes),
      device: name(at.device, at.dtype),
      dtype: name(at.dtype, size),
    };
  }

  /** Everything about the guard, as JSON text. */
  infoJson() {
    return frames.textOf((...place) => native().siren_info_json(this.#open(), ...place));
  }

  /** What the guard has done so far. */
  stats() {
    const stats = frames.record('siren_guard_stats');
    frames.check(native().siren_stats(this.#open(), stats.address, frames.failed.address));
    const { at } = layouts.siren_guard_stats;
    const { view } = stats;
    const count = (name) => readU64(view, at[name]);
    const errors = {};
    for (let status = 1; status < statuses.length; status += 1) {
      errors[statuses[status][0]] = readU64(view, at.errors + 8 * status);
    }
    return {
      requests: count('requests'),
      texts: count('texts'),
      pushes: count('pushes'),
      harmful: count('harmful'),
      tokens: count('tokens'),
      tokensReused: count('tokens_reused'),
      truncated: count('truncated'),
      queueDepth: count('queue_depth'),
      passes: count('passes'),
      passSequences: count('pass_sequences'),
      passSeconds: view.getFloat64(at.pass_seconds, true),
      passTokensLimit: count('pass_tokens_limit'),
      latencyCounts: Array.from({ length: (at.latency_sum - at.latency_counts) / 8 }, (_, i) =>
        readU64(view, at.latency_counts + 8 * i),
      ),
      latencySum: view.getFloat64(at.latency_sum, true),
      kvBytes: count('kv_bytes'),
      streams: count('streams'),
      streamsParked: count('streams_parked'),
      cacheEntries: count('cache_entries'),
      cacheHits: count('cache_hits'),
      cacheMisses: count('cache_misses'),
      errors,
    };
  }

  /** The same in the text format of Prometheus. */
  statsPrometheus() {
    return frames.textOf((...place) => native().siren_stats_prometheus(this.#open(), ...place));
  }

  /** The record of a result that this guard gave `input`, as JSON text without the text itself. */
  async auditJson(input, result) {
    if (typeof result?.score !== 'number') throw new TypeError('the result has no score');
    const texts = new frames.Texts(true);
    const given = frames.record('siren_input');
    const scored = frames.record('siren_result');
    const error = frames.record('siren_error');
    const length = new Memory(8);
    frames.writeInput(given.view, 0, input, texts);
    frames.writeResult(scored.view, result);
    // It hashes the whole text.
    for (let buffer = new Memory(4096); ; buffer = new Memory(readU64(length.view, 0) + 64)) {
      const status = await short.run(
        'siren_audit_json',
        this.#open(),
        given,
        scored,
        buffer,
        buffer.bytes.length,
        length,
        error,
      );
      const size = readU64(length.view, 0);
      if (status === 0) {
        texts.release();
        return buffer.bytes.toString('utf8', 0, size);
      }
      if (size < buffer.bytes.length) frames.check(status, error);
    }
  }

  #open() {
    if (this.#handle === null) throw failure('invalid_handle', 'the guard is closed');
    return this.#handle;
  }

  #take() {
    const handle = this.#handle;
    this.#handle = null;
    forgotten.unregister(this);
    return handle;
  }

  /** Closes the guard. Calls that run finish, and its streams go on; later calls are InvalidHandleError. */
  async close() {
    const handle = this.#take();
    if (handle === null) return;
    // Freeing large weights takes a while.
    const status = await short.run('siren_free', handle);
    if (status !== 0) throw errorOf(status, 'the guard could not be freed');
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  [Symbol.dispose]() {
    const handle = this.#take();
    if (handle === null) return;
    const status = native().siren_free(handle);
    if (status !== 0) throw errorOf(status, 'the guard could not be freed');
  }
}

const OPEN_TEXTS = {
  backbone: 'backbone',
  device: 'device',
  dtype: 'dtype',
  cacheDir: 'cache_dir',
  hubEndpoint: 'hub_endpoint',
  hubToken: 'hub_token',
  dataDir: 'data_dir',
  packedCache: 'packed_cache',
};
const OPEN_NUMBERS = {
  maxLength: 'max_length',
  maxTextBytes: 'max_text_bytes',
  maxBatch: 'max_batch',
  maxQueue: 'max_queue',
  maxStreams: 'max_streams',
  kvBytes: 'kv_bytes',
  prefixCacheBytes: 'prefix_cache_bytes',
};
const OPEN_FLAGS = { offline: 'offline', readWeights: 'read_weights', noPrefixCache: 'no_prefix_cache' };
const OPEN_OPTIONS = new Set([
  'threads',
  ...Object.keys(OPEN_TEXTS),
  ...Object.keys(OPEN_NUMBERS),
  ...Object.keys(OPEN_FLAGS),
  'progress',
  'signal',
]);

/**
 * Opens a guard, on a thread of libuv's.
 *
 * @param {string} [model] a directory or a hub repository; the demo guard without one
 */
async function open(model, options) {
  options = frames.checkOptions('open', options, OPEN_OPTIONS);
  if (!isMainThread) {
    // A worker that is ended while calls are on their way would end the process: koffi's callbacks, which
    // come from the guard's thread, find no event loop.
    throw failure(
      'unsupported',
      'a guard is opened in the main thread, not in a worker; its calls block no event loop',
    );
  }
  calls.checkSignal(options.signal);
  if (options.progress !== undefined && typeof options.progress !== 'function') {
    throw new TypeError(`progress is ${frames.described(options.progress)}, expected a function`);
  }
  const given = frames.record('siren_open_options');
  const { at } = layouts.siren_open_options;
  const { view } = given;
  const texts = new frames.Texts(true);
  const text = (field, name, value) => texts.put(view, at[field], name, value === '' ? undefined : value);
  text('model', 'model', model);
  for (const [name, field] of Object.entries(OPEN_TEXTS)) text(field, name, options[name]);
  for (const [name, field] of Object.entries(OPEN_NUMBERS)) {
    if (options[name] !== undefined) writeU64(view, at[field], frames.whole(name, options[name]));
  }
  for (const [name, field] of Object.entries(OPEN_FLAGS)) {
    if (options[name] !== undefined) view.setUint32(at[field], frames.flag(name, options[name]), true);
  }
  if (options.threads !== undefined)
    view.setUint32(at.threads, Math.min(frames.whole('threads', options.threads), 0xffffffff), true);
  native();
  return calls.unlessAborted(begin(given, texts, options), options.signal);
}

async function begin(given, texts, { progress, signal }) {
  const place = new Memory(8);
  const error = frames.record('siren_error');
  let callback;
  let thrown;
  if (progress) {
    callback = register('progress', (_, file, length, done, total) => {
      const name = Buffer.alloc(length);
      if (length > 0) native().copy(require('./native.cjs').addressOf(name), file, length);
      try {
        progress({ file: name.toString(), done: Number(done), total: Number(total) });
      } catch (e) {
        thrown ??= { error: e };
      }
    });
    given.view.setBigUint64(layouts.siren_open_options.at.progress, callback, true);
  }
  let guard;
  try {
    const status = await opening.run('siren_open', given, place, error);
    texts.release();
    frames.check(status, error);
    guard = new Guard(OWN, place.view.getBigUint64(0, true));
  } finally {
    // Not from within it, which would crash: this runs when the call has ended.
    if (callback) unregister(callback);
  }
  if (signal?.aborted || thrown) {
    await guard.close();
    throw thrown ? thrown.error : calls.cancelled(signal);
  }
  return guard;
}

module.exports = { Guard, OWN, forgotten, open };
