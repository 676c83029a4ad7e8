//! What a guard and its streams share, and the ways into its queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::Info;
use crate::call::{Control, Windows};
use crate::engine::{Engine, Job, Ran};
use crate::error::{Error, Result, Status};
use crate::kernels::Meter;
use crate::options::OpenOptions;
use crate::prefix_cache::PrefixCache;
use crate::schedule::{Callbacks, Scheduler};
use crate::stats::{Counters, Stats};
use crate::stream::Live;
use crate::sys::process::Home;
use crate::text::Tokenizer;
use crate::windows::Layout;

/// An open guard's parts. They live until the last call, stream and completion is done with them.
pub(crate) struct Core {
    // Dropped in this order: the worker posts its last completions, and these run, while the pool
    // still stands.
    pub(crate) scheduler: Scheduler<Engine>,
    pub(super) callbacks: Callbacks,
    pub(crate) pool: Arc<rayon::ThreadPool>,
    pub(crate) tokenizer: Tokenizer,
    pub(super) options: OpenOptions,
    pub(crate) info: Info,
    pub(crate) counters: Arc<Counters>,
    pub(crate) live: Arc<Live>,
    pub(super) cache: Arc<PrefixCache>,
    pub(super) meter: Meter,
    /// Asynchronous calls that have no answer yet.
    pub(super) unanswered: AtomicUsize,
    pub(super) home: Home,
}

impl Core {
    /// # Errors
    /// `Forked`, `Poisoned`.
    pub(crate) fn check(&self) -> Result<()> {
        // First, since after a fork a lock may never open.
        self.home.check()?;
        self.scheduler.check()
    }

    /// The threshold of a call.
    ///
    /// # Errors
    /// `InvalidArgument` for one out of range.
    pub(crate) fn threshold(&self, given: Option<f64>) -> Result<f64> {
        let threshold = given.unwrap_or(self.info.default_threshold);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(Error::argument(format!(
                "the threshold is {threshold}, expected a number from 0 to 1"
            )));
        }
        Ok(threshold)
    }

    /// # Errors
    /// `LimitExceeded` for a text that is too long.
    pub(crate) fn check_text(&self, bytes: usize) -> Result<()> {
        let limit = self.options.max_text_bytes;
        if bytes > limit {
            return Err(Error::new(
                Status::LimitExceeded,
                format!("the text has {bytes} bytes, more than the limit of {limit}"),
            ));
        }
        Ok(())
    }

    /// # Errors
    /// `InvalidArgument` for windows that do not fit this guard.
    pub(crate) fn layout(&self, windows: Windows) -> Result<Layout> {
        Layout::new(windows, self.info.max_length, self.tokenizer.special_count())
    }

    /// Counts a call that began at `start`.
    pub(crate) fn count(&self, start: Instant, error: Option<&Error>) {
        self.counters.requests.add(1);
        self.counters.latency(start.elapsed());
        if let Some(error) = error {
            self.counters.error(error.status());
        }
    }

    /// What was counted so far, and what is held now. In a forked child, nothing.
    pub(crate) fn stats(&self) -> Stats {
        if !self.home.is_here() {
            return Stats::default();
        }
        let (streams, streams_parked) = self.live.counts();
        Stats {
            queue_depth: self.scheduler.waiting() as u64,
            pass_tokens_limit: self.scheduler.batch_tokens() as u64,
            kv_bytes: self.meter.bytes() as u64,
            streams,
            streams_parked,
            cache_entries: self.cache.entries() as u64,
            ..self.counters.snapshot()
        }
    }

    /// Makes an asynchronous call: `begin` checks it and gives the work, which runs on the guard's
    /// pool with what takes its answer; `done` runs on the thread of completions.
    ///
    /// # Errors
    /// Those of `begin`; `Busy` when too many calls have no answer yet; `OutOfMemory` when the
    /// system gives no thread.
    pub(crate) fn detach<T: Send + 'static, W: FnOnce(Completion<T>) + Send + 'static>(
        self: &Arc<Self>,
        begin: impl FnOnce() -> Result<W>,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        let start = Instant::now();
        let begun = || {
            let work = begin()?;
            self.callbacks.start()?;
            let most = self.options.max_queue;
            if self.unanswered.fetch_add(1, Ordering::Relaxed) >= most {
                self.unanswered.fetch_sub(1, Ordering::Relaxed);
                return Err(Error::new(
                    Status::Busy,
                    format!("{most} asynchronous calls have no answer yet, as many as the limit"),
                ));
            }
            Ok(work)
        };
        let work = begun().inspect_err(|error| self.count(start, Some(error)))?;
        let completion = Completion { core: self.clone(), start, done: Some(Box::new(done)) };
        // A panic would end the process; the completion then says that the call was lost.
        self.pool.spawn(move || drop(catch_unwind(AssertUnwindSafe(|| work(completion)))));
        Ok(())
    }

    /// Queues `jobs`; `done` is called once, soon and on any thread: it must be short.
    pub(crate) fn submit(
        &self,
        jobs: Vec<Job>,
        control: Control,
        done: impl FnOnce(Result<Vec<Result<Ran>>>) + Send + 'static,
    ) {
        // Whether or not the queue takes the jobs, one of the two calls it.
        let done = Arc::new(Mutex::new(Some(done)));
        let take =
            |done: &Mutex<Option<_>>| done.lock().unwrap_or_else(PoisonError::into_inner).take();
        let queued = self.scheduler.submit(jobs, control, {
            let done = done.clone();
            move |ran| {
                if let Some(done) = take(&done) {
                    done(Ok(ran));
                }
            }
        });
        if let Err(error) = queued
            && let Some(done) = take(&done)
        {
            done(Err(error));
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // In a forked child the threads to wait for do not exist: leak them.
            self.scheduler.forget();
            self.callbacks.forget();
            std::mem::forget(self.pool.clone());
        } else if self.pool.current_thread_index().is_some() {
            // The worker may be at work for a call that was given up, and waits for this thread.
            self.scheduler.release();
            self.callbacks.release();
        }
    }
}

/// Takes the answer of an asynchronous call to its host. Dropped without one, it says so.
pub(crate) struct Completion<T: Send + 'static> {
    core: Arc<Core>,
    start: Instant,
    done: Option<Box<dyn FnOnce(Result<T>) + Send>>,
}

impl<T: Send + 'static> Completion<T> {
    /// Has the host told, on the thread of completions.
    pub(crate) fn answer(mut self, result: Result<T>) {
        self.post(result);
    }

    fn post(&mut self, result: Result<T>) {
        let Some(done) = self.done.take() else { return };
        self.core.count(self.start, result.as_ref().err());
        self.core.unanswered.fetch_sub(1, Ordering::Relaxed);
        let core = self.core.clone();
        self.core.callbacks.post(Box::new(move || {
            done(result);
            // Who frees the guard must not wait for a host's completion: if this was the last to
            // hold it, it ends here.
            drop(core);
        }));
    }
}

impl<T: Send + 'static> Drop for Completion<T> {
    fn drop(&mut self) {
        self.post(Err(Error::internal("a panic ended the call before it had an answer")));
    }
}
