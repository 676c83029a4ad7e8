#!/usr/bin/env python3
"""What a call costs above the library's own work, in microseconds: medians of interleaved rounds.

    python bench.py          # with the wheel installed

A refused text is longer than the guard takes: nothing is run. `ctypes` is the bare call of the C function
with structs that are made once. A scored text is short, and its tokens are in the prefix cache.
"""

import statistics
import time
from ctypes import byref

import libsiren
import libsiren._abi as abi

ROUNDS = 15


def main():
    small = libsiren.SirenGuard.open(threads=2, max_text_bytes=8)
    guard = libsiren.SirenGuard.open(threads=2)
    refused, scored = "more than 8 bytes", "one two three"
    many_refused, many_scored = [refused] * 1000, [scored] * 1000
    raw, result, error = abi.new(abi.Input), abi.new(abi.Result), abi.new(abi.Error)

    def ctypes_call(handle, text):
        raw.text = abi.Text(text, len(text))
        abi.lib.siren_score(handle, byref(raw), None, byref(result), byref(error))

    def ctypes_batch(handle, text):
        inputs, results, errors = (abi.new_array(kind, 1000) for kind in (abi.Input, abi.Result, abi.Error))
        for one in inputs:
            one.text = abi.Text(text, len(text))
        begun = time.perf_counter()
        abi.lib.siren_score_batch(handle, inputs, 1000, None, results, errors, byref(error))
        return time.perf_counter() - begun

    def score_refused():
        try:
            small.score(refused)
        except libsiren.LimitExceededError:
            pass

    cases = {
        "refused, 1 text: C": (500, lambda: ctypes_call(small._handle, refused.encode())),
        "refused, 1 text: score": (500, score_refused),
        "refused, 1,000 texts: C": (1, lambda: ctypes_batch(small._handle, refused.encode())),
        "refused, 1,000 texts: score_batch": (1, lambda: small.score_batch(many_refused, errors="return")),
        "refused, 1,000 texts: score_arrays": (1, lambda: small.score_arrays(many_refused, errors="return")),
        "scored, 1 text: C": (50, lambda: ctypes_call(guard._handle, scored.encode())),
        "scored, 1 text: score": (50, lambda: guard.score(scored)),
        "scored, 1,000 texts: C": (1, lambda: ctypes_batch(guard._handle, scored.encode())),
        "scored, 1,000 texts: score_batch": (1, lambda: guard.score_batch(many_scored)),
        "scored, 1,000 texts: score_arrays": (1, lambda: guard.score_arrays(many_scored)),
    }
    taken = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (count, call) in cases.items():
            begun = time.perf_counter()
            own = [call() for _ in range(count)]
            seconds = time.perf_counter() - begun
            # Making the structs is not the C call's.
            taken[name].append(sum(own) if isinstance(own[0], float) else seconds / count)
    for name, seconds in taken.items():
        print(f"{name:40} {statistics.median(seconds) * 1e6:10.1f} us")


if __name__ == "__main__":
    main()
