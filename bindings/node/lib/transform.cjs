'use strict';

const { StringDecoder } = require('node:string_decoder');
const { CancelledError, SirenError } = require('./errors.cjs').classes;
const frames = require('./frames.cjs');

const OPTIONS = new Set([
  'prompt',
  'threshold',
  'hysteresis',
  'windows',
  'timeout',
  'wait',
  'signal',
  'onCrossing',
  'onFailure',
  'onEvent',
]);
const CROSSINGS = ['end', 'flag'];
const FAILURES = ['block', 'flag', 'pass'];

function choice(name, value, known) {
  if (value === undefined) return known[0];
  if (!known.includes(value))
    throw new TypeError(`${name} is ${String(value)}, expected ${known.map((k) => `'${k}'`).join(' or ')}`);
  return value;
}

/**
 * Stands between a model's chunks (strings or UTF-8 bytes) and who reads them (strings).
 *
 * With `onCrossing: 'end'` text is held back until it is cleared, and the stream ends where it crosses.
 * With 'flag' all text is passed on once it is scored, after the event that says that it crosses.
 *
 * `onFailure` says what becomes of text that cannot be judged (busy, too late, poisoned): 'block' fails
 * the stream, 'flag' passes it on after an event, 'pass' passes it on. An abort of `signal` always fails it.
 */
class GuardTransformStream extends TransformStream {
  #judge;

  constructor(guard, options) {
    options = frames.checkOptions('transform', options, OPTIONS);
    const judge = new Judge(guard, options);
    super({
      transform: (chunk, controller) => judge.take(chunk, controller),
      flush: (controller) => judge.end(controller),
      cancel: () => judge.cancel(),
    });
    this.#judge = judge;
  }

  /**
   * How it went: 'open' while text comes, then 'passed', 'crossed' or 'failed'. With 'flag' it is 'crossed'
   * from the crossing on.
   */
  get state() {
    return this.#judge.state;
  }

  /** The last result, or null when there is none. */
  get result() {
    return this.#judge.result;
  }

  /** Whether text was passed on that nobody judged. */
  get unjudged() {
    return this.#judge.unjudged;
  }
}

class Judge {
  state = 'open';
  result = null;
  unjudged = false;
  #guard;
  #stream = null;
  #streamOptions;
  #pushOptions;
  #onCrossing;
  #onFailure;
  #onEvent;
  /** What came, from the first byte that is not passed on. */
  #held = Buffer.alloc(0);
  /** Bytes before it. */
  #sent = 0;
  /** The end of it that the stream has not taken: a push of it failed. */
  #unpushed = Buffer.alloc(0);
  /** Half of a surrogate pair that the last chunk ended with. */
  #half = '';
  /** Text that was not judged may end in the middle of a character. */
  #decoder = new StringDecoder('utf8');

  constructor(guard, { prompt, threshold, hysteresis, windows = true, timeout, wait, signal, ...options }) {
    this.#guard = guard;
    this.#streamOptions = { prompt, threshold, hysteresis, windows };
    this.#pushOptions = { timeout, wait, signal };
    this.#onCrossing = choice('onCrossing', options.onCrossing, CROSSINGS);
    this.#onFailure = choice('onFailure', options.onFailure, FAILURES);
    if (options.onEvent !== undefined && typeof options.onEvent !== 'function') {
      throw new TypeError(`onEvent is ${frames.described(options.onEvent)}, expected a function`);
    }
    this.#onEvent = options.onEvent ?? (() => {});
  }

  async take(chunk, controller) {
    try {
      await this.#judge(this.#bytes(chunk), controller, false);
    } catch (error) {
      this.#fail();
      throw error;
    }
  }

  async end(controller) {
    try {
      if (this.#half) throw frames.lone('the end of the text');
      await this.#judge(Buffer.alloc(0), controller, true);
      const rest = this.#decoder.end();
      if (rest) controller.enqueue(rest);
      if (this.state === 'open') this.state = 'passed';
    } catch (error) {
      this.#fail();
      throw error;
    } finally {
      this.close();
    }
  }

  /** Who reads or who writes has left. */
  cancel() {
    if (this.state === 'open') this.#fail();
    else this.close();
  }

  close() {
    this.#stream?.close();
    this.#stream = null;
    this.#held = Buffer.alloc(0);
  }

  #fail() {
    this.state = 'failed';
    this.close();
  }

  #bytes(chunk) {
    if (typeof chunk === 'string') {
      let text = this.#half + chunk;
      this.#half = /[\uD800-\uDBFF]$/.exec(text)?.[0] ?? '';
      if (this.#half) text = text.slice(0, -1);
      if (!text.isWellFormed()) throw frames.lone('the chunk');
      return Buffer.from(text);
    }
    if (this.#half) throw frames.lone('the chunk before this one');
    if (chunk instanceof Uint8Array) return Buffer.from(chunk);
    throw new TypeError(`the chunk is ${frames.described(chunk)}, expected a string or a Uint8Array`);
  }

  async #judge(bytes, controller, last) {
    this.#held = Buffer.concat([this.#held, bytes]);
    this.#unpushed = Buffer.concat([this.#unpushed, bytes]);
    let show = this.#held.length;
    let result = null;
    try {
      result = await this.#push(last);
    } catch (error) {
      if (!(error instanceof SirenError) || error instanceof CancelledError || this.#onFailure === 'block')
        throw error;
      this.unjudged = true;
      if (this.#onFailure === 'flag') this.#onEvent({ type: 'unjudged', error });
    }
    const crosses = result !== null && result.crossing !== null && this.state === 'open';
    if (result !== null) this.result = result;
    if (crosses) this.state = 'crossed';
    if (result !== null && this.#onCrossing === 'end')
      show = Math.max(0, Math.min(show, result.cleared - this.#sent));
    if (crosses) this.#onEvent({ type: 'crossed', result });
    const text = this.#decoder.write(this.#held.subarray(0, show));
    this.#held = this.#held.subarray(show);
    this.#sent += show;
    if (text) controller.enqueue(text);
    if (crosses && this.#onCrossing === 'end') {
      this.close();
      controller.terminate(); // The model need not go on: its pipe is cancelled.
    } else if (last && this.#held.length > 0) {
      throw new Error('libsiren: the end of the text was not cleared, and is not passed on');
    }
  }

  async #push(last) {
    this.#stream ??= this.#guard.stream(this.#streamOptions);
    const stream = this.#stream;
    let result = await stream.push(this.#unpushed, this.#pushOptions);
    this.#unpushed = Buffer.alloc(0);
    const crossed = result.crossing !== null && this.#onCrossing === 'end';
    if (last && !crossed) result = await stream.finish(this.#pushOptions);
    return result;
  }
}

module.exports = { GuardTransformStream };
