// The event loop's delay under load. Alone and, where that is allowed, ahead of the machine's other
// processes: `chrt -f 20 node --test bindings/node/test/loop.test.mjs`.

import assert from 'node:assert/strict';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import test from 'node:test';
import { HARMFUL, openDemo, sleep } from './support.mjs';

/** What the event loop's delay is while `work` is done again and again, for so many milliseconds. */
async function delayOf(work, milliseconds) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  let stop = false;
  let calls = 0;
  const workers = work.map(async (call) => {
    while (!stop) {
      await call();
      calls += 1;
    }
  });
  await sleep(200);
  delay.enable();
  await sleep(milliseconds);
  delay.disable();
  stop = true;
  await Promise.all(workers);
  return { p50: delay.percentile(50) / 1e6, p99: delay.percentile(99) / 1e6, max: delay.max / 1e6, calls };
}

async function staysShort(t, work, least) {
  const tried = [];
  // A machine that others use may stall any process: the best of three.
  for (let i = 0; i < 3; i += 1) {
    const { p50, p99, max, calls } = await delayOf(work, 2000);
    assert.ok(calls > least, `${calls} calls`);
    const figures = `p50 ${p50.toFixed(1)}, p99 ${p99.toFixed(1)}, max ${max.toFixed(1)} ms`;
    t.diagnostic(`event loop delay: ${figures}; ${calls} calls`);
    tried.push(p99);
    if (p99 < 20) break;
  }
  assert.ok(Math.min(...tried) < 20, `p99 ${tried} ms`);
}

const times = (count, call) => Array.from({ length: count }, (_, i) => () => call(i));

test('the event loop goes on under 64 callers, 16 streams and batches of 1,000', async (t) => {
  const guard = await openDemo({ threads: 1 });
  const batch = Array.from({ length: 1000 }, (_, i) => `text number ${i}`);
  let calls = 0;
  const streamed = async () => {
    const stream = guard.stream();
    await stream.push(HARMFUL);
    await stream.finish();
    stream.close();
  };
  const single = (i) => guard.score(`${HARMFUL} ${i} ${(calls += 1)}`);
  await staysShort(t, [...times(64, single), ...times(16, streamed), () => guard.scoreBatch(batch)], 100);
  await guard.close();
});

test('the event loop goes on while calls wait for room', async (t) => {
  const guard = await openDemo({ threads: 1, maxQueue: 16, noPrefixCache: true });
  const text = 'one two three four '.repeat(250);
  await staysShort(
    t,
    times(40, () => guard.score(text, { windows: true, wait: true })),
    10,
  );
  await guard.close();
});
