//! A text that grows at its end, cleaned and tokenised again only from a safe point.

use std::ops::Range;

use super::clean::Collapsed;
use super::tokenizer::{Token, Tokenizer};
use crate::error::Result;

/// An optional prompt, one newline, and what was pushed.
///
/// Its safe point is the last boundary between words: what comes later changes neither the tokens
/// before it nor what cleaning does there, since no marker holds a boundary.
#[derive(Clone)]
pub(crate) struct Growing {
    /// Bytes before the first pushed one: those of the prompt and its newline.
    lead: usize,
    /// Bytes in all.
    len: usize,
    /// The tokens before the safe point, without the first `forgotten`.
    settled: Vec<Token>,
    forgotten: usize,
    /// How many of the settled tokens, forgotten ones included, hold no pushed byte.
    before_pushed: usize,
    /// The text from the safe point on.
    tail: String,
    /// As many tokens as will ever be asked for are settled, and there are more.
    full: bool,
}

/// What adding to a [`Growing`] makes of it: its tokens from its safe point on.
pub(crate) struct Next {
    tokens: Vec<Token>,
    /// How many of `tokens` stay whatever is pushed later.
    settled: usize,
    tail: String,
    len: usize,
    full: bool,
    /// There are more tokens than the limit.
    pub(crate) truncated: bool,
    /// Offset in the pushed bytes from which on they are held back: more text may make a marker of
    /// them, or of what follows them, or they are white space at the end.
    pub(crate) held_from: usize,
}

/// A growing text's tokens, special ones aside, with starts and ends in the pushed bytes: 0 for
/// what lies before them. Indices count from the text's first token.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    growing: &'a Growing,
    next: &'a Next,
}

impl Growing {
    /// Nothing is pushed yet. An empty prompt is none.
    pub(crate) fn new(prompt: Option<&str>) -> Self {
        let tail = match prompt.unwrap_or_default() {
            "" => String::new(),
            prompt => format!("{prompt}\n"),
        };
        Self {
            lead: tail.len(),
            len: tail.len(),
            settled: Vec::new(),
            forgotten: 0,
            before_pushed: 0,
            tail,
            full: false,
        }
    }

    /// What this becomes when `more` is pushed. Only the first `limit` tokens are wanted; it is the
    /// same number at every call.
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails or panics on this text.
    pub(crate) fn next(&self, tokenizer: &Tokenizer, more: &str, limit: usize) -> Result<Next> {
        let len = self.len + more.len();
        if self.full {
            return Ok(Next {
                tokens: Vec::new(),
                settled: 0,
                tail: String::new(),
                len,
                full: true,
                truncated: true,
                held_from: len - self.lead,
            });
        }
        let mut tail = [&self.tail, more].concat();
        let base = len - tail.len();
        let pushed = |raw: usize| (base + raw).saturating_sub(self.lead);

        let cleaned = Collapsed::new(&tail);
        let Range { mut start, end } = cleaned.stripped();
        if base > 0 {
            // Here the text does not begin: this is a blank between two words.
            start = 0;
        }
        let room = limit.saturating_sub(self.settled_len());
        let blank = start == end;
        let text = if blank { " " } else { &cleaned.text[start..end] };
        let located = tokenizer.locate(text, room)?;
        let mut tokens = located.tokens;
        tokens.truncate(room);
        for token in &mut tokens {
            (token.start, token.end) = if blank {
                // The space stands for all that was stripped.
                (0, len - self.lead)
            } else {
                let next = start + token.end;
                // What cleaning dropped behind a token is the token's, but not what was stripped.
                let next = if next < end { cleaned.start(next) } else { cleaned.end(next) };
                (pushed(cleaned.start(start + token.start)), pushed(next))
            };
        }
        // What follows a boundary is at least one more token.
        let full = located.boundary > 0 && located.settled >= room;
        let held_from = pushed(cleaned.held_from());
        if full {
            tail = String::new();
        } else if located.boundary > 0 {
            tail.drain(..cleaned.start(start + located.boundary));
        }
        Ok(Next {
            settled: located.settled.min(room),
            tokens,
            tail,
            len,
            full,
            truncated: located.more,
            held_from,
        })
    }

    /// Makes `next`, which was computed from this very state, the state.
    pub(crate) fn commit(&mut self, mut next: Next) {
        next.tokens.truncate(next.settled);
        self.before_pushed += before_pushed(&next.tokens);
        self.settled.append(&mut next.tokens);
        self.tail = next.tail;
        self.len = next.len;
        self.full = next.full;
    }

    /// The tokens once `next`, which was computed from this very state, is committed.
    pub(crate) fn view<'a>(&'a self, next: &'a Next) -> View<'a> {
        View { growing: self, next }
    }

    /// Bytes that the next call cleans and tokenises again.
    pub(crate) fn unsettled_bytes(&self) -> usize {
        self.tail.len()
    }

    /// Drops what is known of the settled tokens before `index`.
    pub(crate) fn forget_before(&mut self, index: usize) {
        let known = index.min(self.settled_len()).saturating_sub(self.forgotten);
        self.settled.drain(..known);
        self.forgotten += known;
    }

    fn settled_len(&self) -> usize {
        self.forgotten + self.settled.len()
    }
}

impl View<'_> {
    /// How many tokens there are, at most the limit.
    pub(crate) fn len(&self) -> usize {
        self.growing.settled_len() + self.next.tokens.len()
    }

    /// How many of them, from the first, stay whatever is pushed later.
    pub(crate) fn settled(&self) -> usize {
        self.growing.settled_len() + self.next.settled
    }

    /// The tokens from `index` on, none of which is forgotten.
    pub(crate) fn from(&self, index: usize) -> impl Iterator<Item = Token> {
        let known = index - self.growing.forgotten;
        self.growing.settled.iter().chain(&self.next.tokens).copied().skip(known)
    }

    /// The index of the first token that holds pushed bytes; the number of tokens if none does.
    pub(crate) fn first_pushed(&self) -> usize {
        let settled = self.growing.settled_len();
        match self.growing.before_pushed {
            before if before < settled => before,
            before => before + before_pushed(&self.next.tokens),
        }
    }
}

/// How many of `tokens` end before the first pushed byte does.
fn before_pushed(tokens: &[Token]) -> usize {
    tokens.partition_point(|token| token.end == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{Random, fixture, fixture_names, raw_text};
    use crate::text::{Input, MARKERS, clean};

    /// Pushes a text, and holds every prefix against tokenising it from nothing.
    struct Checked<'a> {
        tokenizer: &'a Tokenizer,
        prompt: Option<&'a str>,
        limit: usize,
        growing: Growing,
        pushed: String,
        settled: Vec<Token>,
        held_from: usize,
        /// The cleaned text before `held_from`.
        sure: String,
    }

    impl<'a> Checked<'a> {
        fn new(tokenizer: &'a Tokenizer, prompt: Option<&'a str>, limit: usize) -> Self {
            Self {
                tokenizer,
                prompt,
                limit,
                growing: Growing::new(prompt),
                pushed: String::new(),
                settled: Vec::new(),
                held_from: 0,
                sure: String::new(),
            }
        }

        fn join(&self, pushed: &str) -> String {
            Input::Exchange { prompt: self.prompt, response: Some(pushed) }.join().into_owned()
        }

        fn push(&mut self, more: &str) {
            let next = self.growing.next(self.tokenizer, more, self.limit).unwrap();
            self.pushed.push_str(more);
            let cleaned = clean(&self.join(&self.pushed));
            let context = format!("limit {}, {:?} then {:?}", self.limit, self.prompt, self.pushed);

            let view = self.growing.view(&next);
            let tokens: Vec<Token> = view.from(0).collect();
            let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            let whole = self.tokenizer.in_one_piece(&cleaned);
            assert_eq!(ids, whole[..whole.len().min(self.limit)], "{context}");
            assert_eq!(next.truncated, whole.len() > self.limit, "{context}");
            assert_eq!(view.len(), tokens.len());

            self.check_spans(&tokens, &context);
            let first = tokens.iter().position(|token| token.end > 0).unwrap_or(tokens.len());
            assert_eq!(view.first_pushed(), first, "{context}");

            assert!(view.settled() <= tokens.len(), "{context}");
            assert_eq!(self.settled, tokens[..self.settled.len()], "{context}");
            self.settled = tokens[..view.settled().max(self.settled.len())].to_vec();
            assert_eq!(self.settled.len(), view.settled(), "{context}");

            assert!(cleaned.starts_with(&self.sure), "{context}");
            assert!(next.held_from >= self.held_from, "{context}");
            if !next.full {
                let held_from = held_from(&self.join(&self.pushed));
                let lead = self.join(&self.pushed).len() - self.pushed.len();
                assert_eq!(next.held_from, held_from.saturating_sub(lead), "{context}");
                self.held_from = next.held_from;
                self.sure = clean(&self.join(&self.pushed[..self.held_from]));
                if self.sure == " " {
                    self.sure.clear();
                }
            }
            self.growing.commit(next);
        }

        fn check_spans(&self, tokens: &[Token], context: &str) {
            let (mut start, mut end) = (0, 0);
            for &token in tokens {
                assert!(start <= token.start && end <= token.end, "{token:?}, {context}");
                (start, end) = (token.start, token.end);
                assert!(start <= end, "{token:?}, {context}");
                assert!(self.pushed.is_char_boundary(start), "{token:?}, {context}");
                assert!(self.pushed.is_char_boundary(end), "{token:?}, {context}");
                let own = &self.pushed[start..end];
                if start > 0 && own.is_ascii() {
                    let letters = |text: &str| -> String {
                        text.chars()
                            .filter(|c| !c.is_ascii_whitespace() && !c.is_ascii_control())
                            .collect()
                    };
                    let decoded = self.tokenizer.decoded(token.id);
                    assert_eq!(letters(&clean(own)), letters(&decoded), "{token:?}, {context}");
                }
            }
        }
    }

    /// Where a text is held back, found from its end.
    fn held_from(joined: &str) -> usize {
        let prefixes = MARKERS.iter().flat_map(|marker| (1..marker.len()).map(|n| &marker[..n]));
        let begun = prefixes.filter(|prefix| joined.ends_with(prefix)).map(str::len).max();
        let mut sure = &joined[..joined.len() - begun.unwrap_or(0)];
        loop {
            let blank = |c: char| c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}');
            let shorter = sure.trim_end_matches(blank);
            let shorter = MARKERS.iter().find_map(|m| shorter.strip_suffix(m)).unwrap_or(shorter);
            if shorter == sure {
                return sure.len();
            }
            sure = shorter;
        }
    }

    fn push_in_chunks(checked: &mut Checked<'_>, text: &str, random: &mut Random) {
        let chunk = 1 + random.below(60);
        let mut at = 0;
        checked.push("");
        while at < text.len() {
            let end = text.ceil_char_boundary(at + random.below(chunk) + 1);
            checked.push(&text[at..end]);
            at = end;
        }
        checked.push("");
    }

    #[test]
    fn every_prefix_has_the_tokens_of_the_whole_prefix() {
        for name in fixture_names() {
            let tokenizer = fixture(&name);
            let mut random = Random(20_261_126);
            let mut settled = 0;
            for round in 0..120 {
                let text = raw_text(&mut random);
                let written = raw_text(&mut random);
                let prompts =
                    ["", " ", "\n\n", "ask", "ask.", "<s", "a <|im_", "<s>", "\u{1c}\r", &written];
                let prompt = (round % 3 > 0).then(|| prompts[random.below(prompts.len())]);
                let limit = [0, 1, 2, 7, 40, 200, usize::MAX, usize::MAX][random.below(8)];
                let mut checked = Checked::new(&tokenizer, prompt, limit);
                push_in_chunks(&mut checked, &text, &mut random);
                settled += checked.settled.len();
            }
            assert!(settled > 1000, "{name}: only {settled} tokens were settled");
        }
    }

    #[test]
    fn a_tokenizer_that_does_not_split_at_boundaries_settles_nothing() {
        let tokenizer = fixture("qwen3-short").undivided();
        let mut random = Random(3);
        for limit in [0, 5, 40, usize::MAX] {
            let mut checked = Checked::new(&tokenizer, Some("some words"), limit);
            push_in_chunks(&mut checked, &raw_text(&mut random), &mut random);
            assert!(checked.settled.is_empty());
        }
    }
}
