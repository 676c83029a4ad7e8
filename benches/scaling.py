#!/usr/bin/env python3
"""How time and memory grow: with tokens, threads, batches, callers and streams, each with its fitted curve.

    python scaling.py --model SHAPE --siren PATH --library LIBSIREN.so [--dtype f32] [--out PREFIX]
                      [--only tokens,batch,callers,streams] [--cores 32]

Tokens, batches and pushes are measured with `siren bench`, callers and streams through the Python
binding of this tree. Every text differs from the others in its first word, so that the prefix cache has
nothing to give. At the end stands what a server of --cores cores would carry if it scaled as one thread
to two did here: an estimate, and marked as one.

PREFIX.json gets everything that was measured, PREFIX.md the tables. Requirements: Python 3.10+, numpy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WORDS = "the people of this town walk along the river every day and talk about it".split()
TOKENS = [16, 32, 64, 128, 256, 512, 1024, 2048]
BATCHES = [1, 2, 4, 8, 16, 32]
BATCH_TOKENS = 64
PREFIXES = [64, 256, 512, 1024, 2048]
CALLERS = [1, 2, 4, 8, 16, 32, 64]
STREAMS = [1, 4, 16, 64]
STREAM_WORDS = 200
PUSHERS = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--siren", required=True, help="the command")
    parser.add_argument("--library", required=True, help="the shared library")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--only", default="tokens,batch,callers,streams")
    parser.add_argument("--seconds", type=float, default=8, help="for each number of callers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=32)
    parser.add_argument("--out", help="prefix of the files that are written")
    args = parser.parse_args()
    only = set(args.only.split(","))
    result = {"model": args.model, "dtype": args.dtype, "load": os.getloadavg()}
    if "tokens" in only:
        result["tokens"] = {n: by_tokens(args, n) for n in (1, 2)}
        result["pushes"] = by_prefix(args)
    if "batch" in only:
        result["batch"] = by_batch(args)
    if only & {"callers", "streams"}:
        os.environ["SIREN_LIBRARY"] = os.path.abspath(args.library)
        sys.path.insert(0, str(HERE.parent / "bindings/python/src"))
    if "callers" in only:
        result["callers"] = by_callers(args)
    if "streams" in only:
        result["streams"] = by_streams(args)
    tables = "\n\n".join(report(result, args.cores))
    print(tables)
    if args.out:
        Path(args.out + ".json").write_text(json.dumps(result, indent=1) + "\n")
        Path(args.out + ".md").write_text(tables + "\n")


def bench(args, *options, threads=2):
    """What `siren bench` measured, as its JSON has it."""
    command = [args.siren, "bench", "--model", args.model, "--dtype", args.dtype, "--json",
               "--threads", str(threads), "--repeat", str(args.repeat), *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def by_tokens(args, threads):
    cases = bench(args, "--tokens", ",".join(map(str, TOKENS)), threads=threads)["latency"]
    times = [case["median_ms"] for case in cases]
    return {"tokens": TOKENS, "ms": times, "fit": fit(TOKENS, times, 2)}


def by_prefix(args):
    cases = bench(args, "--stream", ",".join(map(str, PREFIXES)))["stream"]
    times = [case["median_ms"] for case in cases]
    return {"prefix": PREFIXES, "ms": times, "fit": fit(PREFIXES, times, 1)}


def by_batch(args):
    measured = bench(args, "--batch", ",".join(map(str, BATCHES)), "--batch-tokens", str(BATCH_TOKENS))
    times = [case["median_ms"] for case in measured["throughput"]]
    return {"batch": BATCHES, "ms": times, "fit": fit(BATCHES, times, 1)}


def fit(x, y, degree):
    """Coefficients from the constant up that are not negative, by least squares of relative errors, and
    the worst of those errors."""
    x, y = np.array(x, float), np.array(y, float)
    columns = np.vander(x, degree + 1, increasing=True) / y[:, None]
    kept = list(range(degree + 1))
    while True:
        solution, *_ = np.linalg.lstsq(columns[:, kept], np.ones(len(y)), rcond=None)
        if (solution >= 0).all() or len(kept) == 1:
            break
        kept.pop(int(solution.argmin()))
    coefficients = np.zeros(degree + 1)
    coefficients[kept] = solution
    return {"coefficients": coefficients.tolist(),
            "worst": float(np.abs(columns @ coefficients - 1).max())}


def words(start, count):
    return f"{start} " + " ".join(WORDS[i % len(WORDS)] for i in range(count - 1))


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def together(count, work):
    """Runs `work(i)` on `count` threads and waits; an error of one is raised."""
    errors = []

    def run(i):
        try:
            work(i)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def by_callers(args):
    import libsiren

    rows = []
    with libsiren.SirenGuard.open(args.model, dtype=args.dtype, device="cpu", threads=2,
                                  no_prefix_cache=True) as guard:
        tokens = guard.score(words("first", 64)).tokens
        for callers in CALLERS:
            times, end = [], time.monotonic() + args.seconds

            def call(caller):
                n = 0
                while time.monotonic() < end or n == 0:
                    begun = time.perf_counter()
                    guard.score(words(f"{caller} {n}", 64))
                    times.append(time.perf_counter() - begun)
                    n += 1

            begun = time.monotonic()
            together(callers, call)
            elapsed = time.monotonic() - begun
            ms = sorted(1000 * t for t in times)
            rows.append({"callers": callers, "texts_per_s": len(ms) / elapsed,
                         "p50_ms": statistics.median(ms), "p95_ms": ms[int(len(ms) * 0.95)],
                         "resident_mb": resident() / 1e6})
    return {"tokens": tokens, "rows": rows}


def by_streams(args):
    import libsiren

    rows = []
    with libsiren.SirenGuard.open(args.model, dtype=args.dtype, device="cpu", threads=2,
                                  kv_bytes=16 << 30) as guard:
        for count in STREAMS:
            before = resident()
            streams = [guard.stream() for _ in range(count)]
            together(min(PUSHERS, count), lambda i: [
                streams[s].push(words(f"{s} {count}", STREAM_WORDS))
                for s in range(i, count, min(PUSHERS, count))])
            grown = resident() - before
            tokens, times = [], []

            def push(i):
                for s in range(i, count, min(PUSHERS, count)):
                    begun = time.perf_counter()
                    tokens.append(streams[s].push(" " + words("and", 15)).tokens)
                    times.append(1000 * (time.perf_counter() - begun))

            begun = time.monotonic()
            rounds = max(2, 16 // count)
            for _ in range(rounds):
                together(min(PUSHERS, count), push)
            elapsed = time.monotonic() - begun
            rows.append({"streams": count, "tokens": tokens[0], "pushes_per_s": rounds * count / elapsed,
                         "p50_ms": statistics.median(times), "grown_mb": grown / 1e6,
                         "counted_mb": guard.stats().kv_bytes / 1e6})
            for stream in streams:
                stream.close()
    return {"rows": rows}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "--:|" * len(head)]
    lines += ["| " + " | ".join(cell if isinstance(cell, str) else f"{cell:,.4g}" for cell in row) + " |"
              for row in rows]
    return "\n".join(lines)


def curve(fitted, variable):
    names = ["", f" {variable}", f" {variable}^2"]
    terms = [f"{c:.3g}{name}" for c, name in zip(fitted["coefficients"], names) if c > 0]
    return " + ".join(terms) + f" ms (off by {100 * fitted['worst']:.0f}% at most)"


def report(result, cores):
    if "tokens" in result:
        one, two = (result["tokens"][n] for n in (1, 2))
        yield table(["tokens", "1 thread, ms", "2 threads, ms", "times as fast"],
                    [[str(n), a, b, a / b] for n, a, b in zip(one["tokens"], one["ms"], two["ms"])])
        yield (f"A text of n tokens, 2 threads: {curve(two['fit'], 'n')}.\n"
               f"1 thread: {curve(one['fit'], 'n')}.")
        pushes = result["pushes"]
        yield table(["tokens before", "a push of 16, ms"],
                    [[str(n), ms] for n, ms in zip(pushes["prefix"], pushes["ms"])])
        yield f"A push onto p tokens: {curve(pushes['fit'], 'p')}."
    if "batch" in result:
        batch = result["batch"]
        yield table([f"texts of {BATCH_TOKENS} tokens a call", "ms", "texts/s"],
                    [[str(n), ms, 1000 * n / ms] for n, ms in zip(batch["batch"], batch["ms"])])
        yield f"A call of b texts: {curve(batch['fit'], 'b')}."
    if "callers" in result:
        callers = result["callers"]
        yield table([f"callers, texts of {callers['tokens']} tokens", "texts/s", "median, ms", "p95, ms",
                     "resident, MB"], [[str(r["callers"]), r["texts_per_s"], r["p50_ms"], r["p95_ms"],
                                        r["resident_mb"]] for r in callers["rows"]])
    if "streams" in result:
        yield table(["streams", "tokens", "pushes of 16 words a second", "a push, median, ms",
                     "memory grew, MB", "counted, MB"],
                    [[str(r["streams"]), str(r["tokens"]), r["pushes_per_s"], r["p50_ms"], r["grown_mb"],
                      r["counted_mb"]] for r in result["streams"]["rows"]])
    if "tokens" in result and "callers" in result:
        gains = [a / b for a, b in zip(result["tokens"][1]["ms"], result["tokens"][2]["ms"])]
        best = max(r["texts_per_s"] for r in result["callers"]["rows"])
        tokens = result["callers"]["tokens"]
        gain = statistics.median(gains)
        low, high = best * (gain / 2) ** (np.log2(cores / 2)) * cores / 2, best * cores / 2
        yield (f"Estimate, {cores} cores like these: {low:,.0f} to {high:,.0f} texts of {tokens} tokens a "
               f"second ({low * tokens:,.0f} to {high * tokens:,.0f} tokens): at least if every doubling of "
               f"threads gains what the first one did here ({gain:.2f} times), at most if each doubles. "
               "Guards of fewer threads, side by side over one packed file, avoid the loss.")


if __name__ == "__main__":
    main()
