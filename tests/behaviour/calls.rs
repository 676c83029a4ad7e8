//! Calls that end early, that do not block, that come from many threads; and what is counted.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use siren::{
    CancelToken, Control, Guard, Input, OwnedInput, PushOptions, Result, Score, ScoreOptions,
    Status, Stream, StreamOptions,
};

use crate::guard_files::GuardFiles;
use crate::oracle::{PIECES, Random, opened, prose, ran, score, text};

/// For what comes at once unless it never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Reads long texts: a text of that many tokens takes a second or more.
const LONG: usize = 12_000;

fn long_reader(threads: usize) -> Guard {
    opened(&GuardFiles::fixture("qwen3-residual-last"), |o| {
        o.max_length = Some(LONG);
        o.threads = Some(threads);
    })
}

fn scored_with(control: Control) -> ScoreOptions {
    ScoreOptions { control, ..ScoreOptions::default() }
}

fn pushed_with(control: Control) -> PushOptions {
    PushOptions { control, ..PushOptions::default() }
}

fn cancelled_by(cancel: &CancelToken) -> Control {
    Control { cancel: Some(cancel.clone()), ..Control::default() }
}

fn until(deadline: Instant) -> Control {
    Control { deadline: Some(deadline), ..Control::default() }
}

fn owned(text: &str) -> OwnedInput {
    OwnedInput::Text(text.to_owned())
}

/// Begins a call that does not block; its answer comes here.
fn begun(guard: &Guard, text: &str, options: ScoreOptions) -> Receiver<Result<Score>> {
    let (sender, receiver) = channel();
    guard.score_async(owned(text), options, move |scored| sender.send(scored).unwrap()).unwrap();
    receiver
}

fn heard<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_call_that_should_not_begin_does_not() {
    let guard = GuardFiles::fixture("llama-linear").open().unwrap();
    let cancel = CancelToken::new();
    cancel.cancel();
    let past = Instant::now();
    for (control, status) in
        [(cancelled_by(&cancel), Status::Cancelled), (until(past), Status::DeadlineExceeded)]
    {
        let before = guard.stats();
        let options = scored_with(control.clone());
        let found = guard.score(Input::Text("text"), options.clone());
        assert_eq!(found.unwrap_err().status(), status);
        let found = heard(&begun(&guard, "text", options));
        assert_eq!(found.unwrap_err().status(), status);
        let stream = guard.stream(StreamOptions::default()).unwrap();
        let found = stream.push(b"text", pushed_with(control.clone()));
        assert_eq!(found.unwrap_err().status(), status);
        let (sender, receiver) = channel();
        let done = move |pushed: Result<siren::Push>| sender.send(pushed).unwrap();
        stream.push_async(b"text".to_vec(), pushed_with(control.clone()), done).unwrap();
        assert_eq!(heard(&receiver).unwrap_err().status(), status);
        assert_eq!(stream.finish(pushed_with(control)).unwrap_err().status(), status);
        let after = guard.stats();
        assert_eq!(ran(&before, &after), 0);
        assert_eq!(after.errors[status as usize], 5);
        // It is as if nothing had been pushed.
        let push = stream.push(b"other", PushOptions::default()).unwrap();
        assert_eq!(push.score, score(&guard, "other").score);
    }
}

#[test]
fn a_call_ends_while_it_runs_and_leaves_the_stream_as_it_was() {
    let guard = long_reader(2);
    let whole = prose(&mut Random(3), 2 * LONG);
    let expected = score(&guard, "and so on");
    for cancels in [true, false] {
        let cancel = CancelToken::new();
        let soon = Duration::from_millis(40);
        let control = |cancel: &CancelToken| match cancels {
            true => cancelled_by(cancel),
            false => until(Instant::now() + soon),
        };
        let status = if cancels { Status::Cancelled } else { Status::DeadlineExceeded };
        let stream = guard.stream(StreamOptions::default()).unwrap();
        let push = stream.push(b"and so", PushOptions::default()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(soon);
                cancel.cancel();
            });
            let found = stream.push(whole.as_bytes(), pushed_with(control(&cancel)));
            assert_eq!(found.unwrap_err().status(), status);
        });
        assert_eq!(stream.push(b"", PushOptions::default()).unwrap().score, push.score);
        let push = stream.push(b" on", PushOptions::default()).unwrap();
        assert_eq!((push.score, push.tokens), (expected.score, expected.tokens));
        // One that does not block, too.
        let cancel = CancelToken::new();
        let answer = begun(&guard, &whole, scored_with(control(&cancel)));
        std::thread::sleep(soon);
        cancel.cancel();
        assert_eq!(heard(&answer).unwrap_err().status(), status);
    }
    assert_eq!(score(&guard, "and so on"), expected);
}

#[test]
fn long_texts_score_the_same_whatever_runs_beside_them() {
    let files = GuardFiles::fixture("llama-residual-rope");
    let mut random = Random(19);
    let texts: Vec<String> = [3000, 900, 60, 1].map(|words| prose(&mut random, words)).into();
    let open = |threads, bytes| {
        opened(&files, |o| {
            o.max_length = Some(4000);
            o.threads = Some(threads);
            o.prefix_cache_bytes = bytes;
        })
    };
    let alone = open(1, 0);
    let expected: Vec<Score> = texts.iter().map(|text| score(&alone, text)).collect();
    assert!(expected[0].tokens > 3000);
    for threads in [1, 2, 3] {
        for bytes in [0, 256 << 20] {
            let guard = open(threads, bytes);
            std::thread::scope(|scope| {
                for from in 0..4 {
                    let (guard, texts, expected) = (&guard, &texts, &expected);
                    scope.spawn(move || {
                        for at in (0..8).map(|i| (from + i) % 4) {
                            // The longest only once in a while: it is run three times.
                            if at > 0 || from == 0 {
                                assert_eq!(score(guard, &texts[at]), expected[at], "{threads}");
                            }
                        }
                    });
                }
            });
            let stream = guard.stream(StreamOptions::default()).unwrap();
            for chunk in texts[0].as_bytes().chunks(5000) {
                stream.push(chunk, PushOptions::default()).unwrap();
            }
            let push = stream.push(b"", PushOptions::default()).unwrap();
            assert_eq!(push.score, expected[0].score, "{threads}");
        }
    }
}

#[test]
fn a_full_queue_is_busy_or_is_waited_for() {
    let guard = opened(&GuardFiles::fixture("qwen3-mlp-inner"), |o| o.max_queue = 1);
    let expected = score(&guard, "some words");
    let (start, waits) = (Barrier::new(16), Control { wait: true, ..Control::default() });
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (guard, start, waits) = (&guard, &start, &waits);
            scope.spawn(move || {
                start.wait();
                for _ in 0..20 {
                    let control = if thread % 2 == 0 { waits.clone() } else { Control::default() };
                    match guard.score(Input::Text("some words"), scored_with(control)) {
                        Ok(found) => assert_eq!(found, expected),
                        Err(error) => {
                            assert_eq!((error.status(), thread % 2), (Status::Busy, 1), "{error}");
                        }
                    }
                }
            });
        }
    });
    // A batch larger than the queue comes in when it waits.
    let options = scored_with(waits);
    assert_eq!(guard.score_batch(&[Input::Text("some words"); 5], options).unwrap().len(), 5);
    assert_eq!(guard.stats().queue_depth, 0);
}

#[test]
fn many_calls_in_flight_each_get_their_own_answer_once() {
    let guard = Arc::new(GuardFiles::fixture("qwen3-residual-last").open().unwrap());
    let mut random = Random(43);
    let texts: Vec<String> = (0..200).map(|_| text(&mut random, &PIECES, 40)).collect();
    let expected: Vec<Score> = texts.iter().map(|text| score(&guard, text)).collect();
    let (sender, receiver) = channel();
    for (i, text) in texts.iter().enumerate() {
        let (sender, calls) = (sender.clone(), guard.clone());
        let again = texts[(i + 1) % texts.len()].clone();
        let done = move |scored: Result<Score>| {
            // A completion may call into the guard, and wait for it.
            let inner = (i % 10 == 0).then(|| score(&calls, &again));
            sender.send((i, scored.unwrap(), inner)).unwrap();
        };
        guard.score_async(owned(text), ScoreOptions::default(), done).unwrap();
    }
    drop(sender);
    let mut answered = vec![false; texts.len()];
    for _ in 0..texts.len() {
        let (i, scored, inner) = heard(&receiver);
        assert_eq!(scored, expected[i]);
        assert!(inner.is_none_or(|inner| inner == expected[(i + 1) % texts.len()]));
        assert!(!std::mem::replace(&mut answered[i], true));
    }
    assert!(receiver.recv_timeout(PATIENCE).is_err(), "one answer too many");
}

#[test]
fn a_guard_may_go_while_calls_are_in_flight() {
    let files = GuardFiles::fixture("llama-mlp-bias");
    let expected = score(&files.open().unwrap(), "some words");
    for threads in [1, 2] {
        for round in 0..20 {
            let guard = opened(&files, |o| o.threads = Some(threads));
            let answers: Vec<_> =
                (0..10).map(|_| begun(&guard, "some words", ScoreOptions::default())).collect();
            let stream = guard.stream(StreamOptions::default()).unwrap();
            let (sender, last) = channel();
            if round % 2 == 0 {
                drop(guard);
            } else {
                // It goes inside a completion of its own.
                let (other, guard) = (sender.clone(), Arc::new(guard));
                let held = guard.clone();
                let done = move |scored| {
                    drop(held);
                    other.send(scored).unwrap();
                };
                guard.score_async(owned("some words"), ScoreOptions::default(), done).unwrap();
            }
            for answer in &answers {
                assert_eq!(heard(answer).unwrap(), expected);
            }
            if round % 2 == 1 {
                assert_eq!(heard(&last).unwrap(), expected);
            }
            // A stream outlives its guard.
            let push = stream.push(b"some words", PushOptions::default()).unwrap();
            assert_eq!(push.score, expected.score);
            let held = stream.fork().unwrap();
            let done = move |pushed: Result<siren::Push>| {
                drop(held);
                sender.send(pushed.map(|_| expected)).unwrap();
            };
            stream.push_async(b" more".to_vec(), PushOptions::default(), done).unwrap();
            drop(stream);
            assert_eq!(heard(&last).unwrap(), expected);
        }
    }
}

/// A deadline ends a blocking call at once, while its text still runs; the last owner may then be
/// a thread of the pool that the text runs on.
#[test]
fn a_guard_may_go_from_its_own_pool() {
    let files = GuardFiles::fixture("qwen3-residual-last");
    let whole = prose(&mut Random(3), 4000);
    for round in 0..20 {
        let guard = opened(&files, |o| {
            o.max_text_bytes = 1 << 20;
            o.max_length = Some(4000);
        });
        let (sender, gone) = channel();
        let soon = Instant::now() + Duration::from_millis(15);
        let found = guard.score(Input::Text(&whole), scored_with(until(soon)));
        assert!(found.is_err());
        // Refused on the pool, before it can be queued.
        let too_long = owned(&"x".repeat((1 << 20) + 1));
        let done = move |scored: Result<Score>| sender.send(scored).unwrap();
        guard.score_async(too_long, ScoreOptions::default(), done).unwrap();
        let dropped = std::thread::spawn(move || drop(guard));
        let scored = heard(&gone);
        assert_eq!(scored.unwrap_err().status(), Status::LimitExceeded, "round {round}");
        dropped.join().unwrap();
    }
}

#[test]
fn a_stream_that_two_threads_use_says_so_or_is_right() {
    let guard = GuardFiles::fixture("qwen3-residual-last").open().unwrap();
    let stream = guard.stream(StreamOptions::default()).unwrap();
    let (pushed, in_use) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut pushed, mut in_use) = (0, 0);
                    for _ in 0..60 {
                        match stream.push(b"one word, ", PushOptions::default()) {
                            Ok(_) => pushed += 1,
                            Err(error) => {
                                assert_eq!(error.status(), Status::InUse, "{error}");
                                in_use += 1;
                            }
                        }
                        if let Err(error) = stream.fork() {
                            assert_eq!(error.status(), Status::InUse, "{error}");
                        }
                    }
                    (pushed, in_use)
                })
            })
            .collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap());
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    assert_eq!(pushed + in_use, 240);
    let push = stream.push(b"", PushOptions::default()).unwrap();
    assert_eq!(push.score, score(&guard, &"one word, ".repeat(pushed)).score, "{pushed}");
    assert_eq!(guard.stats().errors[Status::InUse as usize], in_use as u64);
    // While a call that does not block has it, it is in use for certain.
    let (sender, receiver) = channel();
    let (go, gone) = channel::<()>();
    let blocks = owned("a text whose completion holds up the next one");
    let waits = move |_: Result<Score>| gone.recv().unwrap();
    guard.score_async(blocks, ScoreOptions::default(), waits).unwrap();
    let done = move |pushed: Result<siren::Push>| sender.send(pushed.unwrap()).unwrap();
    stream.push_async(b"end".to_vec(), PushOptions::default(), done).unwrap();
    go.send(()).unwrap();
    let last = heard(&receiver);
    assert_eq!(
        last.score,
        score(&guard, &["one word, ".repeat(pushed), "end".into()].concat()).score
    );
}

#[test]
fn sixty_four_threads_score_the_same() {
    let guard = GuardFiles::fixture("llama-residual-rope").open().unwrap();
    let mut random = Random(47);
    let texts: Vec<String> = (0..40).map(|_| text(&mut random, &PIECES, 60)).collect();
    let expected: Vec<Score> = texts.iter().map(|text| score(&guard, text)).collect();
    std::thread::scope(|scope| {
        for thread in 0..64 {
            let (guard, texts, expected) = (&guard, &texts, &expected);
            scope.spawn(move || {
                let mut random = Random(thread);
                let stream: Stream = guard.stream(StreamOptions::default()).unwrap();
                for _ in 0..15 {
                    let at = random.below(texts.len());
                    assert_eq!(score(guard, &texts[at]), expected[at]);
                    stream.reset().unwrap();
                    let (head, tail) = texts[at].as_bytes().split_at(texts[at].len() / 2);
                    stream.push(head, PushOptions::default()).unwrap();
                    let push = stream.push(tail, PushOptions::default()).unwrap();
                    assert_eq!(
                        (push.score, push.tokens),
                        (expected[at].score, expected[at].tokens)
                    );
                }
            });
        }
    });
}

#[test]
fn the_numbers_add_up() {
    let files = GuardFiles::fixture("qwen3-short");
    let guard = opened(&files, |o| o.max_text_bytes = 1000);
    let mut harmful = 0;
    let mut note = |is_harmful: bool| harmful += u64::from(is_harmful);
    let long = "words ".repeat(60);
    for text in ["a", "b", &long] {
        note(score(&guard, text).is_harmful);
    }
    let too_long = "x".repeat(1001);
    let batch = ["c", &too_long, "d"].map(Input::Text);
    for scored in guard.score_batch(&batch, None).unwrap().into_iter().flatten() {
        note(scored.is_harmful);
    }
    assert!(guard.score(Input::Text("a"), Some(2.0)).is_err());
    note(heard(&begun(&guard, "e", ScoreOptions::default())).unwrap().is_harmful);
    let stream = guard.stream(StreamOptions::default()).unwrap();
    for chunk in ["f", " g"] {
        note(stream.push(chunk.as_bytes(), PushOptions::default()).unwrap().is_harmful);
    }
    assert!(stream.push(b"\xff", PushOptions::default()).is_err());
    let stats = guard.stats();
    // 3 scores, a batch, one refused, one that did not block, 3 pushes.
    assert_eq!((stats.requests, stats.texts, stats.pushes), (9, 7, 3));
    assert_eq!((stats.harmful, stats.truncated), (harmful, 1));
    assert_eq!(stats.latency_counts.iter().sum::<u64>(), stats.requests);
    let mut errors = [0; 32];
    for status in [Status::LimitExceeded, Status::InvalidArgument, Status::InvalidUtf8] {
        errors[status as usize] = 1;
    }
    assert_eq!(stats.errors, errors);
    assert_eq!((stats.streams, stats.queue_depth), (1, 0));
    assert!(stats.passes <= stats.pass_sequences && stats.pass_sequences <= 8);
    drop(stream);
    assert_eq!(guard.stats().streams, 0);
}
