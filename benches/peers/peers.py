#!/usr/bin/env python3
"""Time a whole pass of one model in libsiren and in other engines, on the same weights and tokens.

    python peers.py --guard DIR --work DIR [--siren PATH] [--rounds 3] [--only f32,bf16,low]
                    [--out PREFIX]

The guard is one that ../make_shape.py wrote: `--shape qwen3-0.6b --tokenizer demo`. The work folder
(about 10 GB) gets what each engine reads, made once; --prepare makes it and stops. requirements.txt
has the engines; one that is not installed, or cannot be run, is left out with a message.

Engines are compared in three groups, for which their processes stay open: f32, bf16, and weights of
8 bits and fewer. A round runs every engine of a group, one after the other, in an order that turns
with the round. Each engine takes the texts of 16, 32, 128 and 512 tokens alone, and pushes 16 tokens
onto 1,000 where it can keep those. Times are medians over the rounds of the medians within, and
ratios are medians of ratios within a round. A rival's time is from token ids to the last hidden
states of all tokens (what llm-siren and `siren bench` take has the tokenizer and the head in it).

Before an engine is believed, its hidden states are held against those of torch in f32 on the same
weights (for quantised files, on what their blocks stand for), libsiren's and llm-siren's scores
against llm-siren's in f32. One that is further off than its type can explain fails the run.
PREFIX.json gets everything that was measured, PREFIX.md the tables. Three rounds of all groups take
about 14 minutes.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import compare  # noqa: E402
import models  # noqa: E402
from models import FILES, LENGTHS, PREFIX, PUSH  # noqa: E402

CASES = [str(n) for n in LENGTHS] + ["push"]
REPEAT, LIMIT_S = 3, 1.5
# A name, its type, and the files of the work folder that it reads.
GROUPS = {
    "f32": [
        ("siren", "f32", []),
        ("torch", "f32", []),
        ("llm-siren", "f32", []),
        ("OpenVINO", "f32", ["openvino.xml"]),
        ("ONNX Runtime", "f32", ["model.onnx"]),
    ],
    "bf16": [
        ("siren", "bf16", []),
        ("siren", "bf16, BF16.gguf", ["BF16.gguf"]),
        ("siren", "f32, BF16.gguf", ["BF16.gguf"]),
        ("torch", "bf16", []),
        ("llm-siren", "bf16", []),
        ("OpenVINO", "bf16", ["openvino.xml"]),
        ("llama.cpp", "BF16", ["BF16.gguf"]),
    ],
    "low": [
        ("siren", "int8", []),
        ("siren", "f32, Q8_0.gguf", ["Q8_0.gguf", "Q8_0.npz"]),
        ("siren", "int8, Q8_0.gguf", ["Q8_0.gguf", "Q8_0.npz"]),
        ("siren", "f32, Q4_0.gguf", ["Q4_0.gguf", "Q4_0.npz"]),
        ("siren", "int8, Q4_0.gguf", ["Q4_0.gguf", "Q4_0.npz"]),
        ("OpenVINO", "int8 weights", ["openvino-int8.xml"]),
        ("llama.cpp", "Q8_0", ["Q8_0.gguf", "Q8_0.npz"]),
        ("llama.cpp", "Q8_0, not repacked", ["Q8_0.gguf", "Q8_0.npz"]),
        ("llama.cpp", "Q4_0", ["Q4_0.gguf", "Q4_0.npz"]),
        ("llama.cpp", "Q4_0, not repacked", ["Q4_0.gguf", "Q4_0.npz"]),
    ],
}
# What of libsiren a rival is held against: the first that ran.
AGAINST = {
    "f32": ["f32"], "bf16": ["bf16"], "BF16": ["bf16, BF16.gguf"],
    "int8 weights": ["int8"],
    "Q8_0": ["int8, Q8_0.gguf", "f32, Q8_0.gguf"],
    "Q4_0": ["int8, Q4_0.gguf", "f32, Q4_0.gguf"],
}
# How far values may be from f32's: rivals' hidden states as a part of the largest, and scores. With
# the rows of one matrix of one layer in the wrong order the first are 0.1 and more off, up to 1.3; of
# a query or key matrix of a late layer 0.02, which only f32's limit tells.
HIDDEN_LIMIT = {"f32": 1e-4, "bf16": 0.05, "BF16": 0.05, "int8 weights": 0.08, "Q8_0": 0.05,
                "Q4_0": 0.05}
SCORE_LIMIT = {"f32": 1e-4, "bf16": 0.01, "int8": 0.05}


def skip(what, why):
    print(f"left out: {what}: {why}", flush=True)


def missing(packages):
    return [name for name in packages if not importlib.util.find_spec(name)]


def prepare(guard, work):
    """Makes the files that are not there yet; returns those that cannot be made, and why."""
    work.mkdir(parents=True, exist_ok=True)
    weights = (guard / "backbone/model.safetensors").stat()
    mark = {"guard": str(guard), "bytes": weights.st_size, "modified": weights.st_mtime}
    note = work / "guard.json"
    if note.exists() and json.loads(note.read_text()) != mark:
        sys.exit(f"{work} was made of another guard, or of this one before it changed: name another "
                 "work folder, or remove this one")
    note.write_text(json.dumps(mark))
    failed = {}
    for name, (_, of, packages) in FILES.items():
        done = work / f"{name.replace('/', '-')}.made"
        if done.exists():
            continue
        if lacking := missing(packages):
            failed[name] = f"not installed: {', '.join(lacking)}"
            continue
        if of in failed or f"{of}/backbone/model.safetensors" in failed:
            failed[name] = f"{of} could not be made"
            continue
        print(f"making {name}", flush=True)
        command = [sys.executable, __file__, "--guard", guard, "--work", work, "--make", name]
        run = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
        if run.returncode == 0:
            done.touch()
        else:
            failed[name] = (run.stdout.strip().splitlines() or ["no word why"])[-1]
    for name in ("ids.json", "reference.npz"):
        if name in failed:
            sys.exit(f"{name} cannot be made: {failed[name]}")
    return failed


# --- engines ---------------------------------------------------------------------------------


class Rival:
    """An engine's process (engines.py)."""

    unit = "hidden"

    def __init__(self, engine, dtype, args):
        command = [sys.executable, HERE / "engines.py", engine, dtype, args.work, args.guard,
                   args.threads]
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(list(map(str, command)), env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors)
        self.pushes = engine in ("torch", "llama.cpp")
        self.versions = self.answer()["versions"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"ended with {self.process.returncode}")
        return json.loads(line)

    def measure(self):
        """Case -> (median ms, how far from the reference)."""
        requests = [{"tokens": tokens} for tokens in LENGTHS] + [{"push": True}] * self.pushes
        found = {}
        for case, request in zip(CASES, requests):
            request |= {"repeat": REPEAT, "limit_s": LIMIT_S}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.answer()
            found[case] = (statistics.median(answer["runs"]), answer["apart"])
        return found

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


class LlmSiren:
    """The reference package, as compare.py runs it; a push is the whole text again."""

    unit = "score"

    def __init__(self, dtype, args, scores):
        self.reference = compare.Reference(args.guard, dtype, args.threads)
        self.versions = self.reference.opened["versions"]
        self.scores = scores

    def measure(self):
        found = {}
        for case, tokens in zip(CASES, (*LENGTHS, PREFIX + PUSH)):
            answer = self.reference.measure([tokens], {512: 2, PREFIX + PUSH: 1}.get(tokens, REPEAT))
            apart = abs(answer["scores"][0] - self.scores[case]) if case != "push" else 0.0
            found[case] = (answer["median_ms"], apart)
        return found

    def close(self):
        self.reference.close()


class Siren:
    """`siren bench`, started anew for each measurement."""

    unit = "score"

    def __init__(self, dtype, args, scores):
        dtype, _, file = dtype.partition(", ")
        command = [args.siren, "bench", "--json", "--device", "cpu", "--model", args.guard,
                   "--dtype", dtype, "--threads", args.threads,
                   "--max-length", PREFIX + PUSH]
        if file:
            command += ["--backbone", args.work / file]
        self.command = list(map(str, command))
        self.scores = scores
        self.bench("--tokens", "16", "--repeat", "1")  # it can be run at all
        self.versions = {"siren": compare.machine(args.siren)["siren"]}

    def bench(self, *options):
        command = [*self.command, *options]
        run = subprocess.run(command, text=True, capture_output=True)
        if run.returncode:
            said = (run.stderr or run.stdout).strip().splitlines()
            raise RuntimeError(said[-1].removeprefix("error: ") if said
                               else f"ended with {run.returncode}")
        return json.loads(run.stdout)

    def measure(self):
        result = self.bench("--tokens", ",".join(map(str, LENGTHS)), "--stream", str(PREFIX),
                            "--push", str(PUSH), "--repeat", str(REPEAT))
        found = {}
        for tokens, case in zip(LENGTHS, result["latency"], strict=True):
            if case["tokens"] != tokens:
                raise RuntimeError(f"ran {case['tokens']} tokens, expected {tokens}")
            apart = abs(case["scores"][0] - self.scores[str(tokens)])
            found[str(tokens)] = (case["median_ms"], apart)
        push = result["stream"][0]
        if (push["prefix_tokens"], push["tokens"]) != (PREFIX, PUSH):
            raise RuntimeError(f"pushed {push['tokens']} onto {push['prefix_tokens']} tokens")
        found["push"] = (push["median_ms"], abs(push["scores"][0] - push["scores"][1]))
        return found

    def close(self):
        pass


def start(name, dtype, args):
    import numpy as np

    if name in ("siren", "llm-siren"):
        file = next((f"{t}.npz" for t in models.GGUF[1:] if f"{t}.gguf" in dtype), "reference.npz")
        scores = dict(zip(CASES, map(float, np.load(args.work / file)["scores"])))
        return (Siren if name == "siren" else LlmSiren)(dtype, args, scores)
    return Rival(name, dtype, args)


PACKAGES = {"torch": ["torch", "transformers"], "llm-siren": ["siren_guard"],
            "OpenVINO": ["openvino"], "ONNX Runtime": ["onnxruntime"], "llama.cpp": ["llama_cpp"],
            "siren": []}


# --- the comparison --------------------------------------------------------------------------


def limit(name, dtype):
    kind = dtype.partition(",")[0]
    return (SCORE_LIMIT if name in ("siren", "llm-siren") else HIDDEN_LIMIT)[kind]


def run_group(group, args, failed, result):
    engines = {}
    for name, dtype, files in GROUPS[group]:
        what = f"{name} {dtype}"
        if lacking := missing(PACKAGES[name]):
            skip(what, f"not installed: {', '.join(lacking)} (see requirements.txt)")
        elif unmade := [file for file in files if file in failed]:
            skip(what, f"{unmade[0]} could not be made: {failed[unmade[0]]}")
        else:
            try:
                engines[name, dtype] = start(name, dtype, args)
                result["versions"] |= engines[name, dtype].versions
            except RuntimeError as error:
                skip(what, error)
    for number in range(args.rounds):
        turn = list(engines)
        first = number % max(len(turn), 1)
        turn = turn[first:] + turn[:first]
        for name, dtype in turn:
            time.sleep(0.3)  # until the threads of the one before no longer spin
            load = os.getloadavg()[0]
            try:
                found = engines[name, dtype].measure()
            except RuntimeError as error:
                skip(f"{name} {dtype}", error)
                engines.pop((name, dtype)).close()
                result["measured"] = [m for m in result["measured"]
                                      if (m["group"], m["engine"], m["type"]) != (group, name, dtype)]
                continue
            for case, (ms, apart) in found.items():
                if not apart <= limit(name, dtype):
                    sys.exit(f"{name} {dtype}, {case}: {engines[name, dtype].unit} {apart:.2e} from "
                             f"f32's, at most {limit(name, dtype)} is believed")
                result["measured"].append(
                    {"group": group, "round": number, "engine": name, "type": dtype, "case": case,
                     "ms": ms, "apart": apart, "apart_of": engines[name, dtype].unit, "load": load})
            print(f"{group} {number + 1}/{args.rounds} {name + ' ' + dtype:<24}"
                  + "".join(f"{found[c][0]:9.1f}" if c in found else "        -" for c in CASES)
                  + f"  apart {max(a for _, a in found.values()):.0e}  load {load:.1f}", flush=True)
    for engine in engines.values():
        engine.close()


def tables(result):
    machine = result["machine"]
    lines = [f"{machine['cpu']} (family {machine['cpu_family']}; {', '.join(machine['flags'])}), "
             f"{result['threads']} threads, {machine['date']}, load {result['load'][0]:.1f} to "
             f"{result['load'][1]:.1f}; "
             + ", ".join(f"{name} {version}".replace("siren siren", "siren")
                         for name, version in result["versions"].items()) + ".",
             "", "| engine | type | " + " | ".join(f"{n} tokens, ms" for n in LENGTHS)
             + f" | {PUSH} onto {PREFIX:,}, ms | apart |",
             "|---|---|" + "--:|" * (len(LENGTHS) + 2)]
    times = {}
    for m in result["measured"]:
        times.setdefault((m["group"], m["engine"], m["type"]), []).append(m)
    for (_, engine, dtype), found in times.items():
        cells = [engine, dtype]
        for case in CASES:
            runs = [m["ms"] for m in found if m["case"] == case]
            cells.append(f"{statistics.median(runs):.1f}" if runs else "")
        cells.append(f"{max(m['apart'] for m in found):.0e} ({found[0]['apart_of']})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| times as fast as | libsiren's | " + " | ".join(f"{n} tokens" for n in LENGTHS)
              + f" | {PUSH} onto {PREFIX:,} |", "|---|---|" + "--:|" * (len(LENGTHS) + 1)]
    for (group, engine, dtype), found in times.items():
        if engine == "siren":
            continue
        ours = next((o for o in AGAINST[dtype.partition(",")[0]] if (group, "siren", o) in times), None)
        if ours is None:
            continue
        cells = [f"{engine} {dtype}", ours]
        for case in CASES:
            mine = {m["round"]: m["ms"] for m in times[group, "siren", ours] if m["case"] == case}
            ratios = [m["ms"] / mine[m["round"]] for m in found if m["case"] == case]
            cells.append(f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to "
                         f"{max(ratios):.2f})" if ratios else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--siren", default=str(compare.ROOT / "target/release/siren"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(GROUPS))
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("peers"), metavar="PREFIX")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.guard, args.work = args.guard.resolve(), args.work.resolve()
    if unknown := [name for name in args.only if name not in GROUPS]:
        parser.error(f"--only {unknown[0]}: expected {', '.join(GROUPS)}")
    if args.make:
        return models.make(args.make, args.guard, args.work)
    failed = prepare(args.guard, args.work)
    if args.prepare:
        for name, why in failed.items():
            skip(name, why)
        return
    compare.warm(args.guard)
    result = {"machine": compare.machine(args.siren), "threads": args.threads, "versions": {},
              "measured": []}
    for group in args.only:
        run_group(group, args, failed, result)
    loads = [m["load"] for m in result["measured"]]
    result["load"] = [min(loads), max(loads)]
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(tables(result))
    print(tables(result))


if __name__ == "__main__":
    main()
