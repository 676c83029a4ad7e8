// Compiled, never run: what the types allow, and with @ts-expect-error what they do not.

import {
  open,
  version,
  BusyError,
  CancelledError,
  GuardTransformStream,
  SirenError,
  type Guard,
  type GuardEvent,
  type PushResult,
  type ScoreResult,
  type Stream,
} from 'libsiren';

export async function uses(signal: AbortSignal): Promise<string> {
  await using guard: Guard = await open('UofTCSSLab/SIREN-Qwen3-4B', {
    threads: 4,
    signal,
    progress: ({ done }) => void done.toFixed(),
  });
  const result: ScoreResult = await guard.score('text', {
    threshold: 0.5,
    signal,
    windows: { tokens: 128 },
  });
  await guard.score(new Uint8Array());
  await guard.score({ prompt: 'a', response: 'b' });
  // @ts-expect-error a number is no text
  await guard.score(5);
  // @ts-expect-error a text and a prompt
  await guard.score({ text: 'a', prompt: 'b' });
  // @ts-expect-error nothing to score
  await guard.score({});
  // @ts-expect-error a misspelt option
  await guard.score('a', { treshold: 0.5 });
  // @ts-expect-error results are not to be changed
  result.harmful = false;

  for (const scored of await guard.scoreBatch(['a', 'b'])) {
    // @ts-expect-error it may have failed
    scored.result.harmful;
    if (scored.error) scored.error.code.toUpperCase();
    else scored.result.score.toFixed();
  }

  using stream: Stream = guard.stream({ prompt: 'a', hysteresis: 2 });
  const pushed: PushResult = await stream.push('b', { tokenScores: 5, timeout: 100 });
  // @ts-expect-error it may not have crossed
  pushed.crossing.byte;
  stream.fork().reset();

  const transform = guard.transform({
    onCrossing: 'flag',
    onFailure: 'pass',
    onEvent: (event: GuardEvent) => {
      if (event.type === 'crossed') event.result.score.toFixed();
      else event.error.code.toUpperCase();
    },
  });
  const readable: ReadableStream<string> = new ReadableStream<string>().pipeThrough(transform);
  // @ts-expect-error not a policy
  guard.transform({ onFailure: 'ignore' });
  new GuardTransformStream(guard, {});
  const failure: SirenError = new BusyError('a', 'busy', 13);
  if (failure instanceof CancelledError) failure.cause;
  return `${version()} ${readable.locked} ${guard.stats().errors['busy']} ${guard.info().device}`;
}
