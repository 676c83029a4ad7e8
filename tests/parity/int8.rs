//! `int8` against the reference's f32 scores: near them, and the same bits however a text is scored.

use std::path::Path;

use serde_json::Value;
use siren::{Dtype, Guard, Input};

use crate::vectors::{Vector, Vectors};
use crate::{SMALL, fixture, gguf, options, worst_alone};

/// Of tiny models with random weights, whose sums are of few products and whose scores hang on every
/// one of them. Real ones are nearer: see `the_demo_guard_decides_the_same`.
const NOISE: f64 = 0.06;

fn open(model: &Path, backbone: &Path, threads: usize) -> Guard {
    let mut options = options(model, backbone);
    (options.dtype, options.threads) = (Dtype::Int8, Some(threads));
    let guard = Guard::open(options).unwrap();
    assert_eq!(guard.info().dtype, "int8");
    guard
}

/// The worst difference to the reference's f32; alone, in a batch and on other threads scores agree.
fn worst(model: &Path, backbone: &Path) -> f64 {
    let vectors = Vectors::read(model).vectors;
    let guard = open(model, backbone, 2);
    let inputs: Vec<_> = vectors.iter().map(Vector::input).collect();
    let alone: Vec<f64> = inputs.iter().map(|i| guard.score(*i, None).unwrap().score).collect();
    for guard in [guard, open(model, backbone, 1), open(model, backbone, 3)] {
        let batch = guard.score_batch(&inputs, None).unwrap();
        let batch: Vec<f64> = batch.into_iter().map(|score| score.unwrap().score).collect();
        assert_eq!(batch, alone, "{}: a batch changes scores", model.display());
    }
    worst_alone(&open(model, backbone, 2), &vectors, |v| v.score)
}

#[test]
fn small_guards_are_near_the_reference() {
    for name in SMALL {
        let worst = worst(&fixture(name), &fixture(name).join("backbone"));
        println!("{name}: worst int8 difference {worst:.2e}");
        assert!(worst > 0.0 && worst <= NOISE, "{name}: {worst:e}");
    }
}

#[test]
fn gguf_blocks_are_rounded_anew() {
    for name in ["qwen3-mixed", "llama-k", "llama-half"] {
        let worst = worst(&gguf::fixture(name), &gguf::fixture(name).join("backbone.gguf"));
        println!("{name}: worst int8 difference {worst:.2e}");
        assert!(worst > 0.0 && worst <= NOISE, "{name}: {worst:e}");
    }
}

/// The texts that the demo guard was never trained on, with the reference's f32 scores.
#[test]
fn the_demo_guard_decides_the_same() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let guard = open(&model, &model.join("backbone"), 2);
    let threshold = guard.info().default_threshold;
    let rows = std::fs::read_to_string(model.join("heldout.jsonl")).unwrap();
    let (mut texts, mut changed, mut differences) = (0, 0, vec![]);
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let part = |key: &str| row[key].as_str();
        let input = match part("text") {
            Some(text) => Input::Text(text),
            None => Input::Exchange { prompt: part("prompt"), response: part("response") },
        };
        let score = guard.score(input, None).unwrap();
        let expected = row["score"].as_f64().unwrap();
        texts += 1;
        changed += usize::from(score.is_harmful != (expected >= threshold));
        differences.push((score.score - expected).abs());
    }
    differences.sort_by(f64::total_cmp);
    let (median, worst) = (differences[texts / 2], differences[texts - 1]);
    println!(
        "demo: {changed} of {texts} changed, int8 differs by {median:.1e} in the median, {worst:.1e} at most"
    );
    assert!(texts > 80 && worst <= 0.02, "{worst}");
    assert!(changed * 200 <= texts, "{changed} of {texts} decisions changed");
}
