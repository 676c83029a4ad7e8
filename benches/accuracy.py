#!/usr/bin/env python3
"""What each dtype, and each quantised backbone, does to the scores of real texts.

    python benches/accuracy.py --backbone DIR --data DATA_DIR --out OUT

DIR is a Llama checkpoint in f32, such as the SmolLM2-135M that tests/parity/smollm2.py writes;
DATA_DIR holds guard_train.jsonl.gz, hatecheck_cases.csv and hh_harmless_test.jsonl.gz. OUT gets

    trained/      a guard whose head was trained on --train texts of guard_train
    random/       one on the same neurons whose head is random, scaled so that the scores of those
                  texts spread over (0, 1): it reads much of what a trained head ignores
    texts.jsonl   --texts others, a third each from guard_train, HateCheck and the dialogues
    gguf/         the backbones of these guards and of the demo guard in Q8_0, Q4_0 and Q4_K

and then `siren compare` holds every mode against f32 on the weights as they are; the table goes to
standard output. The backbone's states for the heads are computed here, in numpy. As llama.cpp does,
rows that are not a multiple of 256 get Q5_0 instead of Q4_K. Nothing of OUT belongs in the
repository.
Requirements: Python 3.10+, numpy, safetensors, tokenizers and gguf; a built `siren`.
"""

import argparse
import csv
import gzip
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/parity"))

from gguf_layout import add_shape, gguf_name, in_converters_order  # noqa: E402

SEED = 20261125
TYPES = [Type.Q8_0, Type.Q4_0, Type.Q4_K]
LAYERS = [4, 11, 18, 24, 29]
NEURONS = 32  # a layer
HIDDEN = 24  # of the head
CUT = 64  # tokens of a training text
BATCH = 1024  # tokens that run together
# Sources under share-alike licences, as in models/make_demo.py.
LEFT_OUT = {"stormfront", "sgd_dialogues", "owasp_cheatsheets", "wikipedia_sentences", "gum_open"}


class Backbone:
    """A Llama model's residual stream, averaged over the tokens of each text."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {k.removeprefix("model."): v.astype(np.float32) for k, v in weights.items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def norm(self, x, name):
        eps = self.config["rms_norm_eps"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.weights[name]

    def run(self, texts):
        """`[texts, layers, hidden]` of lists of token ids."""
        c, w = self.config, self.weights
        heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
        dim = c.get("head_dim") or c["hidden_size"] // heads
        ends = np.cumsum([len(t) for t in texts])
        spans = list(zip(ends - [len(t) for t in texts], ends))
        positions = np.concatenate([np.arange(len(t)) for t in texts])
        angles = positions[:, None] * c.get("rope_parameters", c)["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        cos, sin = (f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))

        def rotate(x):
            a, b = x[..., : dim // 2], x[..., dim // 2 :]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        x, means = w["embed_tokens.weight"][np.concatenate(texts)], []
        for layer in range(max(LAYERS) + 1):
            p = f"layers.{layer}."
            h = self.norm(x, p + "input_layernorm.weight")
            q, k, v = ((h @ w[f"{p}self_attn.{n}_proj.weight"].T).reshape(len(x), -1, dim)
                       for n in "qkv")
            q, k = rotate(q), rotate(k)
            k, v = (np.repeat(t, heads // groups, 1) for t in (k, v))
            attended = np.empty_like(q)
            for start, end in spans:
                scores = np.einsum("qhd,khd->hqk", q[start:end], k[start:end]) / dim**0.5
                scores = np.where(np.tri(end - start, dtype=bool), scores, -np.inf)
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                scores /= scores.sum(-1, keepdims=True)
                attended[start:end] = np.einsum("hqk,khd->qhd", scores, v[start:end])
            x = x + attended.reshape(len(x), -1) @ w[p + "self_attn.o_proj.weight"].T
            h = self.norm(x, p + "post_attention_layernorm.weight")
            gate, up = (h @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
            if layer in LAYERS:
                last = layer + 1 == c["num_hidden_layers"]
                y = self.norm(x, "norm.weight") if last else x
                means.append(np.stack([y[start:end].mean(0) for start, end in spans]))
        return np.stack(means, 1)

    def means(self, texts):
        """`[texts, layers, hidden]` of texts, each cut to `CUT` tokens."""
        out, batch = [], []
        for text in texts:
            batch.append(self.tokenizer.encode(text).ids[:CUT] or [0])
            if sum(map(len, batch)) >= BATCH:
                out.append(self.run(batch))
                batch = []
        return np.concatenate(out + ([self.run(batch)] if batch else []))


def labelled(data: Path):
    """(text, label) of guard_train."""
    with gzip.open(data / "guard_train.jsonl.gz", "rt", encoding="utf-8") as f:
        rows = [row for row in map(json.loads, f) if row["source"] not in LEFT_OUT]
    parts = lambda r: [r.get("text"), r.get("prompt"), r.get("response")]
    return [("\n".join(p for p in parts(row) if p), row["label"]) for row in rows]


def others(data: Path):
    """HateCheck's cases, and dialogues."""
    with open(data / "hatecheck_cases.csv", newline="", encoding="utf-8") as f:
        cases = [row["test_case"] for row in csv.DictReader(f)]
    with gzip.open(data / "hh_harmless_test.jsonl.gz", "rt", encoding="utf-8") as f:
        return cases, [json.loads(line)["rejected"] for line in f]


def train_head(x, y, rng):
    """An MLP on standardised features, by Adam with weight decay: [(weight, bias), ...]."""
    layers = [rng.standard_normal((HIDDEN, x.shape[1])) / x.shape[1] ** 0.5, np.zeros(HIDDEN),
              rng.standard_normal((2, HIDDEN)) / HIDDEN**0.5, np.zeros(2)]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in layers]
    for step in range(1, 601):
        rows = rng.integers(len(x), size=128)
        a, b = x[rows], np.eye(2)[y[rows]]
        hidden = np.maximum(a @ layers[0].T + layers[1], 0)
        logits = hidden @ layers[2].T + layers[3]
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - b) / len(rows)
        back = error @ layers[2] * (hidden > 0)
        gradients = [back.T @ a, back.sum(0), error.T @ hidden, error.sum(0)]
        for value, gradient, moment in zip(layers, gradients, moments):
            moment[0] += 0.1 * (gradient - moment[0])
            moment[1] += 0.001 * (gradient**2 - moment[1])
            m, v = moment[0] / (1 - 0.9**step), moment[1] / (1 - 0.999**step)
            value -= 2e-3 * (m / (v**0.5 + 1e-8) + 0.1 * value)
    return layers


def random_head(x, rng):
    layers = [2 * rng.standard_normal((HIDDEN, x.shape[1])) / x.shape[1] ** 0.5,
              0.1 * rng.standard_normal(HIDDEN), rng.standard_normal((2, HIDDEN)), np.zeros(2)]
    logits = np.maximum(x @ layers[0].T + layers[1], 0) @ layers[2].T
    margin = logits[:, 1] - logits[:, 0]
    factor = 1.5 / margin.std()
    shift = np.median(margin) * factor / 2
    return [layers[0], layers[1], layers[2] * factor, np.array([shift, -shift])]


def write(folder: Path, backbone: Path, chosen, mean, deviation, head):
    """A guard with the standardisation folded into its head."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model": {"model_id": str(backbone.resolve()), "revision": None},
        "siren_module": {
            "pooling_type": "residual_mean",
            "selected_layers": LAYERS,
            "layer_weights": {str(layer): 1.0 for layer in LAYERS},
            "selected_neurons_dict": {
                f"layer{layer}_residual_mean": neurons.tolist()
                for layer, neurons in zip(LAYERS, chosen)
            },
        },
        "mlp": {"input_dim": len(mean), "layer_dims": [HIDDEN], "dropout_rates": [0.1],
                "num_classes": 2},
        "inference": {"max_length": 512, "default_threshold": 0.5},
    }
    (folder / "siren_config.json").write_text(json.dumps(config, indent=1) + "\n")
    weight = head[0] / deviation
    tensors = {"network.0.weight": weight, "network.0.bias": head[1] - weight @ mean,
               "network.3.weight": head[2], "network.3.bias": head[3]}
    tensors = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
    save_file(tensors, folder / "siren.safetensors")


def tensors(file: Path):
    """(name, f32 values) of a safetensors file in f32 or bf16."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, info in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in info["data_offsets"])
            if info["dtype"] == "BF16":
                values = (np.frombuffer(raw[start:end], "<u2").astype("<u4") << 16).view("<f4")
            else:
                values = np.frombuffer(raw[start:end], {"F32": "<f4"}[info["dtype"]])
            yield name, values.reshape(info["shape"])


def k_blocks(values):
    """Q4_K: of 32 values a scale and a minimum, of 256 those of these; no search for better."""
    blocks = values.reshape(-1, 8, 32)
    low = np.minimum(blocks.min(2), 0)
    scales, mins = (blocks.max(2) - low) / 15, -low
    half = lambda largest: (largest.max(1, keepdims=True) / 63).astype("<f2")
    six = lambda all, d: np.rint(all / np.maximum(d.astype(np.float32), 1e-20)).clip(0, 63)
    d, m = half(scales), half(mins)
    scales, mins = six(scales, d).astype(np.uint8), six(mins, m).astype(np.uint8)
    step = (d.astype(np.float32) * scales)[:, :, None]
    offset = (m.astype(np.float32) * mins)[:, :, None]
    q = np.rint((blocks + offset) / np.where(step > 0, step, 1)).clip(0, 15).astype(np.uint8)
    packed = np.empty((len(blocks), 12), np.uint8)
    packed[:, :4] = scales[:, :4] | scales[:, 4:] >> 4 << 6
    packed[:, 4:8] = mins[:, :4] | mins[:, 4:] >> 4 << 6
    packed[:, 8:] = scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(len(blocks), 128)
    parts = [d.view(np.uint8), m.view(np.uint8), packed, nibbles]
    return np.concatenate(parts, 1).reshape(len(values), -1)


def write_gguf(backbone: Path, folder: Path, of: Type):
    """The backbone with its linear layers and embeddings in `of`, its tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    c = json.loads((backbone / "config.json").read_text())
    arch = c["model_type"]
    writer = GGUFWriter(folder / f"{of.name}.gguf", arch)
    add_shape(writer, c)
    for file in sorted(backbone.glob("*.safetensors")):
        for name, values in tensors(file):
            if arch == "llama":
                values = in_converters_order(name, values, c)
            kind = of
            if values.ndim == 1:
                kind = Type.F32
            elif of == Type.Q4_K and values.shape[1] % 256:
                kind = Type.Q5_0
            raw = k_blocks(values) if kind == Type.Q4_K else quantize(values, kind)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(backbone / name, folder / name)


def compare(siren: Path, guard: Path, texts: Path, against: list):
    command = [siren, "compare", "--model", guard, "--dtype", "f32", *against]
    command = [str(part) for part in [*command, "--jsonl", "--json", texts]]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ran.stdout)


def table(siren: Path, out: Path, guards: dict):
    """`guards`: name -> (directory, folder of its GGUF files)."""
    print("| guard | backbone | dtype | median | 99th percentile | worst | decisions changed |")
    print("|---|---|---|--:|--:|--:|--:|")
    for name, (guard, files) in guards.items():
        modes = [("as it is", dtype, []) for dtype in ("bf16", "int8")]
        modes += [(of.name, dtype, ["--against-backbone", files / f"{of.name}.gguf"])
                  for of in TYPES for dtype in ("f32", "int8")]
        for backbone, dtype, more in modes:
            found = compare(siren, guard, out / "texts.jsonl", ["--against-dtype", dtype, *more])
            apart = [f"{found['difference'][q]:.4f}" for q in ("median", "p99", "worst")]
            cells = [name, backbone, dtype, *apart, str(found["changed"])]
            print("|", " | ".join(cells), "|", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--siren", type=Path, default=HERE / "../target/release/siren")
    args = parser.parse_args()

    draw, rng = random.Random(SEED), np.random.default_rng(SEED)
    rows = labelled(args.data)
    draw.shuffle(rows)
    of = lambda label: [row for row in rows if row[1] == label][: args.train // 2]
    train = of(0) + of(1)
    seen = {text for text, _ in train}
    third = args.texts // 3
    cases, dialogues = others(args.data)
    texts = [text for text, _ in rows if text not in seen][: args.texts - 2 * third]
    texts += draw.sample(cases, third) + draw.sample(dialogues, third)
    draw.shuffle(texts)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "texts.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))

    means = Backbone(args.backbone).means([text for text, _ in train])
    labels = np.array([label for _, label in train])
    # The neurons whose means differ most between harmful and benign texts.
    apart = np.abs(means[labels == 1].mean(0) - means[labels == 0].mean(0)) / means.std(0)
    chosen = [np.sort(np.argsort(-layer)[:NEURONS]) for layer in apart]
    features = np.concatenate([means[:, i, n] for i, n in enumerate(chosen)], 1)
    mean, deviation = features.mean(0), features.std(0)
    x = (features - mean) / deviation
    write(args.out / "trained", args.backbone, chosen, mean, deviation, train_head(x, labels, rng))
    write(args.out / "random", args.backbone, chosen, mean, deviation, random_head(x, rng))

    demo = HERE / "../models/demo"
    smollm2, small = args.out / "gguf/smollm2", args.out / "gguf/demo"
    for of in TYPES:
        write_gguf(args.backbone, smollm2, of)
        write_gguf(demo / "backbone", small, of)
    guards = {"demo": (demo, small), "SmolLM2, trained head": (args.out / "trained", smollm2),
              "SmolLM2, random head": (args.out / "random", smollm2)}
    table(args.siren, args.out, guards)


if __name__ == "__main__":
    main()
