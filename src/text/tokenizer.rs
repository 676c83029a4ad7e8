//! `tokenizer.json` -> token ids, cut at the right end to `max_length`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use crate::error::{Error, Result, panic_message};
use crate::json::{self, Document};

const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Bytes of text that are tokenised at first for each token that may be kept.
const WINDOW_BYTES_PER_TOKEN: usize = if cfg!(fuzzing) { 1 } else { 8 };
const MIN_WINDOW_BYTES: usize = if cfg!(fuzzing) { 1 } else { 4096 };

/// Patterns of byte-level BPE pre-tokenisers that split before a blank or a stop between letters,
/// whatever stands further right: GPT-2's own, Qwen2 and 3's, and Llama 3's.
const WORD_PATTERNS: [&str; 3] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// What runs, special tokens included.
    pub(crate) ids: Vec<u32>,
    /// There were more tokens than `max_length`.
    pub(crate) truncated: bool,
}

/// A backbone's tokenizer with the special tokens that its post-processor puts around a text.
pub(crate) struct Tokenizer {
    inner: HfTokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Ids of a text's head are those of the whole text, if it is cut at a [`boundary`].
    splits_at_boundaries: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` (if there is one) of a backbone.
    ///
    /// # Errors
    /// `InvalidModel` for a tokenizer that cannot be used: malformed, cutting at the left, or with
    /// ids outside the `vocab_size` rows of the embedding table.
    pub(crate) fn open(dir: &Path, vocab_size: usize) -> Result<Self> {
        let path = dir.join(TOKENIZER_FILE);
        let file = path.display().to_string();
        refuse_left_truncation(&dir.join(TOKENIZER_CONFIG_FILE))?;
        let bytes = json::read_bytes(&path)?;
        json::refuse_repeated_keys(&file, &bytes)?;
        let invalid = |found: String| Error::model(&file, "contents", found, "a usable tokenizer");
        let mut inner = guarded(|| HfTokenizer::from_bytes(&bytes))
            .map_err(|e| invalid(format!("what does not load: {e}")))?;
        // What is stored in the file of these is ignored.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let largest = inner.get_vocab(true).values().copied().max().unwrap_or(0);
        if largest as usize >= vocab_size {
            return Err(Error::model(
                &file,
                "largest token id",
                largest,
                format!("less than the backbone's vocab_size ({vocab_size})"),
            ));
        }
        let (prefix, suffix) = guarded(|| special_tokens(&inner))
            .map_err(|e| invalid(format!("a post-processor that fails: {e}")))?
            .ok_or_else(|| invalid("a post-processor that changes the text's own ids".into()))?;
        let splits_at_boundaries = splits_at_boundaries(&inner, &bytes);
        Ok(Self { inner, prefix, suffix, splits_at_boundaries })
    }

    /// Special tokens that every text gets.
    pub(crate) fn special_count(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// The ids of a cleaned text, of which at most `max_length` are kept (special ones counted).
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails or panics on this text.
    pub(crate) fn encode(&self, text: &str, max_length: usize) -> Result<Tokens> {
        let room = max_length.saturating_sub(self.special_count());
        let (mut ids, mut truncated) = (Vec::new(), false);
        let mut window = room.saturating_mul(WINDOW_BYTES_PER_TOKEN).max(MIN_WINDOW_BYTES);
        loop {
            let cut = self.splits_at_boundaries.then(|| boundary(text, window)).flatten();
            ids = self.ids(&text[..cut.unwrap_or(text.len())], ids)?;
            match cut {
                Some(_) if ids.len() < room => window = window.saturating_mul(4),
                Some(_) => {
                    // What lies behind the cut is at least one more token.
                    truncated = true;
                    break;
                }
                None => {
                    truncated |= ids.len() > room;
                    break;
                }
            }
        }
        ids.truncate(room);
        let ids = [self.prefix.as_slice(), &ids, &self.suffix].concat();
        if ids.is_empty() {
            return Err(Error::internal("the tokenizer made no token of a text"));
        }
        Ok(Tokens { ids, truncated })
    }

    fn ids(&self, text: &str, mut reuse: Vec<u32>) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(|e| {
            Error::internal(format!("the tokenizer failed on a text of {} bytes: {e}", text.len()))
        })?;
        reuse.clear();
        reuse.extend_from_slice(encoding.get_ids());
        Ok(reuse)
    }
}

/// Runs foreign code that may panic on what a file or a text holds.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(panic_message(&*panic)),
    }
}

fn refuse_left_truncation(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let document = Document::read(path)?;
    match document.root()?.get_non_null("truncation_side")? {
        Some(side) if side.string()? != "right" => Err(side.unexpected(r#""right""#)),
        _ => Ok(()),
    }
}

/// The ids that the post-processor puts before and after a text; `None` if it does anything else.
fn special_tokens(tokenizer: &HfTokenizer) -> tokenizers::Result<Option<(Vec<u32>, Vec<u32>)>> {
    let plain = tokenizer.encode_fast("a", false)?;
    let whole = tokenizer.encode_fast("a", true)?;
    let (plain, whole) = (plain.get_ids(), whole.get_ids());
    if plain.is_empty() {
        return Ok(whole.is_empty().then(Default::default));
    }
    let at = whole.windows(plain.len()).position(|window| window == plain);
    Ok(at.map(|at| (whole[..at].to_vec(), whole[at + plain.len()..].to_vec())))
}

/// Whether this tokenizer is of a form for which splitting at a [`boundary`] is known to be exact:
/// byte-level BPE behind one of [`WORD_PATTERNS`], at most NFC before it, and no added token that
/// could reach over a boundary.
fn splits_at_boundaries(tokenizer: &HfTokenizer, bytes: &[u8]) -> bool {
    let Ok(file) = serde_json::from_slice::<Value>(bytes) else { return false };
    let normalizer = &file["normalizer"];
    let plain_normalizer = normalizer.is_null() || normalizer["type"] == "NFC";
    let model = &file["model"];
    let plain_model = model["type"] == "BPE"
        && model["dropout"].as_f64().unwrap_or(0.0) == 0.0
        && model["continuing_subword_prefix"].as_str().unwrap_or("").is_empty()
        && model["end_of_word_suffix"].as_str().unwrap_or("").is_empty();
    let plain_tokens = tokenizer.get_added_tokens_decoder().values().all(|token| {
        !token.lstrip
            && !token.rstrip
            && !token.single_word
            && !reaches_over_boundary(&token.content)
    });
    plain_normalizer && plain_model && plain_tokens && splits_words(&file["pre_tokenizer"])
}

/// Whether a boundary can lie inside an added token, if only before the blank or stop at its end.
fn reaches_over_boundary(content: &str) -> bool {
    boundary(&format!("{content}a"), 0).is_some()
}

fn splits_words(pre_tokenizer: &Value) -> bool {
    let byte_level = |step: &Value, own_pattern: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == own_pattern
    };
    let split = |step: &Value| {
        step["type"] == "Split"
            && step["behavior"] == "Isolated"
            && step["invert"] == false
            && step["pattern"]["Regex"].as_str().is_some_and(|p| WORD_PATTERNS.contains(&p))
    };
    if pre_tokenizer["type"] != "Sequence" {
        return byte_level(pre_tokenizer, true);
    }
    match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([first, second]) => {
            (split(first) && byte_level(second, false))
                || (first["type"] == "Digits" && byte_level(second, true))
        }
        _ => false,
    }
}

/// The first place at or after `from` where a blank or a stop stands between two letters; the
/// place is before the blank. `None` if there is none before the end.
fn boundary(text: &str, from: usize) -> Option<usize> {
    if from >= text.len() {
        return None;
    }
    let mut before = None;
    let mut candidate = None;
    for (at, c) in text[text.ceil_char_boundary(from)..].char_indices() {
        if is_plain_letter(c) {
            if candidate.is_some() {
                return candidate.map(|at| text.ceil_char_boundary(from) + at);
            }
            before = Some(());
            continue;
        }
        candidate =
            (before.take().is_some() && matches!(c, ' ' | ',' | '.' | '，' | '。')).then_some(at);
    }
    None
}

/// Letters that every version of Unicode and every normal form leaves as they are.
fn is_plain_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || ('\u{4e00}'..='\u{9fa5}').contains(&c)
        || ('\u{ac00}'..='\u{d7a3}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_token_that_ends_between_words_is_noticed() {
        for content in ["do.", "a ", "x,", "a b", "好。"] {
            assert!(reaches_over_boundary(content), "{content:?}");
        }
        for content in ["<|im_start|>", "</think>", "word", " word", "."] {
            assert!(!reaches_over_boundary(content), "{content:?}");
        }
    }

    #[test]
    fn boundaries_stand_before_a_blank_between_letters() {
        assert_eq!(boundary("ab cd", 0), Some(2));
        assert_eq!(boundary("ab cd", 1), Some(2));
        assert_eq!(boundary("ab cd", 2), None);
        assert_eq!(boundary("ab  cd. 1 x", 0), None);
        assert_eq!(boundary("don't stop", 0), Some(5));
        assert_eq!(boundary("é a b", 1), Some(4));
        assert_eq!(boundary("你好，世界", 0), Some(6));
        assert_eq!(boundary("", 0), None);
    }
}
