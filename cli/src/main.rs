//! The `siren` command: how harmful is a text?

mod args;
mod bench;
mod compare;
mod inspect;
mod jsonl;
mod output;
mod progress;
mod pull;
mod score;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use output::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Score(args) => score::run(args),
        Command::Watch(args) => watch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Completions { shell } => completions(shell),
    };
    result.unwrap_or_else(output::fail)
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    // Into memory first: clap panics when the writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "siren", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
