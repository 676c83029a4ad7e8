//! Scores against those of `llm-siren` 0.2.0, the published reference, on the same texts.
//! `README.md` in this folder says how the fixtures were made.

#![allow(clippy::print_stdout)] // What a test measured is for its reader.

/// A test by each small fixture's name, which hands it to `$check`.
macro_rules! small_fixtures {
    ($check:expr) => {
        small_fixtures! {
            $check;
            qwen3_residual_last: 0,
            qwen3_residual_inner: 1,
            qwen3_mlp_last: 2,
            qwen3_mlp_inner: 3,
            qwen3_short: 4,
            llama_residual_rope: 5,
            llama_mlp_bias: 6,
            llama_linear: 7,
            llama_short: 8,
        }
    };
    ($check:expr; $($test:ident: $index:literal,)*) => {$(
        #[test]
        fn $test() {
            $check($crate::SMALL[$index]);
        }
    )*};
}

mod as_gpu;
mod gguf;
mod int8;
mod rule;
mod vectors;

use std::path::{Path, PathBuf};

use siren::{Dtype, Guard, OpenOptions};
use vectors::{Vector, Vectors};

/// The bound that libsiren promises in f32.
const TOLERANCE: f64 = 1e-4;
/// Fixtures that hold their whole backbone.
const SMALL: [&str; 9] = [
    "qwen3-residual-last",
    "qwen3-residual-inner",
    "qwen3-mlp-last",
    "qwen3-mlp-inner",
    "qwen3-short",
    "llama-residual-rope",
    "llama-mlp-bias",
    "llama-linear",
    "llama-short",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures").join(name)
}

fn options(model: &Path, backbone: &Path) -> OpenOptions {
    OpenOptions {
        backbone: Some(backbone.display().to_string()),
        ..OpenOptions::new(model.display().to_string())
    }
}

/// Scores each vector alone; asserts tokens and truncation, and returns the worst difference.
fn worst_alone(guard: &Guard, vectors: &[Vector], expected: impl Fn(&Vector) -> f64) -> f64 {
    let mut worst = 0.0f64;
    for vector in vectors {
        let result = guard.score(vector.input(), None).unwrap();
        assert_eq!(result.tokens, vector.tokens, "tokens of {}", vector.id);
        assert_eq!(result.truncated, vector.truncated, "truncated of {}", vector.id);
        worst = worst.max((result.score - expected(vector)).abs());
    }
    worst
}

/// Every promise that does not depend on how the backbone's directory came about.
fn check(name: &str, model: &Path, backbone: &Path) {
    let vectors = Vectors::read(&fixture(name));
    let open = |dtype, threads, max_length| {
        Guard::open(OpenOptions { dtype, threads, max_length, ..options(model, backbone) }).unwrap()
    };
    let guard = open(Dtype::F32, Some(2), None);
    let worst = worst_alone(&guard, &vectors.vectors, |v| v.score);
    println!("{name}: worst f32 difference {worst:.2e}");
    assert!(worst <= TOLERANCE, "{name}: {worst:e}");

    // A text's score does not depend on its neighbours or on the threads: not in one bit.
    let inputs: Vec<_> = vectors.vectors.iter().map(Vector::input).collect();
    let alone: Vec<f64> =
        inputs.iter().map(|input| guard.score(*input, None).unwrap().score).collect();
    let scores = |guard: &Guard| -> Vec<f64> {
        let results = guard.score_batch(&inputs, None).unwrap();
        results.into_iter().map(|result| result.unwrap().score).collect()
    };
    assert_eq!(scores(&guard), alone, "{name}: a batch changes scores");
    assert_eq!(scores(&open(Dtype::F32, Some(1), None)), alone, "{name}: threads change scores");

    for vector in &vectors.max_length_vectors {
        let guard = open(Dtype::F32, Some(2), vector.max_length);
        let worst = worst_alone(&guard, std::slice::from_ref(vector), |v| v.score);
        assert!(worst <= TOLERANCE, "{name}, max_length {:?}: {worst:e}", vector.max_length);
    }

    // bf16: no further from f32 than the reference's own bf16 is.
    let noise = |v: &Vector| (v.score - v.score_bf16).abs();
    let reference = vectors.vectors.iter().map(noise).fold(0.0, f64::max);
    let worst = worst_alone(&open(Dtype::Bf16, Some(2), None), &vectors.vectors, |v| v.score);
    println!("{name}: worst bf16 difference {worst:.2e}, the reference's {reference:.2e}");
    assert!(worst <= reference, "{name}: bf16 is off by {worst:e}, the reference by {reference:e}");
}

small_fixtures!(|name| check(name, &fixture(name), &fixture(name).join("backbone")));

#[test]
fn every_fixture_is_checked() {
    let mut names: Vec<_> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected: Vec<_> = SMALL.to_vec();
    expected.extend(["qwen3-real", "llama32-real"]);
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn the_weight_rule_gives_the_documented_values() {
    let value = |key, index, base, scale| rule::value(key, index, base, scale).to_bits();
    assert_eq!(value("model.embed_tokens.weight", 0, 0.0, 1.0), 0xbe83_cc6e);
    assert_eq!(value("model.embed_tokens.weight", 31, 0.0, 1.0), 0x3e7a_df22);
    assert_eq!(value("model.layers.1.self_attn.q_proj.weight", 1, 0.0, 0.6), 0xbe9a_2034);
    assert_eq!(value("model.norm.weight", 0, 1.0, 0.4), 0x3f23_923f);
}

#[test]
fn the_real_qwen3_tokenizer() {
    let model = fixture("qwen3-real");
    let backbone = tempfile::tempdir().unwrap();
    let packed = std::fs::File::open(model.join("backbone/tokenizer.json.gz")).unwrap();
    let mut tokenizer = std::fs::File::create(backbone.path().join("tokenizer.json")).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut tokenizer).unwrap();
    rule::write_backbone(&model.join("backbone"), backbone.path());
    check("qwen3-real", &model, backbone.path());
}

/// The Llama tokenizer is not ours to commit: `make fetch-llama-tokenizer` puts it where
/// `SIREN_LLAMA_TOKENIZER` then points.
#[test]
fn the_real_llama_tokenizer() {
    let Some(tokenizer) = std::env::var_os("SIREN_LLAMA_TOKENIZER").filter(|v| !v.is_empty())
    else {
        println!("SKIPPED: SIREN_LLAMA_TOKENIZER does not name the tokenizer's directory");
        return;
    };
    let model = fixture("llama32-real");
    let backbone = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&tokenizer).join(file), backbone.path().join(file)).unwrap();
    }
    rule::write_backbone(&model.join("backbone"), backbone.path());
    check("llama32-real", &model, backbone.path());
}
