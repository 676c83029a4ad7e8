//! The decoder against candle-transformers' own Qwen3 and Llama, neuron by neuron.
//!
//! Their models give the state after the final norm: of the last token for Llama (read through an
//! `lm_head` of ones on the diagonal, once for every prefix), of every token for Qwen3. Backbones
//! are therefore cut to every depth in turn, and guards made that read one neuron of the last
//! block: with logits 0 and x, the score is the logistic function of the neuron's mean.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen3};
use serde_json::{Value, json};
use siren::Input;

use crate::guard_files::{
    BACKBONE, BACKBONE_CONFIG, CONFIG, GuardFiles, HEAD, RawTensor, TOKENIZER,
};
use crate::own_process::measured;

const TOLERANCE: f64 = 1e-5;
const TEXTS: [&str; 3] = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Numbers 1234567, über naïve 你好 <think> and the rest of a somewhat longer text, twice over.",
];

/// States after the final norm, averaged over a text's tokens.
type Means = Box<dyn FnMut(&[u32]) -> Vec<f64>>;

fn means(rows: &Tensor) -> Vec<f64> {
    let rows = rows.to_vec2::<f32>().unwrap();
    let sum = |column: usize| rows.iter().map(|row| f64::from(row[column])).sum::<f64>();
    (0..rows[0].len()).map(|column| sum(column) / rows.len() as f64).collect()
}

/// The weights of a backbone, named as its family's checkpoints do.
fn weights(files: &GuardFiles) -> HashMap<String, Tensor> {
    let tensors = candle_core::safetensors::load_buffer(&files.read(BACKBONE), &Device::Cpu);
    let named = |name: String| match name.starts_with("model.") || name.starts_with("lm_head") {
        true => name,
        false => format!("model.{name}"),
    };
    tensors
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (named(name), tensor.to_dtype(DType::F32).unwrap()))
        .collect()
}

fn read_json(files: &GuardFiles, file: &str) -> Value {
    serde_json::from_slice(&files.read(file)).unwrap()
}

fn qwen3_means(files: &GuardFiles) -> Means {
    let mut config = read_json(files, BACKBONE_CONFIG);
    config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
    let config: qwen3::Config = serde_json::from_value(config).unwrap();
    let vb = VarBuilder::from_tensors(weights(files), DType::F32, &Device::Cpu);
    let model = qwen3::Model::new(&config, vb).unwrap();
    Box::new(move |ids| {
        let mut model = model.clone(); // Its cache is empty, and cannot be emptied.
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        means(&model.forward(&ids, 0).unwrap().i(0).unwrap())
    })
}

fn llama_means(files: &GuardFiles) -> Means {
    let mut config = read_json(files, BACKBONE_CONFIG);
    let parameters = config["rope_parameters"].take();
    config["rope_theta"] = parameters["rope_theta"].clone();
    config["rope_scaling"] =
        if parameters["rope_type"] == "llama3" { parameters } else { Value::Null };
    let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
    let config = config.into_config(false);
    let mut tensors = weights(files);
    let diagonal = (0..config.vocab_size * config.hidden_size)
        .map(|i| f32::from(u8::from(i / config.hidden_size == i % config.hidden_size)));
    let shape = (config.vocab_size, config.hidden_size);
    let lm_head = Tensor::from_iter(diagonal, &Device::Cpu).unwrap().reshape(shape).unwrap();
    tensors.insert("lm_head.weight".into(), lm_head);
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = llama::Llama::load(vb, &config).unwrap();
    Box::new(move |ids| {
        let states: Vec<Tensor> = (1..=ids.len())
            .map(|length| {
                let mut cache =
                    llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
                let ids = Tensor::new(&ids[..length], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                let logits = model.forward(&ids, 0, &mut cache).unwrap();
                logits.narrow(1, 0, config.hidden_size).unwrap()
            })
            .collect();
        means(&Tensor::cat(&states, 0).unwrap())
    })
}

/// Cuts the backbone to `depth` blocks and makes a guard that reads all neurons of the last.
fn cut(files: &GuardFiles, depth: usize, hidden: usize) {
    files.json(BACKBONE_CONFIG, |config| {
        config["num_hidden_layers"] = json!(depth);
        if let Some(types) = config["layer_types"].as_array_mut() {
            types.truncate(depth);
        }
    });
    let key = format!("layer{}_residual_mean", depth - 1);
    let config = json!({
        "base_model": {"model_id": "example/backbone"},
        "siren_module": {
            "pooling_type": "residual_mean",
            "selected_layers": [depth - 1],
            "layer_weights": {},
            "selected_neurons_dict": {key: (0..hidden).collect::<Vec<_>>()},
        },
        "mlp": {"input_dim": hidden, "layer_dims": [], "dropout_rates": []},
        "inference": {"max_length": 512, "default_threshold": 0.5},
    });
    files.write(CONFIG, config.to_string());
}

/// A head whose logit of class 1 is one feature.
fn read_neuron(files: &GuardFiles, neuron: usize, hidden: usize) {
    let mut weight = vec![0.0; 2 * hidden];
    weight[hidden + neuron] = 1.0;
    files.write(
        HEAD,
        RawTensor::write_all(&[
            RawTensor::f32("network.0.bias", &[2], &[0.0; 2]),
            RawTensor::f32("network.0.weight", &[2, hidden], &weight),
        ]),
    );
}

/// Every neuron at every depth, on every text.
fn compare(what: &str, files: &GuardFiles, their_means: fn(&GuardFiles) -> Means) {
    let config = read_json(files, BACKBONE_CONFIG);
    let [depth, hidden] = ["num_hidden_layers", "hidden_size"]
        .map(|key| usize::try_from(config[key].as_u64().unwrap()).unwrap());
    let tokenizer = tokenizers::Tokenizer::from_file(files.path(TOKENIZER)).unwrap();
    let ids = TEXTS.map(|text| tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec());
    let (mut worst, mut spread) = (0.0_f64, 0.0_f64);
    for depth in 1..=depth {
        cut(files, depth, hidden);
        let mut their_means = their_means(files);
        let expected: Vec<Vec<f64>> = ids.iter().map(|ids| their_means(ids)).collect();
        for neuron in 0..hidden {
            read_neuron(files, neuron, hidden);
            let guard = files.open().unwrap();
            for ((text, ids), means) in TEXTS.iter().zip(&ids).zip(&expected) {
                let score = guard.score(Input::Text(text), None).unwrap();
                assert_eq!(score.tokens, ids.len(), "{text}");
                let logistic = 1.0 / (1.0 + (-means[neuron]).exp());
                worst = worst.max((score.score - logistic).abs());
                spread = spread.max((logistic - 0.5).abs());
            }
        }
    }
    measured(format_args!("{what}: worst difference {worst:.1e}, scores up to 0.5 ± {spread:.2}"));
    assert!(spread > 0.1, "{what}: the scores show nothing ({spread})");
    assert!(worst < TOLERANCE, "{what}: {worst:e}");
}

#[test]
fn qwen3() {
    compare("qwen3", &GuardFiles::fixture("qwen3-residual-last"), qwen3_means);
}

#[test]
fn qwen3_with_one_key_value_head() {
    compare("qwen3, one KV head", &GuardFiles::fixture("qwen3-mlp-inner"), qwen3_means);
}

#[test]
fn qwen3_with_attention_bias() {
    compare("qwen3, biases", &GuardFiles::fixture("qwen3-mlp-last"), qwen3_means);
}

#[test]
fn llama() {
    compare("llama", &GuardFiles::fixture("llama-linear"), llama_means);
}

#[test]
fn llama_with_scaled_rope() {
    let files = GuardFiles::fixture("llama-linear");
    files.set(
        BACKBONE_CONFIG,
        "/rope_parameters",
        Some(json!({"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16})),
    );
    compare("llama3 rope", &files, llama_means);
}
