//! Windows: each scored by itself, the highest of them, in one shot and in streams.

use siren::{BestWindow, Guard, Input, PushOptions, Status, StreamOptions, Windows};

use crate::guard_files::GuardFiles;
use crate::oracle::{
    PIECES, PROMPTS, Random, Watch, characters, chunks, joined, opened, prose, ran, real_guards,
    score, text, window_scores, with_windows,
};

/// The highest window of a text of single characters, each scored by itself.
fn best(guard: &Guard, text: &str, room: usize, stride: usize) -> (f64, BestWindow) {
    let windows = window_scores(guard, text, room, stride);
    let mut best: Option<(f64, BestWindow)> = None;
    for (index, (place, score)) in windows.iter().enumerate() {
        if best.is_none_or(|(highest, _)| *score > highest) {
            let (start, end) = (place.start, place.end);
            best = Some((*score, BestWindow { count: windows.len(), index, start, end }));
        }
    }
    best.unwrap()
}

const ALL: [(&str, usize); 3] =
    [("qwen3-residual-last", 0), ("llama-mlp-bias", 1), ("qwen3-mlp-inner", 0)];

#[test]
fn a_text_scores_as_its_best_window_does_alone() {
    for (name, special) in ALL {
        let guard = GuardFiles::fixture(name).open().unwrap();
        let mut random = Random(2);
        let mut later = 0;
        for length in [1, 2, 9, 10, 11, 15, 16, 37, 64, 100, 101, 130] {
            let whole = characters(&mut random, length);
            for (room, stride) in [(10, 5), (10, 10), (7, 1), (33, 20)] {
                let found =
                    guard.score(Input::Text(&whole), with_windows(room + special, stride)).unwrap();
                let (score, window) = best(&guard, &whole, room, stride);
                assert_eq!((found.score, found.window), (score, Some(window)), "{name}: {whole}");
                assert_eq!((found.tokens, found.truncated), (length + special, false), "{name}");
                later += usize::from(window.index > 0);
            }
        }
        assert!(later > 10, "{name}: {later}");
    }
}

#[test]
fn windows_of_a_prompt_and_a_response_lie_in_the_two_joined() {
    for (name, special) in ALL {
        let guard = GuardFiles::fixture(name).open().unwrap();
        let (prompt, response) = (characters(&mut Random(1), 20), characters(&mut Random(8), 31));
        let both = [&*prompt, "\n", &response].concat();
        let input = joined(Some(&prompt), &response);
        let found = guard.score(input, with_windows(12 + special, 7)).unwrap();
        let alone = guard.score(Input::Text(&both), with_windows(12 + special, 7)).unwrap();
        assert_eq!(found, alone, "{name}");
        let (count, window) =
            (found.tokens.saturating_sub(12 + special).div_ceil(7) + 1, found.window);
        assert_eq!(window.unwrap().count, count, "{name}");
        assert!(window.unwrap().end <= both.len());
        // A stream counts in the pushed bytes alone.
        let stream = stream(&guard, Some(&prompt), 0.5, 0, (12 + special, 7));
        let push = stream.push(response.as_bytes(), PushOptions::default()).unwrap();
        let lead = prompt.len() + 1;
        let BestWindow { start, end, .. } = window.unwrap();
        let pushed = BestWindow {
            start: start.saturating_sub(lead),
            end: end.saturating_sub(lead),
            ..window.unwrap()
        };
        assert_eq!((push.score, push.window), (found.score, Some(pushed)), "{name}");
    }
}

fn stream(
    guard: &Guard,
    prompt: Option<&str>,
    threshold: f64,
    hysteresis: usize,
    (tokens, stride): (usize, usize),
) -> siren::Stream {
    let options = StreamOptions {
        prompt: prompt.map(str::to_owned),
        threshold: Some(threshold),
        hysteresis,
        windows: Some(Windows { tokens, stride }),
    };
    guard.stream(options).unwrap()
}

/// Every push of a stream equals the windows of the whole prefix.
fn check_prefixes(name: &str, guard: &Guard, sizes: (usize, usize), rounds: usize) {
    let mut random = Random(31);
    for _ in 0..rounds {
        let prompt = (random.below(2) > 0).then(|| random.one_of(&PROMPTS));
        let whole = text(&mut random, &PIECES, 100);
        let stream = stream(guard, prompt, 0.5, 0, sizes);
        let lead = prompt.filter(|prompt| !prompt.is_empty()).map_or(0, |prompt| prompt.len() + 1);
        let mut at = 0;
        for chunk in chunks(&mut random, &whole, 30) {
            at += chunk.len();
            let prefix = &whole[..whole.floor_char_boundary(at)];
            let push = stream.push(chunk, PushOptions::default()).unwrap();
            let options = with_windows(sizes.0, sizes.1);
            let expected = guard.score(joined(prompt, prefix), options).unwrap();
            let context = format!("{name} {sizes:?}: {prompt:?} {prefix:?}");
            assert_eq!(
                (push.score, push.tokens, push.truncated),
                (expected.score, expected.tokens, false),
                "{context}"
            );
            let (found, window) = (push.window.unwrap(), expected.window.unwrap());
            assert_eq!((found.count, found.index), (window.count, window.index), "{context}");
            if prefix.trim().is_empty() {
                continue; // One space stands for all of it.
            }
            assert_eq!(
                (found.start, found.end),
                (window.start.saturating_sub(lead), window.end.saturating_sub(lead)),
                "{context}"
            );
        }
    }
}

#[test]
fn a_stream_scores_as_the_windows_of_its_prefix() {
    for (name, special) in ALL {
        let guard = GuardFiles::fixture(name).open().unwrap();
        for (room, stride) in [(10, 5), (16, 16), (9, 2), (40, 30)] {
            check_prefixes(name, &guard, (room + special, stride), 12);
        }
    }
}

#[test]
fn a_stream_scores_as_the_windows_of_its_prefix_behind_real_tokenizers() {
    for (name, files) in real_guards() {
        check_prefixes(name, &files.open().unwrap(), (20, 12), 12);
    }
}

/// Running scores over windows, by scoring every prefix; crossing and clearing told again.
#[test]
fn crossings_in_windows_follow_the_rules() {
    let mut crossed = 0;
    for (name, special) in ALL {
        let guard = GuardFiles::fixture(name).open().unwrap();
        let mut random = Random(13);
        for round in 0..24 {
            let (room, stride) = random.one_of(&[(10, 5), (8, 8), (12, 3)]);
            let length = 20 + random.below(70);
            let whole = characters(&mut random, length);
            let running: Vec<f64> =
                (1..=length).map(|end| best(&guard, &whole[..end], room, stride).0).collect();
            let threshold = (running[random.below(length)] + 1e-9 * f64::from(round % 2)).min(1.0);
            let hysteresis = random.below(5);
            let stream = stream(&guard, None, threshold, hysteresis, (room + special, stride));
            let mut watch = Watch::new(threshold, hysteresis);
            let mut at = 0;
            for chunk in chunks(&mut random, &whole, 9) {
                at += chunk.len();
                let scored: Vec<_> = (0..at).map(|i| (special + i, i..i + 1, running[i])).collect();
                watch.see(&scored, at);
                let options = PushOptions { token_scores: true, ..PushOptions::default() };
                let push = stream.push(chunk, options).unwrap();
                let context = format!("{name} {room} {stride}: {} {threshold}", &whole[..at]);
                watch.check(&push, &context);
                let scores = &running[push.first_scored - special..at];
                assert_eq!(push.token_scores, scores, "{context}");
            }
            crossed += usize::from(watch.crossing.is_some());
        }
    }
    assert!(crossed > 20, "{crossed}");
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let guard = GuardFiles::fixture("llama-short").open().unwrap();
    // 24 tokens, of which one is special.
    for (tokens, stride) in [(1, 1), (25, 1), (usize::MAX, 1), (10, 10), (0, 24), (2, usize::MAX)] {
        let windows = Some(Windows { tokens, stride });
        let options = StreamOptions { windows, ..StreamOptions::default() };
        let errors = [
            guard.score(Input::Text("a"), with_windows(tokens, stride)).err(),
            guard.stream(options).err(),
        ];
        for error in errors {
            assert_eq!(error.unwrap().status(), Status::InvalidArgument, "{tokens} {stride}");
        }
    }
    let whole = characters(&mut Random(5), 60);
    let found = guard.score(Input::Text(&whole), with_windows(0, 0)).unwrap();
    let (score, window) = best(&guard, &whole, 23, 12);
    assert_eq!((found.score, found.window), (score, Some(window)));
    // A text that is nothing is one window of nothing.
    let empty = guard.score(Input::Text(""), with_windows(0, 0)).unwrap();
    assert_eq!(empty.window, Some(BestWindow { count: 1, index: 0, start: 0, end: 0 }));
}

#[test]
fn an_endless_stream_holds_its_last_windows_alone() {
    let files = GuardFiles::fixture("qwen3-residual-last");
    let guard = opened(&files, |o| o.prefix_cache_bytes = 0);
    let stream = stream(&guard, Some("Some prompt"), 1.0, 0, (64, 32));
    let mut random = Random(21);
    let (mut most, mut early) = (0, 0);
    let mut whole = String::new();
    let before = guard.stats();
    for round in 0..150 {
        let more = prose(&mut random, 20);
        whole.push_str(&more);
        let push = stream.push(more.as_bytes(), PushOptions::default()).unwrap();
        let held = guard.stats().kv_bytes;
        if round < 20 {
            early = early.max(held)
        } else {
            most = most.max(held)
        }
        if round == 149 {
            // Each token is in two windows, and few run twice in one.
            let cost = ran(&before, &guard.stats());
            assert!(cost < 3 * push.tokens as u64, "{cost} for {}", push.tokens);
            let input = joined(Some("Some prompt"), &whole);
            assert_eq!(push.score, guard.score(input, with_windows(64, 32)).unwrap().score);
        }
    }
    assert!(most <= early, "{most} bytes after {early}");
    // No more than what some windows of 64 tokens take.
    let one = opened(&files, |o| o.prefix_cache_bytes = 0);
    let kept = one.stream(StreamOptions::default()).unwrap();
    kept.push(prose(&mut Random(1), 64).as_bytes(), PushOptions::default()).unwrap();
    assert!(most < 8 * one.stats().kv_bytes, "{most}");
    assert!(score(&guard, "still").score > 0.0);
}
