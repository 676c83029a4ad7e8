//! What the fuzz targets share.

use std::path::{Path, PathBuf};

use siren::fuzzing::Tokenizer;

/// One of the parity fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(name)
}

/// Copies a directory and what lies below it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Whether `score` is what a score may be.
pub fn is_score(score: f64) -> bool {
    (0.0..=1.0).contains(&score)
}

/// One of the parity fixtures' tokenizers.
pub fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixture(name).join("backbone")).expect("a good tokenizer")
}

/// The fixture `qwen3-short`'s tokenizer with added tokens that end between words, so that no
/// place in a text is sure to be a boundary.
pub fn undivided_tokenizer() -> Tokenizer {
    let path = fixture("qwen3-short").join("backbone/tokenizer.json");
    let json = std::fs::read_to_string(path).expect("a fixture");
    let token = |id: u32, content: &str| {
        format!(
            r#"{{"id":{id},"content":"{content}","single_word":false,"lstrip":false,
            "rstrip":false,"normalized":false,"special":false}},"#
        )
    };
    let tokens = [token(590, "do."), token(591, "a ")].concat();
    let list = json.find(r#""added_tokens""#).expect("a list");
    let at = list + json[list..].find('[').expect("a list") + 1;
    let json = [&json[..at], &tokens, &json[at..]].concat();
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("tokenizer.json"), json).expect("written");
    Tokenizer::open(dir.path()).expect("a good tokenizer")
}

/// What is left of a script that is read from bytes. Past its end everything is 0.
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// As many bytes as the next one says; 255 is all that is left.
    pub fn bytes(&mut self) -> &'a [u8] {
        let wanted = match self.byte() {
            255 => self.0.len(),
            n => n.into(),
        };
        self.take(wanted)
    }

    pub fn take(&mut self, wanted: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Some bytes to push: from the script, or from a list of what cleaning and tokenising treat in
    /// ways of their own, perhaps cut inside a marker or a character.
    pub fn chunk(&mut self) -> &'a [u8] {
        match self.byte() {
            n @ 0..=95 => self.take(n.into()),
            n => {
                let piece = PIECES[usize::from(n - 96) % PIECES.len()].as_bytes();
                match usize::from(self.byte()) {
                    0 => piece,
                    cut if cut < 128 => &piece[..cut % piece.len()],
                    cut => &piece[cut % piece.len()..],
                }
            }
        }
    }
}

#[rustfmt::skip]
const PIECES: [&str; 40] = [
    " word", " a", "the", ". The", " words, and more", "don't", "naïve", "e\u{301}", "\u{301}", "Привет",
    " мир", "שלום", "你好，世界。", "한국", "\u{1112}\u{1161}", "\u{11ab}", "42", " ", "  ", "\t", "\n", "\n\n\n",
    "\r\n", "\u{a0}", "\u{1c}", "...", "🙂", "👩\u{200d}💻", "<think>", "<|im_start|>", "<|im_", "end|>", "<s>",
    "[INST]", "[INST", "]", "<", "<<SYS>>", " do.", "a ",
];

/// A prompt and a response as they are scored: joined with one newline when there are both.
pub fn joined(prompt: &str, response: &str) -> String {
    match (prompt, response) {
        (only, "") | ("", only) => only.into(),
        _ => format!("{prompt}\n{response}"),
    }
}
