//! The line that shows a score while it changes.

use std::io::IsTerminal;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use indicatif::{ProgressBar, ProgressStyle};
use siren::Push;

use super::tail::Tail;
use crate::output::{FAINT, HARMFUL, SAFE};

const TEMPLATE: &str = "{spinner} {wide_msg}";
const CELLS: usize = 24;
/// Characters on either side of a crossing: the line is short.
const AROUND: usize = 12;

/// One line on stderr, cut to the terminal's width, and gone when this is dropped.
pub struct Live {
    bar: ProgressBar,
    is_coloured: bool,
}

impl Live {
    /// `None` when nobody watches.
    pub fn new() -> Option<Self> {
        let stderr = std::io::stderr();
        if !stderr.is_terminal() {
            return None;
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message("waiting for text");
        // Also draws what came faster than the terminal is drawn.
        bar.enable_steady_tick(Duration::from_millis(100));
        Some(Self { bar, is_coloured: AutoStream::choice(&stderr) != ColorChoice::Never })
    }

    pub fn show(&self, push: &Push, tail: &Tail) {
        let style = if push.is_harmful { HARMFUL } else { SAFE };
        let (filled, empty) = gauge(push.score, push.threshold);
        let state = match push.first_crossing {
            Some(crossing) => {
                format!("crossed at byte {}: {}", crossing.byte, tail.marked(crossing, AROUND))
            }
            None => format!("not crossed {}", push.threshold),
        };
        let line = format!(
            "{style}{:.4} {filled}{style:#}{FAINT}{empty}  {} tokens, {} bytes{FAINT:#}  {state}",
            push.score,
            push.tokens,
            tail.len(),
        );
        self.bar.set_message(if self.is_coloured {
            line
        } else {
            anstream::adapter::strip_str(&line).to_string()
        });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A score as a bar in two parts; a mark shows where the threshold is while it is not reached.
fn gauge(score: f64, threshold: f64) -> (String, String) {
    let filled = (score * CELLS as f64) as usize;
    let mark = (threshold * CELLS as f64) as usize;
    let empty = (filled..CELLS).map(|cell| if cell == mark { '│' } else { '·' }).collect();
    ("█".repeat(filled), empty)
}
