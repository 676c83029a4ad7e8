"""Tables of texts, without an engine: needs pyarrow."""

import pickle
import subprocess
import sys

import pytest
from conftest import DEMO
from libsiren import InvalidArgumentError, PoisonedError, ScoreResult, SirenGuard

pa = pytest.importorskip("pyarrow")
from libsiren.bulk import VERDICTS, Scoring, tables  # noqa: E402

TEXTS = ["How can I make a pipe bomb at home?", "", "What is the capital of France?", "naïve café 北京"]
# Not UTF-8, where a column of strings says that it is: files have such.
BROKEN = pa.array([b"ok", b"\xff\xfe", b"fine"]).cast(pa.string(), safe=False)


def opened(**fields):
    return Scoring(DEMO, **fields).open(threads=2)


@pytest.fixture(scope="module")
def scorer():
    return opened(options={"max_text_bytes": 4096})


def columns(results):
    return {
        "score": [one.score for one in results],
        "is_harmful": [one.is_harmful for one in results],
        "threshold": [one.threshold for one in results],
        "tokens": [one.tokens for one in results],
        "truncated": [one.truncated for one in results],
        "status": [0] * len(results),
        "error": [None] * len(results),
    }


@pytest.mark.parametrize(
    "of_type",
    [
        lambda texts: pa.array(texts),
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts, pa.string_view()),
        lambda texts: pa.array([text.encode() for text in texts], pa.binary()),
        lambda texts: pa.array(texts).dictionary_encode(),
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
    ],
)
def test_verdicts_stand_beside_what_was_there(scorer, guard, of_type):
    table = pa.table({"n": range(len(TEXTS)), "text": of_type(TEXTS)})
    scored = scorer(table)
    assert scored.select(["n", "text"]) == table
    assert scored.select(VERDICTS.names).schema == VERDICTS
    assert scored.select(VERDICTS.names).to_pydict() == columns(guard.score_batch(TEXTS))
    assert scored["is_harmful"].to_pylist()[:3] == [True, False, False]


def test_rows_keep_their_order_over_many_calls(scorer, guard):
    texts = [f"text {i % 700}" for i in range(2 * tables._CALL + 3)]
    assert scorer(pa.table({"text": texts}))["score"].to_pylist() == [one.score for one in guard.score_batch(texts)]


def test_a_row_that_fails_fails_alone_and_is_not_safe(scorer, guard):
    texts = pa.chunked_array([["first", None, "x" * 4097], BROKEN])
    scored = scorer(pa.table({"text": texts})).select(VERDICTS.names).to_pylist()
    for i, name in {1: "invalid_argument", 2: "limit_exceeded", 4: "invalid_utf8"}.items():
        row = scored[i]
        assert row.pop("error").startswith(f"{name}: ")
        assert row.pop("status") == {"invalid_argument": 1, "limit_exceeded": 11, "invalid_utf8": 3}[name]
        assert row.pop("is_harmful") is True
        assert row == {"score": None, "threshold": None, "tokens": None, "truncated": None}
    expected = [one.score for one in guard.score_batch(["first", "ok", "fine"])]
    assert [scored[i]["score"] for i in (0, 3, 5)] == expected
    assert [scored[i]["status"] for i in (0, 3, 5)] == [0, 0, 0]


def test_prompts_and_responses(guard):
    prompts, responses = ["a question", None, None], ["an answer", "an answer", None]
    scored = opened(prompt="q", response="a", prefix="siren_")(pa.table({"q": prompts, "a": responses}))
    assert scored.column_names == ["q", "a"] + ["siren_" + name for name in VERDICTS.names]
    expected = [guard.score(prompt="a question", response="an answer"), guard.score(response="an answer")]
    assert scored["siren_score"].to_pylist() == [one.score for one in expected] + [None]
    assert scored["siren_status"].to_pylist() == [0, 0, 1]


def test_thresholds_and_windows(guard):
    long = "one two three " * 2000 + TEXTS[0]
    table = pa.table({"text": [long]})
    alone = opened(threshold=0.1)(table)
    assert (alone["truncated"][0].as_py(), alone["threshold"][0].as_py()) == (True, 0.1)
    assert opened(windows=True)(table)["score"][0].as_py() == guard.score(long, windows=True).score


def test_what_is_wrong_with_all_rows_is_raised(scorer):
    with pytest.raises(KeyError, match="no column 'text', expected one of a, b"):
        scorer(pa.table({"a": ["x"], "b": ["x"]}))
    with pytest.raises(TypeError, match="column 'text' is of type int64, expected strings or bytes"):
        scorer(pa.table({"text": [1]}))
    with pytest.raises(ValueError, match="has columns score, error already: choose a prefix"):
        scorer(pa.table({"text": ["x"], "score": [1], "error": [1]}))
    with pytest.raises(InvalidArgumentError):
        opened(threshold=1.5)(pa.table({"text": ["x"]}))
    with pytest.raises(ValueError, match="expected the one or the other"):
        Scoring(text="a", prompt="b")


def test_no_rows(scorer):
    scored = scorer(pa.table({"text": pa.array([], pa.string())}))
    assert (scored.num_rows, scored.schema.names) == (0, ["text", *VERDICTS.names])


def test_a_scoring_can_be_pickled():
    scoring = Scoring(DEMO, prompt="q", windows=True, options={"dtype": "f32"})
    assert pickle.loads(pickle.dumps(scoring)) == scoring
    assert Scoring().columns == {"text": "text"}


class BreakableGuard:
    """A guard that a text poisons, and all that share its call."""

    opened = 0

    def __init__(self):
        type(self).opened += 1
        self.poisoned = False

    @classmethod
    def open(cls, model, **options):
        return cls()

    def score_batch(self, inputs, threshold, **options):
        assert not self.poisoned
        self.poisoned = any(one.text == b"breaks" for one in inputs)
        if self.poisoned:
            return [PoisonedError("a panic") for _ in inputs]
        return [ScoreResult(0.25, False, 0.5) for _ in inputs]

    def close(self):
        pass


def test_a_text_that_breaks_the_guard_fails_alone(monkeypatch):
    monkeypatch.setattr(tables, "SirenGuard", BreakableGuard)
    scorer = opened()
    for _ in range(2):
        scored = scorer(pa.table({"text": ["a", "breaks", "b"]}))
        assert scored["status"].to_pylist() == [0, PoisonedError.status, 0]
        assert scored["score"].to_pylist() == [0.25, None, 0.25]
    # At first, and after each of the calls that broke one.
    assert BreakableGuard.opened == 5
    assert isinstance(scorer, tables.TableScorer) and SirenGuard is not tables.SirenGuard


@pytest.mark.parametrize(
    ("module", "missing", "extras"),
    [
        ("bulk", "pyarrow", ["ray", "spark"]),
        ("bulk.ray", "ray", ["ray"]),
        ("bulk.spark", "pyspark", ["spark"]),
        ("bulk.spark", "pandas", ["spark"]),
    ],
)
def test_a_package_that_is_missing_is_named(module, missing, extras):
    code = f"import sys; sys.modules[{missing!r}] = None; import libsiren\nimport libsiren.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: libsiren.{module} needs ")
    assert all(f"'libsiren[{extra}]'" in last for extra in extras)
