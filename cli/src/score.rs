//! `siren score`: texts of the command line or of standard input.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use siren::{Guard, Input, Score};

use crate::args::{Cli, ScoreArgs};
use crate::jsonl;
use crate::output::{FAINT, HARMFUL, Outcome, SAFE, excerpt};

const EXCERPT_WIDTH: usize = 72;

pub fn run(mut args: ScoreArgs) -> Outcome {
    if args.texts.is_empty() && !args.jsonl && std::io::stdin().is_terminal() {
        Cli::command()
            .error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "nothing to score: give TEXT, or pipe a text or (with --jsonl) JSON lines in",
            )
            .exit();
    }
    let guard = Guard::open(args.model.options())?;
    if args.jsonl {
        return jsonl::run(&guard, args.threshold, args.strict);
    }
    if args.texts.is_empty() {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        args.texts.push(String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            siren::Error::new(
                siren::Status::InvalidUtf8,
                format!("standard input is not valid UTF-8 at byte {at}"),
            )
        })?);
    }
    let inputs: Vec<Input<'_>> = args.texts.iter().map(|text| Input::Text(text)).collect();
    let mut out = anstream::stdout().lock();
    let mut failed = false;
    for (text, result) in args.texts.iter().zip(guard.score_batch(&inputs, args.threshold)?) {
        match result {
            Ok(score) => print(&mut out, &score, text)?,
            Err(error) => {
                failed = true;
                crate::output::fail(error.into());
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(out: &mut impl Write, score: &Score, text: &str) -> std::io::Result<()> {
    let (style, verdict) = if score.is_harmful { (HARMFUL, "harmful") } else { (SAFE, "safe") };
    let cut = if score.truncated { ", cut" } else { "" };
    let text = excerpt(text, EXCERPT_WIDTH);
    writeln!(
        out,
        "{:.4}  {style}{verdict:<7}{style:#}  {FAINT}{:>4} tokens{cut}{FAINT:#}  {text}",
        score.score, score.tokens
    )
}
