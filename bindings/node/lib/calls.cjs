'use strict';
// Calls that are on their way. The library answers each once, on a thread of the guard's own, from where
// koffi brings it to the event loop; a number, handed on as user data, says whose answer it is.

const { Memory, native, register } = require('./native.cjs');
const { CancelledError } = require('./errors.cjs').classes;
const { errorOf, failure } = require('./errors.cjs');
const frames = require('./frames.cjs');

/** By number; each takes the arguments of its callback, without the first. */
const pending = new Map();
let last = 0;

// Keeps the process alive while calls are on their way, which koffi's callbacks do not.
const alive = setInterval(() => {}, 0x7fffffff);
alive.unref();

function answered(number, ...answer) {
  const take = pending.get(number);
  pending.delete(number);
  if (pending.size === 0) alive.unref();
  take(...answer);
}

let callbacks;

/** The C functions that answer: one for `score` and streams, one for `batch`. */
function answers() {
  callbacks ??= { score: register('score', answered), batch: register('batch', answered) };
  return callbacks;
}

/**
 * Begins a call of the library and resolves to what `read` makes of its answer.
 *
 * @param {(callback: bigint, number: number) => number} begin calls the library; gives the status
 * @param {(...answer: number[]) => T} read runs while the answer is in the library's memory; may throw
 * @template T
 * @returns {Promise<T>}
 */
function call(kind, begin, read) {
  return new Promise((resolve, reject) => {
    const number = ++last;
    pending.set(number, (...answer) => {
      try {
        resolve(read(...answer));
      } catch (error) {
        reject(error);
      }
    });
    try {
      frames.check(begin(answers()[kind], number));
    } catch (error) {
      pending.delete(number);
      throw error;
    }
    if (pending.size === 1) alive.ref();
  });
}

const failure_ = frames.record('siren_error');

/** Throws the error at `address`, if the call has failed. */
function checkAnswer(status, address) {
  if (status === 0) return;
  if (address === 0) throw errorOf(status, 'the library says no more');
  frames.fetch(failure_, address);
  frames.check(status, failure_);
}

/** Reads the answer of `siren_score_async` and of the calls of streams. */
const reader = (name, read) => {
  const memory = frames.record(name);
  return (status, result, error) => {
    checkAnswer(status, error);
    frames.fetch(memory, result);
    return read(memory);
  };
};

// --- Cancelling -------------------------------------------------------------------------------------

/** Of each signal that calls run with: whom to tell of its abort, by one listener for all of them. */
const watched = new WeakMap();

/** Calls `told` when `signal` aborts, until `unwatch`. */
function watch(signal, told) {
  if (signal === undefined) return;
  let watch = watched.get(signal);
  if (!watch) {
    watch = { all: new Set(), abort: () => [...watch.all].forEach((each) => each()) };
    watched.set(signal, watch);
    signal.addEventListener('abort', watch.abort);
  }
  watch.all.add(told);
}

function unwatch(signal, told) {
  const watch = signal && watched.get(signal);
  if (!watch) return;
  watch.all.delete(told);
  if (watch.all.size > 0) return;
  watched.delete(signal);
  signal.removeEventListener('abort', watch.abort);
}

/** The library's token of each signal that calls run with. */
const tokens = new WeakMap();
const handle = new Memory(8);

function checkSignal(signal) {
  if (signal === undefined) return;
  if (!(signal instanceof AbortSignal)) {
    throw new TypeError(`signal is ${frames.described(signal)}, expected an AbortSignal`);
  }
  if (signal.aborted) throw cancelled(signal);
}

/** What a call fails with whose signal has aborted; one of AbortSignal.timeout is a deadline. */
function cancelled(signal) {
  const options = { cause: signal.reason };
  if (signal.reason?.name === 'TimeoutError')
    return failure('deadline_exceeded', 'the signal timed out', options);
  return failure('cancelled', 'the signal aborted', options);
}

/** The handle of the token that `signal` cancels; for as long as it is not released. 0n without one. */
function acquire(signal) {
  if (signal === undefined) return 0n;
  let token = tokens.get(signal);
  if (!token) {
    const siren = native();
    frames.check(siren.siren_cancel_token_new(handle.address, frames.failed.address));
    const number = handle.view.getBigUint64(0, true);
    token = { number, calls: 0, abort: () => siren.siren_cancel(number, 0) };
    tokens.set(signal, token);
    watch(signal, token.abort);
  }
  token.calls += 1;
  return token.number;
}

function release(signal) {
  const token = signal && tokens.get(signal);
  if (!token) return;
  token.calls -= 1;
  if (token.calls > 0) return;
  unwatch(signal, token.abort);
  tokens.delete(signal);
  native().siren_cancel_token_free(token.number);
}

/** Runs `start` with the handle of `signal`'s token. */
async function cancellable(signal, start) {
  checkSignal(signal);
  const token = acquire(signal);
  try {
    return await start(token);
  } catch (error) {
    throw error instanceof CancelledError && signal?.aborted ? cancelled(signal) : error;
  } finally {
    release(signal);
  }
}

/** Settles as `promise` does, or fails when `signal` aborts; what was begun goes on. */
function unlessAborted(promise, signal) {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(cancelled(signal));
    watch(signal, abort);
    promise.then(resolve, reject).finally(() => unwatch(signal, abort));
  });
}

// --- Functions without an asynchronous form ----------------------------------------------------------

/** Runs at most `limit` functions at once on libuv's threads, of which there are four, also for files. */
class Lane {
  #limit;
  #running = 0;
  #waiting = [];

  constructor(limit) {
    this.#limit = limit;
  }

  /** Calls a function of the library elsewhere; resolves to its status. Takes a Memory as a pointer to it. */
  async run(name, ...parameters) {
    if (this.#running >= this.#limit) await new Promise((resolve) => this.#waiting.push(resolve));
    else this.#running += 1;
    try {
      return await new Promise((resolve, reject) => {
        const words = parameters.map((parameter) =>
          parameter instanceof Memory ? parameter.address : parameter,
        );
        native()[name].async(...words, (error, status) => {
          parameters.length = 0; // Until here the memory is referred to.
          if (error) reject(error);
          else resolve(status);
        });
      });
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running -= 1;
    }
  }
}

/** Opening a guard may take minutes; the rest takes milliseconds, and must not wait for that. */
const opening = new Lane(1);
const short = new Lane(2);

module.exports = {
  call,
  cancellable,
  cancelled,
  checkAnswer,
  checkSignal,
  opening,
  reader,
  short,
  unlessAborted,
  unwatch,
  watch,
};
