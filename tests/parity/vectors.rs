//! `vectors.json`: what the reference scored.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use siren::Input;

/// Two ways of rounding to bf16 at every step are as far from f32 as each other, not equally far on
/// every text: how many times the reference's own distance from f32 ours may be.
const MEAN_NOISE: f64 = 1.5;
const WORST_NOISE: f64 = 2.0;

#[derive(Deserialize)]
pub struct Vectors {
    pub vectors: Vec<Vector>,
    pub max_length_vectors: Vec<Vector>,
}

#[derive(Deserialize)]
pub struct Vector {
    pub id: String,
    #[serde(default, deserialize_with = "given")]
    text: Option<String>,
    #[serde(default, deserialize_with = "given")]
    prompt: Option<String>,
    #[serde(default, deserialize_with = "given")]
    response: Option<String>,
    pub score: f64,
    pub score_bf16: f64,
    pub tokens: usize,
    pub truncated: bool,
    pub max_length: Option<usize>,
}

/// A string, or a string that repeats.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Repeated { repeat: String, times: usize },
}

fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text>::deserialize(deserializer)?.map(|text| match text {
        Text::Plain(text) => text,
        Text::Repeated { repeat, times } => repeat.repeat(times),
    }))
}

impl Vectors {
    pub fn read(fixture: &Path) -> Self {
        let bytes = std::fs::read(fixture.join("vectors.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }
}

/// Holds how far scores in bf16 are from the reference's in f32 against how far its own in bf16 are.
#[allow(clippy::print_stdout)] // What a test prints.
pub fn check_bf16<'v>(name: &str, apart: &[f64], vectors: impl Iterator<Item = &'v Vector>) {
    let noise: Vec<_> = vectors.map(|v| (v.score - v.score_bf16).abs()).collect();
    assert_eq!(apart.len(), noise.len());
    let mean = |apart: &[f64]| apart.iter().sum::<f64>() / apart.len() as f64;
    let worst = |apart: &[f64]| apart.iter().copied().fold(0.0, f64::max);
    for (what, ours, reference, times) in [
        ("mean", mean(apart), mean(&noise), MEAN_NOISE),
        ("worst", worst(apart), worst(&noise), WORST_NOISE),
    ] {
        println!("{name}: {what} bf16 difference {ours:.2e}, the reference's {reference:.2e}");
        assert!(
            ours <= times * reference,
            "{name}: {what} {ours:e}, the reference's {reference:e}"
        );
    }
}

impl Vector {
    /// The text, where it is one text and no exchange.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub fn input(&self) -> Input<'_> {
        match &self.text {
            Some(text) => Input::Text(text),
            None => Input::Exchange {
                prompt: self.prompt.as_deref(),
                response: self.response.as_deref(),
            },
        }
    }
}
