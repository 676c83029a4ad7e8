//! What the engine is held against: texts to try, and the rules of cleaning, crossing and clearing
//! told again in their simplest form.

use std::collections::HashMap;
use std::ops::Range;

use siren::{Crossing, Guard, Input, OpenOptions, Push, Score, ScoreOptions, Stats};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::guard_files::{GuardFiles, TOKENIZER};
use crate::own_process::measured;

/// A small seeded generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    pub fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

#[rustfmt::skip]
pub const PIECES: [&str; 42] = [
    "a", "the", "words", "don", "'t", "naïve", "ß", "Привет", "שלום", "你好", "한국", "0", "42", "123456",
    " ", " ", " ", "  ", "\t", "\n", "\n\n\n", "\r\n", "\u{a0}", ",", ".", "。", "...", "!?", "🙂",
    "👩\u{200d}💻", "<think>", "<|im_start|>", "<|im_", "end|>", "<s>", "[INST", "]", "<", " then", ", so",
    // From here on normalising moves what a token stands for.
    "e\u{301}", "\u{301}",
];
/// The pieces whose tokens stand for the same bytes before and after normalising.
pub const NORMAL: &[&str] = PIECES.split_at(40).0;

/// Prompts that end where something is unfinished, or that clean to nothing.
pub const PROMPTS: [&str; 10] =
    ["", " ", "\n\n", "ask", "ask.", "<s", "a <|im_", "<s>", "\u{1c}\r", "some wor"];

pub fn text(random: &mut Random, pieces: &[&str], most: usize) -> String {
    (0..random.below(most)).map(|_| random.one_of(pieces)).collect()
}

/// Plain words and stops, about a token a word.
pub fn prose(random: &mut Random, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "the", "river", "was", "cold", "and", "nobody", "had", "thought", "of", "bringing", "a",
        "rope", "so", "they", "waited", "there",
    ];
    let mut prose = String::new();
    for word in 0..words {
        prose.push_str(random.one_of(&WORDS));
        prose.push_str(if word % 11 == 10 { ". " } else { " " });
    }
    prose
}

/// Cuts `text` anywhere, characters included.
pub fn chunks<'a>(random: &mut Random, text: &'a str, most: usize) -> Vec<&'a [u8]> {
    let mut rest = text.as_bytes();
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(1 + random.below(rest.len().min(most)));
        chunks.push(chunk);
        rest = behind;
    }
    chunks
}

pub fn joined<'a>(prompt: Option<&'a str>, response: &'a str) -> Input<'a> {
    Input::Exchange { prompt, response: Some(response) }
}

pub fn score(guard: &Guard, text: &str) -> Score {
    guard.score(Input::Text(text), None).unwrap()
}

pub fn opened(files: &GuardFiles, change: impl FnOnce(&mut OpenOptions)) -> Guard {
    let mut options = files.options();
    change(&mut options);
    Guard::open(options).unwrap()
}

/// Tokens that ran between two looks at a guard.
pub fn ran(before: &Stats, after: &Stats) -> u64 {
    after.tokens - before.tokens
}

/// Small guards behind the real tokenizers that can be had here.
pub fn real_guards() -> Vec<(&'static str, GuardFiles)> {
    let mut guards = vec![("qwen3-real", GuardFiles::qwen3_real())];
    match GuardFiles::llama_real() {
        Some(files) => guards.push(("llama32-real", files)),
        None => measured("SKIPPED: SIREN_LLAMA_TOKENIZER does not name the tokenizer's directory"),
    }
    guards
}

/// As the specification lists them.
#[rustfmt::skip]
const MARKERS: [&str; 23] = [
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<<SYS>>", "<</SYS>>",
    "[INST]", "[/INST]", "<s>", "</s>", "<|s|>", "<|/s|>",
];

fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// A text's characters as cleaning leaves them, each with its place in the raw text.
fn cleaned(raw: &str) -> Vec<(char, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(c) = raw[at..].chars().next() {
        let marker = MARKERS.iter().find(|marker| raw[at..].starts_with(**marker));
        let (c, len) = marker.map_or((c, c.len_utf8()), |marker| (' ', marker.len()));
        found.push((c, at..at + len));
        at += len;
    }
    for tab in found.iter_mut().filter(|(c, _)| *c == '\t') {
        tab.0 = ' ';
    }
    found.dedup_by(|a, b| a.0 == ' ' && b.0 == ' ');
    let mut newlines = 0;
    found.retain(|(c, _)| {
        newlines = if *c == '\n' { newlines + 1 } else { 0 };
        newlines <= 2
    });
    let end = found.iter().rposition(|(c, _)| !is_blank(*c)).map_or(0, |last| last + 1);
    found.truncate(end);
    let start = found.iter().position(|(c, _)| !is_blank(*c)).unwrap_or(0);
    found.split_off(start)
}

/// The byte from which on more text may change what becomes of `raw`.
fn held_from(raw: &str) -> usize {
    let unfinished =
        |at: &usize| MARKERS.iter().any(|m| raw.len() - at < m.len() && m.starts_with(&raw[*at..]));
    let sure = (0..raw.len()).find(|at| raw.is_char_boundary(*at) && unfinished(at));
    cleaned(&raw[..sure.unwrap_or(raw.len())]).last().map_or(0, |(_, place)| place.end)
}

/// A fixture's tokenizer, through the `tokenizers` package alone.
pub struct Tokens(Tokenizer);

/// A token and the raw bytes of the characters that it stands for, wholly or in part.
#[derive(Clone, Debug)]
pub struct Spanned {
    pub id: u32,
    pub raw: Range<usize>,
}

impl Tokens {
    pub fn of(files: &GuardFiles) -> Self {
        let mut tokenizer = Tokenizer::from_file(files.path(TOKENIZER)).unwrap();
        tokenizer.with_padding(None).with_truncation(None).unwrap();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        Self(tokenizer)
    }

    /// All tokens of a raw text, special ones aside. What cleaning drops belongs to what stands
    /// before it.
    pub fn spanned(&self, raw: &str) -> Vec<Spanned> {
        let cleaned = cleaned(raw);
        let text: String = cleaned.iter().map(|(c, _)| *c).collect();
        if text.is_empty() {
            let ids = self.0.encode(" ", false).unwrap().get_ids().to_vec();
            return ids.into_iter().map(|id| Spanned { id, raw: 0..raw.len() }).collect();
        }
        let mut starts = HashMap::new();
        let mut at = 0;
        for (c, place) in &cleaned {
            starts.insert(at, place.start);
            at += c.len_utf8();
        }
        starts.insert(at, cleaned.last().unwrap().1.end);
        let encoding = self.0.encode(text, false).unwrap();
        let offsets = encoding.get_offsets().iter().map(|(start, end)| starts[start]..starts[end]);
        encoding.get_ids().iter().zip(offsets).map(|(&id, raw)| Spanned { id, raw }).collect()
    }
}

/// Running scores by guards that read 1, 2, 3, ... tokens of text.
pub struct Running {
    cut: Vec<Guard>,
    known: HashMap<Vec<u32>, f64>,
    special: usize,
}

impl Running {
    pub fn of(files: &GuardFiles, special: usize, most: usize) -> Self {
        let cut = (1..=most)
            .map(|n| {
                opened(files, |o| {
                    o.max_length = Some(special + n);
                    o.prefix_cache_bytes = 0;
                })
            })
            .collect();
        Self { cut, known: HashMap::new(), special }
    }

    /// The guard that reads the most.
    pub fn longest(&self) -> &Guard {
        &self.cut[self.cut.len() - 1]
    }

    pub fn special(&self) -> usize {
        self.special
    }

    /// What the first `tokens.len()` tokens of `input` score, which are these.
    pub fn score(&mut self, input: Input<'_>, tokens: &[Spanned]) -> f64 {
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let guard = &self.cut[ids.len() - 1];
        *self.known.entry(ids).or_insert_with(|| {
            let score = guard.score(input, None).unwrap();
            assert_eq!(score.tokens, self.special + tokens.len());
            score.score
        })
    }
}

/// The rules of crossing and clearing over the running scores of one push after the other.
pub struct Watch {
    pub threshold: f64,
    pub hysteresis: usize,
    pub crossing: Option<Crossing>,
    pub cleared: usize,
}

impl Watch {
    pub fn new(threshold: f64, hysteresis: usize) -> Self {
        Self { threshold, hysteresis: hysteresis.max(1), crossing: None, cleared: 0 }
    }

    /// Takes in the prefix after a push: its tokens from the first pushed one on, in pushed bytes,
    /// with the running score after each, and where scored text ends if it was cut.
    pub fn see(&mut self, scored: &[(usize, Range<usize>, f64)], raw_end: usize) {
        let (mut safe, mut run) = (0, 0);
        let mut run_start = usize::MAX;
        for (index, place, score) in scored {
            if *score < self.threshold {
                (safe, run, run_start) = (place.end, 0, usize::MAX);
                continue;
            }
            run += 1;
            run_start = run_start.min(place.start);
            if self.crossing.is_none() && run == self.hysteresis {
                self.crossing = Some(Crossing { token: *index, byte: place.end });
                // A character that the crossing's tokens share with a safe one is not shown.
                self.cleared = self.cleared.max(safe.min(run_start).min(raw_end));
            }
        }
        if self.crossing.is_none() {
            self.cleared = self.cleared.max(safe.min(run_start).min(raw_end));
        }
    }

    pub fn check(&self, push: &Push, context: &str) {
        assert_eq!(push.first_crossing, self.crossing, "{context}");
        assert_eq!(push.cleared, self.cleared, "{context}");
    }
}

/// A stream told again: everything is computed anew from the whole prefix.
pub struct Retold<'a> {
    pub prompt: Option<&'a str>,
    pub pushed: String,
    pub watch: Watch,
}

impl Retold<'_> {
    pub fn push(&mut self, more: &str, tokens: &Tokens, running: &mut Running) {
        self.pushed.push_str(more);
        let input = joined(self.prompt, &self.pushed);
        let prompt = self.prompt.filter(|prompt| !prompt.is_empty());
        let raw = [prompt.unwrap_or_default(), "\n", &self.pushed];
        // An empty response is no response.
        let raw = match (prompt, self.pushed.is_empty()) {
            (Some(_), false) => raw.concat(),
            (Some(prompt), true) => prompt.to_owned(),
            (None, _) => self.pushed.clone(),
        };
        let lead = prompt.map_or(0, |prompt| prompt.len() + 1);
        let pushed = |raw: usize| raw.saturating_sub(lead);
        let mut all = tokens.spanned(&raw);
        let cut = all.get(running.cut.len()).map(|token| token.raw.start);
        all.truncate(running.cut.len());
        let special = running.special();
        let scored: Vec<_> = (0..all.len())
            .filter(|&i| all[i].raw.end > lead)
            .map(|i| {
                let place = pushed(all[i].raw.start)..pushed(all[i].raw.end);
                (special + i, place, running.score(input, &all[..=i]))
            })
            .collect();
        let held = held_from(&raw).min(cut.unwrap_or(usize::MAX));
        self.watch.see(&scored, pushed(held));
    }
}

/// One character a token: letters and digits in turn, with a comma between letters now and then, so
/// that every part of a text has the tokens that it has there.
pub fn characters(random: &mut Random, length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        let letters = *b"bcdfghjkmnpqvwxz";
        text.push(char::from(random.one_of(&letters)));
        if random.below(3) == 0 {
            text.push(',');
        } else {
            text.push(char::from(b'0' + random.below(10) as u8));
        }
    }
    text.truncate(length);
    text
}

/// What windows score, by scoring each one's characters as a text of their own.
pub fn window_scores(
    guard: &Guard,
    text: &str,
    room: usize,
    stride: usize,
) -> Vec<(Range<usize>, f64)> {
    let mut windows = Vec::new();
    let mut start = 0;
    loop {
        let end = text.len().min(start + room);
        windows.push((start..end, score(guard, &text[start..end]).score));
        if end == text.len() {
            return windows;
        }
        start += stride;
    }
}

pub fn with_windows(tokens: usize, stride: usize) -> ScoreOptions {
    let windows = Some(siren::Windows { tokens, stride });
    ScoreOptions { windows, ..ScoreOptions::default() }
}
