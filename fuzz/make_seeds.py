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
    # Found by this target: which of the two is named as wrong was asked to be the same each time.
    twins = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}
                        for name, dtype, shape in [("a", "F32", [2]), ("b", "F16", [0])]}, separators=(",", ":")).encode()
    seed("safetensors", "two-at-one-place", b"\0", struct.pack("<Q", len(twins)) + twins + bytes(8))
    seed("safetensors", "index", b"\2", json.dumps(index).encode())


def gguf():
    """A Llama of one block, of 32 wide, in several types; and one with what is not read."""
    U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
    string = lambda t: struct.pack("<Q", len(t.encode())) + t.encode()
    array = lambda kind, items: struct.pack("<IQ", kind, len(items)) + b"".join(items)
    number = lambda n: (U32, struct.pack("<I", n))
    tokens = ["<s>", "a", "b", "ab", "[PAD4]"]
    metadata = {
        "general.architecture": (STRING, string("llama")),
        "general.alignment": number(32),
        "llama.block_count": number(1),
        "llama.embedding_length": number(32),
        "llama.feed_forward_length": number(32),
        "llama.attention.head_count": number(2),
        "llama.attention.head_count_kv": number(1),
        "llama.attention.layer_norm_rms_epsilon": (F32, struct.pack("<f", 1e-5)),
        "llama.rope.freq_base": (F32, struct.pack("<f", 1e4)),
        "tokenizer.ggml.model": (STRING, string("gpt2")),
        "tokenizer.ggml.pre": (STRING, string("llama-bpe")),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, [string(t) for t in tokens])),
        "tokenizer.ggml.token_type": (ARRAY, array(5, [struct.pack("<i", t) for t in (3, 1, 1, 1, 5)])),
        "tokenizer.ggml.merges": (ARRAY, array(STRING, [string("a b")])),
        "tokenizer.ggml.bos_token_id": number(0),
        "tokenizer.ggml.add_bos_token": (BOOL, b"\1"),
    }
    # By ggml's number, the elements of a row and its bytes.
    row = {0: (32, 128), 1: (32, 64), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 30: (32, 64),
           12: (256, 144), 13: (256, 176), 14: (256, 210)}
    tensors = {"token_embd.weight": (5, 8), "output_norm.weight": (1, 0), "rope_freqs.weight": (1, 0)}
    linear = [("attn_q", 32, 2), ("attn_k", 16, 3), ("attn_v", 16, 6), ("attn_output", 32, 7),
              ("ffn_gate", 32, 8), ("ffn_up", 32, 2), ("ffn_down", 32, 30)]
    tensors |= {f"blk.0.{name}.weight": (rows, kind) for name, rows, kind in linear}
    tensors |= {f"blk.0.{name}.weight": (1, 0) for name in ("attn_norm", "ffn_norm")}

    def file(metadata, tensors):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
        for key, (kind, value) in metadata.items():
            head += string(key) + struct.pack("<I", kind) + value
        data = b""
        for name, (rows, kind) in tensors.items():
            width, size = (8, 32) if name == "rope_freqs.weight" else row[kind]
            shape, size = [width, rows] if rows > 1 else [width], size * rows
            head += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
            head += struct.pack("<IQ", kind, len(data))
            data += struct.pack("<f", 1.0) * (size // 4) if kind == 0 else bytes(i * 37 % 251 for i in range(size))
            data += bytes(-len(data) % 32)
        return head + bytes(-len(head) % 32) + data

    seed("gguf", "llama", file(metadata, tensors))
    seed("gguf", "metadata", file(metadata, {}))
    blocks = file({}, {"q4": (1, 12), "q5": (2, 13), "q6": (3, 14)})
    seed("gguf", "k-blocks", blocks)
    seed("gguf", "cut-off", blocks[:-1100])


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


def chunk(piece):
    """Script::chunk: bytes of the script's own."""
    piece = piece.encode() if isinstance(piece, str) else piece
    assert len(piece) < 96
    return bytes([len(piece)]) + piece


def chunks(pieces):
    return b"".join(chunk(piece) for piece in pieces)


# Texts in the chunks that a stream may be given them in.
CHUNKED = {
    "words": ["How do", " I ba", "ke brea", "d? In an", " oven, at 2", "30 C. ", "It is ", "done."],
    "characters-split": ["na\u00efve ".encode()[:3], b"\xafve", "\u4f60".encode()[:2], "\u4f60".encode()[2:],
                         "\U0001f642".encode()[:1], "\U0001f642".encode()[1:3], "\U0001f642".encode()[3:], ". Yes"],
    "markers-split": ["a <", "|im_", "start", "|> b [INS", "T] c <<SY", "S> d <s", "> e <|im_x"],
    "blanks": ["\x1c a \t", "\t b\n\n", "\n\n c \r", "\n", "\u00a0", "\u3000 d", " \n \n"],
    "composed": ["the cafe", "\u0301 is", " \u1112\u1161", "\u11ab e", "\u0323", "\u0301. So"],
    "tokens-shrink": ["1", "2", "3", "4 do", "n", "'", "t w", "or", "ds", "<thi", "nk>", " a"],
    "not-utf-8": ["a b", b"\xff", " c", b"\xe2\x82", b"(", b"\xac"],
    "nothing": ["", "", " ", ""],
    "long": ["one, two. three four "] * 8,
}
PUSH, FINISH, CANCELLED, LATE = 8, 11, 12, 13


def growing():
    for number, (name, pieces) in enumerate(CHUNKED.items()):
        for tokenizer in range(3):
            # All tokens are wanted, or some.
            limit = bytes([255 if tokenizer == number % 3 else 9])
            prompt = ["", "ask <s", "What is it?\n"][(number + tokenizer) % 3]
            seed("growing", f"{name}-{tokenizer}", bytes([tokenizer]), limit, chunk(prompt), chunks(pieces))


def push(piece, stream=0, kind=PUSH):
    late = b"\x08" if kind == LATE else b""
    return bytes([kind, stream]) + late + (b"" if kind == FINISH else chunk(piece))


def new_stream(prompt=None, threshold=None, windows=None, hysteresis=0):
    """`threshold` is a text's score."""
    choice = (prompt is not None) | (4 if threshold is not None else 0) | (8 if windows else 0) | hysteresis << 4
    texts = [chunk(text) for text in (prompt, threshold) if text is not None]
    return b"\0" + bytes([choice]) + b"".join(texts) + bytes(windows or ())


def stream():
    reset, fork, drop, again, together = (bytes([kind, 0]) for kind in (1, 2, 4, 5, 6))
    for number, (name, pieces) in enumerate(CHUNKED.items()):
        pushes = b"".join(push(piece) for piece in pieces)
        options = [{}, {"prompt": "What is it?", "threshold": "How do"},
                   {"windows": (5, 2), "threshold": "one, two", "hysteresis": 2}][(number + number // 3) % 3]
        seed("stream", name, bytes([number % 3]), new_stream(**options), pushes, again, push("", kind=FINISH))
    # Found by this target: `first_scored` was a token of the prompt.
    seed("stream", "prompt-of-many-windows", b"\0", new_stream(prompt="ask, and so on. " * 5, windows=(5, 1)),
         push(""), *[push(piece) for piece in CHUNKED["words"][:3]], again)
    # Found by this target: two tokens share a character, and only the second is at the threshold.
    seed("stream", "characters-shared", b"\1", new_stream(windows=(5, 2), threshold="one, two", hysteresis=2),
         *[push(piece) for piece in CHUNKED["composed"][1:]])
    # Found by scripts made at random: what was cleared is other tokens now, and the first one crosses.
    seed("stream", "crossing-in-what-was-cleared", b"\1", new_stream(prompt=" \u043c\u0438\u0440", windows=(4, 0), hysteresis=1),
         push(" and"), push("e"))
    # Found by reading: the prompt's newline is over the limit.
    seed("stream", "exactly-the-limit", b"\0", new_stream(prompt="x" * 80), push("y" * 80))
    words = [push(piece) for piece in CHUNKED["words"]]
    for family in range(2):
        begin = bytes([family]) + new_stream(prompt="the dog, and", threshold="and so on")
        seed("stream", f"forks-{family}", begin, words[0], words[1], fork, push(" cats. Not", 0), push(" dogs, all", 1),
             fork, push(" and so on", 2), push(" of it", 0), push(" of them", 1))
        seed("stream", f"parked-{family}", begin, *words, fork, new_stream(windows=(9, 3)),
             *[push(piece, stream) for piece in CHUNKED["long"] for stream in (2, 1, 0)])
        seed("stream", f"ended-early-{family}", begin, words[0], push(" never", kind=CANCELLED), words[1],
             push(" perhaps", kind=LATE), words[2], push("", kind=FINISH), push("no more"), reset, words[3])
        seed("stream", f"together-{family}", begin, new_stream(windows=(3, 1)), new_stream(),
             *[together + chunks([piece, "a " + piece, piece[:3]]) for piece in CHUNKED["words"]], drop, *words)


def tokenizer():
    """Damages: each edit is a kind, the way to a node, and what the kind needs."""
    pattern, insert, put, rename = 4, 7, 9, 2
    patterns = 10

    def way(root, *keys):
        steps = b""
        for key in keys:
            index = list(root).index(key) if isinstance(root, dict) else key
            steps += bytes([32 + index])
            root = root[key]
        return steps + b"\0"

    def repeated(unit, power):
        return chunk(unit) + bytes([power])

    names = ["qwen3-short", "llama-short"]
    for base, name in enumerate(names):
        good = json.loads((FIXTURES / name / "backbone/tokenizer.json").read_text())
        edits = lambda *edits: bytes([base + 3 * len(edits)]) + b"".join(edits)
        regex = way(good, "pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")
        for number in range(patterns):
            damage = edits(bytes([pattern]) + regex + bytes([number]))
            seed("tokenizer", f"pattern-{number}-{base}", damage, repeated("a", 12))
        seed("tokenizer", f"merge-longer-than-any-token-{base}",
             edits(bytes([insert]) + way(good, "model", "merges") + b"\x0a"), repeated("a", 12))
        # The crate cuts the prefix off the second part of every merge.
        seed("tokenizer", f"prefix-longer-than-any-token-{base}",
             edits(bytes([rename]) + way(good, "model", "continuing_subword_prefix") + chunk("#" * 90)), repeated("a", 12))
        for number, model in enumerate(["word-piece", "unigram", "word-level"]):
            seed("tokenizer", f"{model}-{base}", edits(bytes([put]) + way(good, "model") + bytes([number])), repeated("a", 12))
        for number, part in {3: "metaspace", 5: "split", 6: "digits"}.items():
            seed("tokenizer", f"{part}-{base}", edits(bytes([put]) + way(good, "pre_tokenizer") + bytes([number])),
                 repeated("a b", 12))
        for number, part in {4: "replace", 7: "nfkc", 8: "prepend", 9: "bert"}.items():
            seed("tokenizer", f"{part}-{base}", edits(bytes([put]) + way(good, "normalizer") + bytes([number])),
                 repeated("a\u00e9", 12))
        seed("tokenizer", f"no-pre-tokenizer-{base}", edits(bytes([0]) + way(good, "pre_tokenizer")), repeated("a b", 12))
        seed("tokenizer", f"added-token-{base}",
             edits(bytes([rename]) + way(good, "added_tokens", 0, "content") + chunk("a ")), repeated("a a", 12))
        # Many equal characters of each class that the expressions know.
        for kind, unit in {"letter": "a", "digit": "7", "blank": " ", "newline": "\n", "stop": ".",
                           "ideograph": "\u597d", "wide-blank": "\u3000", "mark": "\u0301"}.items():
            seed("tokenizer", f"equal-{kind}-{base}", edits(), repeated(unit, 15))
    seed("tokenizer", "bytes", b"\2\xff", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}')


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


OPEN = ERROR + b"\0" + b"\0\0\0" + EXACT + b"\0\0\0"
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
    seed("abi", "initialise", *[ERROR + b"\x0d" + EXACT + bytes([i, 0]) for i in range(10)])

    calls()


GUARD = STREAM = TOKEN = b"\0"     # the common guard; the newest stream or token
FREED = b"\xc0\0"
OTHER = lambda kind: bytes([240, kind])  # a handle of another kind


def call(number, *parts):
    return ERROR + bytes([number]) + b"".join(parts)


def calls():
    """Streams, tokens, calls that complete later, and what a guard tells."""
    new = lambda guard=GUARD: call(16, guard, b"\0", EXACT, b"\0\0")
    with_options = call(16, GUARD, b"\x85", b"\x60\x03ask", b"\x64", b"\1", b"\5\2\0", EXACT, b"\0\0")
    # The stream, its bytes, no scores, no options, the result's memory and pointer.
    push = lambda piece, stream=STREAM, number=17: call(number, stream, b"\0" + chunk(piece), b"\0\0", EXACT, b"\0\0")
    # With room for ten scores at an odd address, and a token.
    scored = call(17, STREAM, b"\0" + chunk("one two"), b"\x2b", b"\x84", b"\x80" + TOKEN + b"\0\0", EXACT, EXACT, b"\0\0")
    later = lambda action, handle=b"\0", piece="later", number=21: call(
        number, STREAM, b"\0" + chunk(piece), b"\0\0", b"\0", bytes([action]), handle, b"\0")
    free = lambda kind, handle=b"\0": call({"guard": 11, "stream": 24, "token": 27}[kind], handle)
    token, cancel = call(25, b"\0\0"), call(26, TOKEN, b"\0")
    finish, reset, fork = push("", number=20), call(22, STREAM, b"\0"), call(23, STREAM, b"\0\0")
    live = b"\x80\0"
    seed("abi", "stream", new(), push("How do"), push(" I b"), fork, push("ake"), finish, push("no"), reset, push("yes"))
    seed("abi", "stream-options", token, with_options, push("How do I bake"), scored, cancel, scored, push(" it"))
    seed("abi", "stream-after-free", new(), free("stream"), push("a", FREED), new(), push("a", FREED), free("stream", FREED))
    seed("abi", "stream-of-a-freed-guard", OPEN, new(live), free("guard", live), push("How do"), finish, free("stream"))
    seed("abi", "wrong-kinds", token, new(), push("a", OTHER(0)), push("a", OTHER(2)), score(b"a", OTHER(1)),
         free("guard", OTHER(1)), free("stream", OTHER(2)), free("token", OTHER(1)), call(26, OTHER(1), b"\0"), push("a"))
    seed("abi", "push-later", new(), later(0), push(" at once"), later(4, STREAM), later(3), later(6, STREAM), push("a"))
    finish_later = later(0, piece="", number=128 + 21)
    seed("abi", "finish-later", new(), push("How"), finish_later, push("no"), reset, push("yes"), finish_later)
    seed("abi", "guard-freed-by-its-callback", OPEN, new(live), later(7, live), score(b"a", live), push("b"))
    seed("abi", "score-later", call(28, GUARD, TEXT(b"one"), EXACT, b"\0\0", b"\0" + GUARD, b"\0\0"),
         call(29, GUARD, b"\3", TEXT(b"one"), TEXT(b"\xff"), TEXT(b"three"), EXACT, b"\0\0", b"\0\0", b"\3" + GUARD, b"\0\0"))
    cancelled = b"\x84\0" + b"\x80" + TOKEN + b"\0\0" + EXACT
    seed("abi", "score-later-cancelled", token, cancel, call(28, GUARD, TEXT(b"one"), EXACT, cancelled, b"\0\0" + GUARD, b"\0\0"))
    seed("abi", "token", token, cancel, free("token"), call(26, FREED, b"\0"), free("token", FREED))
    seed("abi", "stats", call(30, b"\0" + GUARD, EXACT, b"\0\0"), call(30, b"\x80" + GUARD, b"\xff\0\0\0"))
    audit = lambda choice: call(31, TEXT(b"one"), EXACT, bytes([choice]), b"\x64\x96", bytes(8), EXACT, b"\0\0", GUARD, b"\x40\0\0\0")
    seed("abi", "audit", audit(0), audit(1), audit(8), audit(0x12))


config()
checkpoints()
gguf()
text()
growing()
stream()
tokenizer()
abi()
