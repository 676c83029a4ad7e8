//! Open a guard, score with it: the whole engine in safe Rust.

mod check;
mod core;
mod info;
#[cfg(test)]
mod on_gpu;
mod open;
mod scoring;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use self::core::{Completion, Core};
pub use self::info::Info;
use crate::call::{ScoreOptions, StreamOptions};
use crate::error::{Error, Result};
use crate::options::OpenOptions;
use crate::stats::Stats;
use crate::stream::Stream;
use crate::text::Input;

/// What a text scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Probability that the text is harmful, from 0 to 1: an f32, widened.
    pub score: f64,
    /// `score >= threshold`
    pub is_harmful: bool,
    /// The threshold that was compared with, as given.
    pub threshold: f64,
    /// Tokens that ran, special ones included.
    pub tokens: usize,
    /// The text had more tokens than the guard's `max_length`; the rest was not read.
    pub truncated: bool,
    /// With windows: which one scored highest.
    pub window: Option<BestWindow>,
}

/// The window of a text that scored highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestWindow {
    /// Windows that the text was read in.
    pub count: usize,
    /// This one's 0-based index.
    pub index: usize,
    /// Its first byte in the text: of a stream in the pushed bytes, of a prompt and a response in
    /// the two joined with one newline.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

/// An [`Input`] that owns its text, for calls that outlive their caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedInput {
    /// See [`Input::Text`].
    Text(String),
    /// See [`Input::Exchange`].
    Exchange {
        /// What the model was asked.
        prompt: Option<String>,
        /// What it answered.
        response: Option<String>,
    },
}

impl OwnedInput {
    /// The borrowed form.
    pub fn as_input(&self) -> Input<'_> {
        match self {
            Self::Text(text) => Input::Text(text),
            Self::Exchange { prompt, response } => {
                Input::Exchange { prompt: prompt.as_deref(), response: response.as_deref() }
            }
        }
    }
}

/// An open guard: immutable, shared by any number of threads. Its streams keep what they need of
/// it alive.
pub struct Guard {
    core: Arc<Core>,
}

impl Guard {
    /// Opens the guard that `options` name. Blocks while files are read (and fetched, when the
    /// model is a hub repository).
    ///
    /// # Errors
    /// `NotFound`, `Io`, `InvalidModel`, `Unsupported`, `InvalidArgument`, `OutOfMemory`, `Forked`
    /// (by another thread, while a guard was being opened), and the hub's `Network`,
    /// `Unauthorized` and `Offline`.
    pub fn open(options: OpenOptions) -> Result<Self> {
        let start = Instant::now();
        let opened = Self::open_unlogged(options);
        let took = start.elapsed();
        match &opened {
            Ok(guard) => {
                let info = guard.info();
                log::info!(
                    "opened {} in {took:.1?}: {}, {} of {} layers, {} on {}, {} threads",
                    info.model_dir.display(),
                    info.family.model_type(),
                    info.layers_run,
                    info.backbone_layers,
                    info.dtype,
                    info.device,
                    info.threads
                );
            }
            Err(error) => log::info!("not opened: {error} ({})", error.status().name()),
        }
        opened
    }

    /// What the guard is made of.
    pub fn info(&self) -> &Info {
        &self.core.info
    }

    /// Scores one input.
    ///
    /// # Errors
    /// `InvalidArgument` for a threshold or windows out of range, `LimitExceeded` for a text that
    /// is too long, `Busy`, `Cancelled`, `DeadlineExceeded`, `Poisoned`, `Forked`, `NonFinite`,
    /// `OutOfMemory`, `Internal`.
    pub fn score(&self, input: Input<'_>, options: impl Into<ScoreOptions>) -> Result<Score> {
        only(self.score_batch(&[input], options)?)
    }

    /// Scores `inputs`; each has its own result, in the same order.
    ///
    /// # Errors
    /// Of the call: `InvalidArgument` for a threshold or windows out of range, `LimitExceeded` for
    /// too many inputs, `Busy`, `Poisoned`, `Forked`. Of one input: as [`Guard::score`].
    pub fn score_batch(
        &self,
        inputs: &[Input<'_>],
        options: impl Into<ScoreOptions>,
    ) -> Result<Vec<Result<Score>>> {
        let start = Instant::now();
        let scored = self.core.score_batch(inputs, &options.into());
        self.core.count(start, scored.as_ref().err());
        scored
    }

    /// As [`Guard::score`], without blocking: `done` is called once, on a thread of the guard's
    /// own, and may call into the guard.
    ///
    /// # Errors
    /// `Busy` and bad arguments at once; `done` is then not called.
    pub fn score_async(
        &self,
        input: OwnedInput,
        options: ScoreOptions,
        done: impl FnOnce(Result<Score>) + Send + 'static,
    ) -> Result<()> {
        self.score_batch_async(vec![input], options, |scored| done(scored.and_then(only)))
    }

    /// As [`Guard::score_batch`], without blocking; see [`Guard::score_async`].
    ///
    /// # Errors
    /// See [`Guard::score_async`].
    pub fn score_batch_async(
        &self,
        inputs: Vec<OwnedInput>,
        options: ScoreOptions,
        done: impl FnOnce(Result<Vec<Result<Score>>>) + Send + 'static,
    ) -> Result<()> {
        self.core.score_batch_async(inputs, options, done)
    }

    /// Opens a stream on this guard.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range, `LimitExceeded` for a prompt that is too long
    /// or too many open streams, `Poisoned`, `Forked`.
    pub fn stream(&self, options: StreamOptions) -> Result<Stream> {
        Stream::new(self.core.clone(), options)
    }

    /// What this guard has done so far.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Most inputs of one batch.
    pub fn max_batch(&self) -> usize {
        self.core.options.max_batch
    }

    /// Longest text in bytes, before cleaning.
    pub fn max_text_bytes(&self) -> usize {
        self.core.options.max_text_bytes
    }

    /// Holds a batch's size against the limit, before anything is read.
    pub(crate) fn check_batch(&self, count: usize) -> Result<()> {
        self.core.check_batch(count)
    }

    /// Tokens that `input` would run, special ones included, and whether it would be cut.
    ///
    /// # Errors
    /// As [`Guard::score`], as far as the text goes.
    pub fn count_tokens(&self, input: Input<'_>) -> Result<(usize, bool)> {
        self.core.count_tokens(input)
    }

    /// Runs one short text, so that the first call is as fast as the second.
    ///
    /// # Errors
    /// As [`Guard::score`].
    pub fn warmup(&self) -> Result<()> {
        self.score(Input::Text("warm up"), None).map(|_| ())
    }
}

/// The result of a batch of one.
fn only(mut scores: Vec<Result<Score>>) -> Result<Score> {
    scores.pop().unwrap_or_else(|| Err(Error::internal("a text without a result")))
}

/// Texts that panic, so that the ABI's tests can watch what a panic does.
#[cfg(feature = "planted-panics")]
pub(crate) mod planted {
    pub(crate) const WHILE_PREPARING: &str = "siren: planted panic while preparing";
    pub(crate) const IN_THE_WORKER: &str = "siren: planted panic in the worker";
}
