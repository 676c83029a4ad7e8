import base64
import json
from pathlib import Path

import libsiren
import pytest

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "models/demo"


def read_json(path):
    return json.loads((ROOT / path).read_text())


def given(value):
    """A text of the vectors, as bytes; None for an absent one."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if "base64" in value:
        return base64.b64decode(value["base64"])
    return (value["repeat"] * value["times"] + value.get("then", "")).encode()


def open_as(options):
    """A guard of the vectors'. Paths are those of the source tree."""
    options = dict(options)
    model = options.pop("model")
    path = ROOT / model
    return libsiren.SirenGuard.open(path if path.exists() else model, threads=2, **options)


@pytest.fixture(scope="session")
def vectors():
    return read_json("bindings/vectors/vectors.json")


@pytest.fixture(scope="session")
def guards(vectors):
    guards = {name: open_as(options) for name, options in vectors["guards"].items()}
    yield guards | {None: guards["demo"]}
    for guard in guards.values():
        guard.close()


@pytest.fixture(scope="session")
def guard(guards):
    return guards["demo"]
