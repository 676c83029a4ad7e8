//! How one call runs: its threshold and windows, and what may end it early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::{Error, Result, Status};

/// Cancels the calls that it was given to, from any thread. Clones are the same token.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every call that runs with this token, and those that are still to come, with
    /// [`Status::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What may end a call before its result is there.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Cancels the call when it is cancelled.
    pub cancel: Option<CancelToken>,
    /// When the call ends with [`Status::DeadlineExceeded`] if it has no result yet.
    pub deadline: Option<Instant>,
    /// Wait for a place when the queue is full, instead of [`Status::Busy`] at once.
    pub wait: bool,
}

impl Control {
    /// # Errors
    /// `Cancelled` or `DeadlineExceeded` when the call must end now.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::new(Status::Cancelled, "the call was cancelled"));
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::new(
                Status::DeadlineExceeded,
                "the deadline passed before the result was there",
            ));
        }
        Ok(())
    }

    /// Whether [`Control::check`] can ever fail.
    pub(crate) fn may_end(&self) -> bool {
        self.cancel.is_some() || self.deadline.is_some()
    }
}

/// Overlapping pieces in which a text longer than one is read, each scored by itself; the text's
/// score is the highest of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, special ones included; 0 is the guard's `max_length`.
    pub tokens: usize,
    /// Tokens of text from one window's start to the next one's; 0 is half of a window's.
    pub stride: usize,
}

/// How to score. The default is the guard's own threshold, no windows and no deadline.
#[derive(Clone, Debug, Default)]
pub struct ScoreOptions {
    /// Harmful from this score on, 0 to 1; `None` is the guard's own threshold.
    pub threshold: Option<f64>,
    /// Read a text longer than `max_length` in windows instead of cutting it.
    pub windows: Option<Windows>,
    /// What may end the call early.
    pub control: Control,
}

impl From<Option<f64>> for ScoreOptions {
    fn from(threshold: Option<f64>) -> Self {
        Self { threshold, ..Self::default() }
    }
}

/// What a stream scores, and how.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// What the growing response answers; joined to it with one newline.
    pub prompt: Option<String>,
    /// Harmful from this score on, 0 to 1; `None` is the guard's own threshold.
    pub threshold: Option<f64>,
    /// Tokens in a row at or above the threshold before they count as a crossing, which is then
    /// reported at the last of them; 0 and 1 are the same.
    pub hysteresis: usize,
    /// Go on past `max_length` in windows instead of keeping the score of the first tokens.
    pub windows: Option<Windows>,
}

/// How to push. The default has no deadline and asks for no token scores.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Give the running score after each token that this push ran.
    pub token_scores: bool,
    /// What may end the call early; the stream is then as before the push.
    pub control: Control,
}
