import assert from 'node:assert/strict';
import test from 'node:test';
import {
  CancelledError,
  DeadlineExceededError,
  InUseError,
  InvalidArgumentError,
  InvalidUtf8Error,
} from '../lib/index.mjs';
import { HARMFUL, failureOf, openDemo } from './support.mjs';

let guard;
test.before(async () => {
  guard = await openDemo();
});
test.after(() => guard.close());

const LONG = 'one two three four '.repeat(4000);

test('a stream in pieces scores as the whole text', async () => {
  const stream = guard.stream();
  let result;
  for (const piece of HARMFUL.match(/.{1,5}/g)) result = await stream.push(piece);
  const finished = await stream.finish();
  const { score } = await guard.score(HARMFUL);
  assert.equal(result.score, score);
  assert.equal(finished.score, score);
  assert.ok(finished.crossing.byte <= HARMFUL.length && finished.cleared < finished.crossing.byte);
  assert.ok((await failureOf(stream.push('a'))) instanceof InvalidArgumentError);
  stream.reset();
  assert.equal((await stream.push('Hello')).crossing, null);
  stream.close();
});

test('a surrogate pair may be split between chunks, as bytes may', async () => {
  const text = 'smile \u{1f600} again';
  const { score } = await guard.score(text);
  for (let at = 0; at <= text.length; at += 1) {
    const stream = guard.stream();
    await stream.push(text.slice(0, at));
    const fork = stream.fork();
    await stream.push(text.slice(at));
    assert.equal((await stream.finish()).score, score, `at ${at}`);
    await fork.push(text.slice(at));
    assert.equal((await fork.finish()).score, score, `at ${at}, forked`);
    stream.close();
    fork.close();
  }
  const stream = guard.stream();
  await stream.push('smile \ud83d');
  assert.ok((await failureOf(stream.finish())) instanceof InvalidUtf8Error);
  assert.ok((await failureOf(stream.push('no low half'))) instanceof InvalidUtf8Error);
  assert.ok((await failureOf(stream.push(Buffer.from('bytes')))) instanceof InvalidUtf8Error);
  // A push that fails changes nothing.
  await stream.push('\ude00 again');
  assert.equal((await stream.finish()).score, score);
  stream.close();
});

test('one call at a time', async () => {
  const stream = guard.stream();
  const first = stream.push(LONG.slice(0, 1000));
  assert.ok((await failureOf(stream.push('b'))) instanceof InUseError);
  await first;
  stream.close();
});

test('a push that is given up leaves the stream as it was', async () => {
  const stream = guard.stream({ windows: true });
  await stream.push('Hello ');
  const controller = new AbortController();
  const pushing = failureOf(stream.push(LONG, { signal: controller.signal }));
  controller.abort();
  assert.ok((await pushing) instanceof CancelledError);
  assert.ok(
    (await failureOf(stream.push(LONG.repeat(3), { timeout: 1 }))) instanceof DeadlineExceededError,
  );
  assert.equal((await stream.push('World')).score, (await guard.score('Hello World')).score);
  stream.close();
});

test('token scores are the running scores', async () => {
  const stream = guard.stream();
  const result = await stream.push(HARMFUL, { tokenScores: 100 });
  assert.equal(result.tokenScores.length, result.tokenScoresCount);
  assert.equal(result.firstScored + result.tokenScoresCount, result.tokens);
  assert.equal(result.tokenScores.at(-1), result.score);
  assert.ok(result.tokenScores[result.crossing.token - result.firstScored] >= result.threshold);
  stream.reset();
  const few = await stream.push(HARMFUL, { tokenScores: 2 });
  assert.deepEqual([...few.tokenScores], [...result.tokenScores.subarray(0, 2)]);
  assert.equal(few.tokenScoresCount, result.tokenScoresCount);
  assert.equal((await stream.push('!')).tokenScores, undefined);
  stream.close();
});

test('many streams at once, finished without a thread each', async () => {
  const { score } = await guard.score(HARMFUL);
  const results = await Promise.all(
    Array.from({ length: 200 }, async () => {
      const stream = guard.stream();
      for (const piece of HARMFUL.match(/.{1,9}/g)) await stream.push(piece);
      const result = await stream.finish();
      stream.close();
      return result.score;
    }),
  );
  assert.ok(results.every((found) => found === score));
  assert.equal(guard.stats().streams, 0);
});
