#!/usr/bin/env python3
"""What the prefix cache and streams save where a prompt is scored, then its growing answer.

    python deployment.py LIBSIREN.so MODEL [--prompt-words N] [--answer-words N] [--rounds R]

Scores a prompt, then the prompt with an answer that grows by 16 words a step: with the prefix cache,
without it, and as a stream. Each round takes words of its own, so that nothing is known from the
round before. Prints one JSON object: median milliseconds of each, over the rounds.

Requirements: Python 3.10+. The library is called through its C ABI.
"""

import argparse
import ctypes
import json
import random
import statistics
import time
from pathlib import Path

LAYOUT = json.loads((Path(__file__).parent.parent / "include/siren-abi.json").read_text())["structs"]
WORDS = "the people of this town walk along the river every day and talk about it".split()
STEP = 16


class Struct:
    """A struct of the C ABI by its committed layout; zeros are the defaults."""

    def __init__(self, name):
        self.layout = LAYOUT[name]
        self.bytes = ctypes.create_string_buffer(self.layout["size"])
        self.set("struct_size", ctypes.c_uint32, self.layout["size"])

    def set(self, field, kind, value):
        kind.from_buffer(self.bytes, self.layout["offsets"][field]).value = value

    def set_text(self, field, text):
        offset = self.layout["offsets"][field]
        ctypes.c_void_p.from_buffer(self.bytes, offset).value = ctypes.cast(text, ctypes.c_void_p).value
        ctypes.c_size_t.from_buffer(self.bytes, offset + 8).value = len(text.value)

    def get(self, field, kind):
        return kind.from_buffer(self.bytes, self.layout["offsets"][field]).value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("model")
    parser.add_argument("--prompt-words", type=int, default=300)
    parser.add_argument("--answer-words", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    siren = ctypes.CDLL(args.library)

    def call(function, *arguments):
        error = Struct("siren_error")
        status = function(*arguments, error.bytes)
        if status != 0:
            raise RuntimeError(error.bytes[error.layout["offsets"]["message"]:].split(b"\0")[0])

    def open_guard(cache):
        options = Struct("siren_open_options")
        model = ctypes.create_string_buffer(args.model.encode())
        options.set_text("model", model)
        options.set("threads", ctypes.c_uint32, args.threads)
        options.set("no_prefix_cache", ctypes.c_uint32, 0 if cache else 1)
        guard = ctypes.c_void_p()
        call(siren.siren_open, options.bytes, ctypes.byref(guard))
        call(siren.siren_warmup, guard)
        return guard

    def score(guard, prompt, answer=None):
        source, result = Struct("siren_input"), Struct("siren_result")
        texts = [ctypes.create_string_buffer(t.encode()) for t in (prompt, answer or "")]
        source.set_text("prompt", texts[0])
        if answer:
            source.set_text("response", texts[1])
        call(siren.siren_score, guard, source.bytes, None, result.bytes)
        return result.get("score", ctypes.c_double)

    def stream(guard, prompt):
        options, handle = Struct("siren_stream_options"), ctypes.c_void_p()
        text = ctypes.create_string_buffer(prompt.encode())
        options.set_text("prompt", text)
        call(siren.siren_stream_new, guard, options.bytes, ctypes.byref(handle))

        def push(words):
            result = Struct("siren_push_result")
            data = words.encode()
            call(siren.siren_stream_push, handle, data, ctypes.c_size_t(len(data)), None, result.bytes)
            return result.get("score", ctypes.c_double)

        return push, lambda: siren.siren_stream_free(handle)

    def timed(times, name, run):
        start = time.perf_counter()
        value = run()
        times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
        return value

    guards = {"cache": open_guard(True), "no cache": open_guard(False)}
    times, apart = {}, 0.0
    for seed in range(args.rounds):
        words = random.Random(seed)
        prompt = f"{seed} " + " ".join(words.choices(WORDS, k=args.prompt_words))
        answer = words.choices(WORDS, k=args.answer_words)
        steps = [" ".join(answer[:end]) for end in range(STEP, args.answer_words + 1, STEP)]
        for name, guard in guards.items():
            timed(times, f"prompt, {name}", lambda: score(guard, prompt))
            scores = [timed(times, f"each answer so far, {name}", lambda: score(guard, prompt, step))
                      for step in steps]
            reference = scores if name == "cache" else reference
            apart = max(apart, *(abs(a - b) for a, b in zip(scores, reference)))
        push, free = stream(guards["cache"], prompt)
        for i, step in enumerate(steps):
            more = step[len(steps[i - 1]) if i else 0:]
            value = timed(times, "each push of a stream", lambda: push(more))
            apart = max(apart, abs(value - reference[i]))
        free()
    print(json.dumps({
        "prompt_words": args.prompt_words,
        "answer_words": args.answer_words,
        "step_words": STEP,
        "scores_apart": apart,
        "median_ms": {name: round(statistics.median(t), 2) for name, t in times.items()},
    }, indent=1))


if __name__ == "__main__":
    main()
