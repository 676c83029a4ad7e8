//! The metadata of a GGUF file -> the numbers of a decoder, and a check of what else the file holds.
//!
//! Everything under the architecture's own prefix that is not known here may change what the model
//! computes, and is refused; so is every tensor that the decoder would not use.

use std::collections::HashSet;

use super::config::{
    Config, Family, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, RopeScaling,
};
use crate::checkpoint::gguf_name;
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// Factors by which a Llama 3's rotary frequencies are divided, one a pair of dimensions.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The language-model head, and what is not a weight: never read.
const UNUSED: [&str; 2] = ["output.weight", ROPE_FACTORS];

/// Keys, without the architecture's prefix, that are read or that change nothing for a guard.
const KNOWN: [&str; 18] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

impl Config {
    /// Reads and checks the metadata of `gguf`.
    ///
    /// # Errors
    /// `InvalidModel` naming the key or tensor, what was found and what is accepted.
    pub(crate) fn of_gguf(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.require("general.architecture")?;
        let family = match architecture.string()? {
            "qwen3" => Family::Qwen3,
            "llama" => Family::Llama,
            _ => return Err(architecture.unexpected(r#""qwen3" or "llama""#)),
        };
        let prefix = family.model_type();
        refuse_what_differs(gguf, prefix)?;
        let key = |name: &str| format!("{prefix}.{name}");
        let integer = |name: &str, most: usize| gguf.require(&key(name))?.integer(1, most);

        let hidden_size = integer("embedding_length", MAX_WIDTH)?;
        let num_attention_heads = integer("attention.head_count", MAX_HEADS)?;
        let key_value_heads = key("attention.head_count_kv");
        let num_key_value_heads = match gguf.get(&key_value_heads) {
            None => num_attention_heads,
            Some(field) => {
                let heads = field.integer(1, MAX_HEADS)?;
                if !num_attention_heads.is_multiple_of(heads) {
                    return Err(field.unexpected(format_args!(
                        "a divisor of {} ({num_attention_heads})",
                        key("attention.head_count")
                    )));
                }
                heads
            }
        };
        let head_dim = head_dim(gguf, &key, hidden_size, num_attention_heads)?;
        let eps = key("attention.layer_norm_rms_epsilon");
        let vocab_size = vocab_size(gguf, &key("vocab_size"), hidden_size)?;
        let has = |tensor: &str| gguf.tensor(tensor).is_some();
        let config = Self {
            family,
            hidden_size,
            intermediate_size: integer("feed_forward_length", MAX_WIDTH)?,
            num_hidden_layers: integer("block_count", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: gguf.require(&eps)?.number(0.0, 1.0)?,
            rope_theta: match gguf.get(&key("rope.freq_base")) {
                Some(field) => field.number(1.0, 1e12)?,
                None => 10_000.0,
            },
            rope_scaling: rope_scaling(gguf, head_dim)?,
            attention_bias: has("blk.0.attn_q.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
        };
        check_tensors(gguf, &config)?;
        Ok(config)
    }
}

/// Settings that change what is computed and that are not built here.
fn refuse_what_differs(gguf: &Gguf, prefix: &str) -> Result<()> {
    let splits = "split.count";
    if let Some(field) = gguf.get(splits)
        && field.integer(0, usize::MAX)? > 1
    {
        return Err(field.unexpected("1: join a split file first (llama-gguf-split --merge)"));
    }
    let mut unknown: Vec<_> = gguf
        .fields()
        .filter(|field| {
            let name = field.key().strip_prefix(prefix).and_then(|name| name.strip_prefix('.'));
            name.is_some_and(|name| !KNOWN.contains(&name))
        })
        .collect();
    unknown.sort_by_key(|field| field.key());
    if let Some(field) = unknown.first() {
        return Err(field.unexpected("no key but those that this decoder is known to follow"));
    }
    for name in ["attention.sliding_window", "expert_count", "expert_used_count"] {
        if let Some(field) = gguf.get(&format!("{prefix}.{name}"))
            && field.integer(0, usize::MAX)? > 0
        {
            return Err(field.unexpected("0"));
        }
    }
    match gguf.get(&format!("{prefix}.rope.scaling.type")) {
        Some(field) if field.string()? != "none" => Err(field.unexpected(r#""none""#)),
        _ => Ok(()),
    }
}

/// The length of a head, by whichever keys tell it; all of them must agree.
fn head_dim(
    gguf: &Gguf,
    key: &impl Fn(&str) -> String,
    hidden_size: usize,
    heads: usize,
) -> Result<usize> {
    let length = key("attention.key_length");
    let dim = match gguf.get(&length) {
        Some(field) => field.integer(2, MAX_HEAD_DIM)?,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => return Err(gguf.missing(&length)),
    };
    if dim % 2 != 0 || dim > MAX_HEAD_DIM {
        let expected = format!("an even number up to {MAX_HEAD_DIM}");
        return Err(Error::model(gguf.file(), length, dim, expected));
    }
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(field) = gguf.get(&key(other))
            && field.integer(0, usize::MAX)? != dim
        {
            return Err(field.unexpected(format_args!("{dim}, the length of a head")));
        }
    }
    Ok(dim)
}

/// Rows of the embedding table, which the key must agree with if it is there.
fn vocab_size(gguf: &Gguf, key: &str, hidden_size: usize) -> Result<usize> {
    let name = "token_embd.weight";
    let table = gguf.tensor(name).map_or(&[][..], |info| &info.shape);
    let [vocab_size @ 1..=MAX_VOCABULARY, width] = *table else {
        let found = if table.is_empty() { "nothing".into() } else { format!("shape {table:?}") };
        let expected = format!("shape [1 to {MAX_VOCABULARY}, {hidden_size}]");
        return Err(Error::model(gguf.file(), format!("tensor {name:?}"), found, expected));
    };
    if width != hidden_size {
        let expected = format!("shape [{vocab_size}, {hidden_size}]");
        let found = format!("shape {table:?}");
        return Err(Error::model(gguf.file(), format!("tensor {name:?}"), found, expected));
    }
    match gguf.get(key) {
        Some(field) if field.integer(0, usize::MAX)? != vocab_size => {
            Err(field.unexpected(format_args!("{vocab_size}, the rows of {name}")))
        }
        _ => Ok(vocab_size),
    }
}

fn rope_scaling(gguf: &Gguf, head_dim: usize) -> Result<RopeScaling> {
    let Some(factors) = gguf.f32_vector(ROPE_FACTORS, head_dim / 2)? else {
        return Ok(RopeScaling::None);
    };
    match factors.iter().find(|f| !(1.0..=1e6).contains(*f)) {
        Some(bad) => Err(Error::model(
            gguf.file(),
            format!("tensor {ROPE_FACTORS:?}"),
            bad,
            "factors from 1 to 1000000",
        )),
        None => Ok(RopeScaling::Factors(factors)),
    }
}

/// Refuses tensors that the decoder would leave out.
fn check_tensors(gguf: &Gguf, config: &Config) -> Result<()> {
    let known: HashSet<String> = config
        .tensor_names()
        .iter()
        .filter_map(|name| gguf_name(name))
        .chain(UNUSED.map(String::from))
        .collect();
    let names = gguf.tensors().map(|(name, _)| name);
    match names.filter(|name| !known.contains(*name)).min() {
        Some(name) => Err(Error::model(
            gguf.file(),
            format!("tensor {name:?}"),
            "a tensor that this architecture has not",
            format!(
                "the tensors of {} blocks of a {} model",
                config.num_hidden_layers,
                config.family.model_type()
            ),
        )),
        None => Ok(()),
    }
}
