"""What calls share: texts, options, cancelling and time limits."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from ctypes import byref, c_void_p
from types import TracebackType
from typing import NamedTuple, TypeVar, Union

from . import _abi
from .errors import DeadlineExceededError, InvalidArgumentError, InvalidUTF8Error, fail

T = TypeVar("T")
C = TypeVar("C", bound="Closed")
lib = _abi.lib


class Input(NamedTuple):
    """What is scored: ``text`` alone, or ``prompt`` and/or ``response``, joined with one newline.

    Bytes are UTF-8.
    """

    text: str | bytes | None = None
    prompt: str | bytes | None = None
    response: str | bytes | None = None


#: What a batch may hold.
Scorable = Union[str, bytes, Input]


class Windows(NamedTuple):
    """Read a text that is longer than the guard's max_length in overlapping windows.

    The highest score of a window is the text's. Zeros are the defaults.
    """

    #: Of a window, special ones included. 0: the guard's max_length.
    tokens: int = 0
    #: Tokens from one window's start to the next one's. 0: half of a window.
    stride: int = 0


class Closed:
    """A handle of the library that ``with`` closes at its end."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CancelToken(Closed):
    """Ends the calls that are given it, when ``cancel`` is called from another thread."""

    def __init__(self) -> None:
        handle, error = c_void_p(), _abi.new(_abi.Error)
        status = lib.siren_cancel_token_new(byref(handle), byref(error))
        if status:
            fail(status, error)
        self._handle = handle.value
        self._free = weakref.finalize(self, lib.siren_cancel_token_free, self._handle)

    def cancel(self) -> None:
        """End every call that runs with this token, and those to come, with CancelledError."""
        error = _abi.new(_abi.Error)
        status = lib.siren_cancel(self._handle, byref(error))
        if status:
            fail(status, error)

    def close(self) -> None:
        """Calls that run with this token go on, and can no longer be cancelled."""
        self._free()


def encode(text: object, name: str = "text") -> bytes:
    """UTF-8 of a string; bytes as they are, for the library to check."""
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError as e:
            raise InvalidUTF8Error(
                f"{name}: character {e.start} is U+{ord(text[e.start]):04X}, half of a surrogate pair; "
                "expected Unicode text"
            ) from e
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"{name} is of type {type(text).__name__}, expected str or bytes")


def text_of(text: object, name: str = "text") -> _abi.Text:
    data = encode(text, name)
    return _abi.Text(data, len(data))


def fill_input(raw: _abi.Input, given: Scorable) -> None:
    if isinstance(given, Input):
        for name, part in zip(Input._fields, given):
            if part is not None:
                setattr(raw, name, text_of(part, name))
    else:
        raw.text = text_of(given)


def count(name: str, value: int, most: int = 2**64 - 1) -> int:
    """A number that fits the field; ctypes would cut it silently."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected int")
    if not 0 <= value <= most:
        raise InvalidArgumentError(f"{name} is {value}, expected 0 to {most}")
    return value


def milliseconds(timeout: float | None) -> int:
    """The field of a time limit in seconds, rounded up, since 0 is "none"."""
    if timeout is None or timeout == math.inf:
        return 0
    if math.isnan(timeout):
        raise InvalidArgumentError("timeout is NaN, expected seconds")
    if timeout <= 0:
        raise DeadlineExceededError("the deadline passed before the call")
    return min(math.ceil(timeout * 1000), 2**63)


def handle_of(cancel: CancelToken | None) -> int | None:
    if cancel is None:
        return None
    # A freed token is the library's to refuse: NULL would mean "none".
    return cancel._handle


def set_windows(
    options: _abi.ScoreOptions | _abi.StreamOptions, windows: Windows | bool
) -> None:
    if windows is False:
        return
    sizes = Windows() if windows is True else Windows(*windows)
    options.windows = 1
    options.window_tokens = count("the tokens of a window", sizes.tokens)
    options.window_stride = count("the stride of windows", sizes.stride)


def set_threshold(options: _abi.ScoreOptions | _abi.StreamOptions, threshold: float | None) -> None:
    if threshold is not None:
        options.has_threshold, options.threshold = 1, float(threshold)


def score_options(
    threshold: float | None, timeout: float | None, cancel: CancelToken | None, wait: bool, windows: Windows | bool
) -> _abi.ScoreOptions:
    options = _abi.new(_abi.ScoreOptions)
    set_threshold(options, threshold)
    set_windows(options, windows)
    options.timeout_ms = milliseconds(timeout)
    options.cancel = handle_of(cancel)
    options.wait = bool(wait)
    return options


def written(function: Callable[..., int], *arguments: object) -> str:
    """What a function writes into a buffer; between the two calls it may grow by some bytes."""
    length, error = ctypes.c_size_t(), _abi.new(_abi.Error)
    status = function(*arguments, None, 0, byref(length), byref(error))
    if status:
        fail(status, error)
    capacity = length.value + 1024
    buffer = ctypes.create_string_buffer(capacity)
    status = function(*arguments, buffer, capacity, byref(length), byref(error))
    if status:
        fail(status, error)
    return buffer.raw[: length.value].decode()


async def in_thread(call: Callable[..., T], *arguments: object, **options: object) -> T:
    """`call` in a thread of the event loop's; when the task is cancelled, so is the library's work."""
    token = CancelToken()
    future = asyncio.get_running_loop().run_in_executor(
        None, functools.partial(call, *arguments, cancel=token, **options)
    )

    def ended(done: asyncio.Future[T]) -> None:
        token.close()
        # A failure that nobody waits for any more is nobody's.
        if not done.cancelled():
            done.exception()

    future.add_done_callback(ended)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        token.cancel()
        raise
