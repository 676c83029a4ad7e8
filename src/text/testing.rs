//! Tokenizers and texts that the tests of this module share.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{MARKERS, Tokenizer};

/// Where the tokenizer lies that the fixture `llama32-real` leaves out.
const LLAMA_TOKENIZER: &str = "SIREN_LLAMA_TOKENIZER";

/// The tokenizer of a parity fixture.
pub(super) fn fixture(name: &str) -> Tokenizer {
    Tokenizer::parse(name.into(), &tokenizer_json(name), vocab_size(name)).unwrap()
}

/// The `tokenizer.json` of a parity fixture.
pub(super) fn tokenizer_json(name: &str) -> Vec<u8> {
    if name == "llama32-real" {
        let dir = std::env::var_os(LLAMA_TOKENIZER).unwrap();
        return std::fs::read(Path::new(&dir).join("tokenizer.json")).unwrap();
    }
    let plain = fixtures().join(name).join("backbone/tokenizer.json");
    let Ok(packed) = std::fs::File::open(plain.with_extension("json.gz")) else {
        return std::fs::read(plain).unwrap();
    };
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut json).unwrap();
    json
}

/// Rows of a parity fixture's embedding table.
pub(super) fn vocab_size(name: &str) -> usize {
    match name {
        "qwen3-real" => 151_936,
        "llama32-real" => 128_256,
        _ => 600,
    }
}

pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures")
}

/// Every fixture whose tokenizer is here.
pub(super) fn fixture_names() -> Vec<String> {
    let llama = std::env::var_os(LLAMA_TOKENIZER).is_some_and(|dir| !dir.is_empty());
    let names = std::fs::read_dir(fixtures()).unwrap();
    let names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| llama || name != "llama32-real")
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    names
}

/// A small seeded generator (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// What a tokenizer may treat in its own way: scripts, marks, blanks, digits, tokens.
#[rustfmt::skip]
pub(super) const PIECES: [&str; 84] = [
    "a", "b", "the", "The", "words", "don", "'t", "'s", "'LL", "'re", "ſ", "K", "I'd", "naïve",
    "e\u{301}", "\u{301}", "\u{323}", "é", "ß", "ﬁ", "Ⅷ", "Ω", "λόγος", "Привет", "שלום", "مرحبا", "हिन्दी",
    "ไทย", "你好", "世界", "한국", "\u{1112}\u{1161}", "\u{11ab}", "カ", "\u{3099}", "ｶ",
    "0", "7", "42", "123456", "٣", "½", " ", " ", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\u{a0}",
    "\u{3000}", "\u{2028}", "\u{200b}", "\u{200d}", ",", ".", "，", "。", "...", "!?", "-", "_", "(", "🙂",
    "👩\u{200d}💻", "\u{fe0f}", "<think>", "</think>", "<|endoftext|>", "<tool_call>", "<thi",
    ";", ":", "f(x)", "x=1;", "a-b", "abc123", "9z", "\"q\"", "#a", "{b}", "50%", "1.5e3",
];

pub(super) fn text(random: &mut Random) -> String {
    (0..random.below(120)).map(|_| PIECES[random.below(PIECES.len())]).collect()
}

/// As [`text`], with what cleaning changes: markers, whole and begun, and white space.
pub(super) fn raw_text(random: &mut Random) -> String {
    const SPACE: [&str; 9] =
        [" ", "\t", "\n", "\n\n\n", " \n ", "\r\n", "\u{a0}", "\u{1c}", "\u{1f}\u{85}"];
    let mut raw = String::new();
    for _ in 0..random.below(120) {
        let marker = MARKERS[random.below(MARKERS.len())];
        raw.push_str(match random.below(16) {
            0 => marker,
            1 => &marker[..1 + random.below(marker.len())],
            2..4 => SPACE[random.below(SPACE.len())],
            4..7 => {
                ["a", " b", ". The", " words", "好，世", " мир", "が。ひ", "، سلام, م", " दिन न"]
                    [random.below(9)]
            }
            _ => PIECES[random.below(PIECES.len())],
        });
    }
    raw
}
