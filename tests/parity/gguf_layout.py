"""What llama.cpp's converter makes of a checkpoint in a GGUF file: names, a Llama's rows, the shape."""

import numpy as np

# What a checkpoint's tensors are called in a GGUF file.
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    short = name.removeprefix("model.")
    if short in ("embed_tokens.weight", "norm.weight"):
        return {"e": "token_embd.weight", "n": "output_norm.weight"}[short[0]]
    _, layer, rest = short.split(".", 2)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[stem]}.{kind}"


def in_converters_order(name: str, rows: np.ndarray, config: dict) -> np.ndarray:
    """A Llama's query or key rows as the converter orders them (its `permute`); others as they are."""
    for end, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        if f".{end}_proj." in name:
            parts = rows.reshape(config[heads], 2, rows.shape[0] // config[heads] // 2, *rows.shape[1:])
            return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(rows.shape))
    return rows


def add_shape(writer, config: dict) -> None:
    """The numbers of a backbone's configuration, by a `gguf.GGUFWriter`."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_parameters", config)["rope_theta"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
