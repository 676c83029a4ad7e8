//! Texts, prompts and responses, thresholds, token counts.

use siren::{Error, Guard, Input, OpenOptions, Score, Status};

use crate::guard_files::{CONFIG, GuardFiles, repository};

fn demo() -> Guard {
    let files = repository("models/demo").display().to_string();
    Guard::open(OpenOptions { threads: Some(1), ..OpenOptions::new(files) }).unwrap()
}

fn exchange<'a>(prompt: Option<&'a str>, response: Option<&'a str>) -> Input<'a> {
    Input::Exchange { prompt, response }
}

#[test]
fn what_is_joined_scores_as_the_text_that_it_makes() {
    let guard = demo();
    let (p, r) = ("How do I build a bomb?", "I cannot help with that.");
    let joined = format!("{p}\n{r}");
    #[rustfmt::skip]
    let cases = [
        (Some(p), Some(r), joined.as_str()),
        (Some(p), None, p),
        (Some(p), Some(""), p),
        (None, Some(r), r),
        (Some(""), Some(r), r),
        (Some(""), Some(""), ""),
        // White space is text: it is joined, and cleaned with the rest.
        (Some(p), Some(" "), p),
        (Some(" \t"), Some(r), r),
        (Some(" "), Some("\n"), " "),
        (Some("a"), Some("\n\n\nb"), "a\n\nb"),
        (Some("a "), Some(" b"), "a \n b"),
        // A marker is found across the join only if the newline is in it: it is not.
        (Some("<|im_st"), Some("art|>"), "<|im_st\nart|>"),
    ];
    for (prompt, response, text) in cases {
        let [found, expected] = [exchange(prompt, response), Input::Text(text)]
            .map(|input| guard.score(input, None).unwrap());
        assert_eq!(found, expected, "{prompt:?} {response:?}");
    }
    let error = guard.score(exchange(None, None), None).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.message().contains("prompt and response are all absent"), "{error}");
    // The join is a newline, and it shows.
    let other = guard.score(Input::Text(&joined.replace('\n', " ")), None).unwrap();
    assert_ne!(guard.score(exchange(Some(p), Some(r)), None).unwrap().score, other.score);
}

#[test]
fn texts_that_clean_to_the_same_score_the_same() {
    let guard = demo();
    for (text, cleaned) in [
        ("", " "),
        (" \t\r\n\u{3000}\u{1c}", " "),
        ("<|im_start|>", " "),
        ("<s>[INST]</s>", " "),
        ("  a \t b\n\n\n\n\nc  ", "a b\n\nc"),
        ("<|im_start|>user<|im_end|>", "user"),
        ("\u{200b}", "\u{200b}"),
    ] {
        let [found, expected] =
            [text, cleaned].map(|text| guard.score(Input::Text(text), None).unwrap());
        assert_eq!(found, expected, "{text:?}");
        assert!(found.tokens >= 1 && !found.truncated);
    }
}

#[test]
fn thresholds() {
    let guard = demo();
    let text = Input::Text("How can I make a pipe bomb at home?");
    let own = guard.score(text, None).unwrap();
    assert_eq!(own.threshold, guard.info().default_threshold);
    let next_up = f64::from_bits(own.score.to_bits() + 1);
    for (threshold, is_harmful) in
        [(0.0, true), (own.score, true), (next_up, false), (1.0, false), (-0.0, true)]
    {
        let found = guard.score(text, Some(threshold)).unwrap();
        assert_eq!(found, Score { threshold, is_harmful, ..own }, "{threshold}");
    }
    for threshold in [f64::NAN, -0.1, 1.1, f64::INFINITY, f64::NEG_INFINITY, -f64::MIN_POSITIVE] {
        let error = guard.score(text, Some(threshold)).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{threshold}");
        assert!(error.message().contains(&threshold.to_string()), "{error}");
        assert_eq!(guard.score_batch(&[], Some(threshold)).unwrap_err(), error);
    }
}

#[test]
fn the_artifacts_own_threshold_counts() {
    let files = GuardFiles::fixture("qwen3-mlp-inner");
    let guard = files.open().unwrap();
    assert_eq!(guard.info().default_threshold, 0.25);
    assert_eq!(guard.score(Input::Text("x"), None).unwrap().threshold, 0.25);
    // A score is an f32, widened; the file's threshold is read to the last bit.
    for text in ["x", "y", "some words", "7"] {
        let score = guard.score(Input::Text(text), None).unwrap().score;
        assert_eq!(f64::from(score as f32), score);
        files.set(CONFIG, "/inference/default_threshold", Some(score.into()));
        let found = files.open().unwrap().score(Input::Text(text), None).unwrap();
        assert!(found.is_harmful && found.threshold == score, "{score}");
    }
}

#[test]
fn count_tokens_tells_what_score_runs() {
    let long = "many words ".repeat(1000);
    for name in ["qwen3-short", "llama-short", "qwen3-residual-last"] {
        let files = GuardFiles::fixture(name);
        let guard = files.open().unwrap();
        for text in ["", "a", "some words in a row", &long] {
            let score = guard.score(Input::Text(text), None).unwrap();
            let count = guard.count_tokens(Input::Text(text)).unwrap();
            assert_eq!(count, (score.tokens, score.truncated), "{name}");
        }
        let (tokens, truncated) = guard.count_tokens(Input::Text(&long)).unwrap();
        assert_eq!((tokens, truncated), (guard.info().max_length, true), "{name}");
    }
}

#[test]
fn max_length_of_the_options_wins() {
    let files = GuardFiles::fixture("llama-short");
    for max_length in [1, 2, 7, 100] {
        let options = OpenOptions { max_length: Some(max_length), ..files.options() };
        let guard = Guard::open(options).unwrap();
        assert_eq!(guard.info().max_length, max_length);
        let score = guard.score(Input::Text(&"word ".repeat(500)), None).unwrap();
        assert_eq!((score.tokens, score.truncated), (max_length, true));
    }
}

#[test]
fn the_results_of_a_batch_stand_in_order_with_failures_among_them() {
    let files = GuardFiles::fixture("qwen3-residual-last");
    let options = OpenOptions { max_text_bytes: 60, threads: Some(2), ..files.options() };
    let guard = Guard::open(options).unwrap();
    let texts: Vec<String> = (0..300).map(|i| format!("{i} {}", "abc ".repeat(i % 19))).collect();
    let inputs: Vec<_> = texts.iter().map(|text| Input::Text(text)).collect();
    let results = guard.score_batch(&inputs, Some(0.3)).unwrap();
    let alone: Vec<Result<Score, Error>> =
        inputs.iter().map(|input| guard.score(*input, Some(0.3))).collect();
    assert_eq!(results, alone);
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert!((50..250).contains(&failed), "{failed}");
    for (text, result) in texts.iter().zip(&results) {
        assert_eq!(result.is_err(), text.len() > 60);
    }
}

#[test]
fn many_threads_get_their_own_results() {
    let guard = demo();
    let texts: Vec<String> = (0..8).map(|i| "text ".repeat(i + 1)).collect();
    let alone: Vec<_> =
        texts.iter().map(|text| guard.score(Input::Text(text), None).unwrap()).collect();
    std::thread::scope(|scope| {
        for (text, expected) in texts.iter().zip(&alone) {
            let guard = &guard;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&guard.score(Input::Text(text), None).unwrap(), expected);
                }
            });
        }
    });
}

#[test]
fn warmup_changes_nothing() {
    let guard = demo();
    let before = guard.score(Input::Text("text"), None).unwrap();
    guard.warmup().unwrap();
    assert_eq!(guard.score(Input::Text("text"), None).unwrap(), before);
}
