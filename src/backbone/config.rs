//! `config.json` of a backbone -> the numbers of a Qwen3 or Llama decoder.
//!
//! Whatever this decoder would compute differently from the transformers library is refused:
//! model types, rope types, activations, sliding windows, quantised weights.

use std::path::Path;

use crate::error::Result;
use crate::json::{Document, Node};
use crate::kernels::Heads;

pub(super) const MAX_LAYERS: usize = 1024;
pub(super) const MAX_HEADS: usize = 1024;
pub(super) const MAX_HEAD_DIM: usize = 1024;
pub(super) const MAX_WIDTH: usize = 1 << 18;
pub(super) const MAX_VOCABULARY: usize = 1 << 22;

/// The families that one decoder serves (`model_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `qwen3`: RMSNorm on each query and key head.
    Qwen3,
    /// `llama`
    Llama,
}

impl Family {
    /// The `model_type` of the family's `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Qwen3 => "qwen3",
            Family::Llama => "llama",
        }
    }
}

/// How rotary frequencies are scaled (`rope_scaling` or `rope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// `llama3`: low frequencies are divided by `factor`, with a ramp between the two bounds.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_length: usize,
    },
    /// Each is divided by a factor of its own, `[head_dim / 2]`: how GGUF files say `llama3`.
    Factors(Vec<f32>),
}

/// The shape of a decoder, each field named as in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) rope_scaling: RopeScaling,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
}

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// `InvalidModel` naming the field, what was found and what is accepted.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(&Document::read(path)?)
    }

    /// The heads of its attention blocks.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            query: self.num_attention_heads,
            key_value: self.num_key_value_heads,
            dim: self.head_dim,
        }
    }

    /// The names of all tensors that a model of this shape has, its language-model head aside.
    pub(crate) fn tensor_names(&self) -> Vec<String> {
        let mut names = vec!["model.embed_tokens.weight".into(), "model.norm.weight".into()];
        let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("self_attn.{n}"));
        let mlp = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("mlp.{n}"));
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, kind: &str| {
                names.push(format!("model.layers.{layer}.{name}.{kind}"));
            };
            add("input_layernorm", "weight");
            add("post_attention_layernorm", "weight");
            if self.family == Family::Qwen3 {
                add("self_attn.q_norm", "weight");
                add("self_attn.k_norm", "weight");
            }
            for (linears, bias) in
                [(&attention[..], self.attention_bias), (&mlp[..], self.mlp_bias)]
            {
                for name in linears {
                    add(name, "weight");
                    if bias {
                        add(name, "bias");
                    }
                }
            }
        }
        names
    }

    fn parse(document: &Document) -> Result<Self> {
        let root = document.root()?;
        let family = family(&root)?;
        refuse_what_differs(&root)?;
        let hidden_size = root.require("hidden_size")?.integer(1, MAX_WIDTH)?;
        let num_attention_heads = root.require("num_attention_heads")?.integer(1, MAX_HEADS)?;
        let num_key_value_heads = match (root.get_non_null("num_key_value_heads")?, family) {
            (Some(node), _) => {
                let heads = node.integer(1, MAX_HEADS)?;
                if !num_attention_heads.is_multiple_of(heads) {
                    return Err(node.unexpected(format_args!(
                        "a divisor of num_attention_heads ({num_attention_heads})"
                    )));
                }
                heads
            }
            (None, Family::Llama) => num_attention_heads,
            (None, Family::Qwen3) => root.require("num_key_value_heads")?.integer(1, MAX_HEADS)?,
        };
        let head_dim = match (root.get_non_null("head_dim")?, family) {
            (Some(node), _) => {
                let dim = node.integer(2, MAX_HEAD_DIM)?;
                if dim % 2 != 0 {
                    return Err(node.unexpected("an even number"));
                }
                dim
            }
            // The defaults of the transformers library's configuration classes.
            (None, Family::Qwen3) => 128,
            (None, Family::Llama) => {
                let node = root.require("hidden_size")?;
                if !hidden_size.is_multiple_of(2 * num_attention_heads) {
                    return Err(node.unexpected(format_args!(
                        "an even multiple of num_attention_heads ({num_attention_heads}), since \
                         head_dim is absent"
                    )));
                }
                hidden_size / num_attention_heads
            }
        };
        let (rope_theta, rope_scaling) = rope(&root)?;
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: root.require("intermediate_size")?.integer(1, MAX_WIDTH)?,
            num_hidden_layers: root.require("num_hidden_layers")?.integer(1, MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: root.require("vocab_size")?.integer(1, MAX_VOCABULARY)?,
            rms_norm_eps: match root.get_non_null("rms_norm_eps")? {
                Some(node) => node.number(0.0, 1.0)?,
                None => 1e-6,
            },
            rope_theta,
            rope_scaling,
            attention_bias: flag(&root, "attention_bias")?,
            mlp_bias: flag(&root, "mlp_bias")?,
        })
    }
}

fn family(root: &Node<'_>) -> Result<Family> {
    let node = root.require("model_type")?;
    match node.string()? {
        "qwen3" => Ok(Family::Qwen3),
        "llama" => Ok(Family::Llama),
        _ => Err(node.unexpected(r#""qwen3" or "llama""#)),
    }
}

fn flag(root: &Node<'_>, key: &str) -> Result<bool> {
    root.get_non_null(key)?.map_or(Ok(false), |node| node.boolean())
}

/// Settings that change what the transformers library computes and that are not built here.
fn refuse_what_differs(root: &Node<'_>) -> Result<()> {
    if let Some(node) = root.get_non_null("hidden_act")?
        && node.string()? != "silu"
    {
        return Err(node.unexpected(r#""silu""#));
    }
    if let Some(node) = root.get_non_null("quantization_config")? {
        return Err(node.unexpected("no quantised weights in safetensors"));
    }
    if let Some(node) = root.get_non_null("pretraining_tp")?
        && node.integer(0, usize::MAX)? > 1
    {
        return Err(node.unexpected("1"));
    }
    if flag(root, "use_sliding_window")? && root.get_non_null("sliding_window")?.is_some() {
        return Err(root.require("use_sliding_window")?.unexpected("false: no sliding window"));
    }
    if let Some(node) = root.get_non_null("layer_types")? {
        for kind in node.items()? {
            if kind.string()? != "full_attention" {
                return Err(kind.unexpected(r#""full_attention""#));
            }
        }
    }
    Ok(())
}

/// Rope settings in the form of transformers 4 (`rope_theta`, `rope_scaling`) or 5
/// (`rope_parameters`).
fn rope(root: &Node<'_>) -> Result<(f64, RopeScaling)> {
    let parameters = root.get_non_null("rope_parameters")?;
    let scaling = match &parameters {
        Some(node) => Some(node.clone()),
        None => root.get_non_null("rope_scaling")?,
    };
    let theta = match &parameters {
        Some(node) => match node.get_non_null("rope_theta")? {
            Some(theta) => Some(theta),
            None => root.get_non_null("rope_theta")?,
        },
        None => root.get_non_null("rope_theta")?,
    };
    let theta = theta.map_or(Ok(10_000.0), |node| node.number(1.0, 1e12))?;
    for holder in [Some(root.clone()), scaling.clone()].into_iter().flatten() {
        if let Some(node) = holder.get_non_null("partial_rotary_factor")?
            && node.number(0.0, 1.0)? != 1.0
        {
            return Err(node.unexpected("1.0: rotary embedding of the whole head"));
        }
    }
    let Some(scaling) = scaling else { return Ok((theta, RopeScaling::None)) };
    let kind = match scaling.get_non_null("rope_type")? {
        Some(node) => node,
        None => match scaling.get_non_null("type")? {
            Some(node) => node,
            None if scaling.object()?.keys().all(|key| key == "rope_theta") => {
                return Ok((theta, RopeScaling::None));
            }
            None => scaling.require("rope_type")?,
        },
    };
    let scaling = match kind.string()? {
        "default" => RopeScaling::None,
        "llama3" => {
            let low = scaling.require("low_freq_factor")?.number(1e-6, 1e6)?;
            let high = scaling.require("high_freq_factor")?;
            let high_freq_factor = high.number(1e-6, 1e6)?;
            if high_freq_factor <= low {
                return Err(high.unexpected(format_args!("more than low_freq_factor ({low})")));
            }
            RopeScaling::Llama3 {
                factor: scaling.require("factor")?.number(1.0, 1e6)?,
                low_freq_factor: low,
                high_freq_factor,
                original_length: scaling
                    .require("original_max_position_embeddings")?
                    .integer(1, 1 << 30)?,
            }
        }
        _ => return Err(kind.unexpected(r#""default" or "llama3""#)),
    };
    Ok((theta, scaling))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":64,"intermediate_size":96,
        "num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,
        "vocab_size":100,"rms_norm_eps":1e-6,"rope_theta":1000000,"hidden_act":"silu",
        "sliding_window":null,"use_sliding_window":false,"rope_scaling":null}"#;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(&Document::parse("config.json".into(), text.as_bytes())?)
    }

    /// `QWEN3` with one field replaced (or added).
    fn with(key: &str, value: &str) -> String {
        let mut map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(QWEN3).unwrap();
        map.insert(key.into(), serde_json::from_str(value).unwrap());
        serde_json::to_string(&map).unwrap()
    }

    #[test]
    fn a_plain_qwen3_config_is_read() {
        let config = parse(QWEN3).unwrap();
        assert_eq!((config.family, config.head_dim), (Family::Qwen3, 32));
        assert_eq!((config.rope_theta, config.rope_scaling), (1e6, RopeScaling::None));
    }

    #[test]
    fn both_forms_of_rope_settings_are_read() {
        let llama3 = r#"{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,
            "high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
        let old = parse(&with("rope_scaling", llama3)).unwrap();
        let new = parse(&with(
            "rope_parameters",
            &llama3.replacen('{', r#"{"rope_theta":1000000.0,"#, 1),
        ))
        .unwrap();
        assert_eq!(old, new);
        assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { original_length: 8192, .. }));
    }

    #[test]
    fn what_would_be_computed_differently_is_refused_by_name() {
        for (key, value, names) in [
            ("model_type", r#""qwen2""#, "model_type"),
            ("rope_scaling", r#"{"rope_type":"yarn","factor":4.0}"#, "rope_scaling.rope_type"),
            ("rope_scaling", r#"{"type":"dynamic","factor":4.0}"#, "rope_scaling.type"),
            ("rope_parameters", r#"{"rope_type":"longrope"}"#, "rope_parameters.rope_type"),
            ("hidden_act", r#""gelu""#, "hidden_act"),
            ("quantization_config", r#"{"bits":4}"#, "quantization_config"),
            ("layer_types", r#"["full_attention","sliding_attention"]"#, "layer_types[1]"),
            ("partial_rotary_factor", "0.5", "partial_rotary_factor"),
            ("num_key_value_heads", "3", "num_key_value_heads"),
            ("num_key_value_heads", "null", "num_key_value_heads"),
            ("head_dim", "31", "head_dim"),
            ("hidden_size", "-1", "hidden_size"),
            ("hidden_size", "1e300", "hidden_size"),
            ("num_hidden_layers", "4294967296", "num_hidden_layers"),
            ("rms_norm_eps", "-1", "rms_norm_eps"),
            ("attention_bias", "1", "attention_bias"),
            ("pretraining_tp", "2", "pretraining_tp"),
        ] {
            let message = parse(&with(key, value)).unwrap_err().message().to_owned();
            assert!(message.contains(&format!("config.json: {names}: found")), "{message}");
        }
        let mut sliding = with("use_sliding_window", "true");
        sliding = sliding.replace(r#""sliding_window":null"#, r#""sliding_window":4096"#);
        assert!(parse(&sliding).unwrap_err().message().contains("use_sliding_window"));
    }
}
