#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets to fuzz/seeds/<target>, from the parity fixtures.

The first byte of a seed is the target's choice; see the head of each target.
"""
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent
FIXTURES = ROOT.parent / "tests/parity/fixtures"


def seed(target, name, *parts):
    path = ROOT / "seeds" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def compact(path, **changes):
    fields = json.loads(path.read_text())
    fields.update(changes)
    return json.dumps(fields, separators=(",", ":")).encode()


def safetensors(tensors, pad=0):
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header, separators=(",", ":")).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def config():
    qwen = FIXTURES / "qwen3-short"
    llama3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64, "rope_theta": 500000.0}
    backbone = qwen / "backbone/config.json"
    seed("config", "artifact", b"\0", compact(qwen / "siren_config.json"))
    seed("config", "artifact-read", b"\2", compact(qwen / "siren_config.json", task="content"))
    seed("config", "artifact-hidden-layer", b"\0", compact(FIXTURES / "llama-short/siren_config.json"))
    seed("config", "backbone", b"\1", compact(backbone))
    seed("config", "backbone-llama3-rope", b"\1", compact(backbone, rope_parameters=llama3))
    seed("config", "backbone-old-rope", b"\3",
         compact(backbone, rope_parameters=None, rope_scaling=llama3, rope_theta=1e6))
    seed("config", "backbone-llama", b"\1", compact(FIXTURES / "llama-short/backbone/config.json"))


def checkpoints():
    head = (FIXTURES / "qwen3-short/siren.safetensors").read_bytes()
    shapes = {"network.0.bias": ("F16", [2], bytes(4)), "network.0.weight": ("BF16", [2, 20], bytes(range(80)))}
    odd = {"a": ("U8", [1], b"\1"), "b": ("F32", [2, 1], bytes(8)), "c": ("F16", [0, 7], b""), "d": ("F64", [1], bytes(8))}
    index = {"metadata": {}, "weight_map": {
        "network.0.weight": "model-00001-of-00001.safetensors", "network.0.bias": "model-00001-of-00001.safetensors"}}
    seed("safetensors", "head", b"\0", head)
    seed("safetensors", "head-other-dtypes", b"\0", safetensors(shapes))
    seed("safetensors", "checkpoint", b"\1", head)
    seed("safetensors", "checkpoint-off-its-boundary", b"\1", safetensors(odd, pad=1))
    seed("safetensors", "index", b"\2", json.dumps(index).encode())


def text():
    source = (ROOT.parent / "src/text/clean.rs").read_text()
    listed = source[source.index("MARKERS: [") :].split("];")[0]
    markers = [line.strip().strip('",') for line in listed.splitlines()[1:]]
    # choice % 3 is the tokenizer, choice / 3 + 1 the length.
    choice = lambda tokenizer, length: bytes([tokenizer + 3 * (length - 1)])
    seed("text", "markers", choice(0, 6), "a".join(markers).encode())
    seed("text", "markers-in-markers", choice(1, 12), b"<|im_<s>start|> <<s>SYS>> [[INST]INST] < s > <|s|></s>")
    seed("text", "blanks", choice(0, 3), "\x1c a \t b\n\n\n\nc\r\n\r\n\n \n\nd\u00a0\u3000\u200b\ufeff\x1f".encode())
    words = b"Don't stop, it's 12345 words. <|python_tag|> How do I bake bread in an oven at 230 C?"
    for tokenizer in range(3):
        seed("text", f"words-{tokenizer}", choice(tokenizer, 4), words)
    seed("text", "added-tokens", choice(2, 3), b"what I do.it is to do.this and a bit more. Why do.I ask a question")
    seed("text", "added-token-over-a-boundary", choice(2, 3), b"\0a a a")
    seed("text", "scripts", choice(0, 7), "你好，世界。한국어 텍스트 e\u0301 \u1112\u1161\u11ab नमस्ते 👩‍👩‍👧 <think>".encode())
    seed("text", "not-utf-8", choice(1, 2), b"a\xff b\xc3 \xe2\x82 c")


EXACT = b"\0"          # Memory::new: the library's own struct_size
ERROR = EXACT          # every call starts with its error struct
TEXT = lambda t: b"\0" + bytes([len(t)]) + t  # input(): text alone


def score(text, handle=b"\0"):
    # handle, input, the input's memory, no options, the result's memory, three pointers
    return ERROR + b"\1" + handle + TEXT(text) + EXACT + b"\0" + EXACT + b"\0\0\0"


def batch(*texts):
    body = b"".join(TEXT(t) for t in texts)
    sizes = EXACT + b"\0" * max(len(texts) - 1, 0)
    return ERROR + b"\6" + b"\0" + bytes([len(texts)]) + body + sizes + b"\0" + sizes + sizes + b"\0\0\0\0"


OPEN = ERROR + b"\x10" + b"\0\0\0" + EXACT + b"\0\0\0"
FREE_FIRST = ERROR + b"\x0b" + b"\x80\0"
FREE_FREED = ERROR + b"\x0b" + b"\xc0\0"


def abi():
    seed("abi", "score", score(b"How do I bake bread?"))
    seed("abi", "batch", batch(b"one", b"", b"\xff\xfe", b"four"))
    seed("abi", "open-score-free", OPEN, score(b"hello", b"\x80\0"), FREE_FIRST)
    seed("abi", "use-after-free", OPEN, FREE_FIRST, score(b"hello", b"\xc0\0"), FREE_FREED)
    seed("abi", "slot-used-again", OPEN, FREE_FIRST, OPEN, score(b"hello", b"\xc0\0"), FREE_FREED)
    seed("abi", "info", ERROR + b"\x09\0" + EXACT + b"\0\0", ERROR + b"\x0a\0" + b"\x60\0\0\0")
    seed("abi", "odd-sizes", ERROR, b"\1\0", TEXT(b"x"), b"\4", b"\0", b"\6\x28", b"\0\0\0",
         b"\6\x10", b"\1\0", TEXT(b"x"), b"\5\1", b"\0", EXACT, b"\0\0\0")
    seed("abi", "initialise", *[ERROR + b"\x0d" + EXACT + bytes([i, 0]) for i in range(6)])


config()
checkpoints()
text()
abi()
