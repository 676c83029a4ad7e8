//! What waits for the worker: short jobs and long ones, each in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::call::Call;
use super::{Engine, Limits, lock};
use crate::error::{Error, Result, Status};

/// A line of this many places keeps its memory, however few wait.
const KEPT_PLACES: usize = 1024;

pub(super) struct Queue<E: Engine> {
    state: Mutex<State<E>>,
    arrived: Condvar,
    pub(super) limits: Limits,
}

struct State<E: Engine> {
    short: VecDeque<Queued<E>>,
    long: VecDeque<Queued<E>>,
    /// Jobs that ever came; orders the two lines.
    came: u64,
    /// Jobs in both lines whose call may end early.
    may_end: usize,
    closed: bool,
    poisoned: Option<Error>,
}

/// A job that waits.
pub(super) struct Queued<E: Engine> {
    pub(super) job: E::Job,
    pub(super) tokens: usize,
    pub(super) ticket: Ticket<E::Output>,
    number: u64,
}

/// Where the result of a job goes.
pub(super) struct Ticket<O> {
    pub(super) call: Arc<Call<O>>,
    pub(super) index: usize,
}

/// What the worker does next.
pub(super) enum Turn<E: Engine> {
    /// Run these in one pass.
    Short(Vec<Queued<E>>),
    /// Open a pass of its own for this one.
    Long(Queued<E>),
    /// Go on with the long pass that is open.
    GoOn,
    /// Nothing is left, and nothing will come.
    End,
}

impl<E: Engine> Queue<E> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            short: VecDeque::new(),
            long: VecDeque::new(),
            came: 0,
            may_end: 0,
            closed: false,
            poisoned: None,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new(), limits }
    }

    /// Queues the jobs of `call`, each with its number of tokens, unless more than `most` would
    /// then wait.
    ///
    /// # Errors
    /// `Busy`, `Poisoned`.
    pub(super) fn push(
        &self,
        call: &Arc<Call<E::Output>>,
        jobs: Vec<(usize, E::Job)>,
        most: usize,
    ) -> Result<()> {
        let mut state = lock(&self.state);
        state.check()?;
        let waiting = state.len();
        if jobs.len() > most.saturating_sub(waiting) {
            return Err(Error::new(
                Status::Busy,
                format!(
                    "the queue holds {waiting} texts, and {} more are over its limit of {}",
                    jobs.len(),
                    self.limits.queue
                ),
            ));
        }
        state.may_end += if call.may_end() { jobs.len() } else { 0 };
        for (index, (tokens, job)) in jobs.into_iter().enumerate() {
            state.came += 1;
            let ticket = Ticket { call: call.clone(), index };
            let queued = Queued { job, tokens, ticket, number: state.came };
            let is_long = tokens > self.limits.short_tokens;
            if is_long { &mut state.long } else { &mut state.short }.push_back(queued);
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for work unless a long pass is open. `shorts_first`: the short jobs that wait, those
    /// behind long ones too, go before any long pass.
    pub(super) fn next(&self, long_is_open: bool, shorts_first: bool) -> Turn<E> {
        let mut state = lock(&self.state);
        loop {
            let next_long = state.long.front().map_or(u64::MAX, |queued| queued.number);
            if shorts_first || !long_is_open {
                let before = if shorts_first { u64::MAX } else { next_long };
                let batch = state.take_short(before, self.limits.batch_tokens);
                if !batch.is_empty() {
                    return Turn::Short(batch);
                }
            }
            if long_is_open {
                return Turn::GoOn;
            }
            if let Some(queued) = state.take_long() {
                return Turn::Long(queued);
            }
            if state.closed {
                return Turn::End;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes out the jobs whose call is over. Their calls are ended by the caller, outside the
    /// lock.
    pub(super) fn sweep(&self) -> Vec<Queued<E>> {
        let mut state = lock(&self.state);
        let mut over = Vec::new();
        if state.may_end > 0 {
            sweep(&mut state.short, &mut over);
            sweep(&mut state.long, &mut over);
            state.may_end -= over.len();
        }
        over
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.state).len()
    }

    pub(super) fn check(&self) -> Result<()> {
        lock(&self.state).check()
    }

    /// Lets nothing in any more, and gives out what waits.
    pub(super) fn poison(&self, error: &Error) -> Vec<Queued<E>> {
        let mut state = lock(&self.state);
        state.poisoned = Some(error.clone());
        state.may_end = 0;
        let short = std::mem::take(&mut state.short);
        let long = std::mem::take(&mut state.long);
        short.into_iter().chain(long).collect()
    }

    /// Ends the worker when nothing is left.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.arrived.notify_one();
    }
}

impl<E: Engine> State<E> {
    fn check(&self) -> Result<()> {
        self.poisoned.clone().map_or(Ok(()), Err)
    }

    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// The first short jobs that fit the budget together, of those that came `before` a number.
    fn take_short(&mut self, before: u64, budget: usize) -> Vec<Queued<E>> {
        let mut batch = Vec::new();
        let mut tokens = 0;
        while let Some(queued) = self.short.pop_front_if(|queued| {
            tokens += queued.tokens;
            queued.number < before && tokens <= budget
        }) {
            self.may_end -= usize::from(queued.ticket.call.may_end());
            batch.push(queued);
        }
        shrink(&mut self.short);
        batch
    }

    fn take_long(&mut self) -> Option<Queued<E>> {
        let queued = self.long.pop_front()?;
        self.may_end -= usize::from(queued.ticket.call.may_end());
        shrink(&mut self.long);
        Some(queued)
    }
}

fn sweep<E: Engine>(line: &mut VecDeque<Queued<E>>, over: &mut Vec<Queued<E>>) {
    if !line.iter().any(|queued| queued.ticket.call.is_over()) {
        return;
    }
    for _ in 0..line.len() {
        let Some(queued) = line.pop_front() else { return };
        if queued.ticket.call.is_over() {
            over.push(queued);
        } else {
            line.push_back(queued);
        }
    }
    shrink(line);
}

/// Gives the memory of a peak back, by halves, so that it costs little a job.
fn shrink<T>(line: &mut VecDeque<T>) {
    if line.capacity() > KEPT_PLACES && line.len() < line.capacity() / 4 {
        line.shrink_to(line.capacity() / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_peak_goes_back() {
        let mut line: VecDeque<u64> = (0..100_000).collect();
        while line.pop_front().is_some() {
            shrink(&mut line);
        }
        assert!(line.capacity() <= 2 * KEPT_PLACES, "{}", line.capacity());
    }
}
