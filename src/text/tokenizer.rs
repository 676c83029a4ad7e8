//! `tokenizer.json` -> token ids, cut at the right end to `max_length`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use tokenizers::{Tokenizer as HfTokenizer, TruncationDirection};

use crate::error::{Error, Result, panic_message};
use crate::json::{self, Document, Node};

const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Bytes of text that are tokenised at first for each token that may be kept. Fuzzing makes both
/// sizes tiny, so that short texts are cut too.
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
        let splits_at_boundaries = {
            let document = Document::parse(file.clone(), &bytes)?;
            let root = document.root()?;
            check_templates(&root)?;
            splits_at_boundaries(root.value())
        };
        let invalid = |found: String| Error::model(&file, "contents", found, "a usable tokenizer");
        let mut inner = guarded(|| HfTokenizer::from_bytes(&bytes))
            .map_err(|e| invalid(format!("what does not load: {e}")))?;
        // What is stored in the file of these is ignored, unless it would cut the other end.
        if inner.get_truncation().is_some_and(|t| t.direction == TruncationDirection::Left) {
            return Err(Error::model(&file, "truncation.direction", r#""Left""#, r#""Right""#));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let (prefix, suffix) = guarded(|| special_tokens(&inner)).map_err(invalid)?;
        // A post-processor brings its own ids, which the vocabulary need not hold.
        let special = prefix.iter().chain(&suffix).copied();
        let largest = inner.get_vocab(true).into_values().chain(special).max().unwrap_or(0);
        if largest as usize >= vocab_size {
            return Err(Error::model(
                &file,
                "largest token id",
                largest,
                format!("less than the backbone's vocab_size ({vocab_size})"),
            ));
        }
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
        let window = room.saturating_mul(WINDOW_BYTES_PER_TOKEN).max(MIN_WINDOW_BYTES);
        self.encode_from(text, room, window)
    }

    /// Tokenises about `window` bytes, and more only while they give fewer than `room` tokens.
    fn encode_from(&self, text: &str, room: usize, mut window: usize) -> Result<Tokens> {
        let (mut ids, mut truncated) = (Vec::new(), false);
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
    if !path.exists() {
        return Ok(());
    }
    let document = Document::read(path)?;
    match document.root()?.get_non_null("truncation_side")? {
        Some(side) if side.string()? != "right" => Err(side.unexpected(r#""right""#)),
        _ => Ok(()),
    }
}

/// Templates that would make the tokenizers crate panic (a second text, a special token without
/// its ids), or that would repeat the text.
fn check_templates(root: &Node<'_>) -> Result<()> {
    let Some(processor) = root.get_non_null("post_processor")? else { return Ok(()) };
    let steps = match processor.get("processors")? {
        Some(steps) => steps.items()?,
        None => vec![processor],
    };
    for step in steps {
        let (Some(single), Some(known)) = (step.get("single")?, step.get("special_tokens")?) else {
            continue;
        };
        let mut texts = 0;
        for piece in single.items()? {
            if let Some(text) = piece.get("Sequence")? {
                texts += 1;
                let id = text.require("id")?;
                if id.string()? != "A" || texts > 1 {
                    return Err(id.unexpected("the text \"A\", once"));
                }
            } else if let Some(token) = piece.get("SpecialToken")? {
                let id = token.require("id")?;
                if known.get(id.string()?)?.is_none() {
                    return Err(id.unexpected("one of the template's special_tokens"));
                }
            }
        }
    }
    Ok(())
}

/// The ids that the post-processor puts before and after every text.
fn special_tokens(tokenizer: &HfTokenizer) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    let around = |text: &str| -> tokenizers::Result<_> {
        let plain = tokenizer.encode_fast(text, false)?;
        let whole = tokenizer.encode_fast(text, true)?;
        let (plain, whole) = (plain.get_ids(), whole.get_ids());
        if plain.is_empty() {
            return Err(format!("no token for {text:?}").into());
        }
        let at = whole.windows(plain.len()).position(|window| window == plain);
        Ok(at.map(|at| (whole[..at].to_vec(), whole[at + plain.len()..].to_vec())))
    };
    // What is around two texts alike is no part of either.
    match (around("a")?, around("b")?) {
        (Some(a), Some(b)) if a == b => Ok(a),
        _ => Err("a post-processor that changes the text's own ids".into()),
    }
}

/// Whether this tokenizer is of a form for which splitting at a [`boundary`] is known to be exact:
/// byte-level BPE behind one of [`WORD_PATTERNS`], at most NFC before it, and no added token that
/// could reach over a boundary.
fn splits_at_boundaries(file: &Value) -> bool {
    let normalizer = &file["normalizer"];
    let plain_normalizer = normalizer.is_null() || normalizer["type"] == "NFC";
    let model = &file["model"];
    let plain_model = model["type"] == "BPE"
        && model["dropout"].as_f64().unwrap_or(0.0) == 0.0
        && model["continuing_subword_prefix"].as_str().unwrap_or("").is_empty()
        && model["end_of_word_suffix"].as_str().unwrap_or("").is_empty();
    let plain_tokens = file["added_tokens"].as_array().into_iter().flatten().all(|token| {
        let never = |key: &str| token[key] == false;
        never("lstrip")
            && never("rstrip")
            && never("single_word")
            && !token["content"].as_str().is_none_or(reaches_over_boundary)
    });
    plain_normalizer && plain_model && plain_tokens && splits_words(&file["pre_tokenizer"])
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

/// Whether this added token, standing in a text, could begin before a [`boundary`] and end after.
fn reaches_over_boundary(token: &str) -> bool {
    let mut letter = false;
    token.chars().any(|c| std::mem::replace(&mut letter, is_plain_letter(c)) && is_stop(c))
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
        candidate = (before.take().is_some() && is_stop(c)).then_some(at);
    }
    None
}

/// A blank or a stop.
fn is_stop(c: char) -> bool {
    matches!(c, ' ' | ',' | '.' | '，' | '。')
}

/// Letters that every version of Unicode and every normal form leaves as they are.
fn is_plain_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || ('\u{4e00}'..='\u{9fa5}').contains(&c)
        || ('\u{ac00}'..='\u{d7a3}').contains(&c)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::text::{Input, clean};

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

    /// The tokenizer of a parity fixture; packed ones are unpacked beside nothing else.
    fn fixture(name: &str) -> Tokenizer {
        let dir = fixtures().join(name).join("backbone");
        let packed = dir.join("tokenizer.json.gz");
        if !packed.is_file() {
            return Tokenizer::open(&dir, 600).unwrap();
        }
        let unpacked = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(unpacked.path().join(TOKENIZER_FILE)).unwrap();
        let packed = std::fs::File::open(packed).unwrap();
        std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut file).unwrap();
        Tokenizer::open(unpacked.path(), 151_936).unwrap()
    }

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures")
    }

    /// Every fixture that comes with its tokenizer.
    fn fixture_names() -> Vec<String> {
        let names = std::fs::read_dir(fixtures()).unwrap();
        let names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "llama32-real")
            .collect();
        assert!(names.len() >= 10, "{names:?}");
        names
    }

    /// A small seeded generator (splitmix64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % bound as u64) as usize
        }
    }

    /// What a tokenizer may treat in its own way: scripts, marks, blanks, digits, tokens.
    #[rustfmt::skip]
    const PIECES: [&str; 72] = [
        "a", "b", "the", "The", "words", "don", "'t", "'s", "'LL", "'re", "ſ", "K", "I'd", "naïve",
        "e\u{301}", "\u{301}", "\u{323}", "é", "ß", "ﬁ", "Ⅷ", "Ω", "λόγος", "Привет", "שלום", "مرحبا", "हिन्दी",
        "ไทย", "你好", "世界", "한국", "\u{1112}\u{1161}", "\u{11ab}", "カ", "\u{3099}", "ｶ",
        "0", "7", "42", "123456", "٣", "½", " ", " ", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\u{a0}",
        "\u{3000}", "\u{2028}", "\u{200b}", "\u{200d}", ",", ".", "，", "。", "...", "!?", "-", "_", "(", "🙂",
        "👩\u{200d}💻", "\u{fe0f}", "<think>", "</think>", "<|endoftext|>", "<tool_call>", "<thi",
    ];

    fn text(random: &mut Random) -> String {
        (0..random.below(120)).map(|_| PIECES[random.below(PIECES.len())]).collect()
    }

    #[test]
    fn a_long_text_cut_early_gives_the_tokens_of_the_whole_text() {
        for name in fixture_names() {
            let tokenizer = fixture(&name);
            assert!(tokenizer.splits_at_boundaries, "{name}");
            let mut random = Random(20_261_124);
            let mut early = 0;
            for _ in 0..1500 {
                let text = text(&mut random);
                if text.is_empty() {
                    continue;
                }
                let whole = tokenizer.ids(&text, Vec::new()).unwrap();
                let [room, window] = [1 + random.below(80), 1 + random.below(100)];
                early += usize::from(boundary(&text, window).is_some());
                let kept = &whole[..room.min(whole.len())];
                let expected = Tokens {
                    ids: [&tokenizer.prefix, kept, &tokenizer.suffix].concat(),
                    truncated: whole.len() > room,
                };
                let found = tokenizer.encode_from(&text, room, window).unwrap();
                assert_eq!(found, expected, "{name}, {room} tokens, {window} bytes: {text:?}");
            }
            assert!(early > 200, "{name}: only {early} texts were cut");
        }
    }

    #[test]
    fn every_boundary_splits_a_text_into_texts_with_the_same_tokens() {
        for name in fixture_names() {
            let tokenizer = fixture(&name);
            let mut random = Random(7);
            for _ in 0..60 {
                let text = text(&mut random);
                let whole = tokenizer.ids(&text, Vec::new()).unwrap();
                let mut from = 0;
                while let Some(at) = boundary(&text, from) {
                    let head = tokenizer.ids(&text[..at], Vec::new()).unwrap();
                    let tail = tokenizer.ids(&text[at..], Vec::new()).unwrap();
                    assert_eq!([head, tail].concat(), whole, "{name}, byte {at}: {text:?}");
                    from = at + 1;
                }
            }
        }
    }

    #[test]
    fn the_default_window_is_smaller_than_a_long_text_and_changes_nothing() {
        for name in ["qwen3-real", "llama-short"] {
            let tokenizer = fixture(name);
            let mut random = Random(9);
            let long: String = (0..200).map(|_| text(&mut random)).collect();
            assert!(boundary(&long, MIN_WINDOW_BYTES).is_some());
            let whole = tokenizer.ids(&long, Vec::new()).unwrap();
            for room in [1, 8, 500, whole.len() - 1, whole.len(), whole.len() + 1] {
                let found = tokenizer.encode(&long, tokenizer.special_count() + room).unwrap();
                let kept = &whole[..room.min(whole.len())];
                let ids = [&tokenizer.prefix, kept, &tokenizer.suffix].concat();
                assert_eq!(found, Tokens { ids, truncated: room < whole.len() }, "{name}, {room}");
            }
        }
    }

    #[test]
    fn the_ids_of_every_vector_are_the_references() {
        for name in fixture_names() {
            let tokenizer = fixture(&name);
            let read = |file: &str| -> Value {
                serde_json::from_slice(&std::fs::read(fixtures().join(&name).join(file)).unwrap())
                    .unwrap()
            };
            let default = read("siren_config.json")["inference"]["max_length"].as_u64().unwrap();
            let vectors = read("vectors.json");
            for key in ["vectors", "max_length_vectors"] {
                for vector in vectors[key].as_array().unwrap() {
                    let max_length = vector["max_length"].as_u64().unwrap_or(default) as usize;
                    check_ids(&name, &tokenizer, vector, max_length);
                }
            }
        }
    }

    fn check_ids(name: &str, tokenizer: &Tokenizer, vector: &Value, max_length: usize) {
        let given = |key: &str| match &vector[key] {
            Value::Object(text) => {
                let times = text["times"].as_u64().unwrap() as usize;
                Some(text["repeat"].as_str().unwrap().repeat(times))
            }
            text => text.as_str().map(str::to_owned),
        };
        let [text, prompt, response] = ["text", "prompt", "response"].map(given);
        let input = match &text {
            Some(text) => Input::Text(text),
            None => Input::Exchange { prompt: prompt.as_deref(), response: response.as_deref() },
        };
        let tokens = tokenizer.encode(&clean(&input.join()), max_length).unwrap();
        let ids: Vec<u64> = tokens.ids.iter().map(|&id| u64::from(id)).collect();
        let hash = tokens
            .ids
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
            });
        let n = ids.len().min(8);
        let found = serde_json::json!({
            "tokens": ids.len(),
            "truncated": tokens.truncated,
            "ids_head": ids[..n],
            "ids_tail": ids[ids.len() - n..],
            "ids_fnv1a64": format!("{hash:016x}"),
        });
        for (key, value) in found.as_object().unwrap() {
            assert_eq!(value, &vector[key], "{name}, {}: {key}", vector["id"]);
        }
    }

    /// The fixture `qwen3-short` with its `tokenizer.json` changed.
    fn changed(edit: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
        let dir = fixtures().join("qwen3-short/backbone");
        let mut file =
            serde_json::from_slice(&std::fs::read(dir.join(TOKENIZER_FILE)).unwrap()).unwrap();
        edit(&mut file);
        let changed = tempfile::tempdir().unwrap();
        std::fs::write(changed.path().join(TOKENIZER_FILE), file.to_string()).unwrap();
        Tokenizer::open(changed.path(), 600)
    }

    #[test]
    fn an_added_token_that_reaches_over_boundaries_switches_early_cutting_off() {
        for (content, exact) in
            [("<think>", true), (" a", true), ("a ", false), ("Dr.", false), ("a b", false)]
        {
            let tokenizer = changed(|file| {
                let tokens = file["added_tokens"].as_array_mut().unwrap();
                let mut token = tokens[0].clone();
                token["id"] = 599.into();
                token["content"] = content.into();
                tokens.push(token);
            })
            .unwrap();
            assert_eq!(tokenizer.splits_at_boundaries, exact, "{content:?}");
        }
    }

    #[test]
    fn truncation_that_is_stored_is_ignored_but_refused_at_the_left() {
        changed(|file| assert_eq!(file["truncation"]["direction"], "Right")).unwrap();
        let left = changed(|file| file["truncation"]["direction"] = "Left".into());
        let message = left.err().unwrap().message().to_owned();
        let expected = r#"tokenizer.json: truncation.direction: found "Left", expected "Right""#;
        assert!(message.ends_with(expected), "{message}");
    }
}
