//! Streams against whole-text scoring: any chunking, any prompt, at every token.

use siren::{Guard, Input, PushOptions, StreamOptions};

use crate::guard_files::GuardFiles;

/// A small seeded generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[rustfmt::skip]
const PIECES: [&str; 40] = [
    "a", "the", "words", "don", "'t", "naïve", "e\u{301}", "\u{301}", "ß", "Привет", "שלום", "你好",
    "한국", "0", "42", "123456", " ", " ", " ", "  ", "\t", "\n", "\n\n\n", "\r\n", "\u{a0}", ",", ".",
    "。", "...", "!?", "🙂", "👩\u{200d}💻", "<think>", "<|im_start|>", "<|im_", "end|>", "<s>", "[INST", "]", "<",
];

pub fn text(random: &mut Random, most: usize) -> String {
    (0..random.below(most)).map(|_| PIECES[random.below(PIECES.len())]).collect()
}

const FIXTURES: [&str; 4] =
    ["qwen3-short", "llama-short", "qwen3-residual-last", "qwen3-mlp-inner"];

fn joined<'a>(prompt: Option<&'a str>, response: &'a str) -> Input<'a> {
    Input::Exchange { prompt, response: Some(response) }
}

#[test]
fn every_push_scores_as_the_whole_prefix_does() {
    let mut shrank = 0;
    for name in FIXTURES {
        let files = GuardFiles::fixture(name);
        let guard = files.open().unwrap();
        let mut random = Random(5);
        for round in 0..25 {
            let prompt = (round % 3 > 0).then(|| text(&mut random, 30));
            let whole = text(&mut random, 80);
            let options = StreamOptions { prompt: prompt.clone(), ..StreamOptions::default() };
            let stream = guard.stream(options).unwrap();
            let (mut at, mut tokens) = (0, 0);
            let mut bytes = whole.as_bytes();
            while !bytes.is_empty() {
                let (chunk, rest) = bytes.split_at(1 + random.below(bytes.len().min(25)));
                bytes = rest;
                at += chunk.len();
                let push = stream.push(chunk, PushOptions::default()).unwrap();
                let prefix = &whole[..whole.floor_char_boundary(at)];
                let score = guard.score(joined(prompt.as_deref(), prefix), None).unwrap();
                assert_eq!(
                    (push.score, push.tokens, push.truncated, push.is_harmful),
                    (score.score, score.tokens, score.truncated, score.is_harmful),
                    "{name}: {prompt:?} {prefix:?}"
                );
                shrank += usize::from(push.tokens < tokens);
                tokens = push.tokens;
            }
        }
    }
    assert!(shrank > 20, "tokens shrank {shrank} times");
}

/// A guard that reads `n` tokens tells what the first `n` tokens of a text score.
#[test]
fn running_scores_are_those_of_texts_cut_after_each_token() {
    for name in ["qwen3-short", "llama-short"] {
        let files = GuardFiles::fixture(name);
        let cut: Vec<Guard> = (2..60)
            .map(|n| {
                let mut options = files.options();
                options.max_length = Some(n);
                Guard::open(options).unwrap()
            })
            .collect();
        let guard = &cut[57];
        let text = "One two, three four. Then five words more and so on for a while yet.";
        let stream = guard.stream(StreamOptions::default()).unwrap();
        let options = PushOptions { token_scores: true, ..PushOptions::default() };
        let mut expected_first = 0;
        for chunk in text.as_bytes().chunks(9) {
            let push = stream.push(chunk, options.clone()).unwrap();
            let special = usize::from(name.starts_with("llama"));
            if expected_first == 0 {
                assert_eq!(push.first_scored, special);
            }
            expected_first = push.first_scored + push.token_scores.len();
            assert_eq!(expected_first, push.tokens);
            assert_eq!(push.token_scores.last(), Some(&push.score));
        }
        let all = guard.stream(StreamOptions::default()).unwrap();
        let push = all.push(text.as_bytes(), options).unwrap();
        let mut compared = 0;
        for (i, score) in push.token_scores.iter().enumerate() {
            let tokens = push.first_scored + i + 1;
            let Some(guard) = tokens.checked_sub(2).and_then(|at| cut.get(at)) else { continue };
            assert_eq!(guard.score(Input::Text(text), None).unwrap().score, *score, "{tokens}");
            compared += 1;
        }
        assert!(compared > 15, "{compared}");
    }
}
