//! Backbone weights by an integer hash (`README.md`, "The weight rule").

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub fn value(key: &str, index: u64, base: f64, scale: f64) -> f32 {
    let hash = splitmix64(fnv1a64(key.as_bytes()).wrapping_add(index)) >> 32;
    (base + scale * (hash as f64 / 2_147_483_648.0 - 1.0)) as f32
}

fn base_and_scale(name: &str) -> (f64, f64) {
    match name {
        _ if name.ends_with("norm.weight") => (1.0, 0.4),
        _ if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
        _ if name.contains("q_proj") || name.contains("k_proj") => (0.0, 0.6),
        _ if name.contains("down_proj") => (0.0, 0.3),
        _ => (0.0, 0.4),
    }
}

/// Copies the small files of `source` and writes `model.safetensors` for its `config.json`.
pub fn write_backbone(source: &Path, target: &Path) {
    for file in ["config.json", "tokenizer_config.json"] {
        if source.join(file).is_file() {
            std::fs::copy(source.join(file), target.join(file)).unwrap();
        }
    }
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, inner, head) = (size("hidden_size"), size("intermediate_size"), size("head_dim"));
    let query = size("num_attention_heads") * head;
    let key_value = size("num_key_value_heads") * head;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![size("vocab_size"), hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..size("num_hidden_layers") {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[query, hidden]);
        add("self_attn.k_proj", &[key_value, hidden]);
        add("self_attn.v_proj", &[key_value, hidden]);
        add("self_attn.o_proj", &[hidden, query]);
        if config["model_type"] == "qwen3" {
            add("self_attn.q_norm", &[head]);
            add("self_attn.k_norm", &[head]);
        }
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let (base, scale) = base_and_scale(&name);
            let count = shape.iter().product::<usize>() as u64;
            let bytes = (0..count).flat_map(|i| value(&name, i, base, scale).to_le_bytes());
            let bytes = bytes.collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &target.join("model.safetensors")).unwrap();
}
