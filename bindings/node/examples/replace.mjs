// Replaces a guard while calls run: by one with new weights, or after it was poisoned.
//
//   node replace.mjs

import { open } from 'libsiren';

/** The guard in use. A call takes it and begins in one step, so none meets a guard that is closed. */
let current = await open();

async function replace(model) {
  const fresh = await open(model);
  await fresh.warmup();
  const old = current;
  current = fresh;
  await old.close(); // Calls that run on it finish, and its streams go on.
}

let calls = 0;
let serving = true;
const callers = Array.from({ length: 8 }, async () => {
  while (serving) {
    await current.score('Thank you for the wonderful evening');
    calls += 1;
  }
});
for (let i = 0; i < 3; i += 1) await replace();
serving = false;
await Promise.all(callers);
await current.close();
console.log(`${calls} calls on 4 guards, none failed`);
