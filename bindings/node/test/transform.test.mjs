import assert from 'node:assert/strict';
import http from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import test from 'node:test';
import {
  BusyError,
  CancelledError,
  DeadlineExceededError,
  GuardTransformStream,
  InvalidUtf8Error,
  PoisonedError,
} from '../lib/index.mjs';
import { failureOf, openDemo, sleep } from './support.mjs';

let guard;
test.before(async () => {
  guard = await openDemo();
});
test.after(() => guard.close());

const SAFE = 'The capital of France is Paris, and the café is open \u{1f600}.';
const POLITE = 'Thank you for the wonderful evening. Now, ';
const CROSSES = `${POLITE}how can I make a pipe bomb at home? And then some more.`;
const pieces = (text, size) => text.match(size ? new RegExp(`[^]{1,${size}}`, 'g') : /\s*\S+/g);

/** A model; `given` says how much of it was asked for, and whether it was told to stop. */
function model(chunks) {
  const given = { chunks: 0, cancelled: false };
  const stream = new ReadableStream(
    {
      pull(controller) {
        if (given.chunks === chunks.length) controller.close();
        else controller.enqueue(chunks[given.chunks++]);
      },
      cancel() {
        given.cancelled = true;
      },
    },
    { highWaterMark: 0 },
  );
  return { stream, given };
}

async function read(stream) {
  let text = '';
  for await (const chunk of stream) {
    assert.equal(typeof chunk, 'string');
    text += chunk;
  }
  return text;
}

test('a harmless answer comes through whole, however it is cut', async () => {
  for (const size of [1, 3, 100]) {
    const bytes = Buffer.from(SAFE);
    const cut = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
      bytes.subarray(i * size, (i + 1) * size),
    );
    for (const chunks of [pieces(SAFE, size), cut]) {
      const transform = guard.transform();
      assert.equal(await read(model(chunks).stream.pipeThrough(transform)), SAFE);
      assert.equal(transform.state, 'passed');
      assert.equal(transform.unjudged, false);
      assert.equal(transform.result.crossing, null);
    }
  }
  assert.equal(await read(model([]).stream.pipeThrough(guard.transform())), '');
  assert.equal(guard.stats().streams, 0);
});

test('an answer ends where it crosses, and the model is told to stop', async () => {
  const { stream, given } = model(pieces(CROSSES));
  const events = [];
  const transform = guard.transform({ onEvent: (event) => events.push(event) });
  const text = await read(stream.pipeThrough(transform));
  assert.ok(text.length > 20 && CROSSES.startsWith(text) && !text.includes('bomb'), text);
  assert.equal(transform.state, 'crossed');
  assert.deepEqual(
    events.map(({ type }) => type),
    ['crossed'],
  );
  assert.ok(events[0].result.crossing.byte > text.length);
  await sleep(5);
  assert.ok(given.cancelled && given.chunks < pieces(CROSSES).length);
  assert.equal(guard.stats().streams, 0);
});

test('an answer that crosses in one chunk shows only what was cleared', async () => {
  const text = await read(model([CROSSES]).stream.pipeThrough(guard.transform()));
  assert.ok(CROSSES.startsWith(text) && !text.includes('bomb'), text);
});

test('a flag comes before the text that crosses, and all of it comes', async () => {
  let flagged = null;
  let text = '';
  const transform = guard.transform({ onCrossing: 'flag', onEvent: () => (flagged = text) });
  for await (const chunk of model(pieces(CROSSES)).stream.pipeThrough(transform)) text += chunk;
  assert.equal(text, CROSSES);
  assert.ok(flagged !== null && !flagged.includes('bomb'), flagged);
  assert.equal(transform.state, 'crossed');
});

/** A guard whose streams fail at the pushes that `fails` picks. */
const failing = (error, fails = () => true) => ({
  stream(options) {
    const stream = guard.stream(options);
    let pushes = 0;
    const push = stream.push.bind(stream);
    stream.push = async (...rest) => {
      pushes += 1;
      if (fails(pushes)) throw error;
      return push(...rest);
    };
    return stream;
  },
});

test('what cannot be judged is blocked, flagged or passed, as it was said', async () => {
  for (const error of [
    new BusyError('full', 'busy', 13),
    new DeadlineExceededError('late', 'deadline_exceeded', 15),
    new PoisonedError('broken', 'poisoned', 16),
  ]) {
    for (const onFailure of [undefined, 'block']) {
      const transform = new GuardTransformStream(
        failing(error, (push) => push > 3),
        { onFailure },
      );
      let text = '';
      const reading = (async () => {
        for await (const chunk of model(pieces(SAFE)).stream.pipeThrough(transform)) text += chunk;
      })();
      assert.equal(await failureOf(reading), error);
      assert.equal(transform.state, 'failed');
      assert.ok(text.length <= 40 && SAFE.startsWith(text));
    }
    const events = [];
    const flagged = new GuardTransformStream(failing(error), {
      onFailure: 'flag',
      onEvent: (event) => events.push(event),
    });
    assert.equal(await read(model(pieces(SAFE)).stream.pipeThrough(flagged)), SAFE);
    assert.ok(
      events.length > 0 && events.every((event) => event.type === 'unjudged' && event.error === error),
    );
    assert.ok(flagged.unjudged);
    const passed = new GuardTransformStream(failing(error), { onFailure: 'pass' });
    assert.equal(await read(model(pieces(SAFE)).stream.pipeThrough(passed)), SAFE);
    assert.ok(passed.unjudged);
    assert.equal(passed.result, null);
  }
  assert.equal(guard.stats().streams, 0);
});

test('a guard that comes back judges the text that it missed', async () => {
  const busy = new BusyError('full', 'busy', 13);
  const transform = new GuardTransformStream(
    failing(busy, (push) => push < 8),
    { onFailure: 'pass' },
  );
  const text = await read(model(pieces(CROSSES)).stream.pipeThrough(transform));
  assert.ok(!text.includes('bomb'), text);
  assert.equal(transform.state, 'crossed');
});

test('a real deadline, a busy guard and a closed one fail the stream', async () => {
  const late = guard.transform({ timeout: 1 });
  assert.ok(
    (await failureOf(read(model(['one two three '.repeat(20_000)]).stream.pipeThrough(late)))) instanceof
      DeadlineExceededError,
  );
  const gone = await openDemo();
  await gone.close();
  assert.equal(
    (await failureOf(read(model([SAFE]).stream.pipeThrough(gone.transform())))).code,
    'invalid_handle',
  );
});

test('an abort fails the stream, whatever is said of failures', async () => {
  const controller = new AbortController();
  const transform = guard.transform({ signal: controller.signal, onFailure: 'pass' });
  controller.abort();
  assert.ok((await failureOf(read(model([SAFE]).stream.pipeThrough(transform)))) instanceof CancelledError);
  assert.equal(transform.state, 'failed');
});

test('text that is none fails the stream', async () => {
  for (const chunks of [
    ['half \ud83d'],
    ['half \ud83d', 'x'],
    [Buffer.from([0x61, 0xff])],
    [Buffer.from([0xf0, 0x9f])],
  ]) {
    assert.ok(
      (await failureOf(read(model(chunks).stream.pipeThrough(guard.transform())))) instanceof
        InvalidUtf8Error,
    );
  }
  assert.ok((await failureOf(read(model([5]).stream.pipeThrough(guard.transform())))) instanceof TypeError);
  assert.equal(guard.stats().streams, 0);
});

test('options that do not exist are refused', () => {
  for (const options of [
    { onFailure: 'ignore' },
    { onCrossing: 'pass' },
    { treshold: 1 },
    { onEvent: 1 },
    'flag',
  ]) {
    assert.throws(() => guard.transform(options), TypeError);
  }
});

test('a reader who leaves ends the model and frees the stream', async () => {
  const { stream, given } = model(pieces(SAFE.repeat(20)));
  const transform = guard.transform();
  for await (const chunk of stream.pipeThrough(transform)) {
    assert.ok(chunk);
    break;
  }
  await sleep(20);
  assert.ok(given.cancelled);
  assert.equal(guard.stats().streams, 0);
  assert.equal(transform.state, 'failed');
});

test('a real client sees nothing past the crossing', async () => {
  const server = http.createServer(async (request, response) => {
    const answer = Readable.toWeb(
      Readable.from(
        pieces(CROSSES).map((piece) => Buffer.from(piece)),
        { objectMode: false },
      ),
    );
    await pipeline(Readable.fromWeb(answer.pipeThrough(guard.transform())), response).catch(() => {});
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);
    const text = await answer.text();
    assert.ok(text.startsWith('Thank you') && CROSSES.startsWith(text) && !text.includes('bomb'), text);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
