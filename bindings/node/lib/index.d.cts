/** Text: a string, or UTF-8 bytes. */
export type Text = string | Uint8Array;

/** What is scored: one text, or what a model was asked and what it answered (one of the two is enough). */
export type Input =
  | Text
  | { text: Text; prompt?: undefined; response?: undefined }
  | { text?: undefined; prompt: Text; response?: Text }
  | { text?: undefined; prompt?: Text; response: Text };

/** How a text that is longer than the guard reads is read in overlapping windows. */
export interface WindowOptions {
  /** Tokens of a window; the guard's `maxLength` if not said. */
  tokens?: number;
  /** Tokens from one window's start to the next one's; half of a window's if not said. */
  stride?: number;
}

/** The window that scored highest. */
export interface Window {
  /** Windows that the text was read in. */
  count: number;
  /** Which of them, from 0. */
  index: number;
  /** Its first byte in the text's UTF-8. */
  start: number;
  /** The byte after its last. */
  end: number;
}

export interface CallOptions {
  /** Milliseconds until the call fails with DeadlineExceededError. None if not said. */
  timeout?: number;
  /** Wait for room when the guard is busy, instead of failing with BusyError. */
  wait?: boolean;
  /** Its abort fails the call with CancelledError, and ends the work. */
  signal?: AbortSignal;
}

export interface ScoreOptions extends CallOptions {
  /** What the score is compared with, from 0 to 1; the guard's own if not said. */
  threshold?: number;
  /** Read a long text in windows; it is cut at `maxLength` if not said. */
  windows?: boolean | WindowOptions;
}

export interface ScoreResult {
  /** Probability that the text is harmful, from 0 to 1. */
  readonly score: number;
  /** What the score was compared with. */
  readonly threshold: number;
  /** score >= threshold */
  readonly harmful: boolean;
  /** The text had more tokens than the guard reads. */
  readonly truncated: boolean;
  /** Tokens that ran, special ones included. */
  readonly tokens: number;
  /** null without `windows`. */
  readonly window: Window | null;
}

/** One of a batch: its result, or why there is none. */
export type Scored =
  | { readonly result: ScoreResult; readonly error: null }
  | { readonly result: null; readonly error: SirenError };

export interface StreamOptions {
  /** What the growing text answers. */
  prompt?: Text;
  /** What scores are compared with, from 0 to 1; the guard's own if not said. */
  threshold?: number;
  /** Tokens in a row at or above the threshold before they count as a crossing; 1 if not said. */
  hysteresis?: number;
  /** Go on past the guard's `maxLength` in windows. */
  windows?: boolean | WindowOptions;
}

export interface PushOptions extends CallOptions {
  /** Give the running score after each token that the push runs, at most so many. */
  tokenScores?: number;
}

/** What all of a stream scores after a push. */
export interface PushResult {
  readonly score: number;
  readonly threshold: number;
  /** score >= threshold: now, whatever earlier pushes scored. */
  readonly harmful: boolean;
  readonly truncated: boolean;
  /** Tokens that were scored, special ones and the prompt's included. May shrink. */
  readonly tokens: number;
  /** Where the running score first reached the threshold; it stays. */
  readonly crossing: {
    /** The token, from 0, special ones and the prompt's counted. */
    readonly token: number;
    /** Where it ends in the pushed bytes of UTF-8. */
    readonly byte: number;
  } | null;
  /** How many of the pushed bytes may be shown, whole characters. Never shrinks. */
  readonly cleared: number;
  /** null without `windows`. */
  readonly window: Window | null;
  /** The running scores that the option asked for. */
  readonly tokenScores?: Float64Array;
  /** The token, from 0, that the first of them belongs to. */
  readonly firstScored?: number;
  /** How many there were, which may be more than there was room for. */
  readonly tokenScoresCount?: number;
}

export interface OpenOptions {
  /** Threads of the guard's own. What the process may use if not said. */
  threads?: number;
  /** The backbone's directory, repository or GGUF file; what the artifact names if not said. */
  backbone?: string;
  /** 'auto', 'cpu', 'cuda' or 'cuda:N'. */
  device?: string;
  /** 'auto', 'f32', 'bf16' or 'int8'. */
  dtype?: string;
  cacheDir?: string;
  hubEndpoint?: string;
  hubToken?: string;
  /** Where `models/demo` lies. */
  dataDir?: string;
  /**
   * A directory in which packed weights are kept in a file, which the next open maps and processes share;
   * `auto`: in packed/ beside the backbone's weights.
   */
  packedCache?: string;
  /** Longest text in tokens. */
  maxLength?: number;
  /** Longest text in bytes. 4 MiB if not said. */
  maxTextBytes?: number;
  /** Most texts of one batch. 16,384 if not said. */
  maxBatch?: number;
  /** Most texts that wait, and most calls without an answer; over it, BusyError. 65,536 if not said. */
  maxQueue?: number;
  /** Most open streams. 16,384 if not said. */
  maxStreams?: number;
  /** Most bytes that streams and the prefix cache keep. 1 GiB if not said. */
  kvBytes?: number;
  /** Of these, most bytes of the prefix cache. 256 MiB if not said. */
  prefixCacheBytes?: number;
  noPrefixCache?: boolean;
  /** Never touch the network. */
  offline?: boolean;
  /** Read the weights into memory instead of mapping them. */
  readWeights?: boolean;
  /** Told how downloads go, in bytes; `total` is 0 while it is not known. What it throws fails the opening. */
  progress?: (progress: { file: string; done: number; total: number }) => void;
  /** Its abort fails the opening at once; what was being read goes on in the background and is then closed. */
  signal?: AbortSignal;
}

export interface GuardInfo {
  threads: number;
  maxLength: number;
  defaultThreshold: number;
  layersRun: number;
  layers: number;
  hiddenSize: number;
  neurons: number;
  weightBytes: number;
  maxTextBytes: number;
  maxBatch: number;
  kvTokenBytes: number;
  device: string;
  dtype: string;
}

/** See `siren_guard_stats` in siren.h. */
export interface GuardStats {
  requests: number;
  texts: number;
  pushes: number;
  harmful: number;
  tokens: number;
  tokensReused: number;
  truncated: number;
  queueDepth: number;
  passes: number;
  passSequences: number;
  passSeconds: number;
  passTokensLimit: number;
  latencyCounts: number[];
  latencySum: number;
  kvBytes: number;
  streams: number;
  streamsParked: number;
  cacheEntries: number;
  cacheHits: number;
  cacheMisses: number;
  /** By the status's name. */
  errors: Record<string, number>;
}

/**
 * Opens a guard: `model` is a directory or a hub repository `OWNER/NAME[@REVISION]`; the demo guard that
 * ships with the library if not said. In the main thread only.
 */
export function open(model?: string, options?: OpenOptions): Promise<Guard>;

/** The library's version. */
export function version(): string;

/** An open guard. Any number of calls may run at once; none blocks the event loop. */
export class Guard {
  private constructor();
  /** Scores one text. */
  score(input: Input, options?: ScoreOptions): Promise<ScoreResult>;
  /** Scores many texts; each has its own result or error, in the order of the inputs. */
  scoreBatch(inputs: readonly Input[], options?: ScoreOptions): Promise<Scored[]>;
  /** Opens a stream. Close it. */
  stream(options?: StreamOptions): Stream;
  /** A TransformStream for one answer of a model. */
  transform(options?: TransformOptions): GuardTransformStream;
  /** Runs one short text, so that the first call is as fast as the second. */
  warmup(): Promise<void>;
  info(): GuardInfo;
  /** Everything about the guard, as JSON. */
  infoJson(): string;
  stats(): GuardStats;
  /** The statistics in the text format of Prometheus. */
  statsPrometheus(): string;
  /** The record of a result that this guard gave `input`, as JSON; the text is only in it as its hash. */
  auditJson(input: Input, result: ScoreResult): Promise<string>;
  /** Closes it. Calls that run finish, and its streams go on; later calls fail with InvalidHandleError. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
  [Symbol.dispose](): void;
}

/** A growing text on a guard. One call at a time: else InUseError. It goes on when its guard is closed. */
export class Stream {
  private constructor();
  /** Adds a chunk, which may split a character, and scores all. A push that fails changes nothing. */
  push(chunk: Text, options?: PushOptions): Promise<PushResult>;
  /** Says that nothing more comes: the last result, in which every byte is cleared that can be. */
  finish(options?: PushOptions): Promise<PushResult>;
  /** Forgets what was pushed, and keeps the prompt and the options. */
  reset(): void;
  /** A second stream in the same state; from then on the two know nothing of each other. */
  fork(): Stream;
  close(): void;
  [Symbol.dispose](): void;
  [Symbol.asyncDispose](): Promise<void>;
}

/** What a GuardTransformStream tells. */
export type GuardEvent =
  /** The answer crosses the threshold. With `onCrossing: 'end'` what was cleared before is still passed on. */
  | { type: 'crossed'; result: PushResult }
  /** The text that is passed on next was not judged; only with `onFailure: 'flag'`. */
  | { type: 'unjudged'; error: SirenError };

export interface TransformOptions extends StreamOptions, CallOptions {
  /**
   * 'end', which is what happens when nothing is said: text is held back until it is cleared, and the
   * stream ends where it crosses. 'flag': text is passed on once it is scored, after the event.
   */
  onCrossing?: 'end' | 'flag';
  /**
   * What becomes of text that cannot be judged: the guard is busy, the timeout passed, the guard is
   * poisoned. 'block', which is what happens when nothing is said: the stream fails with that error.
   * 'flag': it is passed on after an event. 'pass': it is passed on.
   */
  onFailure?: 'block' | 'flag' | 'pass';
  onEvent?: (event: GuardEvent) => void;
}

/** Takes a model's chunks, strings or bytes, and gives strings. For one answer. */
export class GuardTransformStream extends TransformStream<Text, string> {
  constructor(guard: Pick<Guard, 'stream'>, options?: TransformOptions);
  /** 'passed' when all text was passed on and nothing crossed, 'crossed', 'failed', or 'open' before that. */
  readonly state: 'open' | 'passed' | 'crossed' | 'failed';
  /** The last result. */
  readonly result: PushResult | null;
  /** Text was passed on that nobody judged. */
  readonly unjudged: boolean;
}

/** A failure that the library reports. The call gives nothing else. */
export class SirenError extends Error {
  constructor(message: string, code: string, status: number, options?: ErrorOptions);
  /** The status by name, such as 'busy'. */
  readonly code: string;
  /** The status by number, as in siren.h. */
  readonly status: number;
}
export class InvalidArgumentError extends SirenError {}
export class InvalidHandleError extends SirenError {}
export class InvalidUtf8Error extends SirenError {}
export class NotFoundError extends SirenError {}
export class IoError extends SirenError {}
export class InvalidModelError extends SirenError {}
export class UnsupportedError extends SirenError {}
export class NetworkError extends SirenError {}
export class UnauthorizedError extends SirenError {}
export class OfflineError extends SirenError {}
export class LimitExceededError extends SirenError {}
export class OutOfMemoryError extends SirenError {}
export class BusyError extends SirenError {}
/** Its `name` is 'AbortError', and its `cause` the signal's reason. */
export class CancelledError extends SirenError {}
export class DeadlineExceededError extends SirenError {}
export class PoisonedError extends SirenError {}
export class ForkedError extends SirenError {}
export class NonFiniteError extends SirenError {}
export class InternalError extends SirenError {}
export class InUseError extends SirenError {}
