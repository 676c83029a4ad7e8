"""A growing text, scored at the cost of its new tokens."""

from __future__ import annotations

import weakref
from ctypes import byref, c_double, c_void_p

from . import _abi
from .calls import CancelToken, Closed, count, encode, handle_of, in_thread, lib, milliseconds
from .errors import fail
from .results import Crossing, PushResult, window_of


class SirenStream(Closed):
    """A growing response on a guard, after an optional prompt; ``SirenGuard.stream`` makes it.

    It outlives its guard. It belongs to one thread at a time: else InUseError.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, lib.siren_stream_free, handle)

    def push(
        self,
        text: str | bytes,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        token_scores: int = 0,
    ) -> PushResult:
        """Add ``text`` and score all of the stream. Bytes may end within a character.

        ``timeout`` is in seconds; ``wait`` waits for a place when the queue is full, in place of
        BusyError; ``token_scores`` is how many running scores of the new tokens are wanted. After a
        SirenError the stream is as it was before.
        """
        data = encode(text)
        options, scores = _push_options(timeout, cancel, wait, token_scores)
        result, error = _abi.new(_abi.PushResult), _abi.new(_abi.Error)
        status = lib.siren_stream_push(
            self._handle, data, len(data), byref(options), byref(result), byref(error)
        )
        if status:
            fail(status, error)
        return _push_result(result, scores)

    def finish(
        self,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        token_scores: int = 0,
    ) -> PushResult:
        """Say that nothing more comes: the last result, in which every byte is cleared that can be."""
        options, scores = _push_options(timeout, cancel, wait, token_scores)
        result, error = _abi.new(_abi.PushResult), _abi.new(_abi.Error)
        status = lib.siren_stream_finish(self._handle, byref(options), byref(result), byref(error))
        if status:
            fail(status, error)
        return _push_result(result, scores)

    async def push_async(
        self, text: str | bytes, *, timeout: float | None = None, wait: bool = False, token_scores: int = 0
    ) -> PushResult:
        """``push`` in a thread; a task that is cancelled ends the library's work."""
        return await in_thread(self.push, text, timeout=timeout, wait=wait, token_scores=token_scores)

    async def finish_async(
        self, *, timeout: float | None = None, wait: bool = False, token_scores: int = 0
    ) -> PushResult:
        """``finish`` in a thread."""
        return await in_thread(self.finish, timeout=timeout, wait=wait, token_scores=token_scores)

    def reset(self) -> None:
        """Forget what was pushed; the prompt and the options stay."""
        error = _abi.new(_abi.Error)
        status = lib.siren_stream_reset(self._handle, byref(error))
        if status:
            fail(status, error)

    def fork(self) -> SirenStream:
        """A second stream in the same state: what has run is shared, not run again."""
        handle, error = c_void_p(), _abi.new(_abi.Error)
        status = lib.siren_stream_fork(self._handle, byref(handle), byref(error))
        if status:
            fail(status, error)
        assert handle.value is not None
        return SirenStream(handle.value)

    def close(self) -> None:
        """Free the stream; a call that runs on it in another thread still finishes."""
        self._free()


def _push_options(
    timeout: float | None, cancel: CancelToken | None, wait: bool, token_scores: int
) -> tuple[_abi.PushOptions, list[float]]:
    options = _abi.new(_abi.PushOptions)
    options.timeout_ms = milliseconds(timeout)
    options.cancel = handle_of(cancel)
    options.wait = bool(wait)
    scores = (c_double * count("token_scores", token_scores, 2**32))()
    if token_scores:
        options.token_scores = scores
        options.token_scores_capacity = token_scores
    return options, scores  # type: ignore[return-value]  # an array of doubles reads as a list of floats


def _push_result(raw: _abi.PushResult, scores: list[float]) -> PushResult:
    crossing = Crossing(raw.crossing_token, raw.crossing_byte) if raw.crossed else None
    return PushResult(
        score=raw.score,
        is_harmful=raw.is_harmful != 0,
        threshold=raw.threshold,
        tokens=raw.tokens,
        truncated=raw.truncated != 0,
        crossing=crossing,
        cleared_bytes=raw.cleared_bytes,
        window=window_of(raw),
        first_scored=raw.first_scored,
        token_scores=tuple(scores[: raw.token_scores_count]),
    )
