//! A text that grows in chunks: its tokens are those of the whole prefix after every push, settled
//! ones never change, and neither does what cleaning makes of bytes that are not held back.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{Script, joined, tokenizer, undivided_tokenizer};
use siren::fuzzing::{Growing, Tokenizer, clean};

static TOKENIZERS: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| [tokenizer("qwen3-short"), tokenizer("llama-short"), undivided_tokenizer()]);

/// Bytes of a text: every prefix of it is tokenised again.
const MAX_BYTES: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let tokenizer = &TOKENIZERS[usize::from(script.byte() % 3)];
    let limit = match script.byte() {
        255 => usize::MAX,
        limit => limit.into(),
    };
    let prompt = String::from_utf8_lossy(script.chunk());
    let mut growing = Growing::new(Some(&prompt));
    let (mut bytes, mut pushed) = (Vec::new(), 0);
    let (mut settled, mut sure, mut held_from) = (Vec::new(), String::new(), 0);
    while !script.is_over() && bytes.len() < MAX_BYTES {
        bytes.extend_from_slice(script.chunk());
        // A script that is no UTF-8 is as good as any that is.
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(e) if e.error_len().is_none() => {
                std::str::from_utf8(&bytes[..e.valid_up_to()]).expect("valid up to there")
            }
            Err(e) => {
                let (from, length) = (e.valid_up_to(), e.error_len().unwrap_or_default());
                bytes.splice(from..from + length, *b"?");
                continue;
            }
        };
        let grown = growing.push(tokenizer, &text[pushed..], limit).expect("tokens");
        pushed = text.len();
        let whole = joined(&prompt, text);
        let cleaned = clean(&whole);
        let ids = tokenizer.in_one_piece(&cleaned);
        assert_eq!(grown.ids, ids[..ids.len().min(limit)], "{prompt:?} {text:?}");
        assert_eq!(grown.truncated, ids.len() > limit, "{prompt:?} {text:?}");

        assert!(grown.settled >= settled.len() && grown.settled <= grown.ids.len());
        let now = || grown.ids.iter().copied().zip(grown.spans.iter().copied());
        assert!(now().take(settled.len()).eq(settled.iter().copied()), "{prompt:?} {text:?}");
        settled = now().take(grown.settled).collect();

        let (mut start, mut end) = (0, 0);
        for &span in &grown.spans {
            assert!(start <= span.0 && end <= span.1 && span.0 <= span.1, "{prompt:?} {text:?}");
            (start, end) = span;
            assert!(text.is_char_boundary(start) && text.is_char_boundary(end));
        }
        let first = grown.spans.iter().position(|span| span.1 > 0);
        assert_eq!(grown.first_pushed, first.unwrap_or(grown.ids.len()));

        assert!(grown.held_from >= held_from && text.is_char_boundary(grown.held_from));
        assert!(cleaned.starts_with(&sure), "{sure:?} was sure, {prompt:?} {text:?}");
        held_from = grown.held_from;
        // Once all that is wanted is settled, nothing is held back, and what is behind is not read.
        if !grown.truncated {
            let shown = clean(&joined(&prompt, &text[..held_from]));
            sure = if shown == " " { String::new() } else { shown };
        }
    }
});
