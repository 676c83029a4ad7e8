//! Huge and awkward inputs: refused at once, or scored in bounded time and memory.

use std::time::Duration;

use siren::{Guard, Input, OpenOptions, Score, Status};

use crate::guard_files::{GuardFiles, repository};
use crate::oracle::score;
use crate::own_process::{cost, measured, run as run_alone};

const MB: usize = 1_000_000;

fn demo() -> OpenOptions {
    let files = repository("models/demo").display().to_string();
    OpenOptions { threads: Some(1), ..OpenOptions::new(files) }
}

/// Says what `body` took; it must stay within `seconds` and `mib`, which are generous.
fn bounded(what: &str, seconds: u64, mib: u64, body: impl FnOnce()) {
    let cost = cost(body);
    measured(format_args!("{what}: {cost}"));
    assert!(cost.wall < Duration::from_secs(seconds) && cost.mib < mib, "{what}: {cost}");
}

#[test]
fn a_text_of_a_hundred_megabytes() {
    run_alone("limits::a_text_of_a_hundred_megabytes", || {
        let sentence = "The quick brown fox jumps over the lazy dog, again and again. ";
        let text = sentence.repeat(100 * MB / sentence.len() + 1);
        let guard = Guard::open(demo()).unwrap();
        bounded("100 MB refused", 1, 16, || {
            let error = guard.score(Input::Text(&text), None).unwrap_err();
            assert_eq!(error.status(), Status::LimitExceeded);
            assert!(error.message().contains(&text.len().to_string()), "{error}");
            assert!(error.message().contains(&guard.max_text_bytes().to_string()), "{error}");
            assert_eq!(guard.count_tokens(Input::Text(&text)).unwrap_err(), error);
            // A prompt and a response are counted together.
            let half = Some(&text[..10 * MB]);
            let both = Input::Exchange { prompt: half, response: half };
            assert_eq!(guard.score(both, None).unwrap_err().status(), Status::LimitExceeded);
        });
        let guard = Guard::open(OpenOptions { max_text_bytes: 128 * MB, ..demo() }).unwrap();
        let expected = score(&guard, &text[..65_536]);
        assert_eq!((expected.tokens, expected.truncated), (guard.info().max_length, true));
        // The cleaned text is a copy; nothing else grows with it.
        bounded("100 MB scored", 30, 250, || assert_eq!(score(&guard, &text), expected));
    });
}

#[test]
fn the_limit_of_bytes_is_exact() {
    let guard = Guard::open(OpenOptions { max_text_bytes: 10, ..demo() }).unwrap();
    score(&guard, "0123456789");
    let error = guard.score(Input::Text("0123456789a"), None).unwrap_err();
    assert_eq!(error.status(), Status::LimitExceeded);
    // One text over the limit spoils no other of its batch.
    let inputs = ["short", "much too long", "fine"].map(Input::Text);
    let results = guard.score_batch(&inputs, None).unwrap();
    assert_eq!(results[0].as_ref().unwrap(), &score(&guard, "short"));
    assert_eq!(results[1].as_ref().unwrap_err().status(), Status::LimitExceeded);
    assert_eq!(results[2].as_ref().unwrap(), &score(&guard, "fine"));
}

#[test]
fn a_batch_of_a_hundred_thousand_texts() {
    run_alone("limits::a_batch_of_a_hundred_thousand_texts", || {
        const COUNT: usize = 100_000;
        let files = GuardFiles::fixture("qwen3-short");
        let texts: Vec<String> = (0..7).map(|i| format!("text {}", "x ".repeat(i))).collect();
        let inputs: Vec<_> = (0..COUNT).map(|i| Input::Text(&texts[i % texts.len()])).collect();
        let guard = files.open().unwrap();
        bounded("100,000 texts refused", 1, 16, || {
            let error = guard.score_batch(&inputs, None).unwrap_err();
            assert_eq!(error.status(), Status::LimitExceeded);
            let limit = guard.max_batch().to_string();
            assert!(error.message().contains("100000") && error.message().contains(&limit));
        });

        let few = OpenOptions { max_batch: COUNT, ..files.options() };
        let error = Guard::open(few).unwrap().score_batch(&inputs, None).unwrap_err();
        assert_eq!(error.status(), Status::Busy, "max_queue is smaller: {error}");

        let many = OpenOptions { max_batch: COUNT, max_queue: COUNT, ..files.options() };
        let guard = Guard::open(many).unwrap();
        let alone: Vec<Score> = texts.iter().map(|text| score(&guard, text)).collect();
        bounded("100,000 texts scored", 120, 200, || {
            let results = guard.score_batch(&inputs, None).unwrap();
            assert_eq!(results.len(), COUNT);
            for (i, result) in results.iter().enumerate() {
                assert_eq!(result.as_ref().unwrap(), &alone[i % texts.len()]);
            }
        });
    });
}

#[test]
fn a_batch_larger_than_the_queue_is_busy_and_harms_nothing() {
    let files = GuardFiles::fixture("qwen3-short");
    let guard = Guard::open(OpenOptions { max_queue: 3, ..files.options() }).unwrap();
    let error = guard.score_batch(&[Input::Text("a"); 4], None).unwrap_err();
    assert_eq!(error.status(), Status::Busy);
    assert!(error.message().contains("4 more") && error.message().contains('3'), "{error}");
    assert_eq!(guard.score_batch(&[Input::Text("a"); 3], None).unwrap().len(), 3);
    assert!(guard.score_batch(&[], None).unwrap().is_empty());
}

#[test]
fn limits_of_nothing_are_refused() {
    let zeros: [fn(&mut OpenOptions); 5] = [
        |o| o.threads = Some(0),
        |o| o.max_length = Some(0),
        |o| o.max_text_bytes = 0,
        |o| o.max_batch = 0,
        |o| o.max_queue = 0,
    ];
    for zero in zeros {
        let mut options = demo();
        zero(&mut options);
        let error = Guard::open(options).err().unwrap();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains("is 0, expected at least 1"), "{error}");
    }
}

/// Texts without a place to cut, or with much for a tokenizer to do.
fn awkward() -> Vec<(&'static str, String)> {
    let between_letters = |middle: String| format!("x{middle}y");
    let megabyte = |piece: &str| between_letters(piece.repeat(MB / piece.len()));
    vec![
        ("one word of 4 MB", "a".repeat(4 * MB)),
        ("one word of 4 MB, all letters", ('a'..='z').cycle().take(4 * MB).collect()),
        ("one Chinese word of 1 MB", "漢字".repeat(MB / 6)),
        ("1 MB of digits", "0123456789".repeat(MB / 10)),
        ("1 MB of U+3000", megabyte("\u{3000}")),
        ("1 MB of combining marks", megabyte("\u{301}")),
        ("1 MB of combining marks out of order", megabyte("\u{301}\u{323}\u{345}")),
        ("1 MB of newlines", megabyte("\n")),
        ("1 MB of newlines and blanks", megabyte("\n ")),
        ("1 MB of CR LF", megabyte("\r\n")),
        ("1 MB of emoji joined", megabyte("👩\u{200d}👩\u{200d}👧\u{200d}👦")),
        ("1 MB of apostrophes", megabyte("'")),
        ("1 MB of contractions", megabyte("'re")),
        ("1 MB of markers", megabyte("<|im_start|>")),
        ("1 MB of half markers", megabyte("<|im_start")),
        ("1 MB of added tokens", megabyte("<think>")),
        ("1 MB of NUL", megabyte("\0")),
        ("1 MB of Hangul jamo", megabyte("\u{1112}\u{1161}\u{11ab}")),
        ("1 MB of the longest decomposition", megabyte("\u{fdfa}")),
    ]
}

#[test]
fn awkward_texts_finish() {
    run_alone("limits::awkward_texts_finish", || {
        let real = GuardFiles::qwen3_real();
        let guards = [
            ("demo", Guard::open(demo()).unwrap()),
            ("real Qwen3", real.open().unwrap()),
            ("Llama", GuardFiles::fixture("llama-short").open().unwrap()),
        ];
        for (what, text) in awkward() {
            for (name, guard) in &guards {
                bounded(&format!("{what}, {name}"), 60, 3000, || {
                    let found = score(guard, &text);
                    assert!(found.tokens <= guard.info().max_length);
                    assert!((0.0..=1.0).contains(&found.score));
                });
            }
        }
    });
}
