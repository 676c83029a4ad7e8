"""llm-siren's side of `siren bench --against llm-siren`.

One argument, a JSON object: the artifact's and the backbone's folder, device, dtype, threads and
max_length. Every line of standard input is {"texts": [...]}; answered with the milliseconds of one
call, its scores and the tokens that ran. The first answer tells what was opened. An answer with
"error" is the last one; "missing" names a module that is not installed.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path


def resident(field):
    """A size of this process in MB (10^6 bytes), where the system tells."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) * 1024 / 1e6
    except (OSError, TypeError):
        return None


def guard_on(asked, folder):
    """An artifact in `folder` that names its backbone by path and may read as far as is asked."""
    config = json.loads(Path(asked["artifact"], "siren_config.json").read_text())
    config["base_model"] = {"model_id": asked["backbone"], "revision": None}
    config["inference"] = config.get("inference", {}) | {"max_length": asked["max_length"]}
    Path(folder, "siren_config.json").write_text(json.dumps(config))
    Path(folder, "siren.safetensors").symlink_to(Path(asked["artifact"], "siren.safetensors"))
    return folder


def serve(asked, answer):
    import siren_guard
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(asked["threads"])
    # Classes are imported at their first use: that is not opening.
    transformers.AutoModelForCausalLM, transformers.AutoTokenizer
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        guard = siren_guard.SirenGuard.from_pretrained(
            guard_on(asked, folder), device=asked["device"], dtype=getattr(torch, asked["dtype"]))
        load_ms = (time.perf_counter() - start) * 1e3
    answer({"package": "llm-siren", "version": siren_guard.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "dtype": asked["dtype"],
            "threads": torch.get_num_threads(), "load_ms": load_ms,
            "open_rss_mb": resident("VmRSS"), "open_peak_rss_mb": resident("VmHWM")})
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        start = time.perf_counter()
        scores = [result.score for result in guard.score_batch(texts)]
        ms = (time.perf_counter() - start) * 1e3
        answer({"ms": ms, "scores": scores, "rss_mb": resident("VmRSS"),
                "peak_rss_mb": resident("VmHWM")})


def main():
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    try:
        serve(json.loads(sys.argv[1]), answer)
    except ModuleNotFoundError as error:
        answer({"error": str(error), "missing": error.name})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})


main()
