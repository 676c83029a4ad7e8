//! Progress bars of downloads, drawn on stderr when that is a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use siren::hub::{Progress, ProgressFn};

const TEMPLATE: &str =
    "{msg:30!} {bar:30} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12} {eta:>4}";

/// What draws a bar for every file, or `None` when nobody watches.
pub fn downloads() -> Option<ProgressFn> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let screen = MultiProgress::new();
    let bars: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    Some(Arc::new(move |progress: Progress| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(progress.file.clone()).or_insert_with(|| {
            let bar = screen.add(ProgressBar::new(0).with_message(progress.file.clone()));
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
        if progress.total == Some(progress.done) {
            bar.finish();
        }
    }))
}
