//! The one thread that runs passes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use super::queue::{Queue, Queued, Ticket, Turn};
use crate::error::{Error, Result, Status, panic_message};
use crate::stats::Counters;

/// What a long pass gets at least before short jobs go ahead of it.
const LONG_TURN: Duration = Duration::from_millis(50);
/// Looking through the queue takes at most one in this many of the worker's time.
const SWEEP_SHARE: u32 = 20;

pub(super) struct Worker<E: Engine> {
    engine: Arc<E>,
    queue: Arc<Queue<E>>,
    counters: Arc<Counters>,
    short: Option<Open<E>>,
    long: Option<Open<E>>,
    /// What the last pass of short jobs took.
    short_time: Duration,
    /// What long passes have had since then.
    long_time: Duration,
    next_sweep: Instant,
}

/// A pass that is open. It begins at its first step.
struct Open<E: Engine> {
    tickets: Vec<Ticket<E::Output>>,
    tokens: usize,
    jobs: Vec<E::Job>,
    pass: Option<E::Pass>,
}

impl<E: Engine> Worker<E> {
    pub(super) fn new(engine: Arc<E>, queue: Arc<Queue<E>>, counters: Arc<Counters>) -> Self {
        Self {
            engine,
            queue,
            counters,
            short: None,
            long: None,
            short_time: Duration::ZERO,
            long_time: Duration::ZERO,
            next_sweep: Instant::now(),
        }
    }

    /// Runs until the queue is closed and empty, or until a panic.
    pub(super) fn work(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => return,
                Err(panic) => return self.poison(&panic_message(&*panic)),
            }
        }
    }

    /// One pass of short jobs, or one step of a long one; false at the end.
    fn turn(&mut self) -> bool {
        self.end_what_is_due();
        let shorts_first = self.long_time >= LONG_TURN.max(self.short_time);
        match self.queue.next(self.long.is_some(), shorts_first) {
            Turn::Short(batch) => {
                self.short = Some(Open::new(batch));
                let mut time = Duration::ZERO;
                while self.short.is_some() {
                    self.end_what_is_due();
                    time += Open::step(&mut self.short, &*self.engine, &self.counters);
                }
                self.short_time = time;
                self.long_time = Duration::ZERO;
            }
            Turn::Long(queued) => self.long = Some(Open::new(vec![queued])),
            Turn::GoOn => {
                self.long_time += Open::step(&mut self.long, &*self.engine, &self.counters);
            }
            Turn::End => return false,
        }
        true
    }

    /// Answers the calls that were cancelled or are past their deadline, whether they wait or run,
    /// and drops a pass that nobody waits for.
    fn end_what_is_due(&mut self) {
        for slot in [&mut self.short, &mut self.long] {
            let Some(open) = slot else { continue };
            for ticket in &open.tickets {
                ticket.call.end_if_due();
            }
            if open.tickets.iter().all(|ticket| ticket.call.is_complete()) {
                *slot = None;
            }
        }
        let start = Instant::now();
        if start >= self.next_sweep {
            for queued in self.queue.sweep() {
                queued.ticket.call.end_if_due();
            }
            self.next_sweep = start + start.elapsed() * SWEEP_SHARE;
        }
    }

    fn poison(mut self, words: &str) {
        let error = Error::new(
            Status::Poisoned,
            format!("this guard is broken by a panic ({words}): open a new one"),
        );
        let queued = self.queue.poison(&error);
        let open = self.short.take().into_iter().chain(self.long.take());
        let running = open.flat_map(|open| open.tickets);
        for ticket in running.chain(queued.into_iter().map(|queued| queued.ticket)) {
            ticket.call.end(&error);
        }
    }
}

impl<E: Engine> Open<E> {
    fn new(batch: Vec<Queued<E>>) -> Self {
        let tokens = batch.iter().map(|queued| queued.tokens).sum();
        let (tickets, jobs) = batch.into_iter().map(|q| (q.ticket, q.job)).unzip();
        Self { tickets, tokens, jobs, pass: None }
    }

    /// Runs the next part of the pass in `slot`, if there is one; answers its jobs and clears the
    /// slot at its end. Returns what that took.
    fn step(slot: &mut Option<Self>, engine: &E, counters: &Counters) -> Duration {
        let Some(open) = slot else { return Duration::ZERO };
        let start = Instant::now();
        let stepped = open.advance(engine).transpose();
        let took = start.elapsed();
        counters.pass_nanos.add(took.as_nanos() as u64);
        match stepped {
            None => return took,
            Some(Ok(results)) => {
                if open.tokens > 0 {
                    counters.passes.add(1);
                    counters.pass_sequences.add(open.tickets.len() as u64);
                }
                let missing = || Err(Error::internal("a job without a result"));
                let results = results.into_iter().chain(std::iter::repeat_with(missing));
                for (ticket, result) in open.tickets.iter().zip(results) {
                    ticket.call.answer(ticket.index, result);
                }
            }
            Some(Err(error)) => {
                for ticket in &open.tickets {
                    ticket.call.answer(ticket.index, Err(error.clone()));
                }
            }
        }
        *slot = None;
        took
    }

    /// The results when the pass is complete.
    fn advance(&mut self, engine: &E) -> Result<Option<Vec<Result<E::Output>>>> {
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => engine.begin(std::mem::take(&mut self.jobs))?,
        };
        let live: Vec<bool> = self.tickets.iter().map(|t| !t.call.is_complete()).collect();
        if engine.advance(&mut pass, &live)? {
            return engine.finish(pass).map(Some);
        }
        self.pass = Some(pass);
        Ok(None)
    }
}
