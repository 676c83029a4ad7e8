'use strict';

const { layouts, writeU64 } = require('./layout.cjs');
const { Memory, addressOf, native } = require('./native.cjs');
const { call, cancellable, reader } = require('./calls.cjs');
const { errorOf, failure } = require('./errors.cjs');
const { OWN, forgotten } = require('./guard.cjs');
const frames = require('./frames.cjs');

const STREAM_OPTIONS = new Set(['prompt', 'threshold', 'hysteresis', 'windows']);
const PUSH_OPTIONS = new Set(['timeout', 'wait', 'signal', 'tokenScores']);

const place = new Memory(8);

/** A string's last half of a surrogate pair, whose other half may come with the next chunk. */
const HALF = /[\uD800-\uDBFF]$/;

/** A growing text on a guard: see `Guard.stream`. One call at a time. It goes on when its guard is closed. */
class Stream {
  /** null when closed */
  #handle;
  #load;
  /** Half of a surrogate pair that the last chunk ended with, or ''. */
  #half;

  constructor(own, handle, load, half) {
    if (own !== OWN) throw new TypeError('a Stream is made by Guard.stream()');
    this.#handle = handle;
    this.#load = load;
    this.#half = half;
    forgotten.register(this, { free: 'siren_stream_free', handle }, this);
  }

  static open(own, guard, load, options) {
    options = frames.checkOptions('stream', options, STREAM_OPTIONS);
    const given = frames.record('siren_stream_options');
    const { at } = layouts.siren_stream_options;
    const { view } = given;
    const texts = new frames.Texts();
    frames.writeThreshold(view, at, options.threshold);
    frames.writeWindows(view, at, options.windows);
    texts.put(view, at.prompt, 'prompt', options.prompt);
    writeU64(view, at.hysteresis, frames.whole('hysteresis', options.hysteresis ?? 0));
    const status = native().siren_stream_new(guard, given.address, place.address, frames.failed.address);
    texts.release();
    frames.check(status);
    return new Stream(own, place.view.getBigUint64(0, true), load, '');
  }

  /**
   * Adds a chunk and scores all of the stream. A chunk may split a character. A push that fails leaves the
   * stream as it was.
   */
  async push(chunk, options) {
    options = frames.checkOptions('push', options, PUSH_OPTIONS);
    const half = this.#half;
    let text = chunk;
    let rest = '';
    if (typeof chunk === 'string') {
      text = half + chunk;
      rest = HALF.exec(text)?.[0] ?? '';
      if (rest) text = text.slice(0, -1);
    } else if (half) {
      throw frames.lone('the chunk before this one');
    }
    const result = await this.#run(options, (...others) => {
      const texts = new frames.Texts();
      const [address, length] = texts.place('the chunk', text);
      const status = native().siren_stream_push_async(this.#open(), address, length, ...others);
      texts.release();
      return status;
    });
    this.#half = rest;
    return result;
  }

  /** Says that nothing more comes: the last result, in which every byte is cleared that can be. */
  async finish(options) {
    options = frames.checkOptions('finish', options, PUSH_OPTIONS);
    if (this.#half) throw frames.lone('the end of the stream');
    return this.#run(options, (...others) => native().siren_stream_finish_async(this.#open(), ...others));
  }

  /** Runs a call that `begin` begins with the parameters from the options on; gives its status. */
  #run(options, begin) {
    const { signal, tokenScores } = options;
    // The library writes to it until it answers.
    const scores =
      tokenScores === undefined ? undefined : new Float64Array(frames.whole('tokenScores', tokenScores, 1));
    return this.#load.run(
      (timeout) =>
        cancellable(signal, (token) => {
          const given = frames.record('siren_push_options');
          const { at } = layouts.siren_push_options;
          given.view.setBigUint64(at.cancel, token, true);
          writeU64(given.view, at.timeout_ms, timeout);
          if (scores) {
            writeU64(given.view, at.token_scores, addressOf(scores));
            writeU64(given.view, at.token_scores_capacity, scores.length);
          }
          return call(
            'score',
            (callback, number) => begin(given.address, callback, number, frames.failed.address),
            reader('siren_push_result', (memory) => frames.readPush(memory, scores)),
          );
        }),
      options,
    );
  }

  /** Forgets what was pushed, and keeps the prompt and the options. */
  reset() {
    frames.check(native().siren_stream_reset(this.#open(), frames.failed.address));
    this.#half = '';
  }

  /** A second stream in the same state; from then on the two know nothing of each other. */
  fork() {
    frames.check(native().siren_stream_fork(this.#open(), place.address, frames.failed.address));
    return new Stream(OWN, place.view.getBigUint64(0, true), this.#load, this.#half);
  }

  #open() {
    if (this.#handle === null) throw failure('invalid_handle', 'the stream is closed');
    return this.#handle;
  }

  /** Frees the stream. A call that runs still finishes; later ones are InvalidHandleError. */
  close() {
    const handle = this.#handle;
    if (handle === null) return;
    this.#handle = null;
    forgotten.unregister(this);
    const status = native().siren_stream_free(handle);
    if (status !== 0) throw errorOf(status, 'the stream could not be freed');
  }

  [Symbol.dispose]() {
    this.close();
  }

  async [Symbol.asyncDispose]() {
    this.close();
  }
}

module.exports = { Stream };
