//! Where hosts' completions run: on a thread of their own, so that one that blocks, or calls back
//! into the guard, holds up nothing but other completions.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::lock;
use crate::error::{Error, Result, Status, panic_message};

type Closure = Box<dyn FnOnce() + Send>;

/// A thread that runs closures in the order in which they were posted. Dropping it runs what was
/// posted before.
#[derive(Default)]
pub(crate) struct Callbacks {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    forgotten: AtomicBool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    posted: Condvar,
}

#[derive(Default)]
struct State {
    closures: VecDeque<Closure>,
    closed: bool,
}

impl Callbacks {
    /// Starts the thread unless it runs. Called before work is accepted whose completion will be
    /// posted, it keeps [`Callbacks::post`] from having no thread.
    ///
    /// # Errors
    /// `OutOfMemory` when the system gives no thread.
    pub(crate) fn start(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = self.shared.clone();
            let spawned = thread::Builder::new()
                .name("siren-callbacks".into())
                .spawn(move || shared.work())
                .map_err(|e| Error::new(Status::OutOfMemory, format!("no callback thread: {e}")))?;
            *thread = Some(spawned);
        }
        Ok(())
    }

    /// Has `closure` run. Does not wait for it.
    pub(crate) fn post(&self, closure: Closure) {
        if let Err(error) = self.start() {
            // A completion that runs in the wrong place still beats one that never comes.
            log::error!("{error}");
            return run(closure);
        }
        lock(&self.shared.state).closures.push_back(closure);
        self.shared.posted.notify_one();
    }

    /// Ends the thread, as dropping does, without waiting for it.
    pub(crate) fn release(&mut self) {
        if self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            lock(&self.shared.state).closed = true;
            self.shared.posted.notify_one();
        }
    }

    /// Lets the thread be: after a fork it is not there to be waited for.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        // Not locked: after a fork the lock may be held by a thread that is not there.
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        if self.forgotten.load(Ordering::Acquire) {
            return std::mem::forget(thread);
        }
        lock(&self.shared.state).closed = true;
        self.shared.posted.notify_one();
        // A closure may hold what is dropped here: its thread cannot wait for itself.
        if thread.thread().id() != thread::current().id() {
            // The thread catches its panics; there is nobody to tell of anything else.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(closure) = self.next() {
            run(closure);
        }
    }

    fn next(&self) -> Option<Closure> {
        let mut state = lock(&self.state);
        loop {
            if let Some(closure) = state.closures.pop_front() {
                if state.closures.is_empty() {
                    // The memory of a peak goes back.
                    state.closures = VecDeque::new();
                }
                return Some(closure);
            }
            if state.closed {
                return None;
            }
            state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A host's panic is the host's: it is logged, and the next completion runs.
fn run(closure: Closure) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(closure)) {
        log::error!("a completion panicked: {}", panic_message(&*panic));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn closures_run_in_order_on_one_thread_that_a_panic_does_not_end() {
        let callbacks = Callbacks::default();
        assert!(callbacks.thread.lock().unwrap().is_none(), "no thread before it is needed");
        let (sender, ran) = mpsc::channel();
        for i in 0..100 {
            let sender = sender.clone();
            callbacks.post(Box::new(move || {
                sender.send((i, thread::current().id())).unwrap();
                assert!(i % 2 == 0, "odd");
            }));
        }
        // Dropping runs what was posted.
        drop(callbacks);
        let ran: Vec<_> = ran.try_iter().collect();
        assert_eq!(ran, (0..100).map(|i| (i, ran[0].1)).collect::<Vec<_>>());
        assert_ne!(ran[0].1, thread::current().id());
    }

    #[test]
    #[cfg_attr(miri, ignore = "it leaves a thread behind, as it should")]
    fn a_forgotten_thread_is_not_waited_for() {
        let callbacks = Callbacks::default();
        let (sender, receiver) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        callbacks.post(Box::new(move || {
            // Until the drop below has returned.
            assert!(receiver.recv().is_err());
            ended.send(()).unwrap();
        }));
        callbacks.forget();
        drop(callbacks);
        drop(sender);
        end.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}
