//! What the targets in `fuzz/` reach inside. It exists under `--cfg fuzzing` alone, and is no part
//! of the public API.

use std::path::Path;

use crate::backbone::Config;
use crate::call::Control;
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

/// What a GGUF file is good for.
#[derive(Debug, PartialEq, Eq)]
pub struct Gguf {
    /// Values of all its tensors.
    pub values: usize,
    /// Its metadata describe a backbone.
    pub is_backbone: bool,
    /// And a tokenizer.
    pub has_tokenizer: bool,
}

/// Opens the GGUF file `path`, reads its metadata and widens every tensor.
///
/// # Errors
/// As opening it.
pub fn gguf(path: &Path, map: bool) -> Result<Gguf> {
    let gguf = crate::gguf::Gguf::open(path, map)?;
    let config = Config::of_gguf(&gguf).ok();
    let has_tokenizer = text::tokenizer_json(&gguf).is_ok();
    let is_backbone = config.is_some();
    // Rows are laid out anew where they are as long as the metadata say.
    let checkpoint = Checkpoint::of_gguf(gguf, None);
    let mut values = 0;
    for (name, shape) in checkpoint.shapes() {
        values += checkpoint.tensor(name, shape)?.to_f32()?.len();
    }
    if let Some(config) = config {
        let gguf = crate::gguf::Gguf::open(path, map)?;
        let checkpoint = Checkpoint::of_gguf(gguf, Some(config.head_dim));
        let width = config.hidden_size;
        let rows = config.num_attention_heads * config.head_dim;
        let _ = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight", &[rows, width]);
    }
    Ok(Gguf { values, is_backbone, has_tokenizer })
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

    /// The ids of a cleaned text that is tokenised in one piece, without the special ones.
    pub fn in_one_piece(&self, text: &str) -> Vec<u32> {
        self.0.in_one_piece(text)
    }

    /// The ids of a cleaned text, at most `max_length`, and whether there were more.
    ///
    /// # Errors
    /// `Internal`.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<(Vec<u32>, bool)> {
        self.0.encode(text, max_length).map(|tokens| (tokens.ids, tokens.truncated))
    }
}

/// A growing text: an optional prompt, one newline, and what was pushed.
#[derive(Clone)]
pub struct Growing(text::Growing);

/// A growing text's tokens after a push, special ones aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Their ids.
    pub ids: Vec<u32>,
    /// Where each begins and ends in the pushed bytes.
    pub spans: Vec<(usize, usize)>,
    /// How many of them stay whatever is pushed later.
    pub settled: usize,
    /// The index of the first one that holds pushed bytes; the number of tokens if none does.
    pub first_pushed: usize,
    /// There are more than the limit.
    pub truncated: bool,
    /// Offset in the pushed bytes from which on they are held back.
    pub held_from: usize,
    /// Offset in the pushed bytes where the first token over the limit begins.
    pub cut_from: usize,
}

impl Growing {
    /// Nothing is pushed yet.
    pub fn new(prompt: Option<&str>) -> Self {
        Self(text::Growing::new(prompt))
    }

    /// Adds `more`; only the first `limit` tokens are wanted, the same number at every push.
    ///
    /// # Errors
    /// `Internal`.
    pub fn push(&mut self, tokenizer: &Tokenizer, more: &str, limit: usize) -> Result<Grown> {
        let next = self.0.next(&tokenizer.0, more, limit, &Control::default())?;
        let view = self.0.view(&next);
        let (ids, spans) = view.tokens(0).map(|token| (token.id, (token.start, token.end))).unzip();
        let grown = Grown {
            ids,
            spans,
            settled: view.settled(),
            first_pushed: view.first_pushed(),
            truncated: next.truncated,
            held_from: next.held_from,
            cut_from: next.cut_from,
        };
        self.0.commit(next);
        Ok(grown)
    }
}
