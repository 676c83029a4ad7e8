"""What the library tells. Results are made by it alone: a call that fails gives none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from . import _abi

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The part of a long text that scored highest."""

    #: All windows of the text.
    count: int
    #: This one, from 0.
    index: int
    #: Its first byte: in the text, or in prompt, newline and response joined.
    start: int
    #: The byte after its last.
    end: int


def window_of(raw: _abi.Result | _abi.PushResult) -> Window | None:
    if not raw.windows:
        return None
    return Window(raw.windows, raw.window_index, raw.window_start, raw.window_end)


@dataclass
class ScoreResult:
    """What a text scored. The first three fields are those of ``siren_guard.ScoreResult``."""

    #: Probability that the text is harmful, from 0 to 1.
    score: float
    #: ``score >= threshold``
    is_harmful: bool
    #: What the score was compared with.
    threshold: float
    #: Tokens that ran, special ones included.
    tokens: int = field(default=0, repr=False)
    #: The text had more tokens than the guard reads, and the rest was not read.
    truncated: bool = field(default=False, repr=False)
    #: The window that scored highest, when the call asked for windows.
    window: Window | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, object]:
        """The fields that ``siren_guard.ScoreResult.to_dict`` has."""
        return {"score": self.score, "is_harmful": self.is_harmful, "threshold": self.threshold}


def score_result(raw: _abi.Result) -> ScoreResult:
    return ScoreResult(
        raw.score, raw.is_harmful != 0, raw.threshold, raw.tokens, raw.truncated != 0, window_of(raw)
    )


class Crossing(NamedTuple):
    """Where a stream's running score reached the threshold."""

    #: The token, from 0, special ones and the prompt's counted.
    token: int
    #: Where it ends in the pushed bytes.
    byte: int


@dataclass(frozen=True)
class PushResult:
    """What the whole of a stream scores after a push."""

    #: Probability that all that was pushed, after the prompt, is harmful, from 0 to 1.
    score: float
    #: ``score >= threshold``: now, whatever earlier pushes scored.
    is_harmful: bool
    #: What the score was compared with.
    threshold: float
    #: Tokens that were scored, special ones and the prompt's included. May shrink.
    tokens: int
    #: There are more tokens than the guard reads, and the rest was not read.
    truncated: bool
    #: Where the running score crossed; once it has, it stays.
    crossing: Crossing | None
    #: Pushed bytes, whole characters, that may be shown. Never shrinks.
    cleared_bytes: int
    #: The window that scored highest, when the stream was opened with windows.
    window: Window | None
    #: The token, from 0, that the first of ``token_scores`` belongs to.
    first_scored: int
    #: The running score after each token that this push ran, as many as were asked for.
    token_scores: tuple[float, ...]


class ScoreArrays(NamedTuple):
    """A batch as arrays of one row a text.

    A text that failed has ``status`` other than 0, ``score`` NaN, and ``is_harmful`` True, so that a
    failure that nobody looks at does not pass as safe.
    """

    #: float64; NaN where the text failed.
    score: NDArray[np.float64]
    #: bool
    is_harmful: NDArray[np.bool_]
    #: float64; NaN where the text failed.
    threshold: NDArray[np.float64]
    #: uint64; 0 where the text failed.
    tokens: NDArray[np.uint64]
    #: bool
    truncated: NDArray[np.bool_]
    #: int32; 0, or the status of the failure.
    status: NDArray[np.int32]


@dataclass(frozen=True)
class GuardInfo:
    """Numbers of an open guard; ``SirenGuard.info_json`` tells the rest."""

    threads: int
    #: Longest text in tokens, special ones included.
    max_length: int
    default_threshold: float
    #: Blocks of the backbone that run.
    layers_run: int
    layers: int
    hidden_size: int
    #: Selected neurons over all layers.
    neurons: int
    #: Bytes of the linear layers' weights in memory.
    weight_bytes: int
    max_text_bytes: int
    max_batch: int
    #: Bytes that a token takes where it is kept for streams and in the prefix cache.
    kv_token_bytes: int
    #: ``cpu`` or ``cuda:N``
    device: str
    #: ``f32`` or ``bf16``
    dtype: str


@dataclass(frozen=True)
class GuardStats:
    """Counters since a guard was opened, and what it holds now. ``siren.h`` says more of each."""

    requests: int
    texts: int
    pushes: int
    harmful: int
    tokens: int
    tokens_reused: int
    truncated: int
    queue_depth: int
    passes: int
    pass_sequences: int
    #: Seconds.
    pass_seconds: float
    pass_tokens_limit: int
    #: Calls by the seconds from call to result: up to 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
    #: 0.5, 1, 2, 5, 10, 20, 60, and longer.
    latency_counts: tuple[int, ...]
    #: Seconds.
    latency_sum: float
    kv_bytes: int
    streams: int
    streams_parked: int
    cache_entries: int
    cache_hits: int
    cache_misses: int
    #: Failures by the number of their status.
    errors: tuple[int, ...]
