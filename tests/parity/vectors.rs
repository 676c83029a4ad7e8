//! `vectors.json`: what the reference scored.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use siren::Input;

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
