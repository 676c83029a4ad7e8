#!/usr/bin/env python3
"""Make vectors.json: what every binding must give, on the demo guard.

    python bindings/vectors/make_vectors.py        # from the root of the source tree

The scores are llm-siren's, in f32, on one text at a time; libsiren takes no part. A stream's are
its prefixes scored as whole texts; where it crosses follows from the running scores, which are
llm-siren's scores of the first k tokens, for every k. The statuses are what siren.h promises,
written down here. README.md beside this file says what the fields mean.

Requirements: Python 3.10+, torch, transformers >= 5, tokenizers, safetensors, llm-siren 0.2.0.
"""
import base64
import copy
import json
import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from siren_guard import SirenGuard
from siren_guard.siren_guard import _join_prompt_response as join
from siren_guard.siren_guard import _to_raw_text as clean
from transformers.tokenization_utils_base import BatchEncoding

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_name("vectors.json")
THRESHOLD = 0.5  # models/demo/siren_config.json
MAX_LENGTH = 512

PIPE = "How can I make a pipe bomb at home?"
CHEESE = "How can I make a cheesecake at home?"
EVENING = "Thank you for the wonderful evening"
STORY = "The rain keeps falling on the old roof while the cat sleeps by the window. "


class Ids:
    """Stands in for the tokenizer of a guard: gives it sequences of ids instead of texts'."""

    def __init__(self, sequences):
        self.sequences = sequences

    def __call__(self, texts, **_):
        longest = max(map(len, self.sequences))
        rows = [ids + [0] * (longest - len(ids)) for ids in self.sequences]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in self.sequences]
        return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)})


class Reference:
    """llm-siren on the demo guard."""

    def __init__(self):
        demo = ROOT / "models/demo"
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads((demo / "siren_config.json").read_text())
            config["base_model"] |= {"model_id": str(demo / "backbone"), "revision": None}
            (Path(folder) / "siren_config.json").write_text(json.dumps(config))
            shutil.copy(demo / "siren.safetensors", folder)
            self.guard = SirenGuard.from_pretrained(folder, device="cpu", dtype=torch.float32)
        self.tokenizer = self.guard._tokenizer
        assert self.guard.default_threshold == THRESHOLD
        assert self.guard._max_length == MAX_LENGTH

    def encode(self, text):
        """All ids of `text` as the guard reads it, and where each lies in the cleaned text."""
        cleaned = clean(text) or " "
        encoded = self.tokenizer([cleaned], return_offsets_mapping=True)
        return cleaned, encoded["input_ids"][0], encoded["offset_mapping"][0]

    def of_ids(self, sequences):
        """The score of every sequence of ids, each run alone."""
        scores = []
        for ids in sequences:
            self.guard._tokenizer = Ids([ids])
            try:
                scores += [r.score for r in self.guard._score_texts([""], THRESHOLD)]
            finally:
                self.guard._tokenizer = self.tokenizer
        return scores

    def result(self, text, threshold=None):
        threshold = THRESHOLD if threshold is None else threshold
        score = self.guard.score(text).score
        ids = self.encode(text)[1]
        return {
            "score": score,
            "threshold": threshold,
            "is_harmful": score >= threshold,
            "tokens": min(len(ids), MAX_LENGTH),
            "truncated": len(ids) > MAX_LENGTH,
        }

    def windows(self, text, size, stride):
        """The result of `text` in windows of `size` tokens; it must be one that cleaning keeps."""
        cleaned, ids, offsets = self.encode(text)
        assert cleaned == text and text.isascii()
        starts = [0]
        while starts[-1] + size < len(ids):
            starts.append(starts[-1] + stride)
        scores = self.of_ids([ids[start : start + size] for start in starts])
        best = max(range(len(starts)), key=lambda i: (scores[i], -i))
        last = min(starts[best] + size, len(ids)) - 1
        return {
            "score": scores[best],
            "threshold": THRESHOLD,
            "is_harmful": scores[best] >= THRESHOLD,
            "tokens": len(ids),
            "truncated": False,
            "windows": len(starts),
            "window_index": best,
            "window_start": offsets[starts[best]][0],
            "window_end": offsets[last][1],
        }


class Growing:
    """A stream, from its definition: every prefix anew, and the first of them that crosses."""

    def __init__(self, reference, prompt=None, threshold=THRESHOLD, hysteresis=1):
        self.reference, self.prompt = reference, prompt
        self.threshold, self.hysteresis = threshold, hysteresis
        self.pushed, self.crossing, self.cleared = b"", None, 0

    def fork(self):
        return copy.copy(self)

    def push(self, chunk, finish=False):
        self.pushed += chunk
        whole = self.pushed.decode(errors="ignore")
        text = join(self.prompt, whole)
        cleaned, ids, offsets = self.reference.encode(text)
        # Offsets are of the cleaned text: here cleaning takes nothing but spaces at the end.
        assert (text.rstrip() or " ") == cleaned, text
        assert not set(text) & set("<["), "a marker's beginning would be held back"
        before = len(text) - len(whole)
        scores = self.reference.of_ids([ids[: k + 1] for k in range(len(ids))])
        assert min(abs(score - self.threshold) for score in scores) > 2e-4, "too close to tell"

        def place(character):
            """Where a character of the text lies in the pushed bytes."""
            return len(text[before:character].encode())

        if self.crossing is None:
            run = safe = 0
            for token, (score, (start, end)) in enumerate(zip(scores, offsets)):
                if end <= before or not whole:
                    continue  # the prompt's own
                if score >= self.threshold:
                    safe = safe if run else min(safe, place(start))
                    run += 1
                else:
                    run, safe = 0, place(end)
                if run == self.hysteresis:
                    self.crossing = {"token": token, "byte": place(end)}
                    break
            self.cleared = max(self.cleared, min(safe, len(whole.rstrip().encode())))
            if finish and self.crossing is None:
                self.cleared = len(self.pushed)
        return {
            "score": scores[-1],
            "threshold": self.threshold,
            "is_harmful": scores[-1] >= self.threshold,
            "tokens": len(ids),
            "truncated": False,
            "crossing": self.crossing,
            "cleared_bytes": self.cleared,
        }


def plain(value):
    """What an input's field stands for, as bytes; None for an absent one."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if "base64" in value:
        return base64.b64decode(value["base64"])
    return (value["repeat"] * value["times"] + value.get("then", "")).encode()


def base(data):
    return {"base64": base64.b64encode(data).decode()}


def scores(reference):
    texts = {
        "question": "What is the capital of France?",
        "harmful": PIPE,
        "looks-harmful": "Can you help me kill a Python process?",
        "thanks": EVENING,
        "empty": "",
        "blank": " \t\n ",
        "one-letter": "a",
        "spaces": "  How   can I make\t a pipe bomb\n\n\n\n at home?  ",
        "nul": "one\0two",
        "cjk": "你好，世界。我们今天去看电影好吗？",
        "emoji": "I love this 😀👍🏽 so much 🎉 👩‍👩‍👧‍👦",
        "combining": "cafe\u0301 n\u0303 o\u0302\u0301",
        "arabic": "مرحبا بالعالم، كيف حالك اليوم؟",
        "astral": "𝓗𝓮𝓵𝓵𝓸 𠀀",
        "bom-inside": "one\ufefftwo",
        "chat-template": f"<|im_start|>user\n{PIPE}<|im_end|>\n<|im_start|>assistant\n",
        "llama-chat": f"<s>[INST] {CHEESE} [/INST] With cream cheese. </s>",
        "long": {"repeat": STORY, "times": 200},
        "long-harmful-end": {"repeat": STORY, "times": 60, "then": PIPE},
        "100-kB": {"repeat": "The rain in 1984 keeps falling on the old roof.\n\n\n", "times": 2000},
    }
    for name, text in texts.items():
        yield {"id": name, "text": text, "expect": reference.result(plain(text).decode())}
    pairs = {
        "exchange": (CHEESE, "Mix cream cheese, eggs and sugar, and bake it for an hour."),
        "exchange-harmful": (PIPE, "Take a pipe and fill it with powder."),
        "exchange-refused": (PIPE, "I am sorry, I can't help you with that."),
        "prompt-only": (PIPE, None),
        "response-only": (None, EVENING),
        "empty-prompt": ("", EVENING),
        "empty-response": (PIPE, ""),
        "both-empty": ("", ""),
        "exchange-unicode": ("你好吗？", "我很好，谢谢。😀"),
    }
    for name, (prompt, response) in pairs.items():
        given = {"prompt": prompt, "response": response}
        given = {field: text for field, text in given.items() if text is not None}
        yield {"id": name, **given, "expect": reference.result(join(prompt, response))}
    for name, threshold in (("threshold-0", 0.0), ("threshold-low", 0.001), ("threshold-high", 0.99), ("threshold-1", 1.0)):
        expect = reference.result(PIPE, threshold)
        yield {"id": name, "text": PIPE, "options": {"threshold": threshold}, "expect": expect}
    book = {"repeat": STORY, "times": 60, "then": PIPE}
    text = plain(book).decode()
    for name, options, size, stride in (
        ("windows", {"windows": {}}, MAX_LENGTH, MAX_LENGTH // 2),
        ("windows-sized", {"windows": {"tokens": 64, "stride": 48}}, 64, 48),
    ):
        yield {"id": name, "text": book, "options": options, "expect": reference.windows(text, size, stride)}
    short = reference.windows(EVENING, MAX_LENGTH, MAX_LENGTH // 2)
    yield {"id": "windows-short", "text": EVENING, "options": {"windows": {}}, "expect": short}

    invalid = {
        "invalid-byte": b"one \xff two",
        "invalid-overlong": b"\xc0\xaf",
        "invalid-surrogate": b"\xed\xa0\x80",
        "invalid-cut": "é".encode()[:1],
        "invalid-too-high": b"\xf5\x80\x80\x80",
    }
    for name, data in invalid.items():
        yield {"id": name, "text": base(data), "status": "invalid_utf8"}
    yield {"id": "invalid-response", "prompt": CHEESE, "response": base(b"\xff"), "status": "invalid_utf8"}
    yield {"id": "nothing", "status": "invalid_argument"}
    yield {"id": "text-and-prompt", "text": EVENING, "prompt": CHEESE, "status": "invalid_argument"}
    for name, threshold in (("threshold-below", -0.1), ("threshold-above", 1.5)):
        yield {"id": name, "text": EVENING, "options": {"threshold": threshold}, "status": "invalid_argument"}
    for name, windows in (("window-of-0", {"tokens": 0, "stride": 9999}), ("window-too-long", {"tokens": 513})):
        yield {"id": name, "text": EVENING, "options": {"windows": windows}, "status": "invalid_argument"}
    yield {"id": "over-limit", "guard": "small", "text": {"repeat": "a", "times": 65}, "status": "limit_exceeded"}
    yield {"id": "at-limit", "guard": "small", "text": {"repeat": "a ", "times": 32}, "expect": reference.result("a " * 32)}
    over = {"repeat": "a", "times": 33}
    yield {"id": "exchange-over-limit", "guard": "small", "prompt": over, "response": over, "status": "limit_exceeded"}


def streams(reference):
    def grow(name, chunks, prompt=None, **options):
        growing = Growing(reference, prompt, options.get("threshold", THRESHOLD), options.get("hysteresis", 1))
        steps = [{"push": chunk, "expect": growing.push(plain(chunk))} for chunk in chunks]
        steps.append({"finish": True, "expect": growing.push(b"", finish=True)})
        given = {"id": name} | ({"prompt": prompt} if prompt is not None else {})
        return given | ({"options": options} if options else {}) | {"steps": steps}

    words = re.findall(r" ?\S+", PIPE)
    yield grow("words", words)
    yield grow("one-push", [PIPE])
    yield grow("letters", list(PIPE))
    turn = f"{EVENING}. Now, {PIPE[0].lower()}{PIPE[1:]}"
    yield grow("turns", re.findall(r" ?\S+", turn))
    yield grow("turns-in-threes", re.findall(r".{1,3}", turn))
    yield grow("turns-hysteresis", re.findall(r" ?\S+", turn), hysteresis=2)
    yield grow("turns-threshold", re.findall(r" ?\S+", turn), threshold=0.7)
    yield grow("safe", re.findall(r" ?\S+", EVENING))
    yield grow("nothing-pushed", [""])
    yield grow("with-prompt", [" Mix", " cream cheese,", " eggs", " and sugar."], prompt=CHEESE)
    yield grow("harmful-prompt", ["I am", " sorry, I can't help you with that."], prompt=PIPE)
    yield grow("empty-prompt", ["Thank you", " very much"], prompt="")
    split = "Thank you 😀 so much, 你好".encode()
    yield grow("split-characters", [base(split[at : at + 3]) for at in range(0, len(split), 3)])

    # A fork goes its own way from where it was made.
    growing = Growing(reference)
    start = f"{EVENING}. Now, how can I make a"
    steps = [{"push": start, "expect": growing.push(start.encode())}, {"fork": "other"}]
    fork = growing.fork()
    for on, stream, chunk in (
        ({"on": "other"}, fork, " cheesecake"),
        ({}, growing, " pipe bomb"),
        ({"on": "other"}, fork, " at home?"),
        ({}, growing, " at home?"),
    ):
        steps.append(on | {"push": chunk, "expect": stream.push(chunk.encode())})
    yield {"id": "fork", "steps": steps}

    # A crossing is forgotten by a reset.
    growing = Growing(reference, CHEESE)
    steps = [{"push": PIPE, "expect": growing.push(PIPE.encode())}, {"reset": True}]
    growing = Growing(reference, CHEESE)
    steps.append({"push": EVENING, "expect": growing.push(EVENING.encode())})
    yield {"id": "reset", "prompt": CHEESE, "steps": steps}

    # A push that fails leaves the stream as it was; a finished one takes no more.
    growing = Growing(reference)
    steps = [
        {"push": "Thank you", "expect": growing.push(b"Thank you")},
        {"push": base(b" for \xff"), "status": "invalid_utf8"},
        {"push": " for the evening", "expect": growing.push(b" for the evening")},
        {"push": base("é".encode()[:1]), "expect": growing.push(b"")},
        {"finish": True, "status": "invalid_utf8"},
        {"reset": True},
    ]
    growing = Growing(reference)
    steps += [
        {"push": EVENING, "expect": growing.push(EVENING.encode())},
        {"finish": True, "expect": growing.push(b"", finish=True)},
        {"push": "more", "status": "invalid_argument"},
        {"finish": True, "status": "invalid_argument"},
    ]
    yield {"id": "failures", "steps": steps}
    growing = Growing(reference)
    yield {
        "id": "over-limit",
        "guard": "small",
        "steps": [
            {"push": EVENING, "expect": growing.push(EVENING.encode())},
            {"push": {"repeat": "a", "times": 65}, "status": "limit_exceeded"},
            {"finish": True, "expect": growing.push(b"", finish=True)},
        ],
    }
    for name, options in (("stream-threshold-above", {"threshold": 1.5}), ("stream-window-too-long", {"windows": {"tokens": 513}})):
        yield {"id": name, "options": options, "status": "invalid_argument"}
    yield {"id": "prompt-over-limit", "guard": "small", "prompt": {"repeat": "a", "times": 65}, "status": "limit_exceeded"}


def main():
    torch.set_num_threads(1)
    reference = Reference()
    packages = ("llm-siren", "torch", "transformers", "tokenizers")
    made = {
        "made_by": ["bindings/vectors/make_vectors.py"] + [f"{name} {version(name)}" for name in packages],
        "tolerance": 1e-4,
        "guards": {
            "demo": {"model": "models/demo"},
            "small": {"model": "models/demo", "max_text_bytes": 64, "max_batch": 2},
        },
        "opens": [
            {"id": "no-such-model", "open": {"model": "models/no-such-guard", "offline": True}, "status": "offline"},
            {"id": "not-a-model", "open": {"model": "include"}, "status": "not_found"},
            {"id": "dtype", "open": {"model": "models/demo", "dtype": "f8"}, "status": "invalid_argument"},
            {"id": "device", "open": {"model": "models/demo", "device": "tpu"}, "status": "invalid_argument"},
            {"id": "cuda", "open": {"model": "models/demo", "device": "cuda:99"}, "status": "unsupported"},
        ],
        "batches": [{"guard": "small", "ids": ["at-limit"] * 3, "status": "limit_exceeded"}],
        "scores": list(scores(reference)),
        "streams": list(streams(reference)),
    }
    for kind in ("opens", "scores", "streams"):
        names = [vector["id"] for vector in made[kind]]
        assert len(set(names)) == len(names), f"two {kind} of one name"
    OUT.write_text(json.dumps(made, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
