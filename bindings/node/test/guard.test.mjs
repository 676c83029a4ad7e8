import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import test from 'node:test';
import { Worker } from 'node:worker_threads';
import {
  BusyError,
  CancelledError,
  DeadlineExceededError,
  Guard,
  InvalidArgumentError,
  InvalidHandleError,
  InvalidUtf8Error,
  LimitExceededError,
  SirenError,
  Stream,
  open,
} from '../lib/index.mjs';
import { HARMFUL, demo, failureOf, openDemo, sleep } from './support.mjs';

let guard;
test.before(async () => {
  guard = await openDemo();
});
test.after(() => guard.close());

/** Takes some tens of milliseconds. */
const LONG = 'one two three four '.repeat(4000);

test('texts as strings, bytes and objects', async () => {
  const { score } = await guard.score(HARMFUL);
  assert.ok(score > 0.5);
  for (const input of [
    Buffer.from(HARMFUL),
    new TextEncoder().encode(HARMFUL),
    { text: HARMFUL },
    { response: HARMFUL },
  ]) {
    assert.equal((await guard.score(input)).score, score);
  }
  // Bytes in the middle of their memory.
  assert.equal((await guard.score(Buffer.from(`xx${HARMFUL}xx`).subarray(2, -2))).score, score);
  const joined = await guard.score('Hello\nWorld');
  assert.deepEqual(await guard.score({ prompt: 'Hello', response: 'World' }), joined);
  // Larger than the memory that is kept for texts, and just about as large.
  for (const size of [21_844, 21_846, 65_534, 65_536, 65_538]) {
    const text = 'a '.repeat(size / 2);
    assert.equal((await guard.score(text)).score, (await guard.score(Buffer.from(text))).score);
  }
  // What is kept for texts runs out in the middle of one: it is not cut there.
  for (let left = 0; left < 120; left += 8) {
    const last = `${'é'.repeat(50)} ${HARMFUL}`;
    const [, { result }] = await guard.scoreBatch(['a '.repeat((65_536 - left) / 2), last]);
    assert.deepEqual(result, await guard.score(Buffer.from(last)));
  }
  const many = Array.from({ length: 1000 }, (_, i) => `${'é'.repeat(50)} ${i}`);
  assert.deepEqual(
    await guard.scoreBatch(many),
    await guard.scoreBatch(many.map((text) => Buffer.from(text))),
  );
});

test('what is not understood is refused, with its name', async () => {
  for (const [call, message] of [
    [() => guard.score(), /input is undefined/],
    [() => guard.score(5), /input is number/],
    [() => guard.score({ txt: 'a' }), /no option "txt"/],
    [() => guard.score({ text: 5 }), /text is number/],
    [() => guard.score('a', { treshold: 0.1 }), /no option "treshold"/],
    [() => guard.score('a', 0.1), /options are number/],
    [() => guard.score('a', { threshold: '0.1' }), /threshold is string/],
    [() => guard.score('a', { timeout: -1 }), /timeout is -1/],
    [() => guard.score('a', { signal: {} }), /signal is object/],
    [() => guard.score('a', { wait: 1 }), /wait is number/],
    [() => guard.score('a', { windows: { size: 5 } }), /no option "size"/],
    [() => guard.score('a', { windows: { tokens: 1.5 } }), /windows.tokens is 1.5/],
    [() => guard.scoreBatch('a'), /inputs are string/],
    [() => guard.scoreBatch(['a', 7]), /input is number/],
    [() => open(5), /model is number/],
    [() => open(demo, { thread: 1 }), /no option "thread"/],
    [() => open(demo, { progress: true }), /progress is boolean/],
  ]) {
    const error = await failureOf(call());
    assert.ok(error instanceof TypeError, String(error));
    assert.match(error.message, message);
  }
  assert.throws(() => guard.stream({ hysteresis: -1 }), TypeError);
  assert.throws(() => new Guard(), TypeError);
  assert.throws(() => new Stream(), TypeError);
});

test('what the library refuses has a class, a code and a message, and no verdict', async () => {
  for (const [call, Type, code] of [
    [() => guard.score('a', { threshold: 2 }), InvalidArgumentError, 'invalid_argument'],
    [() => guard.score('a', { threshold: NaN }), InvalidArgumentError, 'invalid_argument'],
    [() => guard.score({}), InvalidArgumentError, 'invalid_argument'],
    [() => guard.score({ text: 'a', prompt: 'b' }), InvalidArgumentError, 'invalid_argument'],
    [() => guard.score(new Uint8Array([0xff])), InvalidUtf8Error, 'invalid_utf8'],
    [() => guard.score('half \ud83d'), InvalidUtf8Error, 'invalid_utf8'],
    [() => guard.score('a'.repeat(5_000_000)), LimitExceededError, 'limit_exceeded'],
  ]) {
    const error = await failureOf(call());
    assert.ok(error instanceof Type && error instanceof SirenError, String(error));
    assert.equal(error.code, code);
    assert.ok(error.message.length > 0);
    for (const name of ['score', 'harmful', 'result']) assert.equal(error[name], undefined);
  }
  const [bad, good] = await guard.scoreBatch([new Uint8Array([0xff]), 'a']);
  assert.ok(bad.error instanceof InvalidUtf8Error);
  assert.throws(() => bad.result.harmful, TypeError);
  assert.equal(good.error, null);
  assert.deepEqual(await guard.scoreBatch([]), []);
});

test('a threshold of the call', async () => {
  const result = await guard.score('Hello', { threshold: 0 });
  assert.equal(result.threshold, 0);
  assert.equal(result.harmful, true);
});

test('a signal ends a call that runs, and refuses one that comes later', async () => {
  const controller = new AbortController();
  const running = Array.from({ length: 20 }, () =>
    failureOf(guard.score(LONG, { windows: true, signal: controller.signal })),
  );
  const reason = new Error('enough');
  const start = performance.now();
  controller.abort(reason);
  for (const error of await Promise.all(running)) {
    assert.ok(error instanceof CancelledError, String(error));
    assert.equal(error.name, 'AbortError');
    assert.equal(error.cause, reason);
  }
  const took = performance.now() - start;
  assert.ok((await failureOf(guard.score('a', { signal: controller.signal }))) instanceof CancelledError);
  assert.ok(
    (await failureOf(guard.scoreBatch(['a'], { signal: controller.signal }))) instanceof CancelledError,
  );
  // All of the work takes far longer.
  assert.ok(took < 2000, `${took} ms`);
  assert.ok(guard.stats().errors.cancelled >= 20);
  // A signal that aborts when its calls are done does nothing.
  const late = new AbortController();
  const { score } = await guard.score('a', { signal: late.signal });
  late.abort();
  assert.equal((await guard.score('a')).score, score);
});

test('deadlines, by a timeout and by a signal', async () => {
  assert.ok(
    (await failureOf(guard.score(LONG.repeat(3), { windows: true, timeout: 1 }))) instanceof
      DeadlineExceededError,
  );
  assert.ok(
    (await failureOf(
      guard.score(LONG.repeat(3), { windows: true, signal: AbortSignal.timeout(5) }),
    )) instanceof DeadlineExceededError,
  );
  assert.ok((await guard.score('a', { timeout: 60_000 })).score < 0.5);
});

test('the queue is bounded: what is over it is busy at once, or waits', async () => {
  const small = await openDemo({ maxQueue: 4, threads: 1, noPrefixCache: true });
  try {
    const outcomes = await Promise.allSettled(
      Array.from({ length: 50 }, () => small.score(LONG.slice(0, 2000))),
    );
    const failed = outcomes.filter(({ status }) => status === 'rejected').map(({ reason }) => reason);
    assert.ok(failed.length >= 1 && failed.length <= 46, `${failed.length} of 50`);
    for (const error of failed) assert.ok(error instanceof BusyError, String(error));
    const waited = await Promise.all(
      Array.from({ length: 50 }, () => small.score(LONG.slice(0, 2000), { wait: true })),
    );
    assert.equal(new Set(waited.map(({ score }) => score)).size, 1);
    // Those that wait give up when they are told to.
    const controller = new AbortController();
    const all = Array.from({ length: 20 }, (_, i) =>
      small.score(LONG.slice(0, 2000), i < 5 ? { wait: true } : { wait: true, signal: controller.signal }),
    );
    const late = failureOf(small.score('a', { wait: true, timeout: 1 }));
    controller.abort();
    const settled = await Promise.allSettled(all);
    assert.ok(settled.slice(0, 5).every(({ status }) => status === 'fulfilled'));
    assert.ok(settled.slice(5).every(({ reason }) => reason instanceof CancelledError));
    assert.ok((await late) instanceof DeadlineExceededError);
    // More texts than ever fit: nobody to wait for.
    assert.ok(
      (await failureOf(small.scoreBatch(Array(10).fill('a'), { wait: true }))) instanceof BusyError,
    );
  } finally {
    await small.close();
  }
});

test('a closed guard answers what it was asked, and then nothing', async () => {
  const other = await openDemo();
  const stream = other.stream();
  const asked = Array.from({ length: 50 }, () => other.score(HARMFUL));
  await other.close();
  await other.close();
  for (const { harmful } of await Promise.all(asked)) assert.equal(harmful, true);
  assert.ok((await failureOf(other.score('a'))) instanceof InvalidHandleError);
  assert.throws(() => other.info(), InvalidHandleError);
  assert.throws(() => other.stream(), InvalidHandleError);
  assert.ok((await stream.push(HARMFUL)).score > 0.5);
  stream.close();
  stream.close();
  assert.ok((await failureOf(stream.push('a'))) instanceof InvalidHandleError);
});

test('disposal', async () => {
  const first = await openDemo();
  first[Symbol.dispose]();
  assert.throws(() => first.info(), InvalidHandleError);
  const second = await openDemo();
  const stream = second.stream();
  await stream[Symbol.asyncDispose]();
  second.stream()[Symbol.dispose]();
  assert.equal(second.stats().streams, 0);
  await second[Symbol.asyncDispose]();
  assert.throws(() => second.info(), InvalidHandleError);
});

test('a guard is replaced under load, and no call fails', async () => {
  let current = await openDemo();
  let done = 0;
  let stop = false;
  const callers = Array.from({ length: 16 }, async () => {
    while (!stop) {
      const { harmful } = await current.score(HARMFUL);
      assert.equal(harmful, true);
      done += 1;
    }
  });
  const before = [];
  for (let i = 0; i < 5; i += 1) {
    const fresh = await openDemo();
    await fresh.warmup();
    const old = current;
    current = fresh;
    await old.close();
    before.push(done);
    await sleep(20);
  }
  stop = true;
  await Promise.all(callers);
  await current.close();
  assert.ok(done > before.at(-1) && before.at(-1) > before[0], `${before} ${done}`);
});

test('information, statistics and records', async () => {
  const info = guard.info();
  const whole = JSON.parse(guard.infoJson());
  assert.equal(info.device, 'cpu');
  assert.equal(info.dtype, 'f32');
  assert.equal(info.maxLength, whole.max_length ?? info.maxLength);
  assert.ok(info.layersRun <= info.layers && info.neurons > 0 && info.threads === 2);
  const before = guard.stats();
  const result = await guard.score(HARMFUL);
  const after = guard.stats();
  assert.equal(after.requests, before.requests + 1);
  assert.equal(after.harmful, before.harmful + 1);
  assert.equal(
    after.latencyCounts.reduce((a, b) => a + b),
    after.requests,
  );
  assert.match(guard.statsPrometheus(), /^siren_/m);
  const record = JSON.parse(await guard.auditJson(HARMFUL, result));
  assert.equal(record.score, result.score);
  assert.equal(record.is_harmful, true);
  assert.ok(!JSON.stringify(record).includes('bomb'));
  const text = LONG.slice(0, 4000);
  const long = await guard.score(text, { windows: true });
  assert.ok(long.window.count > 1);
  assert.ok(JSON.stringify(JSON.parse(await guard.auditJson(text, long))).includes('window'));
  assert.ok((await failureOf(guard.auditJson('a', { ...result, score: NaN }))) instanceof SirenError);
  assert.ok((await failureOf(guard.auditJson('a', {}))) instanceof TypeError);
});

test('an opening that is given up fails at once', async () => {
  const controller = new AbortController();
  const opening = failureOf(openDemo({ signal: controller.signal }));
  controller.abort();
  assert.ok((await opening) instanceof CancelledError);
  assert.ok((await failureOf(openDemo({ signal: controller.signal }))) instanceof CancelledError);
});

test('a signal of many calls is listened to once, and has one token', async () => {
  const { native } = createRequire(import.meta.url)('../lib/native.cjs');
  const count = { made: 0, freed: 0 };
  const { siren_cancel_token_new, siren_cancel_token_free } = native();
  native().siren_cancel_token_new = (...rest) => (count.made++, siren_cancel_token_new(...rest));
  native().siren_cancel_token_free = (...rest) => (count.freed++, siren_cancel_token_free(...rest));
  const warnings = [];
  const warned = (warning) => warnings.push(warning);
  process.on('warning', warned);
  const { signal } = new AbortController();
  await Promise.all(Array.from({ length: 50 }, () => guard.score('a', { signal })));
  assert.deepEqual(count, { made: 1, freed: 1 });
  for (let i = 0; i < 20; i += 1) await guard.score('a', { signal });
  await failureOf(guard.score({}, { signal }));
  await failureOf(guard.score(5, { signal }));
  assert.deepEqual(count, { made: 23, freed: 23 });
  Object.assign(native(), { siren_cancel_token_new, siren_cancel_token_free });
  const small = await openDemo({ maxQueue: 1 });
  await Promise.all(Array.from({ length: 50 }, () => small.score('a', { signal, wait: true })));
  await small.close();
  await sleep(1);
  process.off('warning', warned);
  assert.deepEqual(warnings, []);
});

test('a worker is told to leave it to the main thread', async () => {
  const worker = new Worker(
    `import(${JSON.stringify(new URL('../lib/index.mjs', import.meta.url).href)})
      .then(({ open }) => open()).catch((error) => require('node:worker_threads').parentPort.postMessage(error.code))`,
    { eval: true },
  );
  assert.equal(
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)),
    'unsupported',
  );
  await worker.terminate();
});
