#!/usr/bin/env python3
"""Parity, times and a profile of the built library on a GPU, as JSON, and a table of the times.

    python run.py bundle OUT --library libsiren.so [--tests siren-gpu-tests]
                                                      the folder to carry to the GPU machine
    python run.py test                                the kernels' tests, there
    python run.py run --out RESULT.json [--devices cuda,candle-cuda] [--shapes qwen3-0.6b,qwen3-4b]

Own kernels (`cuda`) and candle's operations (`candle-cuda`) are measured one after the other.
The GPU machine needs a driver, CUDA 13 libraries and Python with numpy; with torch and transformers
it also runs the reference, llm-siren, on the same device in the same run (`bundle` carries that
package where pip can get it). No network, no compiler. Weights are made at random there. Everything
but the GPU can be rehearsed: `--devices cpu-as-gpu --shapes tiny --seconds 5`.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/parity/fixtures"
TESTS = ROOT / "lib/siren-gpu-tests.xz"
MOST_BYTES = 64_000_000
TOLERANCE = 1e-4
LENGTHS = [32, 128, 512]
# Of the packed batches: so many texts of each of these lengths.
PACKED = [16, 32, 64, 96, 128, 192, 256, 512]
PACKED_TEXTS = 64
PREFIXES = [500, 1000, 2000, 4000]
PUSHED = 32
# What an H200 is to reach in bf16: milliseconds of a case, and tokens a second of the packed batch.
GOALS = {
    "qwen3-0.6b": {"32 tokens": 1.5},
    "qwen3-4b": {"32 tokens": 4.0, "512 tokens": 8.0, "32 onto 2000": 3.0, "packed": 70_000},
}
WORDS = "the people of this town walk along the river every day and talk about it ".split()

# --- the folder to carry -----------------------------------------------------------------------

CARRIED = [
    "benches/gpu/run.py", "benches/make_shape.py", "bindings/python/src/libsiren",
    "models/demo/backbone/tokenizer.json", "models/demo/backbone/tokenizer_config.json",
]


def bundle(args):
    """Copies what `run` needs, at the same places as here, and checks what it weighs."""
    out = args.out
    for name in CARRIED + [str(path.relative_to(ROOT)) for path in small_fixtures()]:
        source, target = ROOT / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "lib")
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, target)
    (out / "lib").mkdir(exist_ok=True)
    shutil.copy(args.library, out / "lib/libsiren.so")
    if args.tests:
        packed = out / TESTS.relative_to(ROOT)
        packed.write_bytes(lzma.compress(args.tests.read_bytes()))
    asked = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
             str(out / "reference"), "llm-siren==0.2.0"]
    if subprocess.run(asked, check=False).returncode:
        print("llm-siren cannot be had: the comparison needs it on the GPU machine", file=sys.stderr)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        sys.exit(f"the folder has {size} bytes, expected at most {MOST_BYTES}")


def small_fixtures():
    return sorted(path.parent.parent for path in FIXTURES.glob("*/backbone/tokenizer.json"))


def test(_args):
    """The kernels against their twins, on GPU 0: a machine without one fails."""
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / TESTS.stem
        program.write_bytes(lzma.decompress(TESTS.read_bytes()))
        program.chmod(0o755)
        # The CUDA libraries of Python's packages, where there are some, are on nobody's path.
        nvidia = importlib.util.find_spec("nvidia")
        folders = [f"{each}/cu13/lib" for each in (nvidia.submodule_search_locations if nvidia else [])]
        path = ":".join(folders + [os.environ.get("LD_LIBRARY_PATH", "")])
        settings = os.environ | {"SIREN_REQUIRE_GPU": "1", "LD_LIBRARY_PATH": path}
        return subprocess.run([program, "real_gpu::"], check=False, env=settings).returncode


# --- the two sides ------------------------------------------------------------------------------


def library():
    """The Python binding, over the library of the bundle or the one that SIREN_LIBRARY names."""
    carried = ROOT / "lib/libsiren.so"
    if carried.is_file():
        os.environ.setdefault("SIREN_LIBRARY", str(carried))
    sys.path.insert(0, str(ROOT / "bindings/python/src"))
    return importlib.import_module("libsiren")


class Reference:
    """llm-siren on the same device, where it can be had; `why` says why not."""

    def __init__(self, device):
        self.device = "cpu" if device.startswith("cpu") else device.removeprefix("candle-")
        self.why = None
        sys.path.append(str(ROOT / "reference"))
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            import torch
            import transformers
            from siren_guard import SirenGuard
            transformers.utils.logging.set_verbosity_error()
            self.torch, self.guard = torch, SirenGuard
            self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        except ImportError as error:
            self.why = str(error)

    def open(self, model, dtype):
        if self.why:
            return None
        dtypes = {"f32": self.torch.float32, "bf16": self.torch.bfloat16}
        here = os.getcwd()
        # Its artifact names the backbone beside it.
        os.chdir(model)
        try:
            return self.guard.from_pretrained(".", device=self.device, dtype=dtypes[dtype])
        finally:
            os.chdir(here)


def machine(reference, siren):
    found = {"python": platform.python_version(), "system": platform.platform(),
             "cores": os.cpu_count(), "siren": siren.__version__, "reference": reference.why}
    if reference.why is None:
        found["reference"] = reference.versions
        torch = reference.torch
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found["gpu"] = {"name": properties.name, "bytes": properties.total_memory,
                            "capability": f"{properties.major}.{properties.minor}"}
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(query, check=True, text=True,
                                             stdout=subprocess.PIPE).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        found["nvidia_smi"] = str(error)
    return found


# --- parity -------------------------------------------------------------------------------------


def given(value):
    """A string of the vectors, which may say that it repeats."""
    return value["repeat"] * value["times"] if isinstance(value, dict) else value


def parity(siren, reference, device):
    """Scores of the small guards against the committed ones of llm-siren on a CPU."""
    return [parity_of(siren, reference, device, fixture, dtype)
            for fixture in small_fixtures() for dtype in ("f32", "bf16")]


def parity_of(siren, reference, device, fixture, dtype):
    vectors = json.loads((fixture / "vectors.json").read_text())["vectors"]
    inputs = [{key: given(v[key]) for key in ("text", "prompt", "response") if key in v} for v in vectors]
    # Rounding to bf16 in another order is as far from f32 as the reference's, not equally far on each.
    noise = max(abs(v["score"] - v["score_bf16"]) for v in vectors)
    bound = TOLERANCE if dtype == "f32" else 2 * noise

    def apart(scores):
        return max(abs(score - v["score"]) for score, v in zip(scores, vectors, strict=True))

    with siren.SirenGuard.open(fixture, backbone=str(fixture / "backbone"), device=device,
                               dtype=dtype) as guard:
        found = {"single": apart([guard.score(**one).score for one in inputs])}
        batch = [siren.Input(**one) for one in inputs]
        found["batch"] = apart([result.score for result in guard.score_batch(batch)])
        worst = 0.0
        for one, v in zip(inputs, vectors):
            text = one.get("text")
            if not text or len(text) > 2000:
                continue
            with guard.stream() as stream:
                pieces = [text[i:i + 40] for i in range(0, len(text), 40)]
                scores = [stream.push(piece).score for piece in pieces]
            worst = max(worst, abs(scores[-1] - v["score"]))
        found["streamed"] = worst
    theirs = None
    with tempfile.TemporaryDirectory() as place:
        # As the reference wants it: the backbone named by the artifact.
        artifact = Path(place) / "artifact"
        shutil.copytree(fixture, artifact)
        config = json.loads((artifact / "siren_config.json").read_text())
        config["base_model"] = {"model_id": "backbone", "revision": None}
        (artifact / "siren_config.json").write_text(json.dumps(config))
        guard = reference.open(artifact, dtype)
        if guard is not None:
            theirs = apart([guard.score(**one).score for one in inputs])
    return {"fixture": fixture.name, "device": device, "dtype": dtype, "bound": bound, "worst": found,
            "reference_worst": theirs, "ok": max(found.values()) <= bound}


# --- times --------------------------------------------------------------------------------------


def text_of(guard, tokens):
    """A text of as many tokens, or of the least number above that words can make."""
    words = 1
    while True:
        text = " ".join((WORDS * (words // len(WORDS) + 1))[:words])
        found = guard.score(text).tokens
        if found >= tokens:
            return text, found
        words += max(1, (tokens - found) // 2)


def timed(call, repeat):
    """Milliseconds of some calls after two that do not count."""
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times[2:]


def spread(times):
    ordered = sorted(times)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"median_ms": statistics.median(ordered), "p95_ms": at(0.95), "p99_ms": at(0.99),
            "least_ms": ordered[0], "most_ms": ordered[-1], "calls": len(ordered)}


def compare(case, call, repeat):
    """Adds the reference's times to a case that has the library's."""
    case["llm_siren"] = spread(timed(call, repeat))
    case["times_as_fast"] = case["llm_siren"]["median_ms"] / case["siren"]["median_ms"]


def benchmark(siren, reference, device, shape, model, dtype, args):
    start = time.perf_counter()
    guard = siren.SirenGuard.open(model, backbone=str(model / "backbone"), device=device,
                                  dtype=dtype, no_prefix_cache=True)
    opened = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    guard.warmup()
    result = {"shape": shape, "dtype": dtype, "device": guard.device, "open_ms": opened,
              "first_call_ms": (time.perf_counter() - start) * 1e3, "info": guard.info_json()}
    # Once, beside the first of the devices.
    theirs = reference.open(model, dtype) if device == args.devices[0] else None
    result["texts"] = []
    for tokens in LENGTHS:
        text, found = text_of(guard, tokens)
        case = {"tokens": found, "siren": spread(timed(lambda: guard.score(text), args.repeat))}
        if theirs is not None:
            compare(case, lambda: theirs.score(text), args.repeat)
            case["scores_apart"] = abs(theirs.score(text).score - guard.score(text).score)
        result["texts"].append(case)
    texts = [text_of(guard, tokens) for tokens in PACKED]
    batch = [texts[i % len(texts)] for i in range(PACKED_TEXTS)]
    tokens, batch = sum(found for _, found in batch), [text for text, _ in batch]
    packed = {"texts": len(batch), "tokens": tokens,
              "siren": spread(timed(lambda: guard.score_batch(batch), args.repeat))}
    packed["tokens_per_s"] = tokens / packed["siren"]["median_ms"] * 1e3
    if theirs is not None:
        compare(packed, lambda: theirs.score_batch(batch), max(1, args.repeat // 10))
    result["packed"] = packed
    result["pushes"] = pushes(guard, theirs, args)
    result["load"] = load(guard, args)
    result["profile"] = profile(reference, guard, device)
    guard.close()
    return result


def pushes(guard, theirs, args):
    """A push of PUSHED tokens onto a stream that holds a prefix: flat over the prefix, or not."""
    pushed, found = text_of(guard, PUSHED)
    cases = []
    for tokens in PREFIXES:
        prefix, held = text_of(guard, tokens)
        times = []
        for _ in range(max(3, args.repeat // 4)):
            with guard.stream() as stream:
                stream.push(prefix)
                start = time.perf_counter()
                stream.push(" " + pushed)
                times.append((time.perf_counter() - start) * 1e3)
        case = {"prefix_tokens": held, "pushed_tokens": found, "siren": spread(times[1:])}
        if theirs is not None:
            # It has no streams: the whole is scored again.
            whole = f"{prefix} {pushed}"
            compare(case, lambda: theirs.score(whole), max(1, args.repeat // 10))
        cases.append(case)
    return cases


def load(guard, args):
    """Callers that score short texts without a pause, each on a thread of its own."""
    texts = [text_of(guard, tokens)[0] for tokens in (16, 32, 64, 128)]
    times, failures, end = [[] for _ in range(args.callers)], [], time.monotonic() + args.seconds

    def caller(own, number):
        while time.monotonic() < end:
            start = time.perf_counter()
            try:
                guard.score(texts[(number + len(own)) % len(texts)], wait=True)
            except Exception as error:  # Each is counted, and shown.
                failures.append(str(error))
                return
            own.append((time.perf_counter() - start) * 1e3)

    threads = [threading.Thread(target=caller, args=(own, i)) for i, own in enumerate(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [each for own in times for each in own]
    found = {"callers": args.callers, "seconds": args.seconds, "failures": failures}
    return found | {"texts_per_s": len(times) / args.seconds, "siren": spread(times) if times else None}


def profile(reference, guard, device):
    """Time by kernel over one text of each length: torch's profiler sees the whole process's."""
    if reference.why or device.startswith("cpu"):
        return {"skipped": reference.why or "there is no GPU to profile"}
    from torch.profiler import ProfilerActivity, profile as record
    found = []
    for tokens in LENGTHS:
        text, held = text_of(guard, tokens)
        with record(activities=[ProfilerActivity.CUDA]) as recorded:
            guard.score(text)
            reference.torch.cuda.synchronize()
        rows = [{"kernel": each.key, "calls": each.count, "us": each.device_time_total}
                for each in recorded.key_averages()]
        rows.sort(key=lambda row: -row["us"])
        found.append({"tokens": held, "kernels": rows, "launches": sum(row["calls"] for row in rows)})
    return found


# --- all of it ----------------------------------------------------------------------------------


def table(benchmarks):
    """The figures as a table in Markdown, beside what is to be reached."""
    lines = ["| shape | dtype | device | case | siren, ms | p95 | p99 | goal | llm-siren, ms | times as fast |",
             "|---|---|---|---|--:|--:|--:|--:|--:|--:|"]
    for found in filter(None, benchmarks):
        goals = GOALS.get(found["shape"], {}) if found["dtype"] == "bf16" else {}
        rows = [(f"{goal} tokens", case) for goal, case in zip(LENGTHS, found["texts"])]
        rows += [(f"{PUSHED} onto {goal}", case) for goal, case in zip(PREFIXES, found["pushes"])]
        rows += [("packed", found["packed"]), (f"{found['load']['callers']} callers", found["load"])]
        for name, case in rows:
            own, theirs = case["siren"] or {}, case.get("llm_siren", {})
            rate = f", {case['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in case else ""
            cells = [found["shape"], found["dtype"], found["device"], name + rate]
            cells += [f"{own[key]:.2f}" if key in own else "" for key in ("median_ms", "p95_ms", "p99_ms")]
            cells += [f"{goals[name]:,}" if name in goals else ""]
            cells += [f"{theirs['median_ms']:.2f}" if theirs else ""]
            cells += [f"{case['times_as_fast']:.2f}" if "times_as_fast" in case else ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(args):
    # First, so that its CUDA libraries are there for the library too.
    reference = Reference(args.devices[0])
    siren = library()
    result = {"machine": machine(reference, siren), "devices": args.devices, "failures": []}

    def attempt(name, call):
        try:
            return call()
        except Exception as error:  # One part that fails leaves the others to be measured.
            result["failures"].append({"part": name, "error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
            return None

    def save():
        args.out.write_text(json.dumps(result, indent=1))

    result["parity"] = []
    for device in args.devices:
        rows = attempt(f"parity {device}", lambda: parity(siren, reference, device)) or []
        result["parity"] += rows
        for row in rows:
            if not row["ok"]:
                result["failures"].append({"part": "parity", "error": json.dumps(row)})
        save()
    result["benchmarks"] = []
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        for shape in args.shapes.split(","):
            model = Path(place) / shape
            make = [sys.executable, str(ROOT / "benches/make_shape.py"), str(model), "--shape", shape]
            if attempt(shape, lambda: subprocess.run(make, check=True, stdout=sys.stderr)) is None:
                continue
            for dtype, device in itertools.product(args.dtypes.split(","), args.devices):
                measured = attempt(f"{shape} {dtype} {device}", lambda: benchmark(
                    siren, reference, device, shape, model, dtype, args))
                result["benchmarks"].append(measured)
                save()
            shutil.rmtree(model, ignore_errors=True)
    save()
    print(table(result["benchmarks"]))
    print(f"{args.out}: {len(result['failures'])} failures")
    return 1 if result["failures"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    carry = commands.add_parser("bundle")
    carry.add_argument("out", type=Path)
    carry.add_argument("--library", type=Path, required=True)
    carry.add_argument("--tests", type=Path, help="what scripts/cuda-build.sh --tests has made")
    carry.set_defaults(call=bundle)
    tests = commands.add_parser("test")
    tests.set_defaults(call=test)
    measure = commands.add_parser("run")
    measure.add_argument("--out", type=Path, required=True)
    measure.add_argument("--devices", type=lambda text: text.split(","), default="cuda,candle-cuda")
    measure.add_argument("--shapes", default="qwen3-0.6b,qwen3-4b")
    measure.add_argument("--dtypes", default="bf16,f32")
    measure.add_argument("--repeat", type=int, default=50)
    measure.add_argument("--callers", type=int, default=64)
    measure.add_argument("--seconds", type=float, default=180, help="of the run with many callers")
    measure.add_argument("--work", type=Path, help="where the weights are made; 10 GB for 4B")
    measure.set_defaults(call=run)
    args = parser.parse_args()
    sys.exit(args.call(args))


if __name__ == "__main__":
    main()
