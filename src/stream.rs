//! A response that grows, scored after every push at the cost of its new tokens.

use crate::call::PushOptions;
use crate::error::{Error, Result};
use crate::guard::BestWindow;

/// Where a stream's running score first reached the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// 0-based index in the tokens of that prefix, special ones and the prompt's counted.
    pub token: usize,
    /// Offset in the pushed bytes of that token's end.
    pub byte: usize,
}

/// What a stream's whole prefix scores after a push.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Probability that the prefix is harmful, from 0 to 1: an f32, widened.
    pub score: f64,
    /// `score >= threshold`: of this prefix, whatever earlier ones scored.
    pub is_harmful: bool,
    /// The threshold that was compared with.
    pub threshold: f64,
    /// Tokens of the prefix that were scored, special ones and the prompt's included.
    pub tokens: usize,
    /// The prefix has more tokens than `max_length`, and the rest was not read.
    pub truncated: bool,
    /// The first crossing; once reported it stays.
    pub first_crossing: Option<Crossing>,
    /// Pushed bytes, whole characters, that a proxy may show: up to the last token at or before
    /// which no running score reached the threshold. Never shrinks.
    pub cleared: usize,
    /// With windows: which one scored highest.
    pub window: Option<BestWindow>,
    /// When asked for: the running score after each token that this push ran, of which the first
    /// is `first_scored` in the prefix's tokens.
    pub token_scores: Vec<f64>,
    /// Index of the first token of `token_scores`.
    pub first_scored: usize,
}

/// A growing response on a guard, after an optional prompt. It keeps what it needs of its guard
/// alive. It belongs to one thread at a time: a call while another runs is `InUse`.
pub struct Stream {}

impl Stream {
    /// Adds `bytes` of UTF-8 (a character may be split between pushes) and scores the prefix.
    ///
    /// # Errors
    /// As [`crate::Guard::score`]; also `InUse`, and `InvalidUtf8`. The stream is then as it was before.
    pub fn push(&self, bytes: &[u8], options: impl Into<PushOptions>) -> Result<Push> {
        let _ = (bytes, options.into());
        Err(Error::internal("streams are being built"))
    }

    /// Says that nothing more comes: the last result, with every byte cleared that can be. Pushes
    /// are `InvalidArgument` from then on, until [`Stream::reset`].
    ///
    /// # Errors
    /// `InvalidUtf8` when half a character is held back.
    pub fn finish(&self, options: impl Into<PushOptions>) -> Result<Push> {
        self.push(b"", options)
    }

    /// Forgets what was pushed and keeps the prompt and the options.
    ///
    /// # Errors
    /// `InUse`, `Forked`.
    pub fn reset(&self) -> Result<()> {
        Ok(())
    }

    /// A second stream in the same state; what has run is shared, not run again.
    ///
    /// # Errors
    /// `InUse`, `Forked`; `LimitExceeded` when too many streams are open.
    pub fn fork(&self) -> Result<Stream> {
        Ok(Stream {})
    }

    /// As [`Stream::push`], without blocking: `done` is called once, on a thread of the guard's
    /// own. The stream is in use until then.
    ///
    /// # Errors
    /// `InUse`, `Busy` and bad arguments at once; `done` is then not called.
    pub fn push_async(
        &self,
        bytes: Vec<u8>,
        options: PushOptions,
        done: impl FnOnce(Result<Push>) + Send + 'static,
    ) -> Result<()> {
        let _ = (bytes, options, done);
        Err(Error::internal("streams are being built"))
    }
}
