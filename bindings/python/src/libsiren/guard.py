"""A guard: opened once, used by any number of threads."""

from __future__ import annotations

import atexit
import ctypes
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from . import _abi
from .answer import GuardedAnswer, OnCrossing, OnFailure
from .calls import (
    CancelToken,
    Closed,
    Input,
    Scorable,
    Windows,
    count,
    encode,
    fill_input,
    in_thread,
    lib,
    score_options,
    set_threshold,
    set_windows,
    text_of,
    written,
)
from .errors import ForkedError, InvalidArgumentError, LimitExceededError, SirenError, error_of, fail
from .results import GuardInfo, GuardStats, ScoreArrays, ScoreResult, score_result
from .stream import SirenStream

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Told how a download goes: the file, bytes done, and bytes in all (0 while that is not known).
Progress = Callable[[str, int, int], None]

# What torch and llm-siren call the types that the library calls by shorter names.
_DTYPES = {"float32": "f32", "float": "f32", "bfloat16": "bf16", "float16": "f16", "half": "f16"}
# Texts that grow at the same time, for score_streaming.
_GROWING = 64


class OpenOptions(TypedDict, total=False):
    """How to open a guard; what is not said is as ``siren.h`` says."""

    #: The backbone's directory, repository or GGUF file.
    backbone: str | os.PathLike[str]
    #: Threads of the guard's own pool.
    threads: int
    #: The hub's address.
    hub_endpoint: str
    #: The hub's access token.
    hub_token: str
    #: Where ``models/demo`` lies.
    data_dir: str | os.PathLike[str]
    #: A directory in which packed weights are kept in a file, which the next open maps and processes
    #: share; "auto" is packed/ beside the backbone's weights.
    packed_cache: str | os.PathLike[str]
    #: Longest text in tokens.
    max_length: int
    #: Longest text in bytes.
    max_text_bytes: int
    #: Most texts of one batch.
    max_batch: int
    #: Most texts that wait, over all callers.
    max_queue: int
    #: Most streams that are open at once.
    max_streams: int
    #: Memory for what streams and the prefix cache keep.
    kv_bytes: int
    #: How much of it the prefix cache may take; 0 is the default, as everywhere.
    prefix_cache_bytes: int
    #: No prefix cache.
    no_prefix_cache: bool
    #: Never touch the network.
    offline: bool
    #: Read the weights into memory instead of mapping their file.
    read_weights: bool
    #: True shows downloads with tqdm; a function is told of them.
    progress: bool | Progress


class SirenGuard(Closed):
    """An open guard. Immutable: any number of threads may use it.

    ``from_pretrained`` and ``open`` make it. Open one in each process: a process that was forked after
    it was opened gets ForkedError, and a guard cannot be pickled.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, lib.siren_free, handle)
        self._process = os.getpid()
        self._lock = threading.Lock()
        # Streams that no call uses, by the text and the threshold, the one used last at the end.
        self._growing: dict[tuple[bytes, float | None], SirenStream] = {}
        self._base_model_id: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | os.PathLike[str],
        device: object = None,
        dtype: object = "bfloat16",
        cache_dir: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = True,
        **options: Unpack[OpenOptions],
    ) -> SirenGuard:
        """Open a directory or a hub repository ``OWNER/NAME[@REVISION]``, as ``siren_guard`` does.

        ``device``: None or "auto", "cpu", "cuda", "cuda:N" or a torch.device. ``dtype``: "float32",
        "bfloat16" or the torch dtype of that name; the default is that of ``siren_guard``.
        ``trust_remote_code`` is taken and changes nothing: no code is ever loaded from a repository.
        """
        return cls.open(repo_id_or_path, device=device, dtype=dtype, cache_dir=cache_dir, **options)

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: object = None,
        dtype: object = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Unpack[OpenOptions],
    ) -> SirenGuard:
        """Open a guard with the library's own defaults: None is the demo guard, and a CPU runs f32."""
        raw, error, handle = _abi.new(_abi.OpenOptions), _abi.new(_abi.Error), c_void_p()
        given: dict[str, Any] = dict(options)
        progress = given.pop("progress", False)
        for name, value in (("model", model), ("cache_dir", cache_dir)):
            if value is not None:
                setattr(raw, name, text_of(os.fspath(value), name))
        if device is not None:
            raw.device = text_of(str(device), "device")
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            raw.dtype = text_of(_DTYPES.get(name, name), "dtype")
        for name, value in given.items():
            if name not in OpenOptions.__annotations__:
                raise TypeError(f"there is no option {name!r}; there are {', '.join(OpenOptions.__annotations__)}")
            if name in ("offline", "read_weights", "no_prefix_cache"):
                setattr(raw, name, bool(value))
            elif name in ("backbone", "hub_endpoint", "hub_token", "data_dir", "packed_cache"):
                if value is not None:
                    setattr(raw, name, text_of(os.fspath(value), name))
            else:
                setattr(raw, name, count(name, value, 2**32 - 1 if name == "threads" else 2**64 - 1))
        downloads = _Downloads(progress) if progress else None
        if downloads is not None:
            raw.progress = downloads.callback
        status = lib.siren_open(byref(raw), byref(handle), byref(error))
        guard = cls(handle.value) if handle.value is not None else None
        if downloads is not None:
            downloads.end()
        if status or guard is None:
            fail(status, error)
        return guard

    def score(
        self,
        text: str | bytes | None = None,
        *,
        prompt: str | bytes | None = None,
        response: str | bytes | None = None,
        threshold: float | None = None,
        windows: Windows | bool = False,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
    ) -> ScoreResult:
        """Score ``text``, or ``prompt`` and/or ``response``. Bytes are UTF-8.

        ``threshold`` from 0 to 1 is compared in place of the guard's own. ``windows`` reads a text that
        is longer than the guard's max_length to its end. ``timeout`` in seconds ends the call with
        DeadlineExceededError, and ``cancel`` with CancelledError. ``wait`` waits for a place when the
        queue is full, in place of BusyError. Every failure is a SirenError, and gives no result.
        """
        raw = _abi.new(_abi.Input)
        if text is not None:
            raw.text = text_of(text)
        if prompt is not None:
            raw.prompt = text_of(prompt, "prompt")
        if response is not None:
            raw.response = text_of(response, "response")
        options = score_options(threshold, timeout, cancel, wait, windows)
        result, error = _abi.new(_abi.Result), _abi.new(_abi.Error)
        status = lib.siren_score(self._handle, byref(raw), byref(options), byref(result), byref(error))
        if status:
            fail(status, error)
        return score_result(result)

    def __call__(self, *args: Any, **kwargs: Any) -> ScoreResult:
        return self.score(*args, **kwargs)

    async def score_async(
        self,
        text: str | bytes | None = None,
        *,
        prompt: str | bytes | None = None,
        response: str | bytes | None = None,
        threshold: float | None = None,
        windows: Windows | bool = False,
        timeout: float | None = None,
        wait: bool = False,
    ) -> ScoreResult:
        """``score`` in a thread of the event loop's; a task that is cancelled ends the library's work."""
        return await in_thread(
            self.score,
            text,
            prompt=prompt,
            response=response,
            threshold=threshold,
            windows=windows,
            timeout=timeout,
            wait=wait,
        )

    @overload
    def score_batch(
        self,
        texts: Iterable[Scorable],
        threshold: float | None = None,
        *,
        errors: Literal["raise"] = "raise",
        windows: Windows | bool = False,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[ScoreResult]: ...

    @overload
    def score_batch(
        self,
        texts: Iterable[Scorable],
        threshold: float | None = None,
        *,
        errors: Literal["return"],
        windows: Windows | bool = False,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[ScoreResult | SirenError]: ...

    def score_batch(
        self,
        texts: Iterable[Scorable],
        threshold: float | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
        windows: Windows | bool = False,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[ScoreResult] | list[ScoreResult | SirenError]:
        """Score texts, or ``Input`` for prompts and responses, together.

        A text that fails raises its error; with ``errors="return"`` it stands in the list in the place
        of a result. The call is one batch of the library, no larger than the guard's ``max_batch``;
        with ``batch_size``, several of that many texts. ``progress`` shows them with tqdm.
        ``timeout`` is of the whole call. The rest is as with ``score``.
        """
        _check_errors(errors)
        scored: list[ScoreResult | SirenError] = []
        for results, failures in self._batches(
            texts, threshold, windows, timeout, cancel, wait, batch_size, progress
        ):
            for i, raw in enumerate(results):
                if not raw.status:
                    scored.append(score_result(raw))
                elif errors == "return":
                    scored.append(error_of(raw.status, failures[i]))
                else:
                    raise _of_text(len(scored), error_of(raw.status, failures[i]))
        return scored

    def score_arrays(
        self,
        texts: Iterable[Scorable],
        threshold: float | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
        windows: Windows | bool = False,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> ScoreArrays:
        """``score_batch`` into numpy arrays. With ``errors="return"`` a text that failed has a status."""
        import numpy as np

        _check_errors(errors)
        # A structure of ctypes is a record of numpy.
        record = np.dtype(_abi.Result)
        parts = []
        done = 0
        for results, failures in self._batches(
            texts, threshold, windows, timeout, cancel, wait, batch_size, progress
        ):
            rows = np.frombuffer(memoryview(results), dtype=record)
            failed = np.flatnonzero(rows["status"])
            if failed.size and errors == "raise":
                first = int(failed[0])
                raise _of_text(done + first, error_of(int(rows["status"][first]), failures[first]))
            done += len(rows)
            parts.append(rows)
        rows = np.concatenate(parts) if parts else np.empty(0, record)
        failed_rows = rows["status"] != 0
        return ScoreArrays(
            score=np.where(failed_rows, np.nan, rows["score"]),
            is_harmful=(rows["is_harmful"] != 0) | failed_rows,
            threshold=np.where(failed_rows, np.nan, rows["threshold"]),
            tokens=np.where(failed_rows, np.uint64(0), rows["tokens"]),
            truncated=(rows["truncated"] != 0) & ~failed_rows,
            status=rows["status"].copy(),
        )

    def _batches(
        self,
        texts: Iterable[Scorable],
        threshold: float | None,
        windows: Windows | bool,
        timeout: float | None,
        cancel: CancelToken | None,
        wait: bool,
        batch_size: int | None,
        progress: bool,
    ) -> Iterable[tuple[ctypes.Array[_abi.Result], ctypes.Array[_abi.Error]]]:
        """The raw results and errors of one batch after the other."""
        if isinstance(texts, (str, bytes, Input)):
            raise TypeError(f"texts is one {type(texts).__name__}, expected a sequence of texts")
        texts = list(texts)
        options = score_options(threshold, timeout, cancel, wait, windows)
        end = None if timeout is None or math.isinf(timeout) else time.monotonic() + timeout
        if batch_size is None:
            size = 256 if progress else max(1, len(texts))
        else:
            size = count("batch_size", batch_size)
            if not size:
                raise InvalidArgumentError("batch_size is 0, expected 1 or more")
        bar = _bar(len(texts), "scoring", "text") if progress else None
        try:
            for start in range(0, len(texts), size):
                part = texts[start : start + size]
                if start and end is not None:
                    options = score_options(threshold, end - time.monotonic(), cancel, wait, windows)
                inputs = _abi.new_array(_abi.Input, len(part))
                results = _abi.new_array(_abi.Result, len(part))
                failures = _abi.new_array(_abi.Error, len(part))
                for raw, given in zip(inputs, part):
                    fill_input(raw, given)
                error = _abi.new(_abi.Error)
                status = lib.siren_score_batch(
                    self._handle, inputs, len(part), byref(options), results, failures, byref(error)
                )
                if status:
                    fail(status, error)
                yield results, failures
                if bar is not None:
                    bar.update(len(part))
        finally:
            if bar is not None:
                bar.close()

    def score_streaming(
        self,
        response_so_far: str | bytes,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        wait: bool = False,
    ) -> ScoreResult:
        """Score a response that grows from call to call; the result is that of ``score``.

        Only what is new since the last call whose text this one begins with is run. For prompts,
        crossings and cleared text use ``stream``.
        """
        # The lock may be held by a thread that the fork left behind.
        if os.getpid() != self._process:
            raise ForkedError("the process was forked after the guard was opened: open a guard in each process")
        data = encode(response_so_far, "response_so_far")
        limit = None if threshold is None else float(threshold)
        with self._lock:
            keys = [key for key in self._growing if key[1] == limit and data.startswith(key[0])]
            key = max(keys, key=lambda key: len(key[0]), default=None)
            stream = None if key is None else self._growing.pop(key)
        before = b"" if key is None else key[0]
        try:
            if stream is None:
                stream = self.stream(threshold=threshold)
            pushed = stream.push(data[len(before) :], timeout=timeout, cancel=cancel, wait=wait)
        except LimitExceededError:
            # Of the number of streams, perhaps; a text that is too long is so here too.
            return self.score(response_so_far, threshold=threshold, timeout=timeout, cancel=cancel, wait=wait)
        with self._lock:
            self._growing[data, limit] = stream
            forgotten = self._growing.pop(next(iter(self._growing))) if len(self._growing) > _GROWING else None
        if forgotten is not None:
            forgotten.close()
        return ScoreResult(pushed.score, pushed.is_harmful, pushed.threshold, pushed.tokens, pushed.truncated)

    def stream(
        self,
        *,
        prompt: str | bytes | None = None,
        threshold: float | None = None,
        hysteresis: int = 1,
        windows: Windows | bool = False,
    ) -> SirenStream:
        """Open a stream: a growing response, after ``prompt`` if there is one.

        ``hysteresis``: tokens in a row at or above the threshold before they count as a crossing.
        ``windows``: go on past the guard's max_length.
        """
        options = _abi.new(_abi.StreamOptions)
        if prompt is not None:
            options.prompt = text_of(prompt, "prompt")
        set_threshold(options, threshold)
        set_windows(options, windows)
        options.hysteresis = count("hysteresis", hysteresis)
        handle, error = c_void_p(), _abi.new(_abi.Error)
        status = lib.siren_stream_new(self._handle, byref(options), byref(handle), byref(error))
        if status:
            fail(status, error)
        assert handle.value is not None
        return SirenStream(handle.value)

    def guard_answer(
        self,
        chunks: Any,
        *,
        prompt: str | bytes | None = None,
        threshold: float | None = None,
        hysteresis: int = 1,
        windows: Windows | bool = True,
        on_crossing: OnCrossing = "raise",
        on_failure: OnFailure = "block",
        timeout: float | None = None,
        wait: bool = False,
    ) -> GuardedAnswer:
        """Pass a model's answer on as far as it is cleared: ``GuardedAnswer`` says how.

        ``chunks`` is an iterable or an asynchronous iterable of strings.
        """
        return GuardedAnswer(
            lambda: self.stream(prompt=prompt, threshold=threshold, hysteresis=hysteresis, windows=windows),
            chunks,
            on_crossing=on_crossing,
            on_failure=on_failure,
            timeout=timeout,
            wait=wait,
        )

    def warmup(self) -> None:
        """Run one short text, so that the first call is as fast as the second."""
        error = _abi.new(_abi.Error)
        status = lib.siren_warmup(self._handle, byref(error))
        if status:
            fail(status, error)

    def info(self) -> GuardInfo:
        raw, error = _abi.new(_abi.GuardInfo), _abi.new(_abi.Error)
        status = lib.siren_info(self._handle, byref(raw), byref(error))
        if status:
            fail(status, error)
        values = {name: getattr(raw, name) for name in GuardInfo.__dataclass_fields__}
        return GuardInfo(**values | {"device": raw.device.decode(), "dtype": raw.dtype.decode()})

    def info_json(self) -> dict[str, Any]:
        """Everything about the guard."""
        info: dict[str, Any] = json.loads(written(lib.siren_info_json, self._handle))
        return info

    def stats(self) -> GuardStats:
        raw, error = _abi.new(_abi.GuardStats), _abi.new(_abi.Error)
        status = lib.siren_stats(self._handle, byref(raw), byref(error))
        if status:
            fail(status, error)
        values = {name: getattr(raw, name) for name in GuardStats.__dataclass_fields__}
        return GuardStats(
            **values | {"latency_counts": tuple(raw.latency_counts), "errors": tuple(raw.errors)}
        )

    def stats_prometheus(self) -> str:
        """``stats`` in the text format of Prometheus."""
        return written(lib.siren_stats_prometheus, self._handle)

    def audit(self, given: Scorable, result: ScoreResult) -> dict[str, Any]:
        """The record of a verdict, with hashes and no text, of what was scored and what it gave."""
        raw, input = _abi.new(_abi.Result), _abi.new(_abi.Input)
        fill_input(input, given)
        raw.score, raw.threshold, raw.is_harmful = result.score, result.threshold, result.is_harmful
        raw.tokens, raw.truncated = result.tokens, result.truncated
        if result.window is not None:
            raw.windows, raw.window_index = result.window.count, result.window.index
            raw.window_start, raw.window_end = result.window.start, result.window.end
        record: dict[str, Any] = json.loads(
            written(lib.siren_audit_json, self._handle, byref(input), byref(raw))
        )
        return record

    @property
    def default_threshold(self) -> float:
        """The threshold of calls that give none."""
        return self.info().default_threshold

    @property
    def base_model_id(self) -> str:
        """The backbone that the artifact names."""
        if self._base_model_id is None:
            self._base_model_id = str(self.info_json()["base_model"])
        return self._base_model_id

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:N``."""
        return self.info().device

    def close(self) -> None:
        """Free the guard. Calls that run still finish, its streams go on; later calls fail with
        InvalidHandleError."""
        self._free()
        if os.getpid() == self._process:
            with self._lock:
                growing, self._growing = self._growing, {}
            for stream in growing.values():
                stream.close()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            "a guard cannot be pickled: open one in each process; they share the mapped weights"
        )


def load_guard(repo_id_or_path: str | os.PathLike[str], **kwargs: Any) -> SirenGuard:
    """Open the guard of an artifact. Trajectory artifacts are not served yet: UnsupportedError."""
    return SirenGuard.from_pretrained(repo_id_or_path, **kwargs)


def _check_errors(errors: str) -> None:
    if errors not in ("raise", "return"):
        raise InvalidArgumentError(f'errors is {errors!r}, expected "raise" or "return"')


def _of_text(index: int, error: SirenError) -> SirenError:
    error.message = f"text {index}: {error.message}"
    return error


def _bar(total: int | None, what: str, unit: str) -> Any:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B")


class _Downloads:
    """Hands the library's reports on; what the caller's function raises is raised after the call."""

    def __init__(self, progress: bool | Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}
        self._raised: BaseException | None = None
        self.callback = _abi.ProgressCallback(self._report)

    def _report(self, _user_data: int, file: Any, length: int, done: int, total: int) -> None:
        try:
            name = ctypes.string_at(file, length).decode(errors="replace")
            if callable(self._progress):
                self._progress(name, done, total)
                return
            bar = self._bars.get(name)
            if bar is None:
                bar = self._bars[name] = _bar(total or None, name, "B")
            bar.total = total or None
            bar.update(done - bar.n)
        except BaseException as e:
            self._raised = self._raised or e

    def end(self) -> None:
        for bar in self._bars.values():
            bar.close()
        if self._raised is not None:
            raise self._raised


_log: Any = None


def set_log(function: Callable[[int, str], None] | None, level: int = 2) -> None:
    """Send the library's log lines up to ``level`` to ``function(level, message)``; None ends that.

    1 error, 2 warning, 3 information, 4 debugging, 5 tracing. It is called from any thread and must not
    call into the library. There is one for the whole process.
    """
    global _log

    def line(_user_data: int, level: int, message: Any, length: int) -> None:
        assert function is not None
        function(level, ctypes.string_at(message, length).decode(errors="replace"))

    callback = _abi.LogCallback(line) if function is not None else None
    error = _abi.new(_abi.Error)
    status = lib.siren_log_set(callback, None, level, byref(error))
    if status:
        fail(status, error)
    # A line may still be on its way to the last one: none is ever freed.
    _log = (callback, _log)
    # No thread of the library's may call into an interpreter that is ending.
    if function is not None:
        atexit.register(lib.siren_log_set, None, None, 0, None)
