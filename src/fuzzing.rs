//! What the targets in `fuzz/` reach inside. It exists under `--cfg fuzzing` alone, and is no part
//! of the public API.

use std::path::Path;

use crate::backbone::Config;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::text;

pub use crate::text::MARKERS;

/// Reads and checks the artifact in `dir`.
///
/// # Errors
/// As opening it.
pub fn artifact(dir: &Path, map: bool) -> Result<()> {
    crate::artifact::open(dir, map).map(drop)
}

/// Reads and checks a backbone's `config.json`.
///
/// # Errors
/// As opening it.
pub fn backbone_config(path: &Path) -> Result<()> {
    Config::read(path).map(drop)
}

/// Opens the checkpoint in `dir` and widens every tensor that holds floats; the number of values.
///
/// # Errors
/// As opening it.
pub fn checkpoint(dir: &Path, map: bool) -> Result<usize> {
    let checkpoint = Checkpoint::open_dir(dir, map)?;
    let mut values = 0;
    for (name, shape) in checkpoint.shapes() {
        values += checkpoint.tensor(name, shape).and_then(|t| t.to_f32()).map_or(0, |v| v.len());
    }
    Ok(values)
}

/// Cleans a joined text.
pub fn clean(text: &str) -> String {
    text::clean(text)
}

/// A backbone's tokenizer. The pieces that it reads are a few bytes long under `--cfg fuzzing`.
pub struct Tokenizer(text::Tokenizer);

impl Tokenizer {
    /// Reads the tokenizer in `dir`.
    ///
    /// # Errors
    /// As opening it.
    pub fn open(dir: &Path) -> Result<Self> {
        text::Tokenizer::open(dir, usize::MAX).map(Self)
    }

    /// Special tokens that every text gets, before and after it.
    pub fn special_count(&self) -> usize {
        self.0.special_count()
    }

    /// The ids of a cleaned text, at most `max_length`, and whether there were more.
    ///
    /// # Errors
    /// `Internal`.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<(Vec<u32>, bool)> {
        self.0.encode(text, max_length).map(|tokens| (tokens.ids, tokens.truncated))
    }
}
