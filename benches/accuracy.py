#!/usr/bin/env python3
"""Make two guards over a real backbone, and texts, on which dtypes are compared.

    python benches/accuracy.py --backbone DIR --data DATA_DIR --out OUT
    siren compare --model OUT/trained --dtype f32 --against-dtype int8 --jsonl OUT/texts.jsonl

DIR is a Llama checkpoint in f32, such as the SmolLM2-135M that tests/parity/smollm2.py writes;
DATA_DIR holds guard_train.jsonl.gz, hatecheck_cases.csv and hh_harmless_test.jsonl.gz. OUT gets

    trained/      a guard whose head was trained on --train texts of guard_train
    random/       one on the same neurons whose head is random, scaled so that the scores of those
                  texts spread over (0, 1): it reads much of what a trained head ignores
    texts.jsonl   --texts others, a third each from guard_train, HateCheck and the dialogues

The backbone's states are computed here, in numpy. Nothing of OUT belongs in the repository.
Requirements: Python 3.10+, numpy, safetensors and tokenizers.
"""

import argparse
import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

SEED = 20261125
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
        angles = positions[:, None] * c["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--texts", type=int, default=1000)
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


if __name__ == "__main__":
    main()
