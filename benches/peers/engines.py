"""One process for each rival: it opens its model once, and answers a JSON line for each request.

    python engines.py ENGINE TYPE WORK GUARD THREADS

A request names a text by its number of tokens, or a push; the answer has the milliseconds of each
timed call, after one that is not timed, and how far the last hidden states are from torch's in f32:
the largest difference of a value, as a part of the largest value.
"""

import ctypes
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from models import PREFIX, PUSH, torch_model, whole_pass


class Torch:
    """transformers' eager mode with SDPA, without lm_head and without a cache."""

    packages = ("torch", "transformers")

    def __init__(self, dtype, work, guard, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = torch_model(guard / "backbone", {"f32": "float32", "bf16": "bfloat16"}[dtype])
        self.whole = whole_pass(self.model)
        self.cache = None

    def run(self, ids):
        with self.torch.inference_mode():
            return self.whole(self.torch.tensor([ids]))[0].float().numpy()

    def hold(self, ids):
        with self.torch.inference_mode():
            out = self.model(input_ids=self.torch.tensor([ids]), use_cache=True)
        self.cache = out.past_key_values

    def push(self, ids):
        with self.torch.inference_mode():
            out = self.model(input_ids=self.torch.tensor([ids]), past_key_values=self.cache,
                             use_cache=True)
        self.cache.crop(-len(ids))
        return out.last_hidden_state[0].float().numpy()


class OpenVino:
    """A graph of any number of tokens, traced from the torch model, with its latency settings."""

    packages = ("openvino",)

    def __init__(self, dtype, work, guard, threads):
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        file = "openvino.xml"
        if dtype == "int8 weights":
            file = "openvino-int8.xml"  # and what else there is in what it takes for this CPU
        else:
            options["INFERENCE_PRECISION_HINT"] = dtype
        model = openvino.Core().compile_model(work / file, "CPU", options)
        if dtype in ("f32", "bf16"):
            used = model.get_property("INFERENCE_PRECISION_HINT").to_string()
            if used != {"f32": "f32", "bf16": "bf16"}[dtype]:
                sys.exit(f"OpenVINO computes in {used} on this CPU, not in {dtype}")
        self.request = model.create_infer_request()

    def run(self, ids):
        return self.request.infer([np.array([ids], np.int64)])[0][0]


class OnnxRuntime:
    packages = ("onnxruntime",)

    def __init__(self, dtype, work, guard, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(work / "model.onnx", options,
                                                    providers=["CPUExecutionProvider"])

    def run(self, ids):
        return self.session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]


class LlamaCpp:
    """llama.cpp through the C API that llama-cpp-python binds, embeddings of every token."""

    packages = ("llama_cpp",)

    def __init__(self, dtype, work, guard, threads):
        import llama_cpp

        self.api = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        self.quiet = quiet  # for as long as it is called
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        dtype, _, way = dtype.partition(", ")
        # Its AMX kernels for quantised blocks crash on some machines.
        params.use_extra_bufts = way != "not repacked"
        file = str(work / f"{dtype}.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(file, params)
        if not self.model:
            sys.exit(f"llama.cpp does not open {file.decode()}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, 1024, 512
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.width = llama_cpp.llama_model_n_embd(self.model)

    def decode(self, ids, start):
        self.api.llama_memory_seq_rm(self.memory, 0, start, -1)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        status = self.api.llama_decode(self.context,
                                       self.api.llama_batch_get_one(tokens, len(ids)))
        if status:
            sys.exit(f"llama_decode: {status}")
        values = self.api.llama_get_embeddings(self.context)
        return np.ctypeslib.as_array(values, (len(ids), self.width)).copy()

    def run(self, ids):
        return self.decode(ids, 0)

    def hold(self, ids):
        self.decode(ids, 0)

    def push(self, ids):
        return self.decode(ids, PREFIX)


ENGINES = {"torch": Torch, "OpenVINO": OpenVino, "ONNX Runtime": OnnxRuntime,
           "llama.cpp": LlamaCpp}


def versions(engine):
    known = importlib.metadata.packages_distributions()
    return {known[name][0]: importlib.metadata.version(known[name][0])
            for name in ENGINES[engine].packages}


def timed(call, repeat, limit_s):
    """The result of the untimed first call, and the times of `repeat` others, or of as many as
    `limit_s` seconds take, but of one."""
    result, runs = call(), []
    while len(runs) < repeat and (not runs or sum(runs) < limit_s * 1e3):
        start = time.perf_counter()
        call()
        runs.append((time.perf_counter() - start) * 1e3)
    return result, runs


def main():
    engine, dtype, work, guard, threads = sys.argv[1:]
    work = Path(work)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    ids = json.loads((work / "ids.json").read_text())
    quantised = work / f"{dtype.partition(',')[0]}.npz"
    reference = np.load(quantised if quantised.is_file() else work / "reference.npz")
    opened = ENGINES[engine](dtype, work, Path(guard), int(threads))
    print(json.dumps({"versions": versions(engine)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("push"):
            text = ids[str(PREFIX + PUSH)]
            expected = reference[str(PREFIX + PUSH)][PREFIX:]
            opened.hold(text[:PREFIX])
            result, runs = timed(lambda: opened.push(text[PREFIX:]), request["repeat"],
                                 request["limit_s"])
        else:
            text = ids[str(request["tokens"])]
            expected = reference[str(request["tokens"])]
            result, runs = timed(lambda: opened.run(text), request["repeat"], request["limit_s"])
        apart = float(np.abs(result - expected).max() / np.abs(expected).max())
        print(json.dumps({"runs": runs, "apart": apart}), file=answers, flush=True)


if __name__ == "__main__":
    main()
