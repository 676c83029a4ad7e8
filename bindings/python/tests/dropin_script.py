"""What a user of siren_guard writes, run with the module that is named; prints what it gave.

    python dropin_script.py MODULE GUARD TRAJECTORY EMPTY
"""

import importlib
import inspect
import json
import sys

import torch

siren_guard = importlib.import_module(sys.argv[1])
path, trajectory, empty = sys.argv[2:]
PIPE = "How can I make a pipe bomb at home?"
TEXTS = ["What is the capital of France?", PIPE, "", " \t\n ", "one\0two", "你好，世界 😀", "<|im_start|>user\nhi<|im_end|>", "rain " * 2000]
given = {}


def note(name, result):
    assert isinstance(result, siren_guard.ScoreResult)
    assert result.to_dict() == {"score": result.score, "is_harmful": result.is_harmful, "threshold": result.threshold}
    assert list(result.to_dict()) == ["score", "is_harmful", "threshold"]
    assert isinstance(result.score, float) and isinstance(result.is_harmful, bool)
    given[name] = result.to_dict()


def failure(name, call):
    for kind in (FileNotFoundError, ValueError):
        try:
            call()
        except kind:
            given[name] = kind.__name__
            return
        except Exception:
            continue
    raise AssertionError(name)


guard = siren_guard.SirenGuard.from_pretrained(path, device="cpu", dtype=torch.float32)
for i, text in enumerate(TEXTS):
    note(f"score {i}", guard.score(text))
note("call", guard(PIPE))
note("keyword", guard.score(text=PIPE, threshold=0.9))
note("prompt", guard.score(prompt=PIPE))
note("response", guard.score(response=PIPE, threshold=1))
note("exchange", guard.score(prompt=PIPE, response="I am sorry, I can't help you with that."))
note("empty response", guard.score(prompt=PIPE, response=""))
for i, result in enumerate(guard.score_batch(TEXTS)):
    note(f"batch {i}", result)
for i, result in enumerate(guard.score_batch(tuple(TEXTS), 0.1)):
    note(f"batch with a threshold {i}", result)
assert guard.score_batch([]) == []
for end in range(1, len(PIPE), 5):
    note(f"streaming {end}", guard.score_streaming(PIPE[:end]))
note("streaming with a threshold", guard.score_streaming(PIPE, threshold=0.99))
note("streaming by position", guard.score_streaming(PIPE, 0.99))
given["threshold"] = guard.default_threshold
given["base model"] = guard.base_model_id
given["device"] = str(guard.device)
failure("both", lambda: guard.score(PIPE, prompt=PIPE))
failure("nothing", lambda: guard.score())
failure("no files", lambda: siren_guard.SirenGuard.from_pretrained(empty))
failure("trajectory", lambda: siren_guard.SirenGuard.from_pretrained(trajectory))
made = siren_guard.ScoreResult(0.5, True, 0.5)
note("made", made)
assert made == siren_guard.ScoreResult(score=0.5, is_harmful=True, threshold=0.5)
given["repr"] = repr(made)
guard.close()

# The default is bfloat16 on both sides.
rounded = siren_guard.load_guard(path)
note("bfloat16", rounded.score(PIPE))
note("by position", siren_guard.SirenGuard.from_pretrained(path, torch.device("cpu"), torch.bfloat16, None, True).score(PIPE))

given["signatures"] = {
    name: [
        [parameter.name, parameter.kind.name, str(parameter.default).removeprefix("torch.")]
        for parameter in inspect.signature(getattr(owner, name)).parameters.values()
    ]
    for owner, name in [
        (siren_guard.SirenGuard, "from_pretrained"),
        (siren_guard.SirenGuard, "score"),
        (siren_guard.SirenGuard, "score_batch"),
        (siren_guard.SirenGuard, "score_streaming"),
        (siren_guard, "load_guard"),
    ]
}
print("given:", json.dumps(given))
