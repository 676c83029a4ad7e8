// What a service would notice in the long run: memory, and how the process ends.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'node:test';
import { demo, failureOf, openDemo, sleep } from './support.mjs';

const WITHOUT_GC = !global.gc && 'without --expose-gc';

// SIREN_CALLS sets how many; 1,000,000 take half a minute.
const CALLS = Number(process.env.SIREN_CALLS ?? 60_000);

test('memory does not grow with calls', { skip: WITHOUT_GC }, async (t) => {
  const guard = await openDemo({ maxTextBytes: 8 });
  // What is resident, but for the room that V8 keeps for garbage.
  const resident = () => {
    global.gc();
    global.gc();
    const { rss, heapTotal, heapUsed } = process.memoryUsage();
    return rss - heapTotal + heapUsed;
  };
  const run = async (calls) => {
    for (let done = 0; done < calls; done += 100) {
      // Refused at once, and answered by the callback.
      const inputs = Array.from({ length: 99 }, () =>
        failureOf(guard.score('more than 8 bytes', { signal: new AbortController().signal })),
      );
      await Promise.all([...inputs, failureOf(guard.score(new Uint8Array([0xff]))), guard.scoreBatch([])]);
    }
  };
  await run(40_000);
  // What comes and goes moves it by some MiB, whatever was called. A leak shows each time.
  const grown = [];
  const limit = 4 * 2 ** 20 + 8 * CALLS; // less than any object for each call
  do {
    const before = resident();
    await run(CALLS);
    grown.push(resident() - before);
  } while (grown.at(-1) >= limit && grown.length < 4);
  const mib = grown.map((bytes) => (bytes / 2 ** 20).toFixed(1)).join(', ');
  t.diagnostic(`${mib} MiB more after ${CALLS} calls each`);
  assert.ok(grown.at(-1) < limit, `${mib} MiB more, each time`);
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
  for (let i = 0; i < 5; i += 1)
    assert.ok((await run(`setTimeout(() => process.exit(), ${i * 10});`)) <= 300);
});

test('what is forgotten is freed', { skip: WITHOUT_GC }, async () => {
  const guard = await openDemo();
  for (let i = 0; i < 50; i += 1) await guard.stream().push('a');
  for (let i = 0; i < 100 && guard.stats().streams > 0; i += 1) {
    global.gc();
    await sleep(10);
  }
  assert.equal(guard.stats().streams, 0);
  await guard.close();
});
