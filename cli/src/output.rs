//! What the command prints: colours only on a terminal, and never with NO_COLOR.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::CommandFactory;
use serde_json::{Value, json};
use siren::{BestWindow, Crossing};

use crate::args::Cli;

/// What a step of the command ends with.
pub type Outcome = Result<ExitCode, Failure>;

pub const HARMFUL: Style = AnsiColor::Red.on_default().bold();
pub const SAFE: Style = AnsiColor::Green.on_default();
pub const FAINT: Style = Style::new().dimmed();
pub const STRONG: Style = Style::new().bold();

/// Why the command ends early.
pub enum Failure {
    /// The library's error: one line on stderr, exit 1.
    Library(siren::Error),
    /// Standard output was closed, by `head`, say: there is nobody to tell.
    Closed,
    /// Standard input or output failed.
    Stream(std::io::Error),
}

impl From<siren::Error> for Failure {
    fn from(error: siren::Error) -> Self {
        Self::Library(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Stream(error),
        }
    }
}

/// Says why, and with what the process ends.
pub fn fail(failure: Failure) -> ExitCode {
    let message = match failure {
        Failure::Library(error) => format!("{error} ({})", error.status().name()),
        Failure::Closed => return ExitCode::SUCCESS,
        Failure::Stream(error) => format!("standard input or output failed: {error}"),
    };
    let line = message.replace(['\n', '\r'], " ");
    // Nothing is left to do if stderr is closed too.
    let _ = writeln!(anstream::stderr(), "{HARMFUL}error:{HARMFUL:#} {line}");
    ExitCode::FAILURE
}

/// Ends the command as clap does when arguments make no sense.
pub fn bad_usage(message: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, message).exit()
}

/// What a text scored, for a person: one line.
pub struct Row {
    pub score: f64,
    pub is_harmful: bool,
    pub tokens: usize,
    pub truncated: bool,
    pub window: Option<BestWindow>,
    /// What stands at its end.
    pub text: String,
}

impl Row {
    pub fn write(&self, out: &mut (impl Write + ?Sized)) -> std::io::Result<()> {
        let Self { score, is_harmful, tokens, truncated, window, text } = self;
        let (style, verdict) = if *is_harmful { (HARMFUL, "harmful") } else { (SAFE, "safe") };
        let cut = if *truncated { ", cut" } else { "" };
        let window = window.map_or_else(String::new, |BestWindow { count, index, start, end }| {
            format!(", window {} of {count}, bytes {start}..{end}", index + 1)
        });
        writeln!(
            out,
            "{score:.4}  {style}{verdict:<7}{style:#}  \
             {FAINT}{tokens:>4} tokens{cut}{window}{FAINT:#}  {text}"
        )
    }
}

/// The window that scored highest, as JSON.
pub fn window_json(window: BestWindow) -> Value {
    let BestWindow { count, index, start, end } = window;
    json!({ "count": count, "index": index, "start": start, "end": end })
}

/// A stream's first crossing, as JSON.
pub fn crossing_json(crossing: Option<Crossing>) -> Value {
    crossing.map_or(Value::Null, |Crossing { token, byte }| json!({ "token": token, "byte": byte }))
}

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A text without what would move a terminal's cursor.
pub fn printable(text: &str) -> impl DoubleEndedIterator<Item = char> {
    text.chars().map(|c| if c.is_control() { ' ' } else { c })
}

/// A text on one line, cut to `width` characters.
pub fn excerpt(text: &str, width: usize) -> String {
    let mut line: String = printable(text).take(width + 1).collect();
    if line.chars().count() > width {
        line.pop();
        line.push('…');
    }
    line
}
