// What a service would notice: the event loop's delay, memory, and how the process ends.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'node:test';
import { HARMFUL, demo, failureOf, openDemo, sleep } from './support.mjs';

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
    ...Array.from({ length: 16 }, () => repeat(async () => {
      const stream = guard.stream();
      await stream.push(HARMFUL);
      await stream.finish();
      stream.close();
    })),
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
    t.diagnostic(`event loop delay: p50 ${found.p50.toFixed(1)}, p99 ${found.p99.toFixed(1)}, max ${found.max.toFixed(1)} ms; ${found.calls} calls`);
    tried.push(found.p99);
    if (found.p99 < 20) break;
  }
  await guard.close();
  assert.ok(Math.min(...tried) < 20, `p99 ${tried} ms`);
});

// SIREN_CALLS sets how many; 1,000,000 take some minutes.
const CALLS = Number(process.env.SIREN_CALLS ?? 60_000);

test('memory does not grow with calls', async (t) => {
  const guard = await openDemo({ maxTextBytes: 8 });
  const { signal } = new AbortController();
  const resident = () => {
    global.gc?.();
    return process.memoryUsage.rss();
  };
  const run = async (calls) => {
    for (let done = 0; done < calls; done += 100) {
      // Refused at once, and answered by the callback.
      const inputs = Array.from({ length: 99 }, () => failureOf(guard.score('more than 8 bytes', { signal })));
      await Promise.all([...inputs, failureOf(guard.score(new Uint8Array([0xff]), { signal })), guard.scoreBatch([])]);
    }
  };
  await run(20_000);
  const before = resident();
  await run(CALLS);
  const after = resident();
  t.diagnostic(`${(before / 2 ** 20).toFixed(1)} MiB, then ${(after / 2 ** 20).toFixed(1)} after ${CALLS} calls`);
  assert.ok(after < before * 1.1 + 8 * 2 ** 20, `${before} bytes became ${after}`);
  await guard.close();
});

test('a process ends as it should, with calls on their way and without', async () => {
  const library = JSON.stringify(fileURLToPath(new URL('../lib/index.cjs', import.meta.url)));
  const run = async (ending) => {
    const program = `
      const { open } = require(${library});
      open(${JSON.stringify(demo)}, { threads: 1 }).then((guard) => {
        let done = 0;
        process.on('exit', () => console.log(done));
        for (let i = 0; i < 300; i += 1) guard.score('text ' + i).then(() => { done += 1; }, () => {});
        ${ending}
      });`;
    const { stdout } = await promisify(execFile)(process.execPath, ['-e', program], { timeout: 60_000 });
    return Number(stdout);
  };
  // It waits for calls, closed or not; process.exit waits for nothing.
  assert.equal(await run(''), 300);
  assert.equal(await run('guard.close();'), 300);
  for (let i = 0; i < 5; i += 1) assert.ok((await run(`setTimeout(() => process.exit(), ${i * 10});`)) <= 300);
});

test('what is forgotten is freed', { skip: !global.gc && 'without --expose-gc' }, async () => {
  const guard = await openDemo();
  for (let i = 0; i < 50; i += 1) await guard.stream().push('a');
  for (let i = 0; i < 100 && guard.stats().streams > 0; i += 1) {
    global.gc();
    await sleep(10);
  }
  assert.equal(guard.stats().streams, 0);
  await guard.close();
});
