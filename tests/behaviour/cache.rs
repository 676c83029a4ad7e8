//! The prefix cache and the budget for what is kept: they change costs, never scores.

use std::sync::mpsc::channel;
use std::time::Duration;

use siren::{
    CancelToken, Control, Guard, OwnedInput, PushOptions, ScoreOptions, Status, Stream,
    StreamOptions,
};

use crate::guard_files::GuardFiles;
use crate::oracle::{PIECES, Random, joined, opened, prose, ran, real_guards, score, text};

fn plain() -> PushOptions {
    PushOptions::default()
}

/// Texts that begin alike: prompts, prompts with responses, responses that grow.
fn related(random: &mut Random, count: usize) -> Vec<(Option<String>, String)> {
    let prompts: Vec<String> =
        (0..4).map(|_| [prose(random, 15), text(random, &PIECES, 30)].concat()).collect();
    let mut texts: Vec<(Option<String>, String)> = vec![];
    for _ in 0..count {
        let prompt = prompts[random.below(prompts.len())].clone();
        let next = match random.below(5) {
            0 => (None, prompt),
            1 => (Some(prompt), text(random, &PIECES, 25)),
            2 => (Some(prompt), prose(random, 25)),
            // What was scored before, longer or as it was.
            _ => match texts.get(random.below(texts.len().max(1))) {
                Some((prompt, response)) => {
                    (prompt.clone(), [&**response, &*text(random, &PIECES, 12)].concat())
                }
                None => (None, prose(random, 8)),
            },
        };
        texts.push(next);
    }
    texts
}

/// Scores with a cache, small or large, are those without; from several threads at once.
fn check_same(name: &str, files: &GuardFiles, count: usize) {
    let off = opened(files, |o| o.prefix_cache_bytes = 0);
    let texts = related(&mut Random(17), count);
    let scored = |guard: &Guard, at: usize| {
        let (prompt, response) = &texts[at];
        guard.score(joined(prompt.as_deref(), response), None).unwrap()
    };
    let expected: Vec<_> = (0..texts.len()).map(|at| scored(&off, at)).collect();
    assert_eq!((off.stats().cache_hits, off.stats().cache_entries), (0, 0));
    // The smaller one forgets most of them, and keeps no long text.
    for (bytes, least_hits) in [(1_000_000, 1), (256 << 20, texts.len() as u64 / 4)] {
        let on = opened(files, |o| o.prefix_cache_bytes = bytes);
        for (at, expected) in expected.iter().enumerate() {
            assert_eq!(scored(&on, at), *expected, "{name}: {:?}", texts[at]);
        }
        let stats = on.stats();
        assert!(stats.cache_hits >= least_hits, "{name}: {stats:?}");
        assert!(stats.tokens < off.stats().tokens, "{name}: {stats:?}");
        assert_eq!(stats.tokens + stats.tokens_reused, off.stats().tokens, "{name}");
        std::thread::scope(|scope| {
            for from in 0..3 {
                let (on, expected, scored) = (&on, &expected, &scored);
                scope.spawn(move || {
                    for at in (0..expected.len()).skip(from).step_by(2) {
                        assert_eq!(scored(on, at), expected[at], "{name}");
                    }
                });
            }
        });
        let inputs: Vec<_> = texts.iter().map(|(p, r)| joined(p.as_deref(), r)).collect();
        let batch = on.score_batch(&inputs, None).unwrap();
        let batch: Vec<_> = batch.into_iter().map(|score| score.unwrap()).collect();
        assert_eq!(batch, expected, "{name}");
    }
}

#[test]
fn scores_are_the_same_with_the_cache_and_without() {
    for name in ["qwen3-residual-last", "llama-residual-rope", "qwen3-mlp-inner", "llama-short"] {
        check_same(name, &GuardFiles::fixture(name), 100);
    }
}

#[test]
fn scores_are_the_same_with_the_cache_and_without_behind_real_tokenizers() {
    for (name, files) in real_guards() {
        check_same(name, &files, 60);
    }
}

#[test]
fn what_ran_before_does_not_run_again() {
    let guard = GuardFiles::fixture("qwen3-residual-last").open().unwrap();
    let prompt = prose(&mut Random(2), 100);
    let cost = |response: &str| {
        let before = guard.stats();
        let scored = guard.score(joined(Some(&prompt), response), None).unwrap();
        let after = guard.stats();
        let (ran, reused) = (ran(&before, &after), after.tokens_reused - before.tokens_reused);
        assert_eq!(ran + reused, scored.tokens as u64);
        (ran, after.cache_hits - before.cache_hits)
    };
    let (whole, hits) = cost("One answer.");
    assert!(whole > 100 && hits == 0, "{whole} {hits}");
    assert_eq!(cost("One answer."), (0, 1));
    let (ran, hits) = cost("Another answer.");
    assert!(ran < 20 && hits == 1, "{ran} {hits}");
    // The first push of a stream asks the cache; the later ones have their own.
    let options = StreamOptions { prompt: Some(prompt.clone()), ..StreamOptions::default() };
    let before = guard.stats();
    let stream = guard.stream(options).unwrap();
    stream.push(b"A third answer.", plain()).unwrap();
    assert!(crate::oracle::ran(&before, &guard.stats()) < 20);
}

/// Distinct texts of every length, the shortest above all: what is kept stays within the bound.
#[test]
fn the_cache_holds_no_more_than_its_bytes() {
    const BOUND: u64 = 300_000;
    let files = GuardFiles::fixture("qwen3-residual-last");
    let guard = opened(&files, |o| o.prefix_cache_bytes = BOUND as usize);
    let mut random = Random(23);
    for round in 0..800 {
        let pieces = [1, 2, 3, 9, 60, 200][round * 6 / 800];
        let whole: String = (0..pieces).map(|_| random.one_of(&PIECES)).collect();
        score(&guard, &whole);
        let stats = guard.stats();
        assert!(stats.kv_bytes <= BOUND, "{} bytes after {whole:?}", stats.kv_bytes);
    }
    assert!(guard.stats().cache_entries > 0);
}

#[test]
fn streams_and_the_cache_share_one_budget() {
    const BUDGET: u64 = 400_000;
    let files = GuardFiles::fixture("qwen3-residual-last");
    let guard = opened(&files, |o| o.kv_bytes = BUDGET as usize);
    let mut random = Random(29);
    let streams: Vec<Stream> =
        (0..12).map(|_| guard.stream(StreamOptions::default()).unwrap()).collect();
    for round in 0..6 {
        for stream in &streams {
            stream.push(prose(&mut random, 20).as_bytes(), plain()).unwrap();
            assert!(guard.stats().kv_bytes <= BUDGET, "a push, round {round}");
        }
        for _ in 0..20 {
            score(&guard, &prose(&mut random, 30));
            assert!(guard.stats().kv_bytes <= BUDGET, "a score, round {round}");
        }
    }
}

#[test]
fn parked_streams_go_on_with_the_right_scores() {
    for (budget, all_parked) in [(300_000, false), (100, true), (0, true)] {
        let files = GuardFiles::fixture("llama-residual-rope");
        let guard = opened(&files, |o| o.kv_bytes = budget);
        let free = opened(&files, |o| o.prefix_cache_bytes = 0);
        let mut random = Random(37);
        let mut streams: Vec<(Stream, String)> = (0..20)
            .map(|_| (guard.stream(StreamOptions::default()).unwrap(), String::new()))
            .collect();
        for _ in 0..150 {
            let at = random.below(streams.len());
            if random.below(30) == 0 {
                streams[at] = (guard.stream(StreamOptions::default()).unwrap(), String::new());
            }
            let (stream, whole) = &mut streams[at];
            let more = text(&mut random, &PIECES, 12);
            whole.push_str(&more);
            let push = stream.push(more.as_bytes(), plain()).unwrap();
            let expected = score(&free, whole);
            assert_eq!((push.score, push.tokens), (expected.score, expected.tokens), "{whole:?}");
            assert!(guard.stats().kv_bytes <= budget as u64);
        }
        let stats = guard.stats();
        assert!(stats.streams_parked > 0, "{stats:?}");
        assert_eq!((stats.streams, stats.streams_parked == 20), (20, all_parked));
    }
}

/// A text that is given up while the pass that it shares with another goes on is half run.
#[test]
fn a_text_that_was_given_up_is_not_taken_for_known() {
    let files = GuardFiles::fixture("qwen3-residual-last");
    let guard = opened(&files, |o| o.threads = Some(2));
    let off = opened(&files, |o| o.prefix_cache_bytes = 0);
    let mut random = Random(41);
    let mut given_up = 0;
    for round in 0..30 {
        // Under 1,024 tokens each, and the last two of them together: these share a pass.
        let [busy, other, one] = [330, 20, 280].map(|words| prose(&mut random, words));
        let cancel = CancelToken::new();
        let (sender, receiver) = channel();
        let begin = |text: &str, cancel: Option<CancelToken>| {
            let control = Control { cancel, ..Control::default() };
            let options = ScoreOptions { control, ..ScoreOptions::default() };
            let sender = sender.clone();
            let done = move |scored| sender.send(scored).unwrap();
            guard.score_async(OwnedInput::Text(text.to_owned()), options, done).unwrap();
        };
        let passes = guard.stats().passes;
        begin(&busy, None);
        begin(&other, None);
        begin(&one, Some(cancel.clone()));
        while guard.stats().passes == passes {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(300 * round));
        cancel.cancel();
        for _ in 0..3 {
            if let Err(error) = receiver.recv().unwrap() {
                assert_eq!(error.status(), Status::Cancelled);
                given_up += 1;
            }
        }
        for text in [&one, &other] {
            assert_eq!(score(&guard, text), score(&off, text), "round {round}");
        }
    }
    assert!(given_up > 0);
}
