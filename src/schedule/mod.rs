//! Callers -> one queue -> batches under a token budget -> one worker.
//!
//! The worker takes what waits, first come first served, up to the budget, and never lingers for
//! more: a single caller pays no batching delay, and concurrent callers share passes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result, Status};

/// What runs a batch of token sequences and gives one result for each.
pub(crate) trait Engine: Send + Sync + 'static {
    /// # Errors
    /// Of the whole batch; a text's own error is in its result.
    fn run(&self, texts: &[Arc<[u32]>]) -> Result<Vec<Result<f32>>>;
}

/// How much may wait, and how much runs at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Texts waiting, over all callers.
    pub(crate) queue: usize,
    /// Tokens of one pass; a longer text runs alone.
    pub(crate) batch_tokens: usize,
}

/// The queue and its worker thread. Dropping it ends the worker after the batch at work.
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    limits: Limits,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    closed: bool,
    /// The words of the panic that broke the worker.
    poisoned: Option<String>,
}

struct Job {
    tokens: Arc<[u32]>,
    call: Arc<Call>,
    index: usize,
}

/// One caller's texts and the results so far.
struct Call {
    results: Mutex<(Vec<Option<Result<f32>>>, usize)>,
    done: Condvar,
}

impl Call {
    fn new(count: usize) -> Arc<Self> {
        let results = Mutex::new((vec![None; count], count));
        Arc::new(Self { results, done: Condvar::new() })
    }

    fn set(&self, index: usize, result: Result<f32>) {
        let mut results = lock(&self.results);
        results.0[index] = Some(result);
        results.1 -= 1;
        if results.1 == 0 {
            self.done.notify_all();
        }
    }

    fn wait(&self) -> Vec<Result<f32>> {
        let mut results = lock(&self.results);
        while results.1 > 0 {
            results = self.done.wait(results).unwrap_or_else(PoisonError::into_inner);
        }
        results.0.drain(..).flatten().collect()
    }
}

/// A lock whose holder panicked holds whole values here: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scheduler {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// `OutOfMemory` when the system gives no thread.
    pub(crate) fn start(engine: Arc<dyn Engine>, limits: Limits) -> Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), arrived: Condvar::new(), limits });
        let worker = std::thread::Builder::new()
            .name("siren-worker".into())
            .spawn({
                let shared = shared.clone();
                move || shared.work(&*engine)
            })
            .map_err(|e| Error::new(Status::OutOfMemory, format!("no worker thread: {e}")))?;
        Ok(Self { shared, worker: Some(worker) })
    }

    /// Queues `texts` and waits for their results, which stand in the same order.
    ///
    /// # Errors
    /// `Busy` at once when they do not fit into the queue; `Poisoned` after a panic.
    pub(crate) fn run(&self, texts: Vec<Arc<[u32]>>) -> Result<Vec<Result<f32>>> {
        let call = Call::new(texts.len());
        {
            let mut state = lock(&self.shared.state);
            state.check()?;
            let waiting = state.queue.len();
            if texts.len() > self.shared.limits.queue.saturating_sub(waiting) {
                return Err(Error::new(
                    Status::Busy,
                    format!(
                        "the queue holds {waiting} texts, and {} more are over its limit of {}",
                        texts.len(),
                        self.shared.limits.queue
                    ),
                ));
            }
            state.queue.extend(texts.into_iter().enumerate().map(|(index, tokens)| Job {
                tokens,
                call: call.clone(),
                index,
            }));
        }
        self.shared.arrived.notify_one();
        Ok(call.wait())
    }

    /// # Errors
    /// `Poisoned` after a panic of the worker.
    pub(crate) fn check(&self) -> Result<()> {
        lock(&self.shared.state).check()
    }

    /// Lets the worker be: after a fork it is not there to be waited for.
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.worker.take());
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        lock(&self.shared.state).closed = true;
        self.shared.arrived.notify_all();
        // The worker catches its panics; there is nobody to tell of anything else.
        let _ = worker.join();
    }
}

impl State {
    fn check(&self) -> Result<()> {
        self.poisoned.as_ref().map_or(Ok(()), |words| Err(poisoned(words)))
    }
}

fn poisoned(words: &str) -> Error {
    Error::new(
        Status::Poisoned,
        format!("this guard is broken by a panic ({words}): open a new one"),
    )
}

impl Shared {
    fn work(&self, engine: &dyn Engine) {
        while let Some(batch) = self.next_batch() {
            let texts: Vec<_> = batch.iter().map(|job| job.tokens.clone()).collect();
            match catch_unwind(AssertUnwindSafe(|| engine.run(&texts))) {
                Ok(Ok(results)) => {
                    for (job, result) in batch.iter().zip(results) {
                        job.call.set(job.index, result);
                    }
                }
                Ok(Err(error)) => {
                    for job in &batch {
                        job.call.set(job.index, Err(error.clone()));
                    }
                }
                Err(panic) => self.poison(batch, crate::error::panic_message(&*panic)),
            }
        }
    }

    /// Waits for work and takes the first jobs that fit the budget, at least one.
    fn next_batch(&self) -> Option<Vec<Job>> {
        let mut state = lock(&self.state);
        while state.queue.is_empty() {
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch = Vec::new();
        let mut tokens = 0;
        while let Some(job) = state.queue.front() {
            tokens += job.tokens.len();
            if !batch.is_empty() && tokens > self.limits.batch_tokens {
                break;
            }
            batch.extend(state.queue.pop_front());
        }
        Some(batch)
    }

    fn poison(&self, batch: Vec<Job>, words: String) {
        let waiting = {
            let mut state = lock(&self.state);
            state.poisoned = Some(words.clone());
            std::mem::take(&mut state.queue)
        };
        for job in batch.into_iter().chain(waiting) {
            job.call.set(job.index, Err(poisoned(&words)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores a text by its first id, notes each batch, and panics at id 13.
    #[derive(Default)]
    struct Echo(Mutex<Vec<Vec<usize>>>);

    impl Engine for Echo {
        fn run(&self, texts: &[Arc<[u32]>]) -> Result<Vec<Result<f32>>> {
            lock(&self.0).push(texts.iter().map(|t| t.len()).collect());
            assert!(texts.iter().all(|t| t[0] != 13), "thirteen");
            Ok(texts.iter().map(|t| Ok(t[0] as f32)).collect())
        }
    }

    fn text(id: u32, length: usize) -> Arc<[u32]> {
        vec![id; length].into()
    }

    #[test]
    fn batches_fill_to_the_budget_in_order_and_a_long_text_runs_alone() {
        let echo = Arc::new(Echo::default());
        let limits = Limits { queue: 100, batch_tokens: 10 };
        let scheduler = Scheduler::start(echo.clone(), limits).unwrap();
        let texts = [4, 6, 1, 50, 3].iter().enumerate().map(|(i, &n)| text(i as u32, n));
        let results = scheduler.run(texts.collect()).unwrap();
        let scores: Vec<f32> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(scores, [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(*lock(&echo.0), [vec![4, 6], vec![1], vec![50], vec![3]]);
    }

    #[test]
    fn a_full_queue_answers_busy_at_once_and_an_empty_call_returns() {
        let limits = Limits { queue: 2, batch_tokens: 10 };
        let scheduler = Scheduler::start(Arc::new(Echo::default()), limits).unwrap();
        let error = scheduler.run(vec![text(1, 1); 3]).unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        assert!(scheduler.run(vec![]).unwrap().is_empty());
        assert_eq!(scheduler.run(vec![text(7, 1)]).unwrap(), [Ok(7.0)]);
    }

    #[test]
    fn a_panic_poisons_for_good_and_says_why() {
        let limits = Limits { queue: 10, batch_tokens: 1 };
        let scheduler = Scheduler::start(Arc::new(Echo::default()), limits).unwrap();
        let results = scheduler.run(vec![text(1, 1), text(13, 1), text(2, 1)]).unwrap();
        assert_eq!(results[0], Ok(1.0));
        for result in &results[1..] {
            let error = result.as_ref().unwrap_err();
            assert_eq!(error.status(), Status::Poisoned);
            assert!(error.message().contains("thirteen"));
        }
        assert_eq!(scheduler.run(vec![text(1, 1)]).unwrap_err().status(), Status::Poisoned);
    }
}
