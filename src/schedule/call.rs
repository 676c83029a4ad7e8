//! One caller's jobs, and who hears of their results.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock;
use crate::call::Control;
use crate::error::{Error, Result};

type Done<O> = Box<dyn FnOnce(Vec<Result<O>>) + Send>;

/// Jobs that were queued together. Each is answered once, whoever comes first; the last answer
/// completes the call.
pub(super) struct Call<O> {
    control: Control,
    complete: AtomicBool,
    open: Mutex<Option<Open<O>>>,
}

struct Open<O> {
    results: Vec<Option<Result<O>>>,
    left: usize,
    done: Done<O>,
}

impl<O> Call<O> {
    pub(super) fn new(count: usize, control: Control, done: Done<O>) -> Self {
        let results = std::iter::repeat_with(|| None).take(count).collect();
        let open = Mutex::new(Some(Open { results, left: count, done }));
        Self { control, complete: AtomicBool::new(false), open }
    }

    /// Answers the job at `index`.
    pub(super) fn answer(&self, index: usize, result: Result<O>) {
        if let Some(open) = lock(&self.open).as_mut() {
            open.results[index] = Some(result);
            open.left -= 1;
        }
        self.complete_if_answered();
    }

    /// Completes the call when no job is left to answer.
    pub(super) fn complete_if_answered(&self) {
        let last = lock(&self.open).take_if(|open| open.left == 0);
        self.complete(last);
    }

    /// Answers every job that has no result yet.
    pub(super) fn end(&self, error: &Error) {
        let mut last = lock(&self.open).take();
        if let Some(open) = &mut last {
            for result in open.results.iter_mut().filter(|r| r.is_none()) {
                *result = Some(Err(error.clone()));
            }
        }
        self.complete(last);
    }

    /// Ends the call when its control says so.
    pub(super) fn end_if_due(&self) {
        if let Err(error) = self.control.check() {
            self.end(&error);
        }
    }

    /// Whether every job is answered, or [`Call::end_if_due`] would answer them.
    pub(super) fn is_over(&self) -> bool {
        self.may_end() && (self.is_complete() || self.control.check().is_err())
    }

    /// Whether the call can be over before its jobs have run.
    pub(super) fn may_end(&self) -> bool {
        self.control.may_end()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Outside the lock, since `done` may be anything.
    fn complete(&self, last: Option<Open<O>>) {
        if let Some(open) = last {
            self.complete.store(true, Ordering::Release);
            (open.done)(open.results.into_iter().flatten().collect());
        }
    }
}
