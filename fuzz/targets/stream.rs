//! Several streams on one guard, pushed in any chunks, forked, reset, cancelled, parked: every push
//! scores as the whole prefix does on a guard that keeps nothing, and crossings and cleared bytes
//! are those of a plain rendering of their rules.
#![no_main]

use std::sync::LazyLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{Script, fixture, is_score, joined, tokenizer};
use siren::fuzzing::{Growing, Tokenizer};
use siren::{
    CancelToken, Control, Crossing, DeviceChoice, Guard, Input, OpenOptions, Push, PushOptions,
    ScoreOptions, Status, Stream, StreamOptions, Windows,
};

/// Streams that a script may hold open at once.
const MAX_STREAMS: usize = 4;
/// Steps of a script, and bytes of a stream: every push scores a whole text besides.
const MAX_STEPS: usize = 32;
const MAX_STREAM_BYTES: usize = 200;
/// Tokens that the guards read, and bytes of a text that the one with the streams takes.
const MAX_LENGTH: usize = 24;
const MAX_TEXT_BYTES: usize = 160;
const DEFAULT_THRESHOLD: f64 = 0.5;

struct Family {
    /// With a prefix cache, and room for the tokens of two or three streams.
    cramped: Guard,
    /// Keeps nothing between calls.
    plain: Guard,
    tokenizer: Tokenizer,
}

impl Family {
    fn new(name: &str) -> Self {
        let options = || OpenOptions {
            device: DeviceChoice::Cpu,
            threads: Some(1),
            max_length: Some(MAX_LENGTH),
            ..OpenOptions::new(fixture(name).display().to_string())
        };
        let open = |options| Guard::open(options).expect("a good guard");
        Self {
            cramped: open(OpenOptions {
                max_text_bytes: MAX_TEXT_BYTES,
                kv_bytes: 48 << 10,
                prefix_cache_bytes: 48 << 10,
                ..options()
            }),
            plain: open(OpenOptions { prefix_cache_bytes: 0, kv_bytes: 0, ..options() }),
            tokenizer: tokenizer(name),
        }
    }
}

static FAMILIES: [LazyLock<Family>; 3] = [
    LazyLock::new(|| Family::new("qwen3-short")),
    LazyLock::new(|| Family::new("llama-short")),
    LazyLock::new(|| Family::new("qwen3-mlp-inner")),
];

/// What is known of a stream without asking it.
#[derive(Clone)]
struct Model {
    options: StreamOptions,
    bytes: Vec<u8>,
    finished: bool,
    /// Running scores of the tokens with pushed bytes, by their index.
    running: Vec<(usize, f64)>,
    crossing: Option<Crossing>,
    cleared: usize,
}

/// What a push was asked to do.
struct Step {
    chunk: Vec<u8>,
    control: Control,
    last: bool,
}

impl Model {
    fn new(options: StreamOptions) -> Self {
        Self {
            options,
            bytes: vec![],
            finished: false,
            running: vec![],
            crossing: None,
            cleared: 0,
        }
    }

    fn prompt(&self) -> &str {
        self.options.prompt.as_deref().unwrap_or_default()
    }

    /// Bytes before the first pushed one: those of the prompt and its newline.
    fn lead(&self) -> usize {
        if self.prompt().is_empty() { 0 } else { self.prompt().len() + 1 }
    }

    fn threshold(&self) -> f64 {
        self.options.threshold.unwrap_or(DEFAULT_THRESHOLD)
    }

    /// The whole characters that were pushed.
    fn text(&self) -> &str {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&self.bytes[..e.valid_up_to()]).expect("valid there"),
        }
    }

    fn whole(&self) -> String {
        joined(self.prompt(), self.text())
    }

    fn score_options(&self) -> ScoreOptions {
        let StreamOptions { threshold, windows, .. } = self.options;
        ScoreOptions { threshold, windows, ..ScoreOptions::default() }
    }

    fn push_options(control: &Control) -> PushOptions {
        PushOptions { token_scores: true, control: control.clone() }
    }

    /// Holds what a push gave against what it should.
    fn check(&mut self, family: &Family, step: Step, outcome: siren::Result<Push>) {
        let bytes = [&self.bytes[..], &step.chunk].concat();
        let utf8 = std::str::from_utf8(&bytes).err();
        let push = match outcome {
            Ok(push) => push,
            Err(e) => {
                let is_expected = match e.status() {
                    Status::Cancelled => {
                        step.control.cancel.is_some_and(|token| token.is_cancelled())
                    }
                    Status::DeadlineExceeded => step.control.deadline.is_some(),
                    Status::InvalidArgument => self.finished,
                    Status::InvalidUtf8 => {
                        utf8.is_some_and(|e| step.last || e.error_len().is_some())
                    }
                    Status::LimitExceeded => self.lead() + bytes.len() > MAX_TEXT_BYTES,
                    _ => false,
                };
                assert!(is_expected, "{e}");
                return;
            }
        };
        assert!(!self.finished && utf8.is_none_or(|e| !step.last && e.error_len().is_none()));
        self.bytes = bytes;
        self.finished = step.last;
        self.check_score(family, &push);
        self.check_tokens(family, &push);
    }

    fn check_score(&self, family: &Family, push: &Push) {
        let whole = self.whole();
        let score = family.plain.score(Input::Text(&whole), self.score_options()).expect("a score");
        assert_eq!(
            (push.score, push.is_harmful, push.threshold, push.tokens, push.truncated),
            (score.score, score.is_harmful, score.threshold, score.tokens, score.truncated),
            "{:?} {:?}",
            self.options,
            self.text()
        );
        let pushed = |at: usize| at.saturating_sub(self.lead());
        let window = |w: siren::BestWindow| (w.count, w.index);
        assert_eq!(push.window.map(window), score.window.map(window), "{whole:?}");
        let bytes = push.window.map(|w| (w.start, w.end));
        assert_eq!(bytes, score.window.map(|w| (pushed(w.start), pushed(w.end))), "{whole:?}");
    }

    /// The first crossing and the cleared bytes, found again from the running scores of all tokens
    /// and where these end when the text is tokenised at once.
    fn check_tokens(&mut self, family: &Family, push: &Push) {
        let context = format!("{:?} {:?}", self.options, self.text());
        let special = family.tokenizer.special_count();
        let limit = if self.options.windows.is_some() { usize::MAX } else { MAX_LENGTH - special };
        let grown = Growing::new(Some(self.prompt()))
            .push(&family.tokenizer, self.text(), limit)
            .expect("tokens");
        // None of these tokenizers puts special tokens behind a text.
        let pushed_from = special + grown.first_pushed;
        assert_eq!(push.first_scored + push.token_scores.len(), push.tokens, "{context}");
        assert!(push.token_scores.iter().all(|&score| is_score(score)));
        let last = push.token_scores.last().copied().unwrap_or(push.score);
        assert_eq!(last, push.score, "{context}");
        self.running.retain(|&(token, _)| (pushed_from..push.first_scored).contains(&token));
        self.running.extend((push.first_scored..).zip(push.token_scores.iter().copied()));
        let tokens: Vec<_> = self.running.iter().map(|&(token, _)| token).collect();
        let wanted: Vec<_> = (pushed_from..push.tokens).collect();
        assert_eq!(tokens, wanted, "{context}, from {}", push.first_scored);

        let wanted = self.options.hysteresis.max(1);
        let (mut run, mut safe, mut crossing) = (0, 0, None);
        for &(token, score) in &self.running {
            let (start, end) = grown.spans[token - special];
            if score >= self.threshold() {
                // A token below the threshold may share a character with this one.
                safe = if run == 0 { safe.min(start) } else { safe };
                run += 1;
            } else {
                (run, safe) = (0, end);
            }
            if run == wanted {
                crossing = Some(Crossing { token, byte: end });
                break;
            }
        }
        if self.crossing.is_none() {
            self.crossing = crossing;
            self.cleared = self.cleared.max(safe.min(grown.held_from).min(grown.cut_from));
            if self.finished && crossing.is_none() && !push.truncated {
                self.cleared = self.text().len();
            }
        }
        assert_eq!(push.first_crossing, self.crossing, "{context}");
        assert_eq!(push.cleared, self.cleared, "{context}");
        // The crossing may lie before this: the text may have become other tokens since.
        assert!(self.text().is_char_boundary(push.cleared));
    }

    /// What chunks, forks and parking must not have changed: the running scores.
    fn check_at_once(&self, family: &Family) {
        let stream = family.plain.stream(self.options.clone()).expect("a stream");
        let options = Self::push_options(&Control::default());
        let push = stream.push(self.text().as_bytes(), options).expect("a push");
        let running: Vec<_> = (push.first_scored..).zip(push.token_scores).collect();
        assert_eq!(running, self.running, "{:?} {:?}", self.options, self.text());
    }
}

fn stream_options(script: &mut Script<'_>, family: &Family) -> StreamOptions {
    let choice = script.byte();
    let prompt = (choice & 1 != 0).then(|| String::from_utf8_lossy(script.chunk()).into_owned());
    let threshold = match choice >> 1 & 3 {
        0 => DEFAULT_THRESHOLD,
        1 => f64::from(script.byte()) / 255.0,
        // One that some text just reaches.
        _ => {
            let text = String::from_utf8_lossy(script.chunk());
            family.plain.score(Input::Text(&text), None).expect("a score").score
        }
    };
    let windows = (choice & 8 != 0).then(|| Windows {
        tokens: family.tokenizer.special_count() + 3 + usize::from(script.byte() & 15),
        stride: usize::from(script.byte() & 3),
    });
    let hysteresis = usize::from(choice >> 4 & 3);
    StreamOptions { prompt, threshold: Some(threshold), hysteresis, windows }
}

/// A push to a stream that has `bytes` bytes.
fn step(script: &mut Script<'_>, kind: u8, bytes: usize) -> Step {
    let control = match kind {
        12 => {
            let token = CancelToken::new();
            token.cancel();
            Control { cancel: Some(token), ..Control::default() }
        }
        // Some pass before the call, some while it runs.
        13 => {
            let patience = Duration::from_micros(u64::from(script.byte()) * 4);
            Control { deadline: Some(Instant::now() + patience), ..Control::default() }
        }
        _ => Control::default(),
    };
    let last = kind == 11;
    let chunk = if last || bytes > MAX_STREAM_BYTES { vec![] } else { script.chunk().to_vec() };
    Step { chunk, control, last }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let family = &*FAMILIES[usize::from(script.byte()) % FAMILIES.len()];
    let mut streams: Vec<(Stream, Model)> = vec![];
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        let kind = script.byte() % 16;
        if streams.is_empty() || kind == 0 {
            if streams.len() < MAX_STREAMS {
                let options = stream_options(&mut script, family);
                let is_too_long =
                    options.prompt.as_ref().is_some_and(|prompt| prompt.len() > MAX_TEXT_BYTES);
                match family.cramped.stream(options.clone()) {
                    Ok(stream) => streams.push((stream, Model::new(options))),
                    Err(e) => assert!(is_too_long && e.status() == Status::LimitExceeded, "{e}"),
                }
            }
            continue;
        }
        let index = usize::from(script.byte()) % streams.len();
        let (stream, model) = &mut streams[index];
        match kind {
            1 => {
                stream.reset().expect("reset");
                *model = Model::new(model.options.clone());
            }
            2 | 3 => {
                let forked = (stream.fork().expect("a fork"), model.clone());
                if streams.len() < MAX_STREAMS {
                    streams.push(forked);
                }
            }
            4 => drop(streams.swap_remove(index)),
            5 => {
                let whole = model.whole();
                let [cramped, plain] = [&family.cramped, &family.plain]
                    .map(|guard| guard.score(Input::Text(&whole), model.score_options()));
                match cramped {
                    Ok(cramped) => assert_eq!(cramped, plain.expect("a score"), "{whole:?}"),
                    Err(e) => assert!(whole.len() > MAX_TEXT_BYTES, "{e}"),
                }
            }
            // All at once, so that they run in one pass.
            6 | 7 => {
                let (sender, outcomes) = mpsc::channel();
                let mut steps: Vec<Option<Step>> = vec![];
                for (index, (stream, model)) in streams.iter().enumerate() {
                    let step = step(&mut script, kind, model.bytes.len());
                    let options = Model::push_options(&step.control);
                    let sender = sender.clone();
                    let pushed = stream.push_async(step.chunk.clone(), options, move |outcome| {
                        sender.send((index, outcome)).expect("a receiver");
                    });
                    assert_eq!(pushed.is_err(), model.finished);
                    steps.push(pushed.is_ok().then_some(step));
                }
                for _ in 0..steps.iter().flatten().count() {
                    let (index, outcome) =
                        outcomes.recv_timeout(Duration::from_secs(20)).expect("a completion");
                    let step = steps[index].take().expect("one completion for each push");
                    streams[index].1.check(family, step, outcome);
                }
            }
            _ => {
                let step = step(&mut script, kind, model.bytes.len());
                let options = Model::push_options(&step.control);
                let outcome = match step.last {
                    true => stream.finish(options),
                    false => stream.push(&step.chunk, options),
                };
                model.check(family, step, outcome);
            }
        }
    }
    for (_, model) in &streams {
        if !model.bytes.is_empty() {
            model.check_at_once(family);
        }
    }
});
