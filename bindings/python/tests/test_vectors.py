"""All of bindings/vectors: every one can be passed, since bytes can."""

import libsiren
import pytest
from conftest import given, open_as, read_json
from libsiren import Input, Windows

VECTORS = read_json("bindings/vectors/vectors.json")


def by_id(vectors):
    return [pytest.param(vector, id=vector["id"]) for vector in vectors]


def options_of(vector):
    options = dict(vector.get("options", {}))
    if "windows" in options:
        options["windows"] = Windows(**options["windows"])
    return options


def input_of(vector):
    return Input(*(given(vector.get(name)) for name in Input._fields))


def check(result, expected):
    assert result.score == pytest.approx(expected["score"], rel=0, abs=VECTORS["tolerance"])
    for name in ("threshold", "is_harmful", "tokens", "truncated"):
        assert getattr(result, name) == expected[name], name
    if "windows" in expected:
        window = (result.window.count, result.window.index, result.window.start, result.window.end)
        assert window == tuple(expected["window" + name] for name in ("s", "_index", "_start", "_end"))
    else:
        assert result.window is None


@pytest.mark.parametrize("vector", by_id(VECTORS["opens"]))
def test_open(vector):
    with pytest.raises(libsiren.SirenError) as failed:
        open_as(vector["open"])
    assert failed.value.status_name == vector["status"]
    assert failed.value.message


@pytest.mark.parametrize("vector", by_id(VECTORS["scores"]))
def test_score(guards, vector):
    guard = guards[vector.get("guard")]
    arguments = input_of(vector)._asdict() | options_of(vector)
    if "status" in vector:
        with pytest.raises(libsiren.SirenError) as failed:
            guard.score(**arguments)
        assert failed.value.status_name == vector["status"]
        assert failed.value.message
    else:
        check(guard.score(**arguments), vector["expect"])


def test_scores_as_one_batch(guard):
    vectors = [v for v in VECTORS["scores"] if "guard" not in v and "options" not in v]
    assert len(vectors) > 20
    inputs = [input_of(vector) for vector in vectors]
    scored = guard.score_batch(inputs, errors="return")
    arrays = guard.score_arrays(inputs, errors="return")
    assert len(scored) == len(arrays.score) == len(vectors)
    failures = 0
    for i, (vector, input, result) in enumerate(zip(vectors, inputs, scored)):
        if "status" in vector:
            failures += 1
            assert result.status_name == vector["status"], vector["id"]
            assert arrays.status[i] == result.status
            assert arrays.is_harmful[i] and arrays.score[i] != arrays.score[i]
        else:
            assert result == guard.score(**input._asdict()), vector["id"]
            assert (arrays.score[i], arrays.tokens[i], arrays.status[i]) == (result.score, result.tokens, 0)
            assert (arrays.is_harmful[i], arrays.truncated[i]) == (result.is_harmful, result.truncated)
    assert failures


@pytest.mark.parametrize("vector", VECTORS["batches"])
def test_batch(guards, vector):
    known = {v["id"]: v for v in VECTORS["scores"]}
    inputs = [input_of(known[id]) for id in vector["ids"]]
    for score in (guards[vector["guard"]].score_batch, guards[vector["guard"]].score_arrays):
        with pytest.raises(libsiren.SirenError) as failed:
            score(inputs, errors="return")
        assert failed.value.status_name == vector["status"]


@pytest.mark.parametrize("vector", by_id(VECTORS["streams"]))
def test_stream(guards, vector):
    def open():
        return guards[vector.get("guard")].stream(prompt=given(vector.get("prompt")), **options_of(vector))

    if "status" in vector:
        with pytest.raises(libsiren.SirenError) as failed:
            open()
        assert failed.value.status_name == vector["status"]
        return
    streams = {None: open()}
    for step in vector["steps"]:
        on = streams[step.get("on")]
        if "fork" in step:
            streams[step["fork"]] = on.fork()
        elif "reset" in step:
            on.reset()
        else:
            if "status" in step:
                with pytest.raises(libsiren.SirenError) as failed:
                    on.push(given(step["push"])) if "push" in step else on.finish()
                assert failed.value.status_name == step["status"]
                continue
            result = on.push(given(step["push"])) if "push" in step else on.finish()
            expected = step["expect"]
            check(result, expected)
            crossing = expected["crossing"]
            assert result.crossing == (crossing and (crossing["token"], crossing["byte"]))
            assert result.cleared_bytes == expected["cleared_bytes"]
    for stream in streams.values():
        stream.close()
