//! Arbitrary text through cleaning and tokenising: cleaning does what a plain rendering of its
//! rules does, and ids that are made piece by piece are those of the whole text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{tokenizer, undivided_tokenizer};
use siren::fuzzing::{self, MARKERS, Tokenizer};

/// Two fixtures', and one with added tokens that end between words.
static TOKENIZERS: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| [tokenizer("qwen3-short"), tokenizer("llama-short"), undivided_tokenizer()]);

/// The rules of cleaning, one pass over the whole text for each.
fn clean(text: &str) -> String {
    let mut unmarked = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(marker) = MARKERS.iter().find(|marker| rest.starts_with(**marker)) {
            unmarked.push(' ');
            rest = &rest[marker.len()..];
        } else {
            unmarked.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    let mut blanks = unmarked.replace('\t', " ");
    while blanks.contains("  ") {
        blanks = blanks.replace("  ", " ");
    }
    while blanks.contains("\n\n\n") {
        blanks = blanks.replace("\n\n\n", "\n\n");
    }
    let stripped = blanks.trim_matches(is_strippable);
    if stripped.is_empty() { " ".into() } else { stripped.into() }
}

fn is_strippable(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    let cleaned = fuzzing::clean(&text);
    assert_eq!(cleaned, clean(&text));
    assert!(MARKERS.iter().all(|marker| !cleaned.contains(marker)));
    assert!(!cleaned.contains("\n\n\n") && !cleaned.contains("  ") && !cleaned.contains('\t'));
    assert!(cleaned == " " || cleaned.trim_matches(is_strippable) == cleaned);
    assert_eq!(fuzzing::clean(&cleaned), cleaned, "a second pass changes nothing");

    let tokenizer = &TOKENIZERS[usize::from(choice % 3)];
    let max_length = usize::from(choice / 3) + 1;
    let (whole, is_cut) = tokenizer.encode(&cleaned, usize::MAX).expect("tokens");
    assert!(!is_cut && !whole.is_empty());
    assert!(whole.ends_with(&tokenizer.in_one_piece(&cleaned)));
    // None of them puts special tokens behind a text: what is kept is a head of the whole.
    let max_length = max_length.max(tokenizer.special_count());
    let (ids, is_cut) = tokenizer.encode(&cleaned, max_length).expect("tokens");
    assert_eq!(ids, whole[..max_length.min(whole.len())]);
    assert_eq!(is_cut, whole.len() > max_length);
});
