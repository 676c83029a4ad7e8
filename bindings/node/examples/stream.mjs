// Passes a model's answer on, as far as it is cleared.
//
//   node stream.mjs "an answer"

import { open } from 'libsiren';

/** Stands for a model: the words of the argument, one after the other. */
async function* model() {
  for (const word of process.argv[2].match(/\s*\S+/g)) yield word;
}

const guard = await open();
const judged = guard.transform({ prompt: '', onCrossing: 'end', onFailure: 'block' });
for await (const text of ReadableStream.from(model()).pipeThrough(judged)) process.stdout.write(text);
console.log(`\n${judged.state}`);
await guard.close();
