//! Callers -> one queue -> passes under a token budget -> one worker.
//!
//! The worker takes what waits, first come first served, up to the budget, and never lingers for
//! more: a single caller pays no batching delay, and concurrent callers share passes. A sequence
//! over a limit of its own is long: it runs alone, part by part, in turns with the short ones.

mod call;
mod callbacks;
mod queue;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::call::Control;
use crate::error::{Error, Result, Status};
use crate::stats::Counters;
use call::Call;
pub(crate) use callbacks::Callbacks;
use queue::Queue;
use worker::Worker;

/// What runs jobs, each one sequence of tokens.
pub(crate) trait Engine: Send + Sync + 'static {
    /// What is to run, and what it has so far.
    type Job: Send + 'static;
    /// What a job gives.
    type Output: Send + 'static;
    /// A batch of jobs at work.
    type Pass: Send;

    /// Tokens that `job` has still to run; 0 is answered by a pass that costs nothing.
    fn tokens(&self, job: &Self::Job) -> usize;

    /// Takes `jobs` on. Nothing that could fail is done yet.
    fn begin(&self, jobs: Vec<Self::Job>) -> Self::Pass;

    /// The jobs of a pass that is given up, to begin anew.
    fn give_back(&self, pass: Self::Pass) -> Vec<Self::Job>;

    /// Runs the next part of `pass`, some tens of milliseconds at most; true when it is complete.
    /// What belongs to jobs that are no longer `live` need not be computed.
    ///
    /// # Errors
    /// Of the whole batch. After `OutOfMemory` a batch of several jobs is begun once more, in halves.
    fn advance(&self, pass: &mut Self::Pass, live: &[bool]) -> Result<bool>;

    /// One result a job, in their order; of a job that is no longer live, any.
    ///
    /// # Errors
    /// Of the whole batch.
    fn finish(&self, pass: Self::Pass) -> Result<Vec<Result<Self::Output>>>;
}

/// How much may wait, and how much runs at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences waiting, over all callers.
    pub(crate) queue: usize,
    /// Tokens of a pass of several sequences, at least `short_tokens`.
    pub(crate) batch_tokens: usize,
    /// Tokens of a sequence that shares a pass; a longer one runs alone.
    pub(crate) short_tokens: usize,
}

/// The queue and its worker thread. Dropping it ends the worker after everything that is queued.
pub(crate) struct Scheduler<E: Engine> {
    engine: Arc<E>,
    queue: Arc<Queue<E>>,
    worker: Option<JoinHandle<()>>,
}

/// A lock whose holder panicked holds whole values here: no change of them can panic halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Engine> Scheduler<E> {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// `OutOfMemory` when the system gives no thread.
    pub(crate) fn start(engine: Arc<E>, limits: Limits, counters: Arc<Counters>) -> Result<Self> {
        let queue = Arc::new(Queue::new(limits));
        let worker = Worker::new(engine.clone(), queue.clone(), counters);
        let worker = thread::Builder::new()
            .name("siren-worker".into())
            .spawn(move || worker.work())
            .map_err(|e| Error::new(Status::OutOfMemory, format!("no worker thread: {e}")))?;
        Ok(Self { engine, queue, worker: Some(worker) })
    }

    /// Queues `jobs` and waits for their results, which stand in the same order.
    ///
    /// # Errors
    /// At once: `Busy` when they do not fit into the queue (unless `control` says to wait),
    /// `Poisoned` after a panic, `Cancelled`, `DeadlineExceeded`. Later these, but for `Busy`, are
    /// the results of the jobs that have none yet.
    pub(crate) fn run(
        &self,
        jobs: Vec<E::Job>,
        control: &Control,
    ) -> Result<Vec<Result<E::Output>>> {
        // Who waits holds a thread and its own texts, so nothing else need bound their number.
        let most = if control.wait { usize::MAX } else { self.queue.limits.queue };
        let (sender, receiver) = mpsc::sync_channel(1);
        let call = self.enter(jobs, control.clone(), most, move |results| {
            // The receiver stays until it has heard.
            let _ = sender.send(results);
        })?;
        loop {
            let left = control
                .deadline
                .map_or(Duration::MAX, |deadline| deadline.duration_since(Instant::now()));
            match receiver.recv_timeout(left) {
                Ok(results) => return Ok(results),
                // The worker would see it too, after the part of a pass that it is at.
                Err(RecvTimeoutError::Timeout) => call.end_if_due(),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("the worker lost a call"));
                }
            }
        }
    }

    /// As [`Scheduler::run`], without blocking: `done` is called once, on the worker's thread, so
    /// it must be short and must not wait for this scheduler. With `control.wait`, as many again
    /// as the queue's limit may wait for a place in it.
    ///
    /// # Errors
    /// As those of `run` at once; `done` is then not called.
    pub(crate) fn submit(
        &self,
        jobs: Vec<E::Job>,
        control: Control,
        done: impl FnOnce(Vec<Result<E::Output>>) + Send + 'static,
    ) -> Result<()> {
        let places = if control.wait { 2 } else { 1 };
        let most = self.queue.limits.queue.saturating_mul(places);
        self.enter(jobs, control, most, done).map(drop)
    }

    fn enter(
        &self,
        jobs: Vec<E::Job>,
        control: Control,
        most: usize,
        done: impl FnOnce(Vec<Result<E::Output>>) + Send + 'static,
    ) -> Result<Arc<Call<E::Output>>> {
        control.check()?;
        let jobs: Vec<_> = jobs.into_iter().map(|job| (self.engine.tokens(&job), job)).collect();
        let call = Arc::new(Call::new(jobs.len(), control, Box::new(done)));
        self.queue.push(&call, jobs, most)?;
        // A call without jobs gets no answer to complete it.
        call.complete_if_answered();
        Ok(call)
    }

    /// Tokens of a pass of several sequences.
    pub(crate) fn batch_tokens(&self) -> usize {
        self.queue.limits.batch_tokens
    }

    /// Sequences that wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// # Errors
    /// `Poisoned` after a panic of the worker.
    pub(crate) fn check(&self) -> Result<()> {
        self.queue.check()
    }

    /// Ends the worker, as dropping does, without waiting for it.
    pub(crate) fn release(&mut self) {
        if self.worker.take().is_some() {
            self.queue.close();
        }
    }

    /// Lets the worker be: after a fork it is not there to be waited for.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.worker.take());
    }
}

impl<E: Engine> Drop for Scheduler<E> {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.queue.close();
        // A completion may hold what is dropped here: its thread cannot wait for itself.
        if worker.thread().id() != thread::current().id() {
            // The worker catches its panics; there is nobody to tell of anything else.
            let _ = worker.join();
        }
    }
}
