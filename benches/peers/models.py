"""The files that each engine reads, made from one guard of make_shape.py, and torch's answers.

Everything is kept in a work folder, and made once: the weights are the guard's, the token ids those
of the texts that `siren bench` makes. A GGUF file holds the embeddings of the tokens that the
tokenizer knows, and not the rest of the real vocabulary: llama.cpp multiplies every hidden state
with them to get logits, whether or not they are read, and nothing else depends on their number.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

BENCHES = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(BENCHES), str(BENCHES.parent / "tests/parity")]

LENGTHS = (16, 32, 128, 512)
PREFIX, PUSH = 1000, 16  # a push of 16 tokens onto 1,000
GGUF = ("BF16", "Q8_0", "Q4_0")


def token_ids(backbone, tokens):
    """The ids of the text of `tokens` tokens that `siren bench` makes."""
    import compare
    from siren_guard.siren_guard import _to_raw_text as clean
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    ids = tokenizer.encode(clean(compare.bench_text(
        tokens, lambda text: len(tokenizer.encode(clean(text)).ids)))).ids
    if len(ids) != tokens:
        sys.exit(f"no text of {tokens} tokens could be made with {backbone}/tokenizer.json")
    return ids


def torch_model(backbone, dtype):
    """The backbone without its lm_head; dtype is a torch dtype's name."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(
        backbone, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()


def whole_pass(model):
    """Ids to last hidden states, as a module that can be traced for any number of tokens."""
    import torch

    class Pass(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            # Attention without a mask is causal; the positions given, nothing is looked for in them.
            return self.model(
                input_ids=input_ids, attention_mask={"full_attention": None}, use_cache=False,
                position_ids=torch.arange(input_ids.shape[1])[None]).last_hidden_state

    return Pass().eval()


def hidden_states(model, ids):
    import torch

    with torch.no_grad():
        return whole_pass(model)(torch.tensor([ids]))[0].float().numpy()


# --- one function a file ---------------------------------------------------------------------


def make_ids(guard, path):
    ids = {str(tokens): token_ids(guard / "backbone", tokens)
           for tokens in (*LENGTHS, PREFIX + PUSH)}
    path.write_text(json.dumps(ids))


def make_reference(guard, path):
    """What torch computes in f32 on the weights of `guard`: hidden states of every text, and as
    `scores` what llm-siren scores the texts of LENGTHS."""
    import compare
    import torch

    threads = os.cpu_count()
    torch.set_num_threads(threads)
    ids = json.loads((path.parent / "ids.json").read_text())
    model = torch_model(guard / "backbone", "float32")
    arrays = {tokens: hidden_states(model, ids[tokens]) for tokens in ids}
    del model
    siren = compare.Reference(guard, "f32", threads)
    arrays["scores"] = np.array([siren.measure([n], 1)["scores"][0] for n in LENGTHS])
    siren.close()
    np.savez(path, **arrays)


def make_onnx(guard, path):
    import torch

    example = torch.arange(32)[None]
    with torch.no_grad():
        torch.onnx.export(
            whole_pass(torch_model(guard / "backbone", "float32")), (example,), str(path),
            dynamo=True, input_names=["input_ids"], output_names=["hidden"], external_data=True,
            verbose=False,
            dynamic_shapes={"input_ids": {1: torch.export.Dim("tokens", min=2, max=4096)}})


def make_openvino(guard, path):
    import openvino
    import torch

    model = openvino.convert_model(
        whole_pass(torch_model(guard / "backbone", "float32")),
        example_input=torch.arange(32)[None], input=[("input_ids", [1, -1], openvino.Type.i64)])
    # Every weight is a bf16 number: f32 keeps all of it, f16 would not.
    openvino.save_model(model, path, compress_to_fp16=False)


def make_openvino_int8(_, path):
    import nncf
    import openvino

    model = openvino.Core().read_model(path.with_name("openvino.xml"))
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, path, compress_to_fp16=False)


def make_gguf(guard, path):
    """As llama.cpp's converter names what it stores; norms are f32, all other tensors PATH's type."""
    import make_gguf as parity
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from gguf_layout import gguf_name
    from safetensors import safe_open
    from tokenizers import Tokenizer

    of = GGMLQuantizationType[path.stem]
    backbone = guard / "backbone"
    config = json.loads((backbone / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    config["vocab_size"] = tokenizer.get_vocab_size()
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    shape = SimpleNamespace(name="shape", family="qwen3", config=config)
    writer = GGUFWriter(path, "qwen3")
    parity.add_metadata(writer, shape)
    parity.add_tokenizer(writer, tokenizer, shape)
    with safe_open(backbone / "model.safetensors", "pt") as file:
        for name in file.keys():
            values = file.get_tensor(name).to(torch.float32).numpy()
            if name == "model.embed_tokens.weight":
                values = values[:config["vocab_size"]]
            kind = of if values.ndim > 1 else GGMLQuantizationType.F32
            writer.add_tensor(gguf_name(name), quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_dequantised(guard, path):
    """The guard on what a GGUF file's blocks stand for, in f32; PATH is its backbone's weights."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from gguf_layout import gguf_name
    from safetensors import safe_open
    from safetensors.torch import save_file

    out = path.parent.parent
    file = out.parent / f"{out.name}.gguf"
    blocks = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    tensors = {}
    with safe_open(guard / "backbone/model.safetensors", "pt") as original:
        for name in original.keys():
            tensor = blocks[gguf_name(name)]
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            tensors[name] = torch.from_numpy(values.reshape(tensor.shape[::-1].tolist()))
    config = json.loads((guard / "backbone/config.json").read_text())
    config["vocab_size"] = len(tensors["model.embed_tokens.weight"])
    config["torch_dtype"] = "float32"
    for name in ("siren_config.json", "siren.safetensors"):
        shutil.copy(guard / name, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(guard / "backbone" / name, path.parent)
    (path.parent / "config.json").write_text(json.dumps(config))
    save_file(tensors, path, metadata={"format": "pt"})


# --- all of them -----------------------------------------------------------------------------

# A file of the work folder, how it is made, of which guard, and the packages that it takes. Later
# ones may read earlier ones.
TORCH = ("torch", "transformers")
FILES = {
    "ids.json": (make_ids, ".", ("tokenizers", "siren_guard")),
    "reference.npz": (make_reference, ".", (*TORCH, "siren_guard")),
    "openvino.xml": (make_openvino, ".", (*TORCH, "openvino")),
    "openvino-int8.xml": (make_openvino_int8, ".", ("openvino", "nncf")),
    "model.onnx": (make_onnx, ".", (*TORCH, "onnx", "onnxscript")),
}
for _type in GGUF:
    FILES[f"{_type}.gguf"] = (make_gguf, ".", (*TORCH, "gguf"))
for _type in GGUF[1:]:
    FILES[f"{_type}/backbone/model.safetensors"] = (make_dequantised, ".", (*TORCH, "gguf"))
    FILES[f"{_type}.npz"] = (make_reference, _type, (*TORCH, "gguf", "siren_guard"))


def make(name, guard, work):
    function, of, _ = FILES[name]
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is whole; converters want its ending, and its folder.
    function(guard if of == "." else work / of, path)
