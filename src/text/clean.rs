//! The cleaning that SIREN guards were trained behind: chat markers and runs of white space.

use aho_corasick::{AhoCorasick, MatchKind};
use once_cell::sync::Lazy;

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

static MATCHER: Lazy<AhoCorasick> = Lazy::new(|| {
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostFirst)
        .build(MARKERS)
        .expect("the list of markers is fixed")
});

/// Cleans a joined text, each step in one pass: markers become one space (and are not looked for
/// again in the result), runs of blanks and tabs become one space, three or more newlines become
/// two, and the ends are stripped. What is then empty becomes one space.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut whitespace = Whitespace::default();
    let mut at = 0;
    for found in MATCHER.find_iter(text) {
        whitespace.push(&text[at..found.start()], &mut out);
        whitespace.push(" ", &mut out);
        at = found.end();
    }
    whitespace.push(&text[at..], &mut out);
    let end = out.trim_end_matches(is_python_whitespace).len();
    out.truncate(end);
    let start = out.len() - out.trim_start_matches(is_python_whitespace).len();
    out.drain(..start);
    if out.is_empty() {
        out.push(' ');
    }
    out
}

/// Collapses blanks and newlines over a text that comes in pieces.
#[derive(Default)]
struct Whitespace {
    blank: bool,
    newlines: usize,
}

impl Whitespace {
    fn push(&mut self, piece: &str, out: &mut String) {
        let mut rest = piece;
        while let Some(at) = rest.find([' ', '\t', '\n']) {
            if at > 0 {
                out.push_str(&rest[..at]);
                *self = Self::default();
            }
            if rest.as_bytes()[at] == b'\n' {
                self.blank = false;
                self.newlines += 1;
                if self.newlines <= 2 {
                    out.push('\n');
                }
            } else {
                self.newlines = 0;
                if !self.blank {
                    out.push(' ');
                }
                self.blank = true;
            }
            rest = &rest[at + 1..];
        }
        if !rest.is_empty() {
            out.push_str(rest);
            *self = Self::default();
        }
    }
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
