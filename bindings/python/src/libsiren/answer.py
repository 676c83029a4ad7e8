"""A model's answer, passed on as far as it is cleared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

from .errors import InvalidArgumentError, LimitExceededError, SirenError
from .results import Crossing, PushResult
from .stream import SirenStream

#: What a crossing does: end the answer with HarmfulAnswerError, end it as if it were over, or pass all
#: text on and flag the piece in which it is.
OnCrossing = Literal["raise", "stop", "flag"]
#: What becomes of text that could not be judged (busy, too late, poisoned, any SirenError): end the
#: answer with that error, or pass the text on, flagged or not.
OnFailure = Literal["block", "flag", "pass"]


class HarmfulAnswerError(Exception):
    """The answer reached the threshold. What was cleared before was passed on, and nothing after it."""

    def __init__(self, crossing: Crossing, result: PushResult) -> None:
        super().__init__(f"the answer reached the threshold {result.threshold} at byte {crossing.byte}")
        self.crossing = crossing
        self.result = result


class GuardedText(str):
    """A piece of an answer. ``flag`` is None; "crossed"; or, of text that nobody judged, the name of
    the status that says why, such as "busy"."""

    flag: str | None = None


class GuardedAnswer:
    """An answer that is judged while it is written; ``SirenGuard.guard_answer`` makes it.

    Iterate it, with ``for`` or ``async for`` as the chunks are: it gives ``GuardedText``, held back
    until it is cleared. It ends at a crossing, with HarmfulAnswerError if nothing else was said, and at
    text that could not be judged, with the SirenError. It can be read once.
    """

    def __init__(
        self,
        open_stream: Callable[[], SirenStream],
        chunks: Any,
        *,
        on_crossing: OnCrossing = "raise",
        on_failure: OnFailure = "block",
        timeout: float | None = None,
        wait: bool = False,
    ) -> None:
        for name, given, known in (
            ("on_crossing", on_crossing, ("raise", "stop", "flag")),
            ("on_failure", on_failure, ("block", "flag", "pass")),
        ):
            if given not in known:
                raise InvalidArgumentError(f"{name} is {given!r}, expected one of {', '.join(known)}")
        self._open_stream = open_stream
        self._chunks = chunks
        self._on_crossing = on_crossing
        self._on_failure = on_failure
        self._options: dict[str, Any] = {"timeout": timeout, "wait": wait}
        self._stream: SirenStream | None = None
        self._begun = False
        # What came, from the first byte that is not passed on; how many bytes were before it; and its
        # end that the stream has not taken, since a push of it failed.
        self._held = b""
        self._sent = 0
        self._unpushed = b""
        #: The last result; None when nothing was judged.
        self.result: PushResult | None = None
        #: Where the answer crossed.
        self.crossing: Crossing | None = None
        #: The last failure that ``on_failure`` let pass.
        self.unjudged: SirenError | None = None

    def __iter__(self) -> Iterator[GuardedText]:
        if not hasattr(self._chunks, "__iter__"):
            raise TypeError("the chunks are no iterable; those of an asynchronous one are read with `async for`")
        return self._read()

    def __aiter__(self) -> AsyncIterator[GuardedText]:
        if not hasattr(self._chunks, "__aiter__"):
            raise TypeError("the chunks are no asynchronous iterable; those of an iterable are read with `for`")
        return self._read_async()

    def _read(self) -> Iterator[GuardedText]:
        self._begin()
        try:
            for chunk in self._chunks:
                if self._take(chunk):
                    yield from self._shown(*self._push(False), False)
                    if self._over():
                        return
            yield from self._shown(*self._push(True), True)
        finally:
            self._end()
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()

    async def _read_async(self) -> AsyncIterator[GuardedText]:
        self._begin()
        try:
            async for chunk in self._chunks:
                if self._take(chunk):
                    for piece in self._shown(*await self._push_async(False), False):
                        yield piece
                    if self._over():
                        return
            for piece in self._shown(*await self._push_async(True), True):
                yield piece
        finally:
            self._end()
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError("a guarded answer can be read once")
        self._begun = True

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _over(self) -> bool:
        return self.crossing is not None and self._on_crossing != "flag"

    def _take(self, chunk: object) -> bool:
        if not isinstance(chunk, str):
            raise TypeError(f"a chunk is of type {type(chunk).__name__}, expected str")
        data = chunk.encode()
        self._held += data
        self._unpushed += data
        return bool(data)

    def _push(self, finish: bool) -> tuple[PushResult | None, SirenError | None]:
        try:
            if self._stream is None:
                self._stream = self._open_stream()
            result = self._stream.push(self._unpushed, **self._options)
            self._unpushed = b""
            if finish and result.crossing is None:
                result = self._stream.finish(**self._options)
        except SirenError as e:
            return None, e
        return result, None

    async def _push_async(self, finish: bool) -> tuple[PushResult | None, SirenError | None]:
        try:
            if self._stream is None:
                self._stream = self._open_stream()
            result = await self._stream.push_async(self._unpushed, **self._options)
            self._unpushed = b""
            if finish and result.crossing is None:
                result = await self._stream.finish_async(**self._options)
        except SirenError as e:
            return None, e
        return result, None

    def _shown(
        self, result: PushResult | None, error: SirenError | None, finish: bool
    ) -> Iterator[GuardedText]:
        """What may be passed on now, and then the exception that ends the answer, if one does."""
        flag = None
        if result is not None:
            self.result = result
            show = min(len(self._held), max(0, result.cleared_bytes - self._sent))
            if result.crossing is not None and self.crossing is None:
                self.crossing = result.crossing
                flag = "crossed"
            if self._on_crossing == "flag":
                show = len(self._held)
            elif self.crossing is not None:
                flag = None
            elif finish and show < len(self._held):
                error = LimitExceededError("the end of the answer is past what the guard reads; windows read on")
        if error is not None:
            if self._on_failure == "block":
                raise error
            self.unjudged = error
            show = len(self._held)
            if self._on_failure == "flag":
                flag = error.status_name
        if show or flag is not None:
            piece = GuardedText(self._held[:show].decode())
            piece.flag = flag
            self._held, self._sent = self._held[show:], self._sent + show
            yield piece
        if self.crossing is not None and self._on_crossing == "raise":
            assert self.result is not None
            raise HarmfulAnswerError(self.crossing, self.result)
