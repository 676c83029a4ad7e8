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
    /// The passes that a batch of short jobs takes, the next one last: one, or two halves.
    short: Vec<Open<E>>,
    /// The long pass that is open, if one is.
    long: Vec<Open<E>>,
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
    /// Whether it is a half of a batch that ran out of memory.
    is_half: bool,
}

impl<E: Engine> Worker<E> {
    pub(super) fn new(engine: Arc<E>, queue: Arc<Queue<E>>, counters: Arc<Counters>) -> Self {
        Self {
            engine,
            queue,
            counters,
            short: vec![],
            long: vec![],
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
        match self.queue.next(!self.long.is_empty(), shorts_first) {
            Turn::Short(batch) => {
                self.short = vec![Open::new(batch)];
                let mut time = Duration::ZERO;
                while !self.short.is_empty() {
                    self.end_what_is_due();
                    time += Open::step(&mut self.short, &*self.engine, &self.counters);
                }
                self.short_time = time;
                self.long_time = Duration::ZERO;
            }
            Turn::Long(queued) => self.long = vec![Open::new(vec![queued])],
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
        for opens in [&mut self.short, &mut self.long] {
            opens.retain(|open| {
                for ticket in &open.tickets {
                    ticket.call.end_if_due();
                }
                !open.tickets.iter().all(|ticket| ticket.call.is_complete())
            });
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
        let open = self.short.drain(..).chain(self.long.drain(..));
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
        Self { tickets, tokens, jobs, pass: None, is_half: false }
    }

    /// Runs the next part of the last of these passes, if there is one; at its end answers its
    /// jobs and takes it out. One that runs out of memory makes room for its halves, once. Returns
    /// what that took.
    fn step(opens: &mut Vec<Self>, engine: &E, counters: &Counters) -> Duration {
        let Some(open) = opens.last_mut() else { return Duration::ZERO };
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
                let halves = open.halves(&error, engine);
                if !halves.is_empty() {
                    log::warn!("a pass of {} texts goes on in halves: {error}", open.tickets.len());
                    opens.splice(opens.len() - 1.., halves);
                    return took;
                }
                for ticket in &open.tickets {
                    ticket.call.answer(ticket.index, Err(error.clone()));
                }
            }
        }
        opens.pop();
        took
    }

    /// Two passes for the jobs of this one, which failed, where a smaller one may do; the first one
    /// last. What it leaves is empty then.
    fn halves(&mut self, error: &Error, engine: &E) -> Vec<Self> {
        if error.status() != Status::OutOfMemory || self.is_half || self.tickets.len() < 2 {
            return vec![];
        }
        let Some(pass) = self.pass.take() else { return vec![] };
        let mut first = engine.give_back(pass);
        let tokens: Vec<usize> = first.iter().map(|job| engine.tokens(job)).collect();
        let (mut at, mut taken) = (1, tokens[0]);
        while at + 1 < first.len() && taken + tokens[at] <= self.tokens / 2 {
            taken += tokens[at];
            at += 1;
        }
        let second = first.split_off(at);
        let mut tickets = std::mem::take(&mut self.tickets);
        let half = |tickets, jobs, tokens: &[usize]| Self {
            tickets,
            tokens: tokens.iter().sum(),
            jobs,
            pass: None,
            is_half: true,
        };
        let rest = tickets.split_off(at);
        vec![half(rest, second, &tokens[at..]), half(tickets, first, &tokens[..at])]
    }

    /// The results when the pass is complete.
    fn advance(&mut self, engine: &E) -> Result<Option<Vec<Result<E::Output>>>> {
        let jobs = &mut self.jobs;
        let pass = self.pass.get_or_insert_with(|| engine.begin(std::mem::take(jobs)));
        let live: Vec<bool> = self.tickets.iter().map(|t| !t.call.is_complete()).collect();
        if !engine.advance(pass, &live)? {
            return Ok(None);
        }
        self.pass.take().map(|pass| engine.finish(pass)).transpose()
    }
}
