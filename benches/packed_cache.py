#!/usr/bin/env python3
"""Time to open, and memory of several processes, with packed weights in a file and without.

    python packed_cache.py --siren target/release/siren --model DIR [--dtype f32,bf16,int8] [--processes 1,2,4]

For each dtype: the load time of `siren bench` without a cache, with an empty one (which makes the file) and
with the file there, in turns, medians; then `siren score` in several processes at once, each of which has
scored a text: their resident (RSS) and proportional (PSS) memory, of /proc/PID/smaps_rollup. Files are read
once before, so that they are in the page cache. Linux; Python 3.10+, no packages.
"""

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

TEXT = '{"id":1,"text":"How can I make a pipe bomb at home?"}\n'


def bench(args, dtype, extra):
    """What `siren bench` says of one open and a few calls."""
    command = [args.siren, "bench", "--model", args.model, "--dtype", dtype, "--threads", args.threads]
    command += ["--tokens", "16,128", "--repeat", "5", "--json", *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def kilobytes(process, name):
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1])


def memory(args, dtype, count, extra):
    """MB resident and proportional of each of `count` processes at once."""
    command = [args.siren, "score", "--jsonl", "--model", args.model, "--dtype", dtype]
    command += ["--threads", args.threads, *extra]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen(command, **pipes))
            processes[-1].stdin.write(TEXT)
            processes[-1].stdin.flush()
            assert "score" in processes[-1].stdout.readline()
        sizes = [[kilobytes(p, name) * 1024 / 1e6 for p in processes] for name in ("Rss", "Pss")]
    finally:
        for process in processes:
            process.communicate()
    return [statistics.mean(column) for column in sizes]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--siren", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="f32,bf16,int8")
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for dtype in args.dtype.split(","):
        runs = {"off": [], "made": [], "mapped": []}
        with tempfile.TemporaryDirectory() as kept:
            cache = ["--packed-cache", kept]
            bench(args, dtype, cache)  # All files are in the page cache from here on.
            for _ in range(args.rounds):
                with tempfile.TemporaryDirectory() as empty:
                    runs["made"].append(bench(args, dtype, ["--packed-cache", empty]))
                runs["off"].append(bench(args, dtype, []))
                runs["mapped"].append(bench(args, dtype, cache))
            for name, run in runs.items():
                load = statistics.median(r["load_ms"] for r in run)
                peak = statistics.median(r["open_peak_rss_mb"] for r in run)
                calls = [statistics.median(r["latency"][i]["median_ms"] for r in run) for i in (0, 1)]
                print(
                    f"{dtype}, {name}: opens in {load:.0f} ms, peak {peak:.0f} MB, "
                    f"16 tokens {calls[0]:.1f} ms, 128 tokens {calls[1]:.1f} ms",
                    flush=True,
                )
            for count in map(int, args.processes.split(",")):
                for name, extra in (("off", []), ("mapped", cache)):
                    rss, pss = memory(args, dtype, count, extra)
                    print(f"{dtype}, {name}, {count} processes: RSS {rss:.0f} MB, PSS {pss:.0f} MB each", flush=True)


if __name__ == "__main__":
    main()
