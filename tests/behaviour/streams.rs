//! Streams against whole-text scoring: any chunking, any prompt, at every token.

use siren::{Dtype, Guard, PushOptions, Status, Stream, StreamOptions};

use crate::guard_files::GuardFiles;
use crate::oracle::{
    NORMAL, PIECES, PROMPTS, Random, Retold, Running, Tokens, Watch, chunks, joined, opened, prose,
    ran, real_guards, score, text,
};

const FIXTURES: [&str; 4] =
    ["qwen3-short", "llama-short", "qwen3-residual-last", "qwen3-mlp-inner"];

fn plain() -> PushOptions {
    PushOptions::default()
}

fn after_prompt(prompt: Option<&str>) -> StreamOptions {
    StreamOptions { prompt: prompt.map(str::to_owned), ..StreamOptions::default() }
}

fn any_prompt(random: &mut Random) -> Option<String> {
    match random.below(3) {
        0 => None,
        1 => Some(random.one_of(&PROMPTS).to_owned()),
        _ => Some(text(random, &PIECES, 30)),
    }
}

/// Holds random streams against scores of the whole prefix, and what must hold of any crossing and
/// any cleared bytes; returns how often tokens shrank between pushes.
fn check_prefixes(name: &str, guard: &Guard, rounds: usize, seed: u64) -> usize {
    let mut random = Random(seed);
    let mut shrank = 0;
    for _ in 0..rounds {
        let prompt = any_prompt(&mut random);
        let prompt = prompt.as_deref();
        let whole = text(&mut random, &PIECES, 80);
        let near = guard.score(joined(prompt, &whole), None).unwrap().score;
        let stream = guard
            .stream(StreamOptions {
                threshold: Some((near * 1.05).min(1.0)),
                hysteresis: random.below(5),
                ..after_prompt(prompt)
            })
            .unwrap();
        let (mut at, mut last) = (0, None::<siren::Push>);
        for chunk in chunks(&mut random, &whole, 25) {
            at += chunk.len();
            let push = stream.push(chunk, plain()).unwrap();
            let prefix = &whole[..whole.floor_char_boundary(at)];
            let context = format!("{name}: {prompt:?} {prefix:?}");
            let expected = guard.score(joined(prompt, prefix), Some(push.threshold)).unwrap();
            assert_eq!(
                (push.score, push.tokens, push.truncated, push.is_harmful),
                (expected.score, expected.tokens, expected.truncated, expected.is_harmful),
                "{context}"
            );
            assert!(prefix.is_char_boundary(push.cleared), "{context}");
            if let Some(last) = last {
                shrank += usize::from(push.tokens < last.tokens);
                assert!(push.cleared >= last.cleared, "{context}");
                if last.first_crossing.is_some() {
                    assert_eq!(push.first_crossing, last.first_crossing, "{context}");
                    assert_eq!(push.cleared, last.cleared, "{context}");
                }
            }
            last = Some(push);
        }
        let finished = stream.finish(plain()).unwrap();
        let cleared = last.map_or(0, |last| last.cleared);
        match finished.first_crossing.is_some() || finished.truncated {
            true => assert_eq!(finished.cleared, cleared, "{name}: {prompt:?} {whole:?}"),
            false => assert_eq!(finished.cleared, whole.len(), "{name}: {prompt:?} {whole:?}"),
        }
        let expected = guard.score(joined(prompt, &whole), None).unwrap();
        assert_eq!((finished.score, finished.tokens), (expected.score, expected.tokens));
    }
    shrank
}

#[test]
fn every_push_scores_as_the_whole_prefix_does() {
    let mut shrank = 0;
    for (name, seed) in FIXTURES.into_iter().zip(5..) {
        shrank += check_prefixes(name, &GuardFiles::fixture(name).open().unwrap(), 40, seed);
    }
    assert!(shrank > 20, "tokens shrank {shrank} times");
}

#[test]
fn every_push_scores_as_the_whole_prefix_does_behind_real_tokenizers() {
    for (name, files) in real_guards() {
        let shrank: usize = [20, 1024]
            .map(|max_length| {
                let guard = opened(&files, |o| o.max_length = Some(max_length));
                check_prefixes(name, &guard, 25, max_length as u64)
            })
            .iter()
            .sum();
        assert!(shrank > 0, "{name}");
    }
}

/// Rows are rounded by what they hold alone: a push gives every bit of the whole text's score.
#[test]
fn every_push_scores_as_the_whole_prefix_does_in_int8() {
    let int8 = |files: &GuardFiles| opened(files, |o| o.dtype = Dtype::Int8);
    for (name, seed) in FIXTURES.into_iter().zip(60..) {
        check_prefixes(name, &int8(&GuardFiles::fixture(name)), 20, seed);
    }
    for (name, seed) in ["qwen3-mixed", "llama-k"].into_iter().zip(70..) {
        check_prefixes(name, &int8(&GuardFiles::gguf(name)), 10, seed);
    }
}

/// Streams against the rules told again, over running scores of guards that read 1, 2, 3, ...
/// tokens; texts are often longer than the guard reads.
fn check_rules(name: &str, files: &GuardFiles, (special, most): (usize, usize), rounds: usize) {
    let tokens = Tokens::of(files);
    let mut running = Running::of(files, special, most);
    let guard = opened(files, |o| o.max_length = Some(special + most));
    let mut random = Random(77);
    let (mut crossed, mut uncrossed, mut between) = (0, 0, 0);
    for _ in 0..rounds {
        let prompt = (random.below(2) > 0).then(|| random.one_of(&PROMPTS));
        let whole = text(&mut random, NORMAL, 60);
        // A threshold that some token reaches, exactly or not quite.
        let all = guard.stream(after_prompt(prompt)).unwrap();
        let scores = all.push(whole.as_bytes(), with_scores()).unwrap().token_scores;
        let at = scores.get(random.below(scores.len() + 1)).copied().unwrap_or(1.0);
        let threshold = if random.below(2) > 0 { at } else { (at + 1e-9).min(1.0) };
        let hysteresis = random.below(5);
        let stream = guard
            .stream(StreamOptions {
                threshold: Some(threshold),
                hysteresis,
                ..after_prompt(prompt)
            })
            .unwrap();
        let watch = Watch::new(threshold, hysteresis);
        let mut retold = Retold { prompt, pushed: String::new(), watch };
        let mut at = 0;
        for chunk in chunks(&mut random, &whole, 12) {
            at += chunk.len();
            let more = &whole[retold.pushed.len()..whole.floor_char_boundary(at)];
            retold.push(more, &tokens, &mut running);
            let push = stream.push(chunk, plain()).unwrap();
            let pushed = &retold.pushed;
            let context = format!("{name}: {prompt:?} {pushed:?} {threshold} {hysteresis}");
            retold.watch.check(&push, &context);
            between += usize::from(push.cleared > 0 && push.cleared < pushed.len());
        }
        *if retold.watch.crossing.is_some() { &mut crossed } else { &mut uncrossed } += 1;
    }
    let few = rounds / 20;
    assert!(crossed > few && uncrossed > few && between > few, "{crossed} {uncrossed} {between}");
}

fn with_scores() -> PushOptions {
    PushOptions { token_scores: true, ..plain() }
}

#[test]
fn crossings_and_cleared_bytes_follow_the_rules() {
    for (name, special) in [("qwen3-short", 0), ("llama-short", 1), ("qwen3-mlp-last", 0)] {
        check_rules(name, &GuardFiles::fixture(name), (special, 64), 80);
    }
}

#[test]
fn crossings_and_cleared_bytes_follow_the_rules_behind_the_real_tokenizer() {
    // Opening one for each number of tokens takes time.
    check_rules("qwen3-real", &GuardFiles::qwen3_real(), (0, 7), 80);
}

/// A guard that reads `n` tokens tells what the first `n` tokens of a text score.
#[test]
fn running_scores_are_those_of_texts_cut_after_each_token() {
    for (name, special) in [("qwen3-short", 0), ("llama-short", 1)] {
        let files = GuardFiles::fixture(name);
        let tokens = Tokens::of(&files);
        let mut running = Running::of(&files, special, 64);
        let mut random = Random(3);
        for _ in 0..10 {
            let whole = text(&mut random, NORMAL, 40);
            let stream = running.longest().stream(StreamOptions::default()).unwrap();
            let mut at = 0;
            for chunk in chunks(&mut random, &whole, 12) {
                at += chunk.len();
                let prefix = &whole[..whole.floor_char_boundary(at)];
                let push = stream.push(chunk, with_scores()).unwrap();
                assert_eq!(push.first_scored + push.token_scores.len(), push.tokens);
                let spans = tokens.spanned(prefix);
                for (index, found) in (push.first_scored..).zip(&push.token_scores) {
                    let expected = running.score(joined(None, prefix), &spans[..=index - special]);
                    assert_eq!(*found, expected, "{name}: {prefix:?} {index}");
                }
                assert!(stream.push(b"", plain()).unwrap().token_scores.is_empty());
            }
        }
    }
}

#[test]
fn every_token_after_the_prompt_is_scored_once_if_none_is_made_anew() {
    let guard = GuardFiles::fixture("llama-residual-rope").open().unwrap();
    let stream = guard.stream(after_prompt(Some("What then?"))).unwrap();
    let prompt = guard.score(joined(Some("What then?"), ""), None).unwrap().tokens;
    let first = stream.push(b"", with_scores()).unwrap();
    assert_eq!((first.tokens, first.token_scores.len()), (prompt, 0));
    let mut scored = prompt;
    for chunk in ["Well", " then", ", they", " waited", "."] {
        let push = stream.push(chunk.as_bytes(), with_scores()).unwrap();
        // The newline before the first word is no pushed byte.
        assert!((scored..=scored + 1).contains(&push.first_scored), "{chunk}");
        scored = push.first_scored + push.token_scores.len();
        assert_eq!(scored, push.tokens);
        assert_eq!(push.token_scores.last(), Some(&push.score));
    }
}

#[track_caller]
fn refused(status: Status, result: siren::Result<siren::Push>) {
    assert_eq!(result.unwrap_err().status(), status);
}

#[test]
fn bytes_that_are_no_characters_change_nothing() {
    let guard = GuardFiles::fixture("qwen3-mlp-inner").open().unwrap();
    let options = StreamOptions { threshold: Some(1.0), ..StreamOptions::default() };
    let stream = guard.stream(options).unwrap();
    let bad: [&[u8]; 7] = [
        b"\xff",
        b"fine until \xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"\x80",
        b"a\xe4\xbda",
        b"\xf0\x9f\x99\x82\xf0\x9fx",
    ];
    for bytes in bad {
        refused(Status::InvalidUtf8, stream.push(bytes, plain()));
    }
    let mut pushed = String::new();
    for c in "a 你 🙂 ß".chars() {
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        for byte in &bytes[..bytes.len() - 1] {
            let before = score(&guard, &pushed);
            let push = stream.push(&[*byte], plain()).unwrap();
            assert_eq!((push.score, push.tokens), (before.score, before.tokens));
            assert!(push.cleared <= pushed.len());
            // Half a character is neither an end nor can anything but its rest follow.
            refused(Status::InvalidUtf8, stream.push(b"a", plain()));
            refused(Status::InvalidUtf8, stream.finish(plain()));
        }
        pushed.push(c);
        let push = stream.push(&bytes[bytes.len() - 1..], plain()).unwrap();
        assert_eq!(push.score, score(&guard, &pushed).score, "{pushed:?}");
    }
    assert_eq!(stream.finish(plain()).unwrap().cleared, pushed.len());
    assert!(guard.stats().errors[Status::InvalidUtf8 as usize] > 10);
}

#[test]
fn what_comes_after_the_end_and_after_a_reset() {
    let guard = GuardFiles::fixture("llama-linear").open().unwrap();
    for prompt in [None, Some(""), Some(" "), Some("a prompt")] {
        let stream =
            guard.stream(StreamOptions { threshold: Some(0.0), ..after_prompt(prompt) }).unwrap();
        let scored = |response: &str| guard.score(joined(prompt, response), None).unwrap().score;
        let push = stream.push(b"", plain()).unwrap();
        assert_eq!((push.score, push.cleared, push.first_crossing), (scored(""), 0, None));
        assert_eq!(stream.push(b"", plain()).unwrap(), push);
        let push = stream.push(b"words", plain()).unwrap();
        assert_eq!((push.score, push.cleared), (scored("words"), 0));
        assert!(push.first_crossing.is_some());
        // Then nothing is left to run.
        let push = siren::Push { first_scored: push.tokens, ..push };
        assert_eq!(stream.push(b"", plain()).unwrap(), push);
        assert_eq!(stream.finish(plain()).unwrap(), push);
        refused(Status::InvalidArgument, stream.push(b"more", plain()));
        refused(Status::InvalidArgument, stream.push(b"", plain()));
        refused(Status::InvalidArgument, stream.finish(plain()));
        stream.reset().unwrap();
        stream.push(b"\xe4", plain()).unwrap();
        // What was held back is forgotten too.
        stream.reset().unwrap();
        let push = stream.push(b"others", plain()).unwrap();
        assert_eq!(push.score, scored("others"));
        stream.reset().unwrap();
        assert_eq!(stream.finish(plain()).unwrap().score, scored(""));
    }
}

#[test]
fn limits_of_bytes_and_of_streams() {
    let files = GuardFiles::fixture("qwen3-mlp-inner");
    let guard = opened(&files, |o| {
        o.max_text_bytes = 40;
        o.max_streams = 2;
    });
    let error = guard.stream(after_prompt(Some(&"p".repeat(41)))).err().unwrap();
    assert_eq!(error.status(), Status::LimitExceeded);
    let stream = guard.stream(StreamOptions::default()).unwrap();
    refused(Status::LimitExceeded, stream.push(&[b'a'; 41], plain()));
    stream.push(&[b'a'; 30], plain()).unwrap();
    // A word is never done: it is looked at as a whole.
    refused(Status::LimitExceeded, stream.push(&[b'a'; 20], plain()));
    let push = stream.push(&[b'a'; 10], plain()).unwrap();
    assert_eq!(push.score, score(&guard, &"a".repeat(40)).score);
    let other = stream.fork().unwrap();
    assert_eq!(stream.fork().err().unwrap().status(), Status::LimitExceeded);
    let opened = guard.stream(StreamOptions::default()).err();
    assert_eq!(opened.unwrap().status(), Status::LimitExceeded);
    drop(other);
    let other = guard.stream(StreamOptions::default()).unwrap();
    // Words that are done no longer count.
    for _ in 0..30 {
        other.push(b"some words and ", plain()).unwrap();
    }
    for threshold in [f64::NAN, -0.1, 1.1] {
        let options = StreamOptions { threshold: Some(threshold), ..StreamOptions::default() };
        assert_eq!(guard.stream(options).err().unwrap().status(), Status::InvalidArgument);
    }
    assert_eq!(guard.stats().streams, 2);
}

/// A fork of a fork of ..., each pushed something else; they go on in turns.
#[test]
fn forks_go_their_own_ways() {
    for name in ["qwen3-residual-last", "llama-mlp-bias"] {
        let guard = GuardFiles::fixture(name).open().unwrap();
        let mut random = Random(11);
        let prompt = prose(&mut random, 60);
        let mut streams: Vec<(Stream, Vec<u8>)> =
            vec![(guard.stream(after_prompt(Some(&prompt))).unwrap(), vec![])];
        let mut watched = streams[0].0.push(b"", plain()).unwrap();
        for round in 0..120 {
            let at = random.below(streams.len());
            if round % 6 == 5 {
                let (stream, pushed) = &streams[at];
                let fork = (stream.fork().unwrap(), pushed.clone());
                streams.push(fork);
            }
            if streams.len() > 5 {
                // Often a parent, before its children.
                streams.remove(random.below(3));
            }
            let at = random.below(streams.len());
            let (stream, pushed) = &mut streams[at];
            let piece = random.one_of(&PIECES);
            let piece = &piece.as_bytes()[..piece.len() - usize::from(random.below(20) == 0)];
            match stream.push(piece, plain()) {
                Ok(push) => {
                    pushed.extend_from_slice(piece);
                    let whole = String::from_utf8_lossy(pushed);
                    let whole = whole.trim_end_matches('\u{fffd}');
                    let expected = guard.score(joined(Some(&prompt), whole), None).unwrap();
                    assert_eq!(push.score, expected.score, "{name}: {whole:?}");
                    watched = push;
                }
                // What was cut above goes on in another way.
                Err(error) => {
                    assert_eq!(error.status(), Status::InvalidUtf8);
                    streams.remove(at);
                    let fresh = guard.stream(after_prompt(Some(&prompt))).unwrap();
                    streams.push((fresh, vec![]));
                }
            }
        }
        assert!(watched.tokens > 60);
    }
}

#[test]
fn a_fork_shares_what_has_run() {
    let files = GuardFiles::fixture("qwen3-residual-last");
    let guard = opened(&files, |o| o.prefix_cache_bytes = 0);
    let stream = guard.stream(StreamOptions::default()).unwrap();
    let whole = prose(&mut Random(1), 400);
    stream.push(whole.as_bytes(), plain()).unwrap();
    let alone = guard.stats();
    let forks: Vec<Stream> = (0..10).map(|_| stream.fork().unwrap()).collect();
    assert_eq!(guard.stats().kv_bytes, alone.kv_bytes);
    drop(stream);
    for (i, fork) in forks.iter().enumerate() {
        let more = format!("and {i}");
        let push = fork.push(more.as_bytes(), plain()).unwrap();
        assert_eq!(push.score, score(&guard, &[&*whole, &more].concat()).score);
    }
    let held = guard.stats().kv_bytes;
    assert!(held < alone.kv_bytes * 2, "{held} of {}", alone.kv_bytes);
    drop(forks);
    assert_eq!((guard.stats().kv_bytes, guard.stats().streams), (0, 0));
}

#[test]
fn past_max_length_the_score_stays() {
    for name in ["qwen3-short", "llama-short"] {
        let files = GuardFiles::fixture(name);
        let guard = files.open().unwrap();
        let whole = prose(&mut Random(9), 60);
        let (stream, mut tokens) = (guard.stream(StreamOptions::default()).unwrap(), None);
        let mut at = 0;
        for chunk in whole.as_bytes().chunks(7) {
            at += chunk.len();
            let push = stream.push(chunk, plain()).unwrap();
            let expected = score(&guard, &whole[..at]);
            assert_eq!((push.score, push.truncated), (expected.score, expected.truncated));
            if at > 200 {
                // Nothing is left to run.
                let before = *tokens.get_or_insert(guard.stats().tokens);
                let scored = guard.stats();
                stream.push(b"and more", plain()).unwrap();
                assert_eq!(ran(&scored, &guard.stats()), 0, "{before}");
                break;
            }
        }
        let finished = stream.finish(plain()).unwrap();
        assert!(finished.truncated && finished.cleared < 200, "{finished:?}");
    }
    // Room for nothing but the special token.
    let files = GuardFiles::fixture("llama-short");
    let guard = opened(&files, |o| o.max_length = Some(1));
    let stream = guard.stream(StreamOptions::default()).unwrap();
    for chunk in ["", "some", " words", " and more"] {
        let push = stream.push(chunk.as_bytes(), plain()).unwrap();
        let expected = score(&guard, if chunk.is_empty() { "" } else { "some words" });
        assert_eq!((push.score, push.tokens, push.truncated), (expected.score, 1, true));
        assert_eq!((push.cleared, push.first_crossing), (0, None));
    }
}

#[test]
fn a_long_stream_costs_what_its_tokens_cost() {
    for (name, files) in real_guards() {
        let guard = opened(&files, |o| {
            o.max_length = Some(4096);
            o.prefix_cache_bytes = 0;
        });
        let whole = prose(&mut Random(4), 800);
        let stream = guard.stream(StreamOptions::default()).unwrap();
        let (mut pushes, mut tokens) = (0, 0);
        for chunk in chunks(&mut Random(6), &whole, 40) {
            tokens = stream.push(chunk, plain()).unwrap().tokens;
            pushes += 1;
        }
        let cost = guard.stats().tokens;
        assert!(pushes > 180 && tokens > 700, "{name}: {pushes} pushes, {tokens} tokens");
        assert!(2 * cost < 3 * tokens as u64, "{name}: {cost} for {tokens}");
        assert_eq!(stream.push(b"", plain()).unwrap().score, score(&guard, &whole).score);
    }
}
