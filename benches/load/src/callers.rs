//! Threads that score texts, whole and in batches, with everything that may go wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use siren::Status;

use crate::abi::{self, How};
use crate::corpus::{Corpus, Dice};
use crate::tally::{Kind, Tally};

/// Limits of the guards under load, so that going over them costs little.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
pub const MAX_BATCH: usize = 16;
/// Small enough for many callers to fill it now and then.
pub const MAX_QUEUE: usize = 256;
/// No byte of it can be a part of UTF-8.
const NOT_UTF8: &[u8] = b"caf\xff";
/// A callback that has not come after this never will.
const CALLBACK_TIME: Duration = Duration::from_secs(300);
/// Calls are cancelled, and deadlines pass, within these milliseconds.
const SOON: usize = 40;

/// What all threads under load share.
pub struct Load {
    pub corpus: Corpus,
    pub guard: AtomicU64,
    pub stop: AtomicBool,
    pub tally: Tally,
    pub seed: u64,
}

impl Load {
    pub fn guard(&self) -> u64 {
        self.guard.load(Ordering::Acquire)
    }

    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Whether `guard` was freed since it was looked up, so that a call on it may be refused.
    pub fn was_replaced(&self, guard: u64) -> bool {
        self.guard() != guard
    }
}

/// A cancel token that is freed when the call that it was made for is over, or runs without it.
pub struct Token(u64);

impl Drop for Token {
    fn drop(&mut self) {
        abi::token_free(self.0);
    }
}

/// Cancels tokens when their time has come.
pub type Canceller = mpsc::Sender<(Instant, u64)>;

pub fn cancel_in_time(tokens: mpsc::Receiver<(Instant, u64)>, tally: &Tally) {
    for (when, token) in tokens {
        std::thread::sleep(when.saturating_duration_since(Instant::now()));
        let status = abi::cancel(token);
        // Its call may be over.
        if status != 0 && status != Status::InvalidHandle as i32 {
            tally.fail(format!("a token could not be cancelled: status {status}"));
        }
    }
}

/// A call that ends by itself, or soon by a token or a deadline; and how it may fail then.
pub fn hurried(dice: &mut Dice, canceller: &Canceller) -> (How, Status, Option<Token>) {
    let soon = 1 + dice.below(SOON);
    let wait = dice.coin();
    if dice.coin() {
        let how = How { timeout_ms: soon as u64, wait, ..How::default() };
        return (how, Status::DeadlineExceeded, None);
    }
    let cancel = abi::token();
    // The receiver lives until the last thread has ended.
    let _ = canceller.send((Instant::now() + Duration::from_millis(soon as u64), cancel));
    (How { cancel, wait, ..How::default() }, Status::Cancelled, Some(Token(cancel)))
}

/// A channel for the outcome of one asynchronous call.
pub fn heard<T>(receiver: &mpsc::Receiver<T>, what: &str, tally: &Tally) -> Option<T> {
    let outcome = receiver.recv_timeout(CALLBACK_TIME).ok();
    if outcome.is_none() {
        tally.fail(format!("{what}: no callback came"));
    }
    outcome
}

pub fn caller(load: &Load, number: usize, canceller: &Canceller) {
    let mut dice = Dice::new(load.seed ^ (number as u64) << 32);
    while load.goes_on() {
        load.tally.beat(number);
        call(load, &mut dice, canceller);
    }
}

fn call(load: &Load, dice: &mut Dice, canceller: &Canceller) {
    let Load { tally, corpus, .. } = load;
    let guard = load.guard();
    let text = corpus.pick(dice);
    let bytes = text.text.as_bytes();
    let check = |what: &str, result, expected, allowed: &[Status]| {
        if result != Err(Status::InvalidHandle as i32) || !load.was_replaced(guard) {
            tally.check(what, result, expected, allowed);
        }
    };
    match dice.below(100) {
        0..45 => {
            let how = How { wait: true, ..How::default() };
            let start = Instant::now();
            let result = abi::score(guard, None, bytes, how);
            if result.is_ok() {
                tally.times.add(start.elapsed());
            }
            tally.count(Kind::Score);
            check("a score", result, text.score, &[]);
        }
        45..50 => {
            let how = How { wait: true, windows: true, ..How::default() };
            tally.count(Kind::Score);
            check("windows", abi::score(guard, None, bytes, how), text.in_windows, &[]);
        }
        50..62 => batch(load, guard, dice),
        62..72 => {
            let (how, end, _token) = hurried(dice, canceller);
            tally.count(Kind::Score);
            let result = abi::score(guard, None, bytes, how);
            check("a hurried score", result, text.score, &may_fail(how, end));
        }
        72..90 => {
            let (how, end, _token) = match dice.coin() {
                true => hurried(dice, canceller),
                false => (How::default(), Status::Busy, None),
            };
            let (done, outcome) = mpsc::channel();
            tally.count(Kind::Async);
            let begun = abi::score_async(guard, bytes, how, move |result| {
                // Whoever waits for it may have given up.
                let _ = done.send(result);
            });
            let allowed = [end, Status::Busy];
            match begun {
                // Now and then nobody waits for the answer.
                Ok(()) if dice.below(10) == 0 => {}
                Ok(()) => {
                    if let Some(result) = heard(&outcome, "an asynchronous score", tally) {
                        check("an asynchronous score", result, text.score, &allowed);
                    }
                }
                Err(status) => check("a score's beginning", Err(status), 0.0, &allowed),
            }
        }
        _ => refused(load, guard, dice),
    }
}

fn may_fail(how: How, end: Status) -> Vec<Status> {
    if how.wait { vec![end] } else { vec![end, Status::Busy] }
}

/// A batch, some of whose texts are none.
fn batch(load: &Load, guard: u64, dice: &mut Dice) {
    let Load { tally, corpus, .. } = load;
    let too_long = [b'x'; MAX_TEXT_BYTES + 1];
    let count = 1 + dice.below(MAX_BATCH);
    let mut texts: Vec<(&[u8], Result<f64, Status>)> = Vec::new();
    for _ in 0..count {
        texts.push(match dice.below(20) {
            0 => (NOT_UTF8, Err(Status::InvalidUtf8)),
            1 => (&too_long, Err(Status::LimitExceeded)),
            _ => {
                let text = dice.pick(&corpus.short);
                (text.text.as_bytes(), Ok(text.score))
            }
        });
    }
    let how = How { wait: dice.coin(), ..How::default() };
    let bytes: Vec<&[u8]> = texts.iter().map(|(bytes, _)| *bytes).collect();
    tally.count(Kind::Batch);
    match abi::score_batch(guard, &bytes, how) {
        Ok(results) => {
            for (result, (_, expected)) in results.into_iter().zip(texts) {
                match expected {
                    Ok(score) => {
                        tally.check("a batch's text", result, score, &[]);
                    }
                    Err(status) => {
                        let code = result.map_or_else(|code| code, |_| 0);
                        tally.refused("a batch's bad text", code, status);
                    }
                }
            }
        }
        Err(status) => {
            if status != Status::InvalidHandle as i32 || !load.was_replaced(guard) {
                let allowed: &[Status] = if how.wait { &[] } else { &[Status::Busy] };
                tally.check("a batch", Err(status), 0.0, allowed);
            }
        }
    }
}

/// A call that the library must refuse.
fn refused(load: &Load, guard: u64, dice: &mut Dice) {
    let code = |result: Result<_, i32>| result.map_or_else(|code| code, |_| 0);
    let plain = How::default();
    let (what, status, expected) = match dice.below(8) {
        0 => {
            let result = abi::score(guard, None, NOT_UTF8, plain).map(drop);
            ("invalid UTF-8", code(result), Status::InvalidUtf8)
        }
        1 => {
            let too_long = [b'x'; MAX_TEXT_BYTES + 1];
            let result = abi::score(guard, None, &too_long, plain).map(drop);
            ("a text over the limit", code(result), Status::LimitExceeded)
        }
        2 => {
            let texts = [b"x".as_slice(); MAX_BATCH + 1];
            let result = abi::score_batch(guard, &texts, plain).map(drop);
            ("a batch over the limit", code(result), Status::LimitExceeded)
        }
        3 => ("a bad threshold", abi::score_at(guard, b"x", 1.5), Status::InvalidArgument),
        4 => {
            let token = abi::token();
            let how = How { cancel: token, ..plain };
            abi::cancel(token);
            let result = abi::score(guard, None, b"x", how).map(drop);
            abi::token_free(token);
            load.tally.refused("a freed token", abi::cancel(token), Status::InvalidHandle);
            ("a call cancelled before", code(result), Status::Cancelled)
        }
        5 => {
            let how = How { cancel: guard, ..plain };
            let result = abi::score(guard, None, b"x", how).map(drop);
            ("a guard for a token", code(result), Status::InvalidHandle)
        }
        6 => {
            let foreign = dice.below(usize::MAX) as u64 >> 8 | 1;
            let result = abi::score(foreign, None, b"x", plain).map(drop);
            ("a foreign handle", code(result), Status::InvalidHandle)
        }
        _ => ("NULL for a guard", code(abi::stats(0).map(drop)), Status::InvalidArgument),
    };
    if status != Status::InvalidHandle as i32 || !load.was_replaced(guard) {
        load.tally.refused(what, status, expected);
    }
}
