"""The same script against llm-siren and against this package.

SIREN_REFERENCE_PYTHON names an interpreter that has llm-siren 0.2.0, if this one has not.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import libsiren
import pytest
from conftest import DEMO

# Both run in f32; the second is bfloat16's own noise.
TOLERANCE, ROUNDED = 1e-4, 0.02


@pytest.fixture(scope="module")
def reference():
    python = os.environ.get("SIREN_REFERENCE_PYTHON", sys.executable)
    code = "import importlib.metadata as m; print(m.version('llm-siren'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("llm-siren is not installed here; SIREN_REFERENCE_PYTHON may name a Python that has it")
    assert done.stdout.strip() == "0.2.0"
    return python


def run(python, module, folders, package=None):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    script = Path(__file__).with_name("dropin_script.py")
    done = subprocess.run([python, str(script), module, *map(str, folders)], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("given:")]
    return json.loads(line.removeprefix("given:"))


def test_the_same_script_gives_the_same(reference, tmp_path):
    content, trajectory, empty, package = (tmp_path / name for name in ("content", "trajectory", "empty", "package"))
    for folder in (content, trajectory, empty, package):
        folder.mkdir()
    config = json.loads((DEMO / "siren_config.json").read_text())
    # llm-siren takes a path from the working directory, not from the artifact.
    config["base_model"] |= {"model_id": str(DEMO / "backbone"), "revision": None}
    (content / "siren_config.json").write_text(json.dumps(config))
    (trajectory / "siren_config.json").write_text(json.dumps(config | {"task": "trajectory"}))
    for folder in (content, trajectory):
        shutil.copy(DEMO / "siren.safetensors", folder)
    # Nothing else of this environment may be seen by the other one.
    (package / "libsiren").symlink_to(Path(libsiren.__file__).parent)
    folders = (content, trajectory, empty)
    theirs, ours = run(reference, "siren_guard", folders), run(reference, "libsiren", folders, package)

    signatures = theirs.pop("signatures"), ours.pop("signatures")
    for name, parameters in signatures[0].items():
        own = signatures[1][name]
        named = [parameter for parameter in parameters if parameter[1] != "VAR_KEYWORD"]
        # What this package adds comes behind, by name only.
        assert own[: len(named)] == named, name
        assert all(kind in ("KEYWORD_ONLY", "VAR_KEYWORD") for _, kind, _ in own[len(named) :]), name
    assert ours.keys() == theirs.keys() and len(ours) > 40
    worst = 0.0
    for name, expected in theirs.items():
        if isinstance(expected, dict):
            rounded = name in ("bfloat16", "by position")
            difference = abs(ours[name]["score"] - expected["score"])
            worst = worst if rounded else max(worst, difference)
            assert difference <= (ROUNDED if rounded else TOLERANCE), name
            assert {**ours[name], "score": 0} == {**expected, "score": 0}, name
        else:
            assert ours[name] == expected, name
    print(f"{len(ours)} answers; the worst score differs by {worst:.1e} in f32")
