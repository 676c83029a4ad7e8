//! What open streams keep of the tokens that ran, under one budget: the streams that were pushed
//! longest ago are parked, and run their text again when they are pushed next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::engine::Prefix;
use crate::error::{Error, Result, Status};
use crate::kernels::Meter;
use crate::prefix_cache::PrefixCache;
use crate::sys::process::Home;

/// The open streams of a guard.
pub(crate) struct Live {
    most: usize,
    /// Bytes of everything that is kept of tokens, the prefix cache's included.
    budget: usize,
    meter: Meter,
    cache: Arc<PrefixCache>,
    home: Home,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: usize,
    clock: u64,
    /// Streams that keep something, by when they were pushed last.
    order: BTreeMap<u64, Weak<Seat>>,
}

/// One open stream's place.
pub(crate) struct Seat {
    live: Arc<Live>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The stream's windows that may still go on, with what has run of each.
    windows: Vec<(usize, Prefix)>,
    pushed: u64,
}

/// A lock whose holder panicked may have lost what a stream keeps, which then runs again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub(crate) fn new(
        most: usize,
        budget: usize,
        meter: Meter,
        cache: Arc<PrefixCache>,
        home: Home,
    ) -> Self {
        Self { most, budget, meter, cache, home, state: Mutex::default() }
    }

    /// A place for one more stream.
    ///
    /// # Errors
    /// `LimitExceeded` when too many are open.
    pub(crate) fn seat(self: &Arc<Self>) -> Result<Arc<Seat>> {
        let mut state = lock(&self.state);
        if state.open >= self.most {
            return Err(Error::new(
                Status::LimitExceeded,
                format!("{} streams are open, as many as the guard's limit", state.open),
            ));
        }
        state.open += 1;
        Ok(Arc::new(Seat { live: self.clone(), kept: Mutex::default() }))
    }

    /// Whether a text that takes `bytes` can be kept at all.
    pub(crate) fn keeps(&self, bytes: usize) -> bool {
        bytes <= self.budget
    }

    /// Open streams, and how many of them keep nothing.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.open as u64, (state.open - state.order.len()) as u64)
    }

    /// Drops what was used longest ago, the prefix cache's entries first, until all that is kept
    /// fits into the budget.
    pub(crate) fn fit(&self) {
        while self.meter.bytes() > self.budget && (self.cache.evict() || self.park_one()) {}
    }

    /// False when no stream keeps anything.
    fn park_one(&self) -> bool {
        let Some((pushed, seat)) = lock(&self.state).order.pop_first() else { return false };
        if let Some(seat) = seat.upgrade() {
            let mut kept = lock(&seat.kept);
            // It may have been pushed again in between.
            if kept.pushed == pushed {
                kept.windows = vec![];
            }
        }
        true
    }
}

impl Seat {
    /// The guard's other streams.
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// What has run of window `index`.
    pub(crate) fn get(&self, index: usize) -> Option<Prefix> {
        let kept = lock(&self.kept);
        kept.windows.iter().find(|(i, _)| *i == index).map(|(_, prefix)| prefix.clone())
    }

    /// What has run of every window.
    pub(crate) fn all(&self) -> Vec<(usize, Prefix)> {
        lock(&self.kept).windows.clone()
    }

    /// Keeps `windows` in the place of what was kept before.
    pub(crate) fn put(self: &Arc<Self>, windows: Vec<(usize, Prefix)>) {
        let mut kept = lock(&self.kept);
        let mut state = lock(&self.live.state);
        state.order.remove(&kept.pushed);
        if !windows.is_empty() {
            state.clock += 1;
            kept.pushed = state.clock;
            state.order.insert(kept.pushed, Arc::downgrade(self));
        }
        drop(state);
        kept.windows = windows;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // After a fork the locks may never open.
        if !self.live.home.is_here() {
            return;
        }
        let pushed = lock(&self.kept).pushed;
        let mut state = lock(&self.live.state);
        state.order.remove(&pushed);
        state.open -= 1;
    }
}
