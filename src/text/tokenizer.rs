//! `tokenizer.json` -> token ids, cut at the right end to `max_length`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{PostProcessorWrapper, Tokenizer as HfTokenizer, TruncationDirection};

use crate::call::Control;
use crate::error::{Error, Result, panic_message};
use crate::gguf::Gguf;
use crate::json::{self, Document, Node};

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Bytes of text that are tokenised at once for each token that may be kept, and the bounds of that.
/// Fuzzing makes them tiny, so that short texts are cut too.
const PIECE_BYTES_PER_TOKEN: usize = if cfg!(fuzzing) { 1 } else { 8 };
const MIN_PIECE_BYTES: usize = if cfg!(fuzzing) { 1 } else { 4096 };
const MAX_PIECE_BYTES: usize = if cfg!(fuzzing) { 64 } else { 32 << 10 };

/// Patterns of byte-level BPE pre-tokenisers that split before a blank or a stop between letters,
/// whatever stands further right: GPT-2's own, Qwen2 and 3's, and Llama 3's.
pub(super) const WORD_PATTERNS: [&str; 3] = [
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

/// One token of a text, and the bytes of the text that it stands for: whole characters, which it
/// shares with its neighbours where it holds a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Its id.
    pub(crate) id: u32,
    /// Byte where its own characters begin.
    pub(crate) start: usize,
    /// Byte where they end.
    pub(crate) end: usize,
}

/// The tokens of a text, special ones aside: all of them, or enough of its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Starts and ends never fall.
    pub(crate) tokens: Vec<Token>,
    /// There are more tokens than were asked for, here or behind.
    pub(crate) more: bool,
    /// The first of `tokens` that stay whatever is written behind the text.
    pub(crate) settled: usize,
    /// The byte where those end and the next one begins; 0 if there are none.
    pub(crate) boundary: usize,
}

/// The special tokens that a post-processor puts before and after every text.
#[derive(Debug)]
pub(crate) struct Special {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

impl Special {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// A text's ids with them around.
    pub(crate) fn around<C: FromIterator<u32>>(&self, ids: impl Iterator<Item = u32>) -> C {
        self.before.iter().copied().chain(ids).chain(self.after.iter().copied()).collect()
    }
}

/// A backbone's tokenizer with the special tokens that its post-processor puts around a text.
pub(crate) struct Tokenizer {
    inner: HfTokenizer,
    special: Arc<Special>,
    /// Ids of a text's head are those of the whole text, if it is cut at a [boundary](boundaries).
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
        refuse_left_truncation(&dir.join(TOKENIZER_CONFIG_FILE))?;
        Self::parse(path.display().to_string(), &json::read_bytes(&path)?, vocab_size)
    }

    /// Reads the tokenizer of a GGUF file at `path`: the `tokenizer.json` beside it, else the one
    /// that its metadata describe.
    ///
    /// # Errors
    /// `InvalidModel` for metadata that describe none that is known here, and as for
    /// [`Tokenizer::open`].
    pub(crate) fn beside(path: &Path, gguf: &Gguf, vocab_size: usize) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if dir.join(TOKENIZER_FILE).exists() {
            return Self::open(dir, vocab_size);
        }
        let json = super::gguf::tokenizer_json(gguf)?.to_string();
        Self::parse(gguf.file().to_owned(), json.as_bytes(), vocab_size)
    }

    /// Makes the tokenizer of the contents of a `tokenizer.json`; `file` is what errors name.
    pub(super) fn parse(file: String, bytes: &[u8], vocab_size: usize) -> Result<Self> {
        let splits_at_boundaries = {
            let document = Document::parse(file.clone(), bytes)?;
            let root = document.root()?;
            check_templates(&root)?;
            for step in ["normalizer", "pre_tokenizer"] {
                root.get(step)?.as_ref().map_or(Ok(()), check_expressions)?;
            }
            check_dropout(&root)?;
            splits_at_boundaries(root.value())
        };
        let invalid = |found: String| Error::model(&file, "contents", found, "a usable tokenizer");
        let mut inner = guarded(|| HfTokenizer::from_bytes(bytes))
            .map_err(|e| invalid(format!("what does not load: {e}")))?;
        // What is stored in the file of these is ignored, unless it would cut the other end.
        if inner.get_truncation().is_some_and(|t| t.direction == TruncationDirection::Left) {
            return Err(Error::model(&file, "truncation.direction", r#""Left""#, r#""Right""#));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let (before, after) = guarded(|| special_tokens(&inner)).map_err(invalid)?;
        // All that it would still do is to leave blanks out of the offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        // A post-processor brings its own ids, which the vocabulary need not hold.
        let special = before.iter().chain(&after).copied();
        let largest = inner.get_vocab(true).into_values().chain(special).max().unwrap_or(0);
        if largest as usize >= vocab_size {
            return Err(Error::model(
                &file,
                "largest token id",
                largest,
                format!("less than the backbone's vocab_size ({vocab_size})"),
            ));
        }
        Ok(Self { inner, special: Arc::new(Special { before, after }), splits_at_boundaries })
    }

    /// The special tokens before and after every text.
    pub(crate) fn special(&self) -> &Arc<Special> {
        &self.special
    }

    /// Special tokens that every text gets.
    pub(crate) fn special_count(&self) -> usize {
        self.special.len()
    }

    /// The ids of a cleaned text, of which at most `max_length` are kept (special ones counted).
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails or panics on this text.
    pub(crate) fn encode(&self, text: &str, max_length: usize) -> Result<Tokens> {
        let room = max_length.saturating_sub(self.special_count());
        let Located { mut tokens, more, .. } = self.locate(text, room, &Control::default())?;
        tokens.truncate(room);
        let ids = tokens.iter().map(|token| token.id);
        let ids: Vec<u32> = self.special.around(ids);
        if ids.is_empty() {
            return Err(Error::internal("the tokenizer made no token of a text"));
        }
        Ok(Tokens { ids, truncated: more })
    }

    /// The tokens of a cleaned text without the special ones: all of them, or at least `room`.
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails or panics on this text; those of `control`, which is
    /// looked at before every piece.
    pub(crate) fn locate(&self, text: &str, room: usize, control: &Control) -> Result<Located> {
        let piece = room.saturating_mul(PIECE_BYTES_PER_TOKEN);
        self.locate_in_pieces(text, room, piece.clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES), control)
    }

    /// Tokenises `piece` bytes or a little more at once, and stops at `room` tokens.
    fn locate_in_pieces(
        &self,
        text: &str,
        room: usize,
        piece: usize,
        control: &Control,
    ) -> Result<Located> {
        let mut tokens = Vec::new();
        let mut from = 0;
        while let Some(cut) = self.boundaries(text, piece.saturating_add(from)).next() {
            control.check()?;
            self.append(&text[from..cut], from, &mut tokens)?;
            from = cut;
            if tokens.len() >= room {
                // What lies behind the cut is at least one more token.
                return Ok(Located { settled: tokens.len(), tokens, more: true, boundary: cut });
            }
        }
        self.append(&text[from..], from, &mut tokens)?;
        let boundary = self.boundaries(text, from).last().unwrap_or(from);
        let settled = tokens.partition_point(|token| token.start < boundary);
        Ok(Located { more: tokens.len() > room, settled, tokens, boundary })
    }

    /// The [`boundaries`] at which this tokenizer may be given a text in parts.
    fn boundaries(&self, text: &str, from: usize) -> impl Iterator<Item = usize> {
        boundaries(text, if self.splits_at_boundaries { from } else { text.len() })
    }

    /// Adds the tokens of `piece`, which begins at byte `at`.
    fn append(&self, piece: &str, at: usize, tokens: &mut Vec<Token>) -> Result<()> {
        let encoding = guarded(|| self.inner.encode(piece, false)).map_err(|e| {
            Error::internal(format!("the tokenizer failed on a text of {} bytes: {e}", piece.len()))
        })?;
        let first = tokens.len();
        let (mut start, mut end) = (at, at);
        tokens.extend(encoding.get_ids().iter().zip(encoding.get_offsets()).map(
            |(&id, offsets)| {
                // Normalising may exchange marks.
                start = start.max(at + offsets.0);
                end = end.max(at + offsets.1);
                Token { id, start, end }
            },
        ));
        let mut next = at + piece.len();
        // Normalising leaves out a mark that it composes with the character before.
        let mut left_out = next..next;
        for token in tokens[first..].iter_mut().rev() {
            if token.end < next {
                left_out = token.end..next;
            }
            next = token.start;
            if token.end == left_out.start {
                token.end = left_out.end;
            }
        }
        Ok(())
    }
}

#[cfg(any(fuzzing, test))]
impl Tokenizer {
    /// The ids of a text that is tokenised in one piece, without the special ones.
    pub(crate) fn in_one_piece(&self, text: &str) -> Vec<u32> {
        self.inner.encode_fast(text, false).expect("tokens").get_ids().to_vec()
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

/// A regular expression that is not known may backtrack a little at every byte of a text, for hours
/// in all, and nothing can stop it.
fn check_expressions(node: &Node<'_>) -> Result<()> {
    match node.value() {
        Value::Object(_) => node.members()?.into_iter().try_for_each(|(key, member)| {
            if key == "Regex" && !WORD_PATTERNS.contains(&member.string()?) {
                return Err(member.unexpected(
                    "the expression of GPT-2's, Qwen's or Llama 3's tokenizer, which take bounded \
                     time",
                ));
            }
            check_expressions(&member)
        }),
        Value::Array(_) => node.items()?.iter().try_for_each(check_expressions),
        _ => Ok(()),
    }
}

/// Dropout would tokenise a text in another way each time.
fn check_dropout(root: &Node<'_>) -> Result<()> {
    let dropout = root.get_non_null("model")?.map(|model| model.get_non_null("dropout"));
    match dropout.transpose()?.flatten() {
        Some(dropout) if dropout.value().as_f64() != Some(0.0) => {
            Err(dropout.unexpected("null or 0"))
        }
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

/// Whether this tokenizer is of a form for which splitting at a [boundary](boundaries) is known to be exact:
/// byte-level BPE behind one of [`WORD_PATTERNS`], at most NFC before it, and no added token that
/// could reach over a boundary.
fn splits_at_boundaries(file: &Value) -> bool {
    let normalizer = &file["normalizer"];
    let plain_normalizer = normalizer.is_null() || normalizer["type"] == "NFC";
    let model = &file["model"];
    let plain_model = model["type"] == "BPE"
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

/// Whether this added token, standing in a text, could begin before a [boundary](boundaries) and end
/// after.
fn reaches_over_boundary(token: &str) -> bool {
    let mut before = None;
    token.chars().any(|c| match (before.replace(c), kind(c)) {
        (Some(before), found) => match (kind(before), found) {
            (Some(_), None) => is_stop(c),
            (Some(before), Some(found)) => before != found,
            (None, _) => false,
        },
        (None, _) => false,
    })
}

/// The places at or after `from` where words end whatever stands around them: between a letter and
/// a digit, and before a blank, line end or mark that stands alone between two letters or digits.
fn boundaries(text: &str, from: usize) -> impl Iterator<Item = usize> {
    let from = text.ceil_char_boundary(from);
    let (mut last, mut stop) = (None, None);
    text[from..].char_indices().filter_map(move |(at, c)| {
        let found = kind(c);
        let before = std::mem::replace(&mut last, found);
        let after_stop = stop.take().filter(|_| found.is_some());
        let between = before.zip(found).filter(|(before, found)| before != found);
        stop = (before.is_some() && is_stop(c)).then_some(from + at);
        after_stop.or(between.map(|_| from + at))
    })
}

/// What a word consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
}

fn kind(c: char) -> Option<Kind> {
    match c {
        '0'..='9' => Some(Kind::Digit),
        c if is_plain_letter(c) => Some(Kind::Letter),
        _ => None,
    }
}

/// A blank, a line end, and marks that are no part of a chat marker and begin no contraction.
const STOPS: &str = " \n,.;:!?\"(){}-+=*#&%$@，。";

fn is_stop(c: char) -> bool {
    STOPS.contains(c)
}

/// Letters to every version of Unicode, which NFC leaves as they are: of Latin, Cyrillic, Hebrew,
/// Arabic, Devanagari, kana, Chinese and Korean.
fn is_plain_letter(c: char) -> bool {
    matches!(c,
        'a'..='z' | 'A'..='Z'
        | '\u{410}'..='\u{44f}'
        | '\u{5d0}'..='\u{5ea}'
        | '\u{621}'..='\u{63a}' | '\u{641}'..='\u{64a}'
        | '\u{905}'..='\u{939}'
        | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}'
        | '\u{4e00}'..='\u{9fa5}'
        | '\u{ac00}'..='\u{d7a3}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{Random, fixture, fixture_names, fixtures, text};
    use crate::text::{Input, clean};

    impl Tokenizer {
        /// The text that one token stands for.
        pub(in crate::text) fn decoded(&self, id: u32) -> String {
            self.inner.decode(&[id], false).unwrap()
        }

        /// This one, as if nothing were known of its boundaries.
        pub(in crate::text) fn undivided(self) -> Self {
            Self { splits_at_boundaries: false, ..self }
        }
    }

    fn boundary(text: &str, from: usize) -> Option<usize> {
        boundaries(text, from).next()
    }

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
        assert!(boundaries("ab cd. x，y.z", 1).eq([2, 8, 12]));
        assert_eq!(boundary("ab cd", 0), Some(2));
        assert_eq!(boundary("ab cd", 1), Some(2));
        assert_eq!(boundary("ab cd", 2), None);
        assert_eq!(boundary("ab  cd. x", 0), None);
        assert_eq!(boundary("ab  cd. 1 x", 0), Some(9));
        assert_eq!(boundary("  ab12", 0), Some(4));
        assert_eq!(boundary("  12ab", 0), Some(4));
        assert_eq!(boundary("  12\nab", 0), Some(4));
        assert_eq!(boundary("<|im_start|don't_[/INST", 0), None);
        assert_eq!(boundary("don't stop", 0), Some(5));
        assert_eq!(boundary("é a b", 1), Some(4));
        assert_eq!(boundary("你好，世界", 0), Some(6));
        assert_eq!(boundary("", 0), None);
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
                let whole = tokenizer.in_one_piece(&text);
                let [room, piece] = [random.below(80), 1 + random.below(100)];
                early += usize::from(boundary(&text, piece).is_some());
                let found =
                    tokenizer.locate_in_pieces(&text, room, piece, &Control::default()).unwrap();
                let context = format!("{name}, {room} tokens, {piece} bytes: {text:?}");
                let ids: Vec<u32> = found.tokens.iter().map(|token| token.id).collect();
                assert!(ids.len() >= room.min(whole.len()), "{context}");
                assert_eq!(ids, whole[..ids.len()], "{context}");
                assert_eq!(found.more, whole.len() > room, "{context}");
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
                let whole = tokenizer.in_one_piece(&text);
                let mut from = 0;
                while let Some(at) = boundary(&text, from) {
                    let head = tokenizer.in_one_piece(&text[..at]);
                    let tail = tokenizer.in_one_piece(&text[at..]);
                    assert_eq!([head, tail].concat(), whole, "{name}, byte {at}: {text:?}");
                    from = at + 1;
                }
            }
        }
    }

    #[test]
    fn the_default_pieces_are_smaller_than_a_long_text_and_change_nothing() {
        for name in ["qwen3-real", "llama-short"] {
            let tokenizer = fixture(name);
            let mut random = Random(9);
            let long: String = (0..200).map(|_| text(&mut random)).collect();
            assert!(boundary(&long, MIN_PIECE_BYTES).is_some());
            let whole = tokenizer.in_one_piece(&long);
            for room in [1, 8, 500, whole.len() - 1, whole.len(), whole.len() + 1] {
                let found = tokenizer.encode(&long, tokenizer.special_count() + room).unwrap();
                let kept = &whole[..room.min(whole.len())];
                let ids = [&*tokenizer.special.before, kept, &*tokenizer.special.after].concat();
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
    fn expressions_that_are_not_known_and_dropout_are_refused() {
        let message = |edit: fn(&mut Value)| changed(edit).err().unwrap().message().to_owned();
        let other = message(|file| {
            file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
                "(?:a|aa){0,20}b|a".into();
        });
        let expected =
            r#"tokenizer.json: pre_tokenizer.pretokenizers[0].pattern.Regex: found "(?:"#;
        assert!(other.contains(expected), "{other}");
        let replace = message(|file| {
            file["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}
            ]});
        });
        assert!(replace.contains("normalizer.normalizers[0].pattern.Regex: found"), "{replace}");
        let random = message(|file| file["model"]["dropout"] = 0.1.into());
        assert!(random.contains("model.dropout: found 0.1, expected null or 0"), "{random}");
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
