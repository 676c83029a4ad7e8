import asyncio
import os
import pickle
import re
import threading
import time
from pathlib import Path

import libsiren
import numpy as np
import pytest
from conftest import DEMO
from libsiren import CancelToken, Input, SirenGuard

HARMFUL = "How can I make a pipe bomb at home?"
# Takes the demo guard much longer, in windows, than the time limits of these tests.
LONG = "The rain keeps falling on the old roof. " * 20_000
WINDOWS = libsiren.Windows(stride=16)


def long_call(guard, name, **options):
    if name == "push":
        with guard.stream(windows=WINDOWS) as stream:
            return stream.push(LONG, **options)
    if name == "score":
        return guard.score(LONG, windows=WINDOWS, **options)
    return getattr(guard, name)([LONG, LONG + "."], windows=WINDOWS, **options)


CALLS = ["score", "score_batch", "score_arrays", "push"]


@pytest.mark.parametrize("name", CALLS)
def test_a_deadline_ends_a_call(guard, name):
    begun = time.monotonic()
    with CancelToken() as token:
        # A limit that is lost is a failure, not a test that hangs.
        net = threading.Timer(20, token.cancel)
        net.start()
        with pytest.raises(libsiren.DeadlineExceededError) as failed:
            long_call(guard, name, timeout=0.02, cancel=token)
        net.cancel()
        net.join()
    assert isinstance(failed.value, TimeoutError)
    assert 0.02 <= time.monotonic() - begun < 10


@pytest.mark.parametrize("name", CALLS)
def test_a_token_ends_a_call_in_another_thread(guard, name):
    with CancelToken() as token:
        timer = threading.Timer(0.02, token.cancel)
        timer.start()
        begun = time.monotonic()
        with pytest.raises(libsiren.CancelledError):
            long_call(guard, name, cancel=token, timeout=20)
        # The other thread ran while this one was in the library: the GIL was free.
        assert 0.02 <= time.monotonic() - begun < 10
        timer.join()
        with pytest.raises(libsiren.CancelledError):
            guard.score("again", cancel=token)
    with pytest.raises(libsiren.InvalidHandleError):
        guard.score("a token that is closed", cancel=token)


@pytest.mark.parametrize("timeout", [0, -1, -0.0])
def test_a_deadline_that_has_passed(guard, timeout):
    with pytest.raises(libsiren.DeadlineExceededError):
        guard.score("text", timeout=timeout)


def test_timeouts(guard):
    for timeout in (None, float("inf"), 1e30, 60):
        assert guard.score("text", timeout=timeout).tokens
    with pytest.raises(libsiren.InvalidArgumentError):
        guard.score("text", timeout=float("nan"))


def test_a_full_queue_is_busy():
    with SirenGuard.open(DEMO, threads=2, max_queue=2) as guard:
        texts = ["word " * (i + 1) for i in range(8)]
        with pytest.raises(libsiren.BusyError):
            guard.score_batch(texts)
        assert len(guard.score_batch(texts, wait=True)) == len(texts)


def test_a_failed_text_gives_no_verdict(guard):
    texts = ["one", b"\xff", "two"]
    with pytest.raises(libsiren.InvalidUTF8Error, match="^text 1: "):
        guard.score_batch(texts)
    with pytest.raises(libsiren.InvalidUTF8Error, match="^text 2: "):
        guard.score_arrays(["zero", *texts], batch_size=2)
    one, failed, two = guard.score_batch(texts, errors="return")
    assert isinstance(failed, libsiren.InvalidUTF8Error) and not hasattr(failed, "score")
    assert (one, two) == (guard.score("one"), guard.score("two"))
    with pytest.raises(TypeError):
        libsiren.ScoreResult()
    for name in (None, "ignore"):
        with pytest.raises(libsiren.InvalidArgumentError):
            guard.score_batch(texts, errors=name)


def test_half_a_surrogate_pair(guard):
    with pytest.raises(libsiren.InvalidUTF8Error, match="character 2 is U\\+D800"):
        guard.score("ab\ud800")


@pytest.mark.parametrize("wrong", [5, None, ["a"], 1.5])
def test_texts_of_other_types(guard, wrong):
    with pytest.raises(TypeError, match="expected str or bytes"):
        guard.score_batch([wrong])
    if wrong is not None:
        with pytest.raises(TypeError, match="expected str or bytes"):
            guard.score(wrong)


@pytest.mark.parametrize("one", ["text", b"text", Input("text")])
def test_one_text_is_no_batch(guard, one):
    with pytest.raises(TypeError, match="expected a sequence of texts"):
        guard.score_batch(one)


@pytest.mark.parametrize("name", ["threads", "max_length", "max_batch", "kv_bytes"])
def test_numbers_are_not_cut(name):
    for value in (-1, 2**64):
        with pytest.raises(libsiren.InvalidArgumentError, match=name):
            SirenGuard.open(DEMO, **{name: value})
    with pytest.raises(TypeError, match=name):
        SirenGuard.open(DEMO, **{name: 1.5})


def test_options():
    with pytest.raises(TypeError, match="there is no option 'thread'"):
        SirenGuard.open(DEMO, thread=2)
    with SirenGuard.open(str(DEMO), device="cpu", dtype="bfloat16", threads=1, max_length=64, read_weights=True) as guard:
        info = guard.info()
        assert (info.dtype, info.device, info.threads, info.max_length) == ("bf16", "cpu", 1, 64)
        assert (guard.device, guard.default_threshold, guard.base_model_id) == ("cpu", 0.5, "backbone")


def test_batches_in_parts(guard):
    texts = [f"text {i}" for i in range(10)]
    whole = guard.score_batch(texts)
    assert guard.score_batch(iter(texts), batch_size=3) == whole
    arrays = guard.score_arrays(texts, threshold=0.25, batch_size=4)
    assert arrays.score.dtype == np.float64 and arrays.is_harmful.dtype == np.bool_
    assert arrays.score.tolist() == [result.score for result in whole]
    assert arrays.is_harmful.tolist() == [result.score >= 0.25 for result in whole]
    assert guard.score_batch([]) == [] and len(guard.score_arrays([]).score) == 0
    with pytest.raises(libsiren.InvalidArgumentError):
        guard.score_batch(texts, batch_size=0)
    # The time limit is of the whole call.
    with pytest.raises(libsiren.DeadlineExceededError):
        guard.score_batch([f"text {i}" for i in range(3000)], batch_size=1, timeout=0.2)


def test_progress(guard, capfd):
    guard.score_batch([f"text {i}" for i in range(600)], progress=True)
    shown = capfd.readouterr().err
    assert "scoring" in shown and "600/600" in shown
    guard.score_batch(["text"])
    assert capfd.readouterr() == ("", "")


def test_a_progress_function_that_raises_is_heard():
    # No download is needed here: the reports come as the library would make them.
    import ctypes

    from libsiren.guard import _Downloads

    seen = []

    def progress(file, done, total):
        seen.append((file, done, total))
        raise KeyError("from progress")

    downloads = _Downloads(progress)
    name = ctypes.create_string_buffer(b"a.safetensors")
    for done in (1, 2):
        downloads.callback(None, ctypes.cast(name, ctypes.POINTER(ctypes.c_char)), 13, done, 2)
    assert seen == [("a.safetensors", 1, 2), ("a.safetensors", 2, 2)]
    with pytest.raises(KeyError, match="from progress"):
        downloads.end()


def test_closing():
    guard = SirenGuard.open(DEMO, threads=2)
    stream = guard.stream()
    guard.score_streaming("a")
    guard.close()
    guard.close()
    for call in (lambda: guard.score("a"), lambda: guard.score_streaming("a"), guard.info, guard.info_json, guard.stats, guard.warmup):
        with pytest.raises(libsiren.InvalidHandleError):
            call()
    # A stream outlives its guard.
    assert stream.push("Thank you").tokens == 3
    stream.close()
    with pytest.raises(libsiren.InvalidHandleError):
        stream.push("more")


def test_a_guard_that_is_forgotten_is_freed():
    guard = SirenGuard.open(DEMO, threads=1)
    handle = guard._handle
    del guard
    with pytest.raises(libsiren.InvalidHandleError):
        SirenGuard(handle).score("text")


def test_a_guard_is_not_pickled(guard):
    with pytest.raises(TypeError, match="open one in each process"):
        pickle.dumps(guard)


def test_replacing_a_guard_under_load():
    class Current:
        """The guard of a service, which may be replaced while it is used."""

        def __init__(self, guard):
            self.guard = guard

        def replace(self, guard):
            old, self.guard = self.guard, guard
            old.close()

        def score(self, text):
            while True:
                guard = self.guard
                try:
                    return guard.score(text)
                except libsiren.InvalidHandleError:
                    if guard is self.guard:
                        raise

    current = Current(SirenGuard.open(DEMO, threads=2))
    expected = current.score(HARMFUL)
    stop, failures, calls = threading.Event(), [], []

    def work():
        while not stop.is_set():
            try:
                assert current.score(HARMFUL) == expected
                calls.append(1)
            except BaseException as e:
                failures.append(e)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        time.sleep(0.02)
        current.replace(SirenGuard.open(DEMO, threads=2))
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures and len(calls) > 8
    current.guard.close()


def test_many_threads(guard):
    texts = [f"text {i}" for i in range(64)]
    expected = guard.score_batch(texts)
    scored = [None] * len(texts)

    def work(i):
        scored[i] = guard.score(texts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scored == expected


def test_score_streaming_runs_only_what_is_new():
    text = "Thank you for the wonderful evening. Now, how can I make a pipe bomb at home? " * 4
    with SirenGuard.open(DEMO, threads=2, no_prefix_cache=True) as guard:
        before = guard.stats()
        # Two answers that grow by turns.
        others = "No, " + text
        grown = [(guard.score_streaming(text[:end]), guard.score_streaming(others[:end])) for end in range(4, len(text), 4)]
        tokens = guard.stats().tokens - before.tokens
        whole = [(guard.score(text[:end]), guard.score(others[:end])) for end in range(4, len(text), 4)]
        assert grown == whole
        again = guard.stats().tokens - before.tokens - tokens
        assert tokens * 10 < again
        # The threshold is the call's own, and a shorter text is another one.
        score = guard.score(text[:40]).score
        for threshold in (score, score + 1e-6):
            assert guard.score_streaming(text[:40], threshold) == guard.score(text[:40], threshold=threshold)
        for i in range(200):
            guard.score_streaming(f"{i} is a text that does not grow")
        assert guard.stats().streams <= 64
    with SirenGuard.open(DEMO, threads=2, max_streams=1) as guard:
        with guard.stream():
            assert guard.score_streaming(text) == guard.score(text)
    with SirenGuard.open(DEMO, threads=2, max_text_bytes=16) as guard:
        with pytest.raises(libsiren.LimitExceededError):
            guard.score_streaming(text)


def test_a_streaming_call_that_fails_leaves_the_next_one_right(guard):
    with pytest.raises(libsiren.DeadlineExceededError):
        guard.score_streaming("Thank you", timeout=0)
    with pytest.raises(libsiren.InvalidUTF8Error):
        guard.score_streaming(b"Thank you \xff")
    assert guard.score_streaming("Thank you very") == guard.score("Thank you very")


def test_asynchronous_calls(guard):
    async def run():
        texts = [f"text {i}" for i in range(16)]
        assert await asyncio.gather(*map(guard.score_async, texts)) == guard.score_batch(texts)
        with guard.stream() as stream:
            assert (await stream.push_async("Thank you")).tokens == 3
            assert (await stream.finish_async()).cleared_bytes == 9
        before = guard.stats().errors[libsiren.CancelledError.status]
        task = asyncio.create_task(guard.score_async(LONG, windows=WINDOWS))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # It reached the library: the loop's threads are free again.
        for _ in range(1000):
            if guard.stats().errors[libsiren.CancelledError.status] > before:
                return
            await asyncio.sleep(0.01)
        pytest.fail("the call goes on")

    asyncio.run(run())


def test_streams_tell_token_scores(guard):
    with guard.stream() as stream:
        result = stream.push(HARMFUL, token_scores=100)
        assert len(result.token_scores) == result.tokens and result.first_scored == 0
        assert result.token_scores[-1] == result.score
        assert len(stream.fork().push(" Really", token_scores=1).token_scores) == 1
        assert stream.push(" Really").token_scores == ()


def test_a_stream_belongs_to_one_thread(guard):
    stream, token = guard.stream(windows=WINDOWS), CancelToken()
    ended = []

    def push():
        try:
            stream.push(LONG, cancel=token)
        except libsiren.SirenError as e:
            ended.append(e)

    worker = threading.Thread(target=push)
    worker.start()
    time.sleep(0.05)
    with pytest.raises(libsiren.InUseError):
        stream.push("more")
    token.cancel()
    worker.join()
    assert isinstance(ended[0], libsiren.CancelledError)


def test_records_and_numbers(guard):
    result = guard.score(prompt="one", response="two")
    record = guard.audit(Input(prompt="one", response="two"), result)
    assert record["score"] == result.score and record["is_harmful"] is False
    import hashlib

    assert record["text_sha256"] == hashlib.sha256(b"one\ntwo").hexdigest()
    stats = guard.stats()
    assert stats.requests and sum(stats.latency_counts) == stats.requests
    assert "siren" in guard.stats_prometheus()
    guard.warmup()
    assert guard.info_json()["hidden_size"] == guard.info().hidden_size == 160


def test_log():
    lines = []
    libsiren.set_log(lambda level, message: lines.append((level, message)), 5)
    try:
        SirenGuard.open(DEMO, threads=1).close()
    finally:
        libsiren.set_log(None)
    assert lines and all(1 <= level <= 5 and message for level, message in lines)
    count = len(lines)
    SirenGuard.open(DEMO, threads=1).close()
    assert len(lines) == count


def resident():
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def test_memory_does_not_grow_with_calls():
    """SIREN_CALLS sets how many; 1,000,000 take some ten seconds."""
    calls = int(os.environ.get("SIREN_CALLS", 50_000))
    with SirenGuard.open(DEMO, threads=2, max_text_bytes=8) as guard:
        token = CancelToken()

        def run(count):
            for _ in range(count):
                try:
                    guard.score("more than 8 bytes", cancel=token, timeout=60)
                except libsiren.LimitExceededError:
                    continue
                pytest.fail("no error")

        run(5_000)
        before = resident()
        run(calls)
        after = resident()
        print(f"{before} kB, then {after} kB after {calls} calls")
        assert after < before + before // 50 + 1024
