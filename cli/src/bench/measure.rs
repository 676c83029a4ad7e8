//! What `siren bench` times: whole texts, batches and pushes.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use siren::{Error, Guard, Input, PushOptions, Result, StreamOptions};

use super::reference::{Answer, Reference};

/// Cut to as many tokens as are asked for; common words are about one token each.
const WORDS: &str = " the people of this town walk along the river every day and talk about it";
/// Timed calls of a case, when nobody says: this many, but no more than fit into `LONG_ENOUGH` once
/// there are `FEWEST`.
const CALLS: u32 = 7;
const FEWEST: u32 = 3;
const LONG_ENOUGH: Duration = Duration::from_secs(3);
/// Threads of the other side go on spinning after a call.
const REST: Duration = Duration::from_millis(20);

/// Times of the same call, in milliseconds.
pub struct Timing {
    /// The call that warmed up.
    pub first_ms: f64,
    /// The timed ones, ascending.
    pub runs: Vec<f64>,
}

impl Timing {
    fn new(first_ms: f64, mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        Self { first_ms, runs }
    }

    pub fn median(&self) -> f64 {
        (self.runs[(self.runs.len() - 1) / 2] + self.runs[self.runs.len() / 2]) / 2.0
    }

    pub fn least(&self) -> f64 {
        self.runs[0]
    }

    pub fn most(&self) -> f64 {
        self.runs[self.runs.len() - 1]
    }

    fn to_json(&self) -> Map<String, Value> {
        let Value::Object(fields) = json!({
            "median_ms": self.median(),
            "min_ms": self.least(),
            "max_ms": self.most(),
            "first_ms": self.first_ms,
            "repeat": self.runs.len(),
        }) else {
            unreachable!("it is an object")
        };
        fields
    }
}

/// What llm-siren takes for the same texts.
pub struct Against {
    pub timing: Timing,
    /// Its median over ours.
    pub ratio: f64,
    /// The largest difference of a score.
    pub apart: f64,
}

impl Against {
    fn new(timing: Timing, ours: &Timing, scores: &[f64], theirs: &[f64]) -> Self {
        let apart = scores.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        Self { ratio: timing.median() / ours.median(), timing, apart }
    }

    fn to_json(&self) -> Value {
        let mut fields = self.timing.to_json();
        fields.insert("ratio".into(), json!(self.ratio));
        fields.insert("apart".into(), json!(self.apart));
        fields.into()
    }
}

/// A case: its times, what is its own, and the other side's.
fn case_to_json<const N: usize>(
    timing: &Timing,
    own: [(&str, Value); N],
    against: Option<&Against>,
) -> Value {
    let mut fields = timing.to_json();
    fields.extend(own.map(|(name, value)| (name.into(), value)));
    if let Some(against) = against {
        fields.insert("against".into(), against.to_json());
    }
    fields.into()
}

/// Texts that are scored in one call.
pub struct Texts {
    pub batch: usize,
    /// Of all of them.
    pub tokens: usize,
    pub timing: Timing,
    pub scores: Vec<f64>,
    pub against: Option<Against>,
}

impl Texts {
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.timing.median() * 1e3
    }

    pub fn texts_per_s(&self) -> f64 {
        self.batch as f64 / self.timing.median() * 1e3
    }

    pub fn to_json(&self) -> Value {
        let own = [
            ("batch", json!(self.batch)),
            ("tokens", json!(self.tokens)),
            ("texts_per_s", json!(self.texts_per_s())),
            ("tokens_per_s", json!(self.tokens_per_s())),
            ("scores", json!(self.scores)),
        ];
        case_to_json(&self.timing, own, self.against.as_ref())
    }
}

/// A push onto a stream that has read a prefix.
pub struct Pushed {
    pub prefix: usize,
    /// Of the push.
    pub tokens: usize,
    pub timing: Timing,
    /// The same text, scored whole with nothing known of it.
    pub whole: Timing,
    /// By the push, and whole.
    pub scores: [f64; 2],
    /// llm-siren has no streams: it scores the text whole.
    pub against: Option<Against>,
}

impl Pushed {
    /// How many times as fast as scoring the whole.
    pub fn ratio(&self) -> f64 {
        self.whole.median() / self.timing.median()
    }

    pub fn to_json(&self) -> Value {
        let own = [
            ("prefix_tokens", json!(self.prefix)),
            ("tokens", json!(self.tokens)),
            ("whole_ms", json!(self.whole.median())),
            ("ratio", json!(self.ratio())),
            ("scores", json!(self.scores)),
        ];
        case_to_json(&self.timing, own, self.against.as_ref())
    }
}

/// A guard, and the other side if there is one.
pub struct Bench {
    pub guard: Guard,
    pub reference: Option<Reference>,
    /// Timed calls of a case; none: by their duration.
    pub repeat: Option<u32>,
}

impl Bench {
    /// One call with `batch` texts, of as many tokens as `tokens` says in turn.
    pub fn texts(&mut self, batch: usize, tokens: &[u32]) -> Result<Texts> {
        let made: Vec<String> = tokens
            .iter()
            .take(batch)
            .map(|&tokens| text(&self.guard, tokens as usize))
            .collect::<Result<_>>()?;
        let texts: Vec<&str> = made.iter().cycle().take(batch).map(String::as_str).collect();
        let inputs: Vec<Input<'_>> = texts.iter().map(|text| Input::Text(text)).collect();
        let (guard, repeat) = (&self.guard, self.repeat);
        let ours = || {
            let (ms, scores) = timed(|| {
                guard.score_batch(&inputs, None)?.into_iter().collect::<Result<Vec<_>>>()
            })?;
            Ok((ms, scores))
        };
        let reference = self.reference.as_mut();
        let ((timing, scores), theirs) = in_turns(ours, reference, &texts, repeat)?;
        let tokens = scores.iter().map(|score| score.tokens).sum();
        let scores: Vec<f64> = scores.iter().map(|score| score.score).collect();
        let against = theirs.map(|(t, answer)| Against::new(t, &timing, &scores, &answer.scores));
        Ok(Texts { batch, tokens, timing, scores, against })
    }

    /// A push of `tokens` tokens onto forks of a stream that has read `prefix` tokens.
    pub fn push(&mut self, prefix: u32, tokens: u32) -> Result<Pushed> {
        let guard = &self.guard;
        let before = text(guard, prefix as usize)?;
        let whole = text(guard, (prefix + tokens) as usize)?;
        let chunk = &whole.as_bytes()[before.len()..];
        let stream = guard.stream(StreamOptions::default())?;
        let prefix = stream.push(before.as_bytes(), PushOptions::default())?.tokens;
        let ours = || {
            let fork = stream.fork()?;
            timed(|| fork.push(chunk, PushOptions::default()))
        };
        let ((timing, pushed), theirs) =
            in_turns(ours, self.reference.as_mut(), &[&whole], self.repeat)?;
        let again = || timed(|| guard.score(Input::Text(&whole), None));
        let repeat = self.repeat.map(|n| n.min(FEWEST));
        let ((whole_timing, scored), _) = in_turns(again, None, &[], repeat)?;
        let scores = [pushed.score, scored.score];
        let against =
            theirs.map(|(t, answer)| Against::new(t, &timing, &scores[..1], &answer.scores));
        let tokens = pushed.tokens - prefix;
        Ok(Pushed { prefix, tokens, timing, whole: whole_timing, scores, against })
    }
}

/// Ours and theirs, one call after the other, and what the first calls gave.
type Turns<T> = ((Timing, T), Option<(Timing, Answer)>);

fn in_turns<T>(
    ours: impl Fn() -> Result<(f64, T)>,
    mut reference: Option<&mut Reference>,
    texts: &[&str],
    repeat: Option<u32>,
) -> Result<Turns<T>> {
    let mut theirs = || {
        let answer = reference.as_mut().map(|reference| reference.score(texts)).transpose();
        if reference.is_some() {
            std::thread::sleep(REST);
        }
        answer
    };
    let (our_first, result) = ours()?;
    let their_first = theirs()?;
    let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for done in 0..repeat.unwrap_or(CALLS) {
        if repeat.is_none() && done >= FEWEST && start.elapsed() >= LONG_ENOUGH {
            break;
        }
        our_runs.push(ours()?.0);
        their_runs.extend(theirs()?.map(|answer| answer.ms));
    }
    let theirs = their_first.map(|first| (Timing::new(first.ms, their_runs), first));
    Ok(((Timing::new(our_first, our_runs), result), theirs))
}

/// A text of exactly `tokens` tokens, or the nearest that this tokenizer can make.
fn text(guard: &Guard, tokens: usize) -> Result<String> {
    let words: Vec<&str> = WORDS.split_inclusive(' ').collect();
    let mut text = String::new();
    let mut best = String::new();
    for word in words.iter().cycle().take(4 * tokens + 16) {
        text.push_str(word);
        let (count, truncated) = guard.count_tokens(Input::Text(&text))?;
        if count > tokens || truncated {
            return Ok(best);
        }
        best.clone_from(&text);
        if count == tokens {
            return Ok(best);
        }
    }
    Err(Error::argument(format!("no text of {tokens} tokens could be made")))
}

/// Milliseconds of one call, and its result.
fn timed<T>(call: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let result = call()?;
    Ok((milliseconds(start), result))
}

pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
