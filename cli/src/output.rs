//! What the command prints: colours only on a terminal, and never with NO_COLOR.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

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

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A text on one line, cut to `width` characters.
pub fn excerpt(text: &str, width: usize) -> String {
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(width + 1).collect();
    if line.chars().count() > width {
        line.pop();
        line.push('…');
    }
    line
}
