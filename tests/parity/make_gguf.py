#!/usr/bin/env python3
"""Make the GGUF fixtures: tiny quantised backbones, and what llm-siren scores on their values.

    python make_gguf.py --out gguf [--only NAME ...]

Each fixture is a GGUF file as llama.cpp's converter writes it (its names, its order of a Llama's
query and key rows, its tensor of rotary factors, its tokenizer in the metadata), written with the
`gguf` package. The reference runs the same model from safetensors, whose weights are what that
package's `dequantize` makes of the file's blocks. README.md tells the rest.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import make_vectors as mv
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize
from gguf_layout import add_shape, gguf_name, in_converters_order

@dataclass
class Quantised:
    """A fixture and the types of its tensors."""

    fixture: mv.Fixture
    embedding: Type
    # end of a linear layer's name -> its types in block 0, 1, ...
    types: dict = field(default_factory=dict)
    head: Type | None = None  # of output.weight, which nothing reads


def fixtures() -> list:
    return [
        Quantised(
            mv.Fixture(
                "qwen3-mixed",
                "Qwen3; blocks of 32 (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), F16, BF16 and F32 side by side; "
                "residual_mean with the last layer; embeddings in Q8_0; an output.weight",
                "qwen3",
                mv.tiny(3, hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=32,
                        tie_word_embeddings=False),
                "residual_mean", {0: 10, 1: 10, 2: 12}, [0, 1, 2], {0: 1.0, 1: 1.5, 2: 0.5},
                mv.Head([16], [0.1]), max_length=1024,
            ),
            Type.Q8_0,
            {
                "q_proj": [Type.Q4_0, Type.Q5_1, Type.F16],
                "k_proj": [Type.Q4_0, Type.Q8_0, Type.F16],
                "v_proj": [Type.Q8_0, Type.Q8_0, Type.BF16],
                "o_proj": [Type.Q4_1, Type.F32, Type.BF16],
                "gate_proj": [Type.Q5_0, Type.Q4_0, Type.F16],
                "up_proj": [Type.Q5_0, Type.Q4_1, Type.F32],
                "down_proj": [Type.Q5_1, Type.Q4_0, Type.Q8_0],
            },
            head=Type.Q4_0,
        ),
        Quantised(
            mv.Fixture(
                "llama-k",
                "Llama; Q4_K, Q5_K and Q6_K side by side; mlp_mean with the last layer; llama3 rope "
                "as a tensor of factors; embeddings in Q6_K; BOS",
                "llama",
                mv.tiny(2, hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64,
                        rms_norm_eps=1e-5, rope_parameters=mv.LLAMA3_ROPE),
                "mlp_mean", {0: 16, 1: 16}, [0, 1], {0: 1.0, 1: 0.75},
                mv.Head([12], [0.0]), max_length=1024,
            ),
            Type.Q6_K,
            {
                "q_proj": [Type.Q4_K, Type.Q6_K],
                "k_proj": [Type.Q4_K, Type.Q5_K],
                "v_proj": [Type.Q6_K, Type.Q4_K],
                "o_proj": [Type.Q5_K, Type.Q4_K],
                "gate_proj": [Type.Q4_K, Type.Q5_K],
                "up_proj": [Type.Q4_K, Type.Q6_K],
                "down_proj": [Type.Q6_K, Type.Q4_K],
            },
        ),
        Quantised(
            mv.Fixture(
                "llama-half",
                "Llama with biases, all of it in F16, and max_length 24; plain rope; as many KV heads "
                "as heads",
                "llama",
                mv.tiny(2, num_key_value_heads=4, head_dim=8, attention_bias=True, mlp_bias=True),
                "residual_mean", {0: 12, 1: 12}, [0, 1], {0: 1.0, 1: 1.0},
                mv.Head([8], [0.0]), max_length=24,
            ),
            Type.F16,
        ),
    ]  # fmt: skip


def rule_bytes(key: str, count: int) -> np.ndarray:
    """Bytes by the weight rule's hash: eight of each, the lowest first."""
    start = np.uint64(mv.fnv1a64(key.encode()))
    with np.errstate(over="ignore"):
        hashed = mv.splitmix64(start + np.arange(-(-count // 8), dtype=np.uint64))
    return hashed.astype("<u8").view(np.uint8)[:count]


def k_blocks(key: str, shape: tuple, of: Type, scale: float) -> np.ndarray:
    """Blocks of a K type with every bit of their quants and scales by the rule (the package cannot
    quantise to these types): rows of bytes, of values up to about `scale`."""
    count = shape[0] * shape[1] // 256
    size = {Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}[of]
    blocks = rule_bytes(key, count * size).reshape(count, size).copy()
    spread = 0.5 + rule_bytes(key + "/d", count).astype(np.float64) / 256
    if of == Type.Q6_K:
        d = spread * scale / (127 * 32)
        blocks[:, 208:] = d.astype("<f2").view(np.uint8).reshape(count, 2)
    else:
        middle = 7.5 if of == Type.Q4_K else 15.5
        d = spread * scale / (63 * middle)
        for at, values in ((0, d), (2, d * middle)):
            blocks[:, at : at + 2] = values.astype("<f2").view(np.uint8).reshape(count, 2)
        # Mins near their scales, so that values lie around zero; the upper bits of both stay as
        # they are in the other four.
        mins = blocks[:, 4:8] ^ (rule_bytes(key + "/m", count * 4).reshape(count, 4) & 3)
        blocks[:, 8:12] = (mins & 63) | (blocks[:, 4:8] & 0xC0)
        low = blocks[:, 12:16] & 15
        blocks[:, 12:16] = low | (low << 4)
    return blocks.reshape(shape[0], -1)


def stored(name: str, values: np.ndarray, of: Type, key: str) -> np.ndarray:
    """The tensor's rows in type `of`."""
    if of in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return k_blocks(key, values.shape, of, float(np.abs(values).max()))
    return quantize(values, of)


def type_of(q: Quantised, name: str) -> Type:
    if name.endswith("embed_tokens.weight"):
        return q.embedding
    for end, types in q.types.items():
        if f".{end}.weight" in name:
            return types[int(name.split(".")[2])]
    linear = name.endswith("_proj.weight")
    return q.embedding if linear else Type.F32


def rope_factors(config: dict) -> np.ndarray | None:
    """What the converter writes for llama3 rope (`generate_extra_tensors`)."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    dim, length = config["head_dim"], rope["original_max_position_embeddings"]
    low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    out = []
    for freq in freqs:
        wavelength = 2 * np.pi / freq
        if wavelength < length / high:
            out.append(1)
        elif wavelength > length / low:
            out.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array([float(f) for f in out], dtype=np.float32)


def add_metadata(writer: GGUFWriter, fx: mv.Fixture) -> None:
    c = fx.config
    writer.add_name(fx.name)
    writer.add_file_type(LlamaFileType.GUESSED)
    add_shape(writer, c)
    if fx.family == "llama":
        writer.add_vocab_size(c["vocab_size"])
        writer.add_rope_dimension_count(c["head_dim"])


def add_tokenizer(writer: GGUFWriter, tok, fx: mv.Fixture) -> None:
    """As the converter does it (`get_vocab_base`): tokens by id, the rest as unused padding."""
    added = tok.get_added_tokens_decoder()
    by_id = {i: t for t, i in tok.get_vocab().items()}
    tokens, types = [], []
    for i in range(fx.config["vocab_size"]):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(5)
        else:
            tokens.append(by_id[i])
            types.append((3 if added[i].special else 4) if i in added else 1)
    merges = json.loads(tok.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if fx.family == "qwen3" else "llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    if fx.family == "qwen3":
        writer.add_add_bos_token(False)
        writer.add_eos_token_id(tok.token_to_id("<|im_end|>"))
    else:
        writer.add_bos_token_id(tok.token_to_id(mv.LLAMA_SPECIAL[0]))
        writer.add_eos_token_id(tok.token_to_id("<|eot_id|>"))


def make(q: Quantised, folder: Path) -> None:
    fx = q.fixture
    model = mv.build_model(fx)
    writer = GGUFWriter(folder / "backbone.gguf", "qwen3" if fx.family == "qwen3" else "llama")
    add_metadata(writer, fx)
    tok = mv.train_tokenizer(fx.family)
    add_tokenizer(writer, tok, fx)
    if (factors := rope_factors(fx.config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    with torch.no_grad():
        for name, param in model.named_parameters():
            values = param.detach().numpy()
            # Wide layers get smaller weights, so that their sums stay where those of tiny ones are.
            if name.endswith("_proj.weight"):
                values = values * np.float32((32 / values.shape[1]) ** 0.5)
            if name == "lm_head.weight":
                if q.head is not None:
                    writer.add_tensor("output.weight", quantize(values, q.head), raw_dtype=q.head)
                continue
            of = type_of(q, name)
            raw = stored(name, values, of, f"{fx.name}/{name}/blocks")
            param.copy_(torch.from_numpy(dequantize(raw, of).reshape(values.shape).astype(np.float32)))
            if fx.family == "llama":
                raw = in_converters_order(name, raw, fx.config)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    mv.build_model = lambda _: model
    with tempfile.TemporaryDirectory() as tmp:
        backbone = Path(tmp)
        mv.write_backbone(fx, model, backbone)
        (backbone / "tokenizer.json").write_text(tok.to_str(), encoding="utf-8")
        mv.write_json(backbone / "tokenizer_config.json", mv.tokenizer_config(fx.family))
        mv.finish(fx, folder, backbone)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the fixtures")
    parser.add_argument("--only", nargs="*", help="names of the fixtures to make")
    args = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    build_model = mv.build_model
    for q in fixtures():
        if args.only and q.fixture.name not in args.only:
            continue
        mv.build_model = build_model
        folder = args.out / q.fixture.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(q, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
