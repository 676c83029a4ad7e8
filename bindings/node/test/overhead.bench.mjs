// What a call costs above the library's own time, which its statistics count from the call to the answer.
//
//   node --expose-gc bindings/node/test/overhead.bench.mjs

import { failureOf, openDemo } from './support.mjs';

const guard = await openDemo({ threads: 1 });
const small = await openDemo({ maxTextBytes: 8 });

/** The median of nine, in microseconds a round: all, and without the library's time. */
async function measure(name, rounds, work, on = guard) {
  const all = [];
  const above = [];
  for (let i = 0; i < 9; i += 1) {
    const before = on.stats().latencySum;
    const start = performance.now();
    for (let j = 0; j < rounds; j += 1) await work();
    const took = ((performance.now() - start) * 1000) / rounds;
    all.push(took);
    above.push(took - ((on.stats().latencySum - before) * 1e6) / rounds);
  }
  const median = (list) => list.sort((a, b) => a - b)[4].toFixed(1);
  console.log(`${name}: ${median(all)} us, above the library's ${median(above)} us`);
}

const texts = Array.from({ length: 1000 }, () => 'a');
await measure('refused at once', 2000, () => failureOf(small.score('more than 8 bytes')), small);
await measure('1 text', 500, () => guard.score('a'));
await measure('a batch of 1', 500, () => guard.scoreBatch(['a']));
await measure('a batch of 1,000', 3, () => guard.scoreBatch(texts));
await measure(
  'a batch of 1,000 refused one by one',
  20,
  () => small.scoreBatch(Array(1000).fill('more than 8 bytes')),
  small,
);
const stream = guard.stream();
await measure('a push', 200, async () => {
  stream.reset();
  await stream.push('a');
});

// The longest that one call holds the event loop.
for (const [name, call] of [
  ['a text of 4 MB', () => guard.score('one two '.repeat(500_000), { windows: true, timeout: 1 })],
  ['a batch of 16,384', () => small.scoreBatch(Array(16_384).fill('a'))],
]) {
  const held = [];
  for (let i = 0; i < 5; i += 1) {
    const start = performance.now();
    const calling = call().catch(() => {});
    held.push(performance.now() - start);
    await calling;
  }
  console.log(
    `${name} holds the event loop for ${held.sort((a, b) => a - b)[2].toFixed(1)} ms when it is called`,
  );
}
await Promise.all([guard.close(), small.close()]);
