//! `siren score`: texts of the command line or of standard input.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use siren::{
    Control, Guard, Input, PushOptions, Result, Score, ScoreOptions, Status, StreamOptions, Windows,
};

use crate::args::ScoreArgs;
use crate::jsonl;
use crate::output::{Outcome, Row, bad_usage, excerpt};

const EXCERPT_WIDTH: usize = 72;

/// How the texts of a command are scored.
pub struct How {
    threshold: Option<f64>,
    windows: Option<Windows>,
    timeout: Option<Duration>,
}

impl How {
    /// One result a text. A deadline that passed before the first of them began is each one's.
    pub fn score(&self, guard: &Guard, inputs: &[Input<'_>]) -> Result<Vec<Result<Score>>> {
        let options = ScoreOptions {
            threshold: self.threshold,
            windows: self.windows,
            control: self.control(),
        };
        match guard.score_batch(inputs, options) {
            Err(error) if error.status() == Status::DeadlineExceeded => {
                Ok(inputs.iter().map(|_| Err(error.clone())).collect())
            }
            scored => scored,
        }
    }

    pub fn stream(&self, prompt: Option<String>) -> StreamOptions {
        StreamOptions {
            prompt,
            threshold: self.threshold,
            windows: self.windows,
            ..StreamOptions::default()
        }
    }

    pub fn push(&self) -> PushOptions {
        PushOptions { control: self.control(), ..PushOptions::default() }
    }

    /// Of a call that begins now.
    fn control(&self) -> Control {
        // A time that the clock cannot hold never comes.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Control { deadline, wait: true, ..Control::default() }
    }
}

pub fn run(mut args: ScoreArgs) -> Outcome {
    if args.texts.is_empty() && !args.jsonl && std::io::stdin().is_terminal() {
        bad_usage("nothing to score: give TEXT, or pipe a text or (with --jsonl) JSON lines in");
    }
    let how =
        How { threshold: args.threshold, windows: args.windows.windows(), timeout: args.timeout };
    let guard = Guard::open(args.model.options())?;
    if args.jsonl {
        return jsonl::run(&guard, &how, args.strict);
    }
    if args.texts.is_empty() {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        args.texts.push(String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            siren::Error::new(
                Status::InvalidUtf8,
                format!("standard input is not valid UTF-8 at byte {at}"),
            )
        })?);
    }
    let inputs: Vec<Input<'_>> = args.texts.iter().map(|text| Input::Text(text)).collect();
    let mut out = anstream::stdout().lock();
    let mut failed = false;
    for (text, result) in args.texts.iter().zip(how.score(&guard, &inputs)?) {
        match result {
            Ok(score) => row(&score, text).write(&mut out)?,
            Err(error) => {
                failed = true;
                crate::output::fail(error.into());
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(score: &Score, text: &str) -> Row {
    // Of a text in windows, what made its score.
    let shown = score.window.and_then(|window| text.get(window.start..window.end)).unwrap_or(text);
    Row {
        score: score.score,
        is_harmful: score.is_harmful,
        tokens: score.tokens,
        truncated: score.truncated,
        window: score.window,
        text: excerpt(shown.trim_start(), EXCERPT_WIDTH),
    }
}
