//! The cleaning that SIREN guards were trained behind: chat markers and runs of white space.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use once_cell::race::OnceBox;

/// Chat-template markers, each replaced by one space. Exact and case-sensitive.
pub const MARKERS: [&str; 23] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<<SYS>>",
    "<</SYS>>",
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
    "<|s|>",
    "<|/s|>",
];

/// Made once, without a lock: a child that is forked meanwhile would wait for it.
fn matcher() -> &'static AhoCorasick {
    static MATCHER: OnceBox<AhoCorasick> = OnceBox::new();
    MATCHER.get_or_init(|| {
        let mut builder = AhoCorasick::builder();
        let built = builder.match_kind(MatchKind::LeftmostFirst).build(MARKERS);
        Box::new(built.expect("the list of markers is fixed"))
    })
}

/// Cleans a joined text, each step in one pass: markers become one space (and are not looked for
/// again in the result), runs of blanks and tabs become one space, three or more newlines become
/// two, and the ends are stripped. What is then empty becomes one space.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    collapse(text, &mut out);
    let kept = stripped(&out);
    out.truncate(kept.end);
    out.drain(..kept.start);
    if out.is_empty() {
        out.push(' ');
    }
    out
}

/// A text as [`clean`] makes it, but not stripped, that knows which bytes it was made from.
pub(crate) struct Collapsed {
    /// The text.
    pub(crate) text: String,
    /// Bytes of `text`, and of the raw text, from which on the two run in step.
    steps: Vec<(usize, usize)>,
}

impl Collapsed {
    pub(crate) fn new(raw: &str) -> Self {
        let mut collapsed = Self { text: String::with_capacity(raw.len()), steps: vec![(0, 0)] };
        collapse(raw, &mut collapsed);
        collapsed
    }

    /// What stripping leaves of the text.
    pub(crate) fn stripped(&self) -> Range<usize> {
        stripped(&self.text)
    }

    /// The raw byte where what stands at byte `at` begins.
    pub(crate) fn start(&self, at: usize) -> usize {
        let (clean, raw) = self.steps[self.steps.partition_point(|step| step.0 <= at) - 1];
        raw + (at - clean)
    }

    /// The raw byte where the character that ends at byte `at` ends; it was not replaced.
    pub(crate) fn end(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |last| self.start(last) + 1)
    }

    /// The raw byte from which on more text may still change what becomes of the raw text: white
    /// space that would be stripped, before what may become a marker.
    pub(crate) fn held_from(&self) -> usize {
        let sure = &self.text[..self.text.len() - marker_begun(&self.text)];
        self.end(stripped(sure).end)
    }
}

/// The bytes at the end of a text that may become a marker.
fn marker_begun(text: &str) -> usize {
    let begun = |marker: &str| (1..marker.len()).rev().find(|&n| text.ends_with(&marker[..n]));
    MARKERS.into_iter().filter_map(begun).max().unwrap_or(0)
}

/// Takes a text in pieces, each with the byte of the raw text where it stood.
trait Output {
    fn put(&mut self, piece: &str, raw: usize);
}

impl Output for String {
    fn put(&mut self, piece: &str, _: usize) {
        self.push_str(piece);
    }
}

impl Output for Collapsed {
    fn put(&mut self, piece: &str, raw: usize) {
        let (at, before) = (self.text.len(), self.steps[self.steps.len() - 1]);
        if raw - before.1 != at - before.0 {
            self.steps.push((at, raw));
        }
        self.text.push_str(piece);
    }
}

/// Everything that cleaning does before it strips.
fn collapse(text: &str, out: &mut impl Output) {
    let mut whitespace = Whitespace::default();
    let mut at = 0;
    for found in matcher().find_iter(text) {
        whitespace.put(&text[at..found.start()], at, out);
        whitespace.put(" ", found.start(), out);
        at = found.end();
    }
    whitespace.put(&text[at..], at, out);
}

/// Collapses blanks and newlines over a text that comes in pieces.
#[derive(Default)]
struct Whitespace {
    blank: bool,
    newlines: usize,
}

impl Whitespace {
    fn put(&mut self, piece: &str, mut raw: usize, out: &mut impl Output) {
        let mut rest = piece;
        while let Some(at) = rest.find([' ', '\t', '\n']) {
            if at > 0 {
                out.put(&rest[..at], raw);
                *self = Self::default();
            }
            raw += at;
            if rest.as_bytes()[at] == b'\n' {
                self.blank = false;
                self.newlines += 1;
                if self.newlines <= 2 {
                    out.put("\n", raw);
                }
            } else {
                self.newlines = 0;
                if !self.blank {
                    out.put(" ", raw);
                }
                self.blank = true;
            }
            raw += 1;
            rest = &rest[at + 1..];
        }
        if !rest.is_empty() {
            out.put(rest, raw);
            *self = Self::default();
        }
    }
}

/// What is left of a text that is stripped at both ends.
fn stripped(text: &str) -> Range<usize> {
    let end = text.trim_end_matches(is_python_whitespace).len();
    let start = end - text[..end].trim_start_matches(is_python_whitespace).len();
    start..end
}

/// What Python's `str.strip` takes off: Unicode White_Space and the four separators below it.
fn is_python_whitespace(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_marker_becomes_one_space() {
        for marker in MARKERS {
            assert_eq!(clean(&format!("a{marker}b")), "a b", "{marker}");
            assert_eq!(clean(marker), " ", "{marker}");
        }
        assert_eq!(clean("a<S>b<|IM_START|>c"), "a<S>b<|IM_START|>c");
        assert_eq!(clean("<|im_<s>start|>"), "<|im_ start|>");
        assert_eq!(clean("<think>x</think>"), "<think>x</think>");
    }

    #[test]
    fn blanks_and_newlines_collapse_in_order() {
        assert_eq!(clean("a \t b\tc"), "a b c");
        assert_eq!(clean("a\n\n\n\nb\n\nc"), "a\n\nb\n\nc");
        // A blank line that holds a space stays, and so do CR and NBSP.
        assert_eq!(clean("a\n \n\nb"), "a\n \n\nb");
        assert_eq!(clean("a\n<s>\n\n\n\nb"), "a\n \n\nb");
        assert_eq!(clean("a\r\n\r\n\r\nb\u{a0}\u{a0}c"), "a\r\n\r\n\r\nb\u{a0}\u{a0}c");
    }

    #[test]
    fn the_ends_are_stripped_as_python_strips_them() {
        assert_eq!(clean("\u{1c}\u{1f}\u{85}\u{a0}\u{3000} x \u{2028}\n"), "x");
        assert_eq!(clean("\u{200b}x\u{feff}"), "\u{200b}x\u{feff}");
        assert_eq!(clean(""), " ");
        assert_eq!(clean(" \n\t\u{1d} "), " ");
    }
}
