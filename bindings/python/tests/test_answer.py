"""Answers that are judged while they are written."""

import asyncio

import libsiren
import pytest
from libsiren import GuardedAnswer, HarmfulAnswerError

SAFE = "Thank you for the wonderful evening"
TURN = "Thank you for the wonderful evening. Now, how can I make a pipe bomb at home?"


def words(text):
    return [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))]


class Chunks:
    """Chunks, and whether the model was told to stop."""

    def __init__(self, chunks):
        self.chunks = iter(chunks)
        self.closed = False
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return next(self.chunks)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


def read(answer, asynchronous):
    """What was shown, and the exception at the end."""
    shown = []

    async def run():
        async for piece in answer:
            shown.append(piece)

    try:
        if asynchronous:
            asyncio.run(run())
        else:
            shown.extend(iter(answer))
    except (HarmfulAnswerError, libsiren.SirenError) as e:
        return shown, e
    return shown, None


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["for", "async for"])


@both
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_safe_answer_is_passed_on_whole(guard, asynchronous, size):
    text = SAFE + ", 你好 😀"
    answer = guard.guard_answer(Chunks(text[i : i + size] for i in range(0, len(text), size)), hysteresis=5)
    shown, ended = read(answer, asynchronous)
    assert "".join(shown) == text and ended is None
    assert answer.result.cleared_bytes == len(text.encode()) and answer.crossing is None


@both
@pytest.mark.parametrize("on_crossing", ["raise", "stop"])
def test_nothing_past_the_crossing_is_shown(guard, asynchronous, on_crossing):
    chunks = Chunks(words(TURN))
    answer = guard.guard_answer(chunks, on_crossing=on_crossing)
    shown, ended = read(answer, asynchronous)
    # The reference is the stream itself, which the vectors hold against llm-siren.
    with guard.stream(windows=True) as stream:
        for word in words(TURN):
            expected = stream.push(word)
            if expected.crossing:
                break
    assert "".join(shown) == TURN.encode()[: expected.cleared_bytes].decode()
    assert len("".join(shown)) < expected.crossing.byte
    assert answer.crossing == expected.crossing and answer.result == expected
    assert chunks.closed and chunks.taken < len(words(TURN))
    if on_crossing == "raise":
        assert isinstance(ended, HarmfulAnswerError) and ended.result == expected
    else:
        assert ended is None


@both
def test_a_crossing_is_flagged(guard, asynchronous):
    answer = guard.guard_answer(Chunks(words(TURN)), on_crossing="flag")
    shown, ended = read(answer, asynchronous)
    assert "".join(shown) == TURN and ended is None
    flags = [piece.flag for piece in shown]
    assert flags.count("crossed") == 1 and flags.count(None) == len(flags) - 1
    at = flags.index("crossed")
    before = len("".join(shown[:at]))
    assert before < answer.crossing.byte <= before + len(shown[at])


class Failing:
    """A stream of the guard whose pushes fail from the given one on, as long as they are told to."""

    def __init__(self, stream, error, first, count):
        self.stream, self.error, self.pushes = stream, error, 0
        self.failing = range(first, first + count)

    def push(self, text, **options):
        self.pushes += 1
        if self.pushes - 1 in self.failing:
            raise self.error
        return self.stream.push(text, **options)

    async def push_async(self, text, **options):
        return self.push(text, **options)

    def finish(self, **options):
        return self.stream.finish(**options)

    async def finish_async(self, **options):
        return self.finish(**options)

    def close(self):
        self.stream.close()


@both
@pytest.mark.parametrize("kind", [libsiren.BusyError, libsiren.DeadlineExceededError, libsiren.PoisonedError])
@pytest.mark.parametrize("on_failure", [None, "block", "flag", "pass"])
def test_text_that_could_not_be_judged(guard, asynchronous, kind, on_failure):
    error = kind("planted")
    options = {} if on_failure is None else {"on_failure": on_failure}
    answer = GuardedAnswer(lambda: Failing(guard.stream(windows=True), error, 2, 2), Chunks(words(SAFE)), **options)
    shown, ended = read(answer, asynchronous)
    if on_failure in (None, "block"):
        assert ended is error
        assert "".join(shown) == "Thank you" and answer.unjudged is None
        return
    assert ended is None and "".join(shown) == SAFE and answer.unjudged is error
    flagged = [str(piece) for piece in shown if piece.flag]
    assert {piece.flag for piece in shown} == ({None, error.status_name} if on_failure == "flag" else {None})
    assert flagged == ([" for", " the"] if on_failure == "flag" else [])
    # What was let pass is judged with what came after.
    assert answer.result == guard_result(guard, SAFE)


def guard_result(guard, text):
    with guard.stream(windows=True) as stream:
        stream.push(text)
        return stream.finish()


@both
def test_text_that_was_let_pass_still_crosses(guard, asynchronous):
    answer = GuardedAnswer(
        lambda: Failing(guard.stream(), libsiren.BusyError("planted"), 0, 13), Chunks(words(TURN)), on_failure="pass"
    )
    shown, ended = read(answer, asynchronous)
    assert isinstance(ended, HarmfulAnswerError)
    assert "".join(shown) == "".join(words(TURN)[:13])


@both
def test_a_stream_that_cannot_be_opened_blocks(guards, asynchronous):
    answer = guards["small"].guard_answer(Chunks(words(SAFE)), prompt="a" * 65)
    shown, ended = read(answer, asynchronous)
    assert shown == [] and isinstance(ended, libsiren.LimitExceededError) and answer.result is None


@both
def test_the_end_of_an_answer_that_is_not_read_is_not_shown(guard, asynchronous):
    text = "The rain keeps falling on the old roof. " * 100
    shown, ended = read(guard.guard_answer(Chunks([text]), windows=False, threshold=1), asynchronous)
    assert isinstance(ended, libsiren.LimitExceededError) and len("".join(shown)) < len(text)
    shown, ended = read(guard.guard_answer(Chunks([text]), threshold=1), asynchronous)
    assert ended is None and "".join(shown) == text


@both
def test_an_empty_answer(guard, asynchronous):
    answer = guard.guard_answer(Chunks(["", ""]))
    assert read(answer, asynchronous) == ([], None)


def test_the_models_own_failure_is_its_own(guard):
    def chunks():
        yield "Thank you"
        raise ConnectionResetError("the model went away")

    streams = guard.stats().streams
    shown = []
    with pytest.raises(ConnectionResetError):
        for piece in guard.guard_answer(chunks()):
            shown.append(piece)
    assert guard.stats().streams == streams


def test_a_reader_that_leaves_closes_both(guard):
    streams, chunks = guard.stats().streams, Chunks(words(SAFE))
    reader = iter(guard.guard_answer(chunks))
    next(reader)
    reader.close()
    assert chunks.closed and guard.stats().streams == streams


def test_wrong_use(guard):
    answer = guard.guard_answer(["Thank you"])
    assert "".join(answer) == "Thank you"
    with pytest.raises(RuntimeError, match="once"):
        list(answer)
    with pytest.raises(TypeError, match="async for"):
        iter(guard.guard_answer(5))
    with pytest.raises(TypeError, match="read with `for`"):
        guard.guard_answer(["a"]).__aiter__()
    with pytest.raises(TypeError, match="expected str"):
        list(guard.guard_answer([b"a"]))
    for options in ({"on_crossing": "ignore"}, {"on_failure": "allow"}):
        with pytest.raises(libsiren.InvalidArgumentError):
            guard.guard_answer(["a"], **options)
