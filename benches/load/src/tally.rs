//! What the threads under load count, and what they must not find.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use siren::Status;

use crate::abi::{self, Code, Scored};
use crate::corpus::same;

/// What a thread does.
#[derive(Clone, Copy)]
pub enum Kind {
    Score,
    Batch,
    Async,
    Push,
    PushAsync,
    Finish,
    Fork,
    Reset,
    StreamOpened,
    FreedInFlight,
    GuardReplaced,
    Refused,
}

impl Kind {
    pub const NAMES: [&str; 12] = [
        "scores",
        "batches",
        "asynchronous scores",
        "pushes",
        "asynchronous pushes",
        "finishes",
        "forks",
        "resets",
        "streams opened",
        "streams freed with a push in flight",
        "guards replaced",
        "calls that must be refused",
    ];
}

/// Times, each in a bucket an eighth wide.
pub struct Times([AtomicU64; 320]);

impl Times {
    pub fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 320])
    }

    pub fn add(&self, time: Duration) {
        let micros = (time.as_micros() as u64).max(8);
        let octave = micros.ilog2();
        let bucket = (octave - 3) * 8 + ((micros >> (octave - 3)) & 7) as u32;
        self.0[(bucket as usize).min(self.0.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// In milliseconds, the upper end of the bucket that `share` of the times do not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let counts = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        let mut left = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        for (bucket, count) in counts.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left == 0 {
                let end = (9 + bucket as u64 % 8) << (bucket / 8);
                return end as f64 / 1e3;
            }
        }
        0.0
    }
}

pub struct Tally {
    start: Instant,
    kinds: [AtomicU64; Kind::NAMES.len()],
    statuses: [AtomicU64; 32],
    wrong: AtomicU64,
    failures: AtomicU64,
    /// The first things that went wrong.
    words: Mutex<Vec<String>>,
    /// Of single texts that nothing was done to.
    pub times: Times,
    /// When each thread was last heard of, in milliseconds from the start.
    beats: Vec<AtomicU64>,
}

impl Tally {
    pub fn new(threads: usize) -> Self {
        Self {
            start: Instant::now(),
            kinds: [const { AtomicU64::new(0) }; Kind::NAMES.len()],
            statuses: [const { AtomicU64::new(0) }; 32],
            wrong: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            words: Mutex::default(),
            times: Times::new(),
            beats: std::iter::repeat_with(AtomicU64::default).take(threads).collect(),
        }
    }

    pub fn count(&self, kind: Kind) {
        self.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Checks what a call gave: a score must be `expected` in every bit, a failure one of
    /// `allowed`. Returns whether there was a score.
    pub fn check(
        &self,
        what: &str,
        result: Result<Scored, Code>,
        expected: f64,
        allowed: &[Status],
    ) -> bool {
        match result {
            Ok(scored) => {
                self.status(0);
                if !same(scored, expected) {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                    self.say(format!("{what}: scored {}, alone {expected}", scored.score));
                }
                true
            }
            Err(status) => {
                self.status(status);
                if !allowed.iter().any(|&s| s as Code == status) {
                    self.fail(format!("{what}: status {status}"));
                }
                false
            }
        }
    }

    /// Checks that a call gave `expected`.
    pub fn refused(&self, what: &str, status: Code, expected: Status) {
        self.count(Kind::Refused);
        self.status(status);
        if status != expected as Code {
            self.fail(format!("{what}: status {status}, expected {}", expected.name()));
        }
    }

    pub fn fail(&self, words: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.say(words);
    }

    fn say(&self, words: String) {
        let mut all = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < 20 {
            all.push(words);
        }
    }

    fn status(&self, status: Code) {
        self.statuses[status as usize % 32].fetch_add(1, Ordering::Relaxed);
    }

    pub fn beat(&self, thread: usize) {
        self.beats[thread].store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// A thread that was not heard of for longer than `limit`.
    pub fn stuck(&self, limit: Duration) -> Option<usize> {
        let now = self.start.elapsed().as_millis() as u64;
        let silent = |beat: &AtomicU64| now.saturating_sub(beat.load(Ordering::Relaxed));
        self.beats.iter().position(|beat| u128::from(silent(beat)) > limit.as_millis())
    }

    pub fn print(&self) {
        for (name, count) in Kind::NAMES.iter().zip(&self.kinds) {
            println!("{name:<40} {:>10}", count.load(Ordering::Relaxed));
        }
        println!("{:<40} {:>10}", "wrong scores", self.wrong.load(Ordering::Relaxed));
        println!("{:<40} {:>10}", "other failures", self.failures.load(Ordering::Relaxed));
        for (status, count) in self.statuses.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                println!("  status {:<31} {count:>10}", abi::status_name(status as Code));
            }
        }
    }

    pub fn verdict(&self) -> Result<(), String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() { Ok(()) } else { Err(words.join("\n")) }
    }
}
