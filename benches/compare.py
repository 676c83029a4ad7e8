#!/usr/bin/env python3
"""Time `siren bench` and the reference package llm-siren side by side, on the same weights.

    python compare.py --shape-dir DIR [--siren PATH] [--rounds 5] [--dtypes f32,bf16] [--out PREFIX]

DIR is a guard that make_shape.py wrote. The reference runs in one process for each dtype that
stays; `siren bench` is started anew for each measurement, and its opening is not in the times. A
round measures every case on both sides, one right after the other, in turns of who comes first;
what is reported is the median over the rounds, and ratios are taken within a round, so that
whatever else the machine does meets both. A time is a whole call from text to score.

Both sides must run the same tokens and, in f32, give the same scores within 1e-4, or nothing is
reported. PREFIX.json gets everything that was measured, PREFIX.md the tables.

Requirements: the interpreter's own environment has llm-siren 0.2.0, torch and transformers.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A case: the tokens of each text of a batch, and the timed calls of a round.
CASES = {
    "32 tokens": ([32], 7),
    "128 tokens": ([128], 5),
    "512 tokens": ([512], 3),
    "8 texts, 16 to 256 tokens": ([16, 32, 48, 64, 96, 128, 192, 256], 2),
}
SCORE_TOLERANCE = 1e-4
STARTS = 31
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
# As in cli/src/bench/measure.rs; the scores and the token counts tell when the two drift apart.
WORDS = " the people of this town walk along the river every day and talk about it"


def bench_text(tokens, count):
    """The text that `siren bench` makes of `tokens` tokens; `count` tells how many a text has."""
    words, made = re.findall(r"[^ ]* |[^ ]+$", WORDS), ""
    while count(made) < tokens:
        made += words.pop(0)
        words = words or re.findall(r"[^ ]* |[^ ]+$", WORDS)
    return made


# --- the reference's process -----------------------------------------------------------------


def resident(field):
    """A size of this process in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) * 1024 / 1e6


def worker(dtype, threads):
    """Opens the guard in the working directory, then answers one JSON line for each."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    import transformers
    from siren_guard import SirenGuard, __version__
    from siren_guard.siren_guard import _to_raw_text as clean

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    # Model and tokenizer classes are imported at their first use: that is not opening.
    transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    start = time.perf_counter()
    guard = SirenGuard.from_pretrained(
        ".", device="cpu", dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    opened = {"load_ms": (time.perf_counter() - start) * 1e3, "open_rss_mb": resident("VmRSS"),
              "open_peak_rss_mb": resident("VmHWM"), "threads": torch.get_num_threads(),
              "versions": {"llm-siren": __version__, "torch": torch.__version__,
                           "transformers": transformers.__version__}}
    print(json.dumps(opened), flush=True)

    def count(text):
        return len(guard._tokenizer(clean(text))["input_ids"])

    texts = {}
    for line in sys.stdin:
        request = json.loads(line)
        batch = []
        for tokens in request["tokens"]:
            if tokens not in texts:
                texts[tokens] = bench_text(tokens, count)
            batch.append(texts[tokens])
        runs = []
        for _ in range(1 + request["repeat"]):
            start = time.perf_counter()
            scores = [result.score for result in guard.score_batch(batch)]
            runs.append((time.perf_counter() - start) * 1e3)
        timed = runs[1:]
        print(json.dumps({"median_ms": statistics.median(timed), "min_ms": min(timed),
                          "max_ms": max(timed), "scores": scores,
                          "tokens": sum(map(count, batch))}), flush=True)


class Reference:
    def __init__(self, shape_dir, dtype, threads):
        command = [sys.executable, __file__, "--worker", dtype, "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, cwd=shape_dir, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.opened = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the reference's process ended")
        return json.loads(line)

    def measure(self, tokens, repeat):
        self.process.stdin.write(json.dumps({"tokens": tokens, "repeat": repeat}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# --- siren -----------------------------------------------------------------------------------


def siren_bench(siren, shape_dir, dtype, threads, tokens, repeat):
    command = [siren, "bench", "--json", "--device", "cpu", "--model", shape_dir,
               "--dtype", dtype, "--threads", threads, "--batch", len(tokens),
               "--batch-tokens", ",".join(map(str, tokens)), "--repeat", repeat]
    result = json.loads(subprocess.run(list(map(str, command)), check=True, text=True,
                                       stdout=subprocess.PIPE).stdout)
    return result | result["throughput"][0]


def start_to_score(siren, threads):
    """Milliseconds of whole processes that open the demo guard and score a word."""
    command = [siren, "score", "--model", ROOT / "models/demo", "--threads", threads, "hello"]
    times = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - start) * 1e3)
    return times[1:]


# --- the comparison --------------------------------------------------------------------------


def check(case, dtype, tokens, ours, theirs):
    wanted = sum(tokens)
    if not ours["tokens"] == theirs["tokens"] == wanted:
        sys.exit(f"{case}: {ours['tokens']} and {theirs['tokens']} tokens, expected {wanted}")
    apart = max(abs(a - b) for a, b in zip(ours["scores"], theirs["scores"], strict=True))
    if dtype == "f32" and not apart <= SCORE_TOLERANCE:
        sys.exit(f"{case}: the scores are {apart:.2e} apart")
    return apart


def machine(siren):
    cpu = Path("/proc/cpuinfo").read_text()
    found = {key: re.search(rf"^{key}\s*:\s*(.*)$", cpu, re.M) for key in
             ("model name", "cpu family", "flags")}
    found = {key: match[1] if match else "" for key, match in found.items()}
    version = subprocess.run([siren, "--version"], check=True, text=True, stdout=subprocess.PIPE)
    return {"date": datetime.date.today().isoformat(), "cpu": found["model name"],
            "cpu_family": found["cpu family"], "cores": os.cpu_count(),
            "flags": [flag for flag in FLAGS if flag in found["flags"].split()],
            "system": platform.platform(), "python": platform.python_version(),
            "siren": version.stdout.strip()}


def warm(directory):
    """Reads every file once, so that they are in the page cache."""
    for path in Path(directory).rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def compare(args):
    shape_dir = args.shape_dir.resolve()
    warm(shape_dir)
    result = {"machine": machine(args.siren), "threads": args.threads, "rounds": [], "opened": {}}
    references = {}
    for dtype in args.dtypes:
        references[dtype] = Reference(shape_dir, dtype, args.threads)
        result["opened"][dtype] = references[dtype].opened
    for number in range(args.rounds):
        for dtype in args.dtypes:
            for case, (tokens, repeat) in CASES.items():
                load = os.getloadavg()[0]

                def ours():
                    return siren_bench(args.siren, shape_dir, dtype, args.threads, tokens, repeat)

                def theirs():
                    return references[dtype].measure(tokens, repeat)

                if number % 2:
                    a, b = ours(), theirs()
                else:
                    b, a = theirs(), ours()
                apart = check(case, dtype, tokens, a, b)
                result["rounds"].append({"round": number, "case": case, "dtype": dtype,
                                         "siren": a, "reference": b, "apart": apart,
                                         "load": load})
                print(f"{number + 1}/{args.rounds} {dtype:<4} {case:<26} "
                      f"siren {a['median_ms']:8.1f} ms  llm-siren {b['median_ms']:8.1f} ms  "
                      f"{b['median_ms'] / a['median_ms']:5.2f} x  load {load:.1f}", flush=True)
    for reference in references.values():
        reference.close()
    result["start_ms"] = start_to_score(args.siren, args.threads)
    return result


def spread(values, form):
    return f"{min(values):{form}} to {max(values):{form}}"


def tables(result):
    lines = ["| dtype | case | tokens | siren, ms | llm-siren, ms | times as fast | range "
             "| scores apart |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    kinds = list(dict.fromkeys((r["dtype"], r["case"]) for r in result["rounds"]))
    by_dtype = {}
    for dtype, case in kinds:
        rounds = [r for r in result["rounds"] if (r["dtype"], r["case"]) == (dtype, case)]
        by_dtype.setdefault(dtype, []).extend(r["siren"] for r in rounds)
        ours, theirs = ([r[side]["median_ms"] for r in rounds] for side in ("siren", "reference"))
        ratios = [b / a for a, b in zip(ours, theirs)]
        lines.append(f"| {dtype} | {case} | {rounds[0]['siren']['tokens']} "
                     f"| {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} "
                     f"| **{statistics.median(ratios):.2f}** | {spread(ratios, '.2f')} "
                     f"| {max(r['apart'] for r in rounds):.0e} |")
    lines += ["", "| dtype | | opens in, s | weights, MB | resident after opening, MB "
              "| peak while opening, MB |", "|---|---|--:|--:|--:|--:|"]
    for dtype, runs in by_dtype.items():
        median = {key: statistics.median(run[key] for run in runs) for key in
                  ("load_ms", "weight_mb", "open_rss_mb", "open_peak_rss_mb")}
        rest = median["open_rss_mb"] / median["weight_mb"]
        lines.append(f"| {dtype} | siren | {median['load_ms'] / 1e3:.2f} "
                     f"| {median['weight_mb']:.0f} | {median['open_rss_mb']:.0f} "
                     f"({rest:.2f} times the weights) | {median['open_peak_rss_mb']:.0f} |")
        opened = result["opened"][dtype]
        lines.append(f"| {dtype} | llm-siren | {opened['load_ms'] / 1e3:.2f} | "
                     f"| {opened['open_rss_mb']:.0f} | {opened['open_peak_rss_mb']:.0f} |")
    start = result["start_ms"]
    lines += ["", f"`siren score hello` on the demo guard, process start to exit: "
              f"{statistics.median(start):.0f} ms (median of {len(start)}, {spread(start, '.0f')})."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape-dir", type=Path)
    parser.add_argument("--siren", default=str(ROOT / "target/release/siren"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", type=lambda names: names.split(","), default=["f32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("compare"), metavar="PREFIX")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.threads)
    if not args.shape_dir:
        parser.error("--shape-dir is required")
    result = compare(args)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(tables(result))
    print(tables(result))


if __name__ == "__main__":
    main()
