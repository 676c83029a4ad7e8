//! A text that grows at its end, cleaned and tokenised again only from a safe point.

use std::ops::Range;

use super::clean::Collapsed;
use super::tokenizer::{Token, Tokenizer};
use crate::call::Control;
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
    /// As in [`Next`].
    cut_from: usize,
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
    /// Offset in the pushed bytes from which on they are held back: more text may still make a
    /// marker of them, or they are white space before that or at the end. Once the limit's tokens
    /// are settled nothing is held back.
    pub(crate) held_from: usize,
    /// Offset in the pushed bytes where the first token over the limit begins, where that may be
    /// before the end of the last one within it: the two may share a character.
    pub(crate) cut_from: usize,
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
            cut_from: usize::MAX,
        }
    }

    /// What this becomes when `more` is pushed. Only the first `limit` tokens are wanted; it is the
    /// same number at every call.
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails or panics on this text; those of `control`, which is
    /// looked at every some tens of kilobytes.
    pub(crate) fn next(
        &self,
        tokenizer: &Tokenizer,
        more: &str,
        limit: usize,
        control: &Control,
    ) -> Result<Next> {
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
                cut_from: self.cut_from,
            });
        }
        let mut tail = [&self.tail, more].concat();
        let base = len - tail.len();
        let pushed = |raw: usize| (base + raw).saturating_sub(self.lead);

        let cleaned = Collapsed::new(&tail);
        let Range { mut start, end } = cleaned.stripped();
        if base > 0 {
            // The tail begins inside the text, maybe with the blank between two words.
            start = 0;
        }
        let room = limit.saturating_sub(self.settled_len());
        let blank = start == end;
        let text = if blank { " " } else { &cleaned.text[start..end] };
        let located = tokenizer.locate(text, room, control)?;
        let mut tokens = located.tokens;
        let over = tokens.get(room).map(|token| pushed(cleaned.start(start + token.start)));
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
            tail = tail.split_off(cleaned.start(start + located.boundary));
        }
        Ok(Next {
            settled: located.settled.min(room),
            tokens,
            tail,
            len,
            full,
            truncated: located.more,
            held_from,
            cut_from: over.unwrap_or(usize::MAX),
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
        self.cut_from = next.cut_from;
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

impl<'a> View<'a> {
    /// How many tokens there are, at most the limit.
    pub(crate) fn len(self) -> usize {
        self.growing.settled_len() + self.next.tokens.len()
    }

    /// How many of them, from the first, stay whatever is pushed later.
    pub(crate) fn settled(self) -> usize {
        self.growing.settled_len() + self.next.settled
    }

    /// The tokens from `index` on, none of which is forgotten.
    pub(crate) fn tokens(self, index: usize) -> impl Iterator<Item = Token> + use<'a> {
        let known = index - self.growing.forgotten;
        self.growing.settled.iter().chain(&self.next.tokens).copied().skip(known)
    }

    /// The tokens of `range`, none of which is forgotten.
    pub(crate) fn range(self, range: Range<usize>) -> impl Iterator<Item = Token> + use<'a> {
        self.tokens(range.start).take(range.len())
    }

    /// The index of the first token that holds pushed bytes; the number of tokens if none does.
    pub(crate) fn first_pushed(self) -> usize {
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
            let next =
                self.growing.next(self.tokenizer, more, self.limit, &Control::default()).unwrap();
            self.pushed.push_str(more);
            let cleaned = clean(&self.join(&self.pushed));
            let context = format!("limit {}, {:?} then {:?}", self.limit, self.prompt, self.pushed);

            let view = self.growing.view(&next);
            let tokens: Vec<Token> = view.tokens(0).collect();
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

    /// The text and its tokens' bytes, whole.
    fn spans<'a>(
        tokenizer: &Tokenizer,
        prompt: Option<&str>,
        pushed: &'a str,
    ) -> Vec<(usize, &'a str)> {
        let growing = Growing::new(prompt);
        let next = growing.next(tokenizer, pushed, usize::MAX, &Control::default()).unwrap();
        let tokens = growing.view(&next).tokens(0);
        tokens.map(|token| (token.start, &pushed[token.start..token.end])).collect()
    }

    #[test]
    fn what_cleaning_drops_belongs_to_what_stands_for_it_or_stands_before() {
        let tokenizer = fixture("qwen3-real");
        let spans = |prompt, pushed| spans(&tokenizer, prompt, pushed);
        assert_eq!(
            spans(None, " the \t dog<s>is\n\n\n\nhere \n"),
            [(1, "the"), (4, " \t dog"), (10, "<s>is"), (15, "\n\n\n\n"), (19, "here"),]
        );
        // A mark that is composed with a letter, and the parts of one character.
        assert_eq!(spans(None, "cafe\u{301} the"), [(0, "ca"), (2, "fe\u{301}"), (6, " the")]);
        assert_eq!(spans(None, "\u{13000}"), [(0, "\u{13000}"); 3]);
        // Of the prompt and its newline nothing was pushed.
        assert_eq!(spans(Some("the dog"), "is"), [(0, ""), (0, ""), (0, ""), (0, "is")]);
        // What is stripped at the end is no token's; what is nothing else is the space's.
        assert_eq!(spans(Some("the dog"), " <s>\n"), [(0, ""), (0, "")]);
        assert_eq!(spans(Some(" "), " <s>\n"), [(0, " <s>\n")]);
        assert_eq!(spans(None, ""), [(0, "")]);
    }

    #[test]
    fn bytes_are_held_back_until_they_are_sure() {
        let tokenizer = fixture("qwen3-short");
        for (prompt, pushed, held_from) in [
            (None, "", 0),
            (None, "a b", 3),
            (None, "a \n\u{1f}", 1),
            (None, "a <|im_", 1),
            (None, "a <s> <|im_end|>\t<<", 1),
            (None, "a <|im_x", 8),
            (None, "a <| <", 4),
            (None, "好\u{a0}[", 3),
            (Some("a <|im_"), "", 0),
            (Some("a <|im_"), "\nstart|>", 8),
            (Some(""), " ", 0),
        ] {
            let growing = Growing::new(prompt);
            let next = growing.next(&tokenizer, pushed, usize::MAX, &Control::default()).unwrap();
            assert_eq!(next.held_from, held_from, "{prompt:?}, {pushed:?}");
        }
    }

    #[test]
    fn a_marker_holds_no_boundary_and_no_other_marker() {
        // What makes a boundary of the cleaned text a safe point of the raw one.
        for marker in MARKERS {
            assert!(!marker.contains([' ', '\t', '\n', ',', '.', '，', '。']), "{marker}");
            let held = |other: &&&str| marker.contains(**other);
            assert_eq!(MARKERS.iter().filter(held).count(), 1, "{marker}");
        }
    }

    /// Prose with some markers, much longer than a piece.
    fn prose(words: usize) -> String {
        let mut random = Random(11);
        let word = |_| {
            ["the", " dog", " ran,", " and", "\n\n\nIt", " is", " 42", "<s>", " naïve", "  cats."]
                [random.below(10)]
        };
        (0..words).map(word).collect()
    }

    #[test]
    fn only_a_short_tail_is_tokenised_again() {
        let tokenizer = fixture("qwen3-real");
        let text = prose(40_000);
        let whole = tokenizer.in_one_piece(&clean(&text));
        for limit in [3000, usize::MAX] {
            let mut growing = Growing::new(None);
            let (mut at, mut again) = (0, 0);
            while at < text.len() {
                let end = text.ceil_char_boundary(at + 23);
                again += growing.tail.len();
                let next =
                    growing.next(&tokenizer, &text[at..end], limit, &Control::default()).unwrap();
                assert!(growing.view(&next).settled() + 60 > growing.view(&next).len());
                assert!(!growing.full || next.tokens.is_empty());
                growing.commit(next);
                at = end;
            }
            assert!(again < 2 * text.len(), "{again} of {} bytes", text.len());
            let next = growing.next(&tokenizer, "", limit, &Control::default()).unwrap();
            let ids: Vec<u32> = growing.view(&next).tokens(0).map(|token| token.id).collect();
            assert_eq!(ids, whole[..whole.len().min(limit)]);
            assert_eq!(next.truncated, limit < whole.len());
            assert_eq!(next.held_from, held_from(&text));
        }
    }

    #[test]
    fn a_long_text_at_once_has_the_tokens_that_it_has_in_one_piece() {
        for name in ["qwen3-real", "llama-short"] {
            let tokenizer = fixture(name);
            let text = prose(30_000);
            let whole = tokenizer.in_one_piece(&clean(&text));
            for limit in [0, 100, whole.len() - 1, whole.len(), usize::MAX] {
                let mut checked = Checked::new(&tokenizer, None, limit);
                checked.push(&text);
                assert!(checked.settled.len() + 60 > whole.len().min(limit), "{name}, {limit}");
                assert!(checked.growing.tail.len() < 200 || limit >= whole.len() - 1);
                checked.push(" more words");
            }
        }
    }

    #[test]
    fn forgetting_keeps_the_indices_and_the_rest() {
        let tokenizer = fixture("llama-short");
        let mut random = Random(5);
        for prompt in [None, Some("ask the dog, and it is")] {
            let mut kept = Growing::new(prompt);
            let mut forgetful = Growing::new(prompt);
            for _ in 0..200 {
                let more = prose(8 + random.below(8));
                let next = kept.next(&tokenizer, &more, usize::MAX, &Control::default()).unwrap();
                let view = kept.view(&next);
                let other =
                    forgetful.next(&tokenizer, &more, usize::MAX, &Control::default()).unwrap();
                let found = forgetful.view(&other);
                assert_eq!(found.len(), view.len());
                assert_eq!(found.settled(), view.settled());
                assert_eq!(found.first_pushed(), view.first_pushed());
                let from = forgetful.forgotten;
                assert!(found.tokens(from).eq(view.tokens(from)));
                kept.commit(next);
                forgetful.commit(other);
                forgetful.forget_before((kept.settled_len() + 5).saturating_sub(random.below(40)));
            }
            assert!(forgetful.settled.len() < 40 && forgetful.forgotten > 500);
        }
    }
}
