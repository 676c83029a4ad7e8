//! A GGUF file -> a [`Checkpoint`]: its own names for tensors, and its order of a Llama's query and
//! key rows.

use super::{Checkpoint, Entry, Names, Shard, Stored};
use crate::gguf::Gguf;

/// Names inside a block: of the transformers library, and of GGUF.
const IN_A_BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

impl Checkpoint {
    /// The tensors of a GGUF file. `interleaved` is the length of attention heads whose query and
    /// key rows the converter has laid in pairs, as it does for Llama.
    pub(crate) fn of_gguf(gguf: Gguf, interleaved: Option<usize>) -> Self {
        let (file, bytes, tensors) = gguf.into_parts();
        let tensors = tensors.into_iter().map(|(name, info)| {
            let is_rotated = name.contains(".attn_q.") || name.contains(".attn_k.");
            let entry = Entry {
                shard: 0,
                stored: Stored::As(info.kind),
                shape: info.shape,
                range: info.range,
                interleaved: interleaved.filter(|_| is_rotated),
            };
            (name, entry)
        });
        let tensors = tensors.collect();
        Self { shards: vec![Shard { file, bytes }], tensors, names: Names::Gguf }
    }
}

/// What a GGUF file calls a tensor of the transformers library, if it can hold it.
pub(crate) fn stored_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.")?;
    match name {
        "embed_tokens.weight" => return Some("token_embd.weight".into()),
        "norm.weight" => return Some("output_norm.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (stem, kind) = rest.rsplit_once('.')?;
    let (_, stem) = IN_A_BLOCK.into_iter().find(|(from, _)| *from == stem)?;
    Some(format!("blk.{layer}.{stem}.{kind}"))
}

/// The bytes of `rows` rows with each head's halves apart again: rotating pairs neighbours in the
/// original Llama code and in GGUF files, and the halves of a head in the transformers library.
pub(super) fn halves_apart(bytes: &[u8], rows: usize, head: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * head) {
        for half in 0..2 {
            for pair in head.chunks_exact(2 * row) {
                out.extend_from_slice(&pair[half * row..][..row]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_converter() {
        for (ours, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.12.self_attn.o_proj.bias", "blk.12.attn_output.bias"),
            ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
        ] {
            assert_eq!(stored_name(ours).as_deref(), Some(gguf));
        }
        for other in ["lm_head.weight", "embed_tokens.weight", "model.layers.1.mlp.experts.weight"]
        {
            assert_eq!(stored_name(other), None);
        }
    }

    #[test]
    fn pairs_become_halves() {
        // Two heads of four rows of two bytes.
        let paired = b"a0a2a1a3b0b2b1b3";
        assert_eq!(halves_apart(paired, 8, 4), b"a0a1a2a3b0b1b2b3");
    }
}
