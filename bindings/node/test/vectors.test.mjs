import assert from 'node:assert/strict';
import test from 'node:test';
import { SirenError } from '../lib/index.mjs';
import { failureOf, given, openAs, vectors } from './support.mjs';

const near = (id, found, expected) => {
  assert.ok(Math.abs(found - expected) <= vectors.tolerance, `${id}: ${found}, expected ${expected}`);
};

function hasStatus(id, error, status) {
  assert.ok(error instanceof SirenError, `${id}: ${error?.stack}`);
  assert.equal(error.code, status, `${id}: ${error.message}`);
  assert.ok(error.message, id);
}

function agrees(id, found, expected) {
  near(id, found.score, expected.score);
  assert.equal(found.threshold, expected.threshold, id);
  assert.equal(found.harmful, expected.is_harmful, id);
  assert.equal(found.tokens, expected.tokens, id);
  assert.equal(found.truncated, expected.truncated, id);
}

const windowOf = (e) =>
  e.windows ? { count: e.windows, index: e.window_index, start: e.window_start, end: e.window_end } : null;

const guards = new Map();
test.before(async () => {
  for (const [name, options] of Object.entries(vectors.guards)) guards.set(name, await openAs(options));
});
test.after(() => Promise.all([...guards.values()].map((guard) => guard.close())));
const guardOf = (vector) => guards.get(vector.guard ?? 'demo');

const inputOf = ({ text, prompt, response }) => {
  const input = {};
  if (text !== undefined) input.text = given(text);
  if (prompt !== undefined) input.prompt = given(prompt);
  if (response !== undefined) input.response = given(response);
  return input;
};

const windowsOf = (windows) => (windows === undefined ? {} : { windows });
const thresholdOf = (threshold) => (threshold === undefined ? {} : { threshold });
const scoreOptions = ({ threshold, windows } = {}) => ({
  ...thresholdOf(threshold),
  ...windowsOf(windows),
});

for (const vector of vectors.opens) {
  test(`open ${vector.id}`, async () => {
    hasStatus(vector.id, await failureOf(openAs(vector.open)), vector.status);
  });
}

for (const vector of vectors.scores) {
  test(`score ${vector.id}`, async () => {
    const scoring = guardOf(vector).score(inputOf(vector), scoreOptions(vector.options));
    if (vector.status) {
      hasStatus(vector.id, await failureOf(scoring), vector.status);
      return;
    }
    const result = await scoring;
    agrees(vector.id, result, vector.expect);
    assert.deepEqual(result.window, windowOf(vector.expect));
  });
}

test('a batch gives each text what it gets alone, bit for bit', async () => {
  const together = vectors.scores.filter((vector) => !vector.guard && !vector.options);
  assert.ok(together.length >= 20);
  const guard = guards.get('demo');
  const scored = await guard.scoreBatch(together.map(inputOf));
  assert.equal(scored.length, together.length);
  for (const [i, vector] of together.entries()) {
    if (vector.status) {
      hasStatus(vector.id, scored[i].error, vector.status);
      assert.equal(scored[i].result, null, vector.id);
      const { message } = await failureOf(guard.score(inputOf(vector)));
      assert.equal(scored[i].error.message, message, vector.id);
    } else {
      assert.equal(scored[i].error, null, vector.id);
      assert.deepEqual(scored[i].result, await guard.score(inputOf(vector)), vector.id);
    }
  }
});

for (const [i, batch] of vectors.batches.entries()) {
  test(`batch ${i}`, async () => {
    const inputs = batch.ids.map((id) => inputOf(vectors.scores.find((vector) => vector.id === id)));
    hasStatus('batch', await failureOf(guardOf(batch).scoreBatch(inputs)), batch.status);
  });
}

for (const vector of vectors.streams) {
  test(`stream ${vector.id}`, async () => {
    const options = scoreOptions(vector.options);
    if (vector.options?.hysteresis !== undefined) options.hysteresis = vector.options.hysteresis;
    if (vector.prompt !== undefined) options.prompt = given(vector.prompt);
    const begin = async () => guardOf(vector).stream(options);
    if (vector.status) {
      hasStatus(vector.id, await failureOf(begin()), vector.status);
      return;
    }
    const first = await begin();
    const streams = new Map([[undefined, first]]);
    for (const [i, step] of vector.steps.entries()) {
      const id = `${vector.id}, step ${i}`;
      const on = streams.get(step.on);
      if (step.fork) {
        streams.set(step.fork, on.fork());
      } else if (step.reset) {
        on.reset();
      } else {
        const pushing = step.finish ? on.finish() : on.push(given(step.push));
        if (step.status) {
          hasStatus(id, await failureOf(pushing), step.status);
          continue;
        }
        const result = await pushing;
        agrees(id, result, step.expect);
        assert.deepEqual(result.crossing, step.expect.crossing, id);
        assert.equal(result.cleared, step.expect.cleared_bytes, id);
      }
    }
    for (const stream of streams.values()) stream.close();
  });
}
