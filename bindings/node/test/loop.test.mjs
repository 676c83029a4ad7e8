// The event loop's delay under load. Alone and, where that is allowed, ahead of the machine's other
// processes: `chrt -f 20 node --test bindings/node/test/loop.test.mjs`.

import assert from 'node:assert/strict';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import test from 'node:test';
import { HARMFUL, openDemo, sleep } from './support.mjs';

/** 64 callers, 16 streams and batches of 1,000 for so many milliseconds; what the event loop's delay was. */
async function delayUnderLoad(guard, milliseconds) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  let stop = false;
  let calls = 0;
  const repeat = async (work) => {
    while (!stop) {
      await work();
      calls += 1;
    }
  };
  const batch = Array.from({ length: 1000 }, (_, i) => `text number ${i}`);
  const work = [
    ...Array.from({ length: 64 }, (_, i) => repeat(() => guard.score(`${HARMFUL} ${i} ${calls}`))),
    ...Array.from({ length: 16 }, () =>
      repeat(async () => {
        const stream = guard.stream();
        await stream.push(HARMFUL);
        await stream.finish();
        stream.close();
      }),
    ),
    repeat(() => guard.scoreBatch(batch)),
  ];
  await sleep(200);
  delay.enable();
  await sleep(milliseconds);
  delay.disable();
  stop = true;
  await Promise.all(work);
  return { p50: delay.percentile(50) / 1e6, p99: delay.percentile(99) / 1e6, max: delay.max / 1e6, calls };
}

test('the event loop goes on under load', async (t) => {
  const guard = await openDemo({ threads: 1 });
  const tried = [];
  // A machine that others use may stall any process: the best of three.
  for (let i = 0; i < 3; i += 1) {
    const found = await delayUnderLoad(guard, 2000);
    assert.ok(found.calls > 100, `${found.calls} calls`);
    t.diagnostic(
      `event loop delay: p50 ${found.p50.toFixed(1)}, p99 ${found.p99.toFixed(1)}, max ${found.max.toFixed(1)} ms; ${found.calls} calls`,
    );
    tried.push(found.p99);
    if (found.p99 < 20) break;
  }
  await guard.close();
  assert.ok(Math.min(...tried) < 20, `p99 ${tried} ms`);
});
