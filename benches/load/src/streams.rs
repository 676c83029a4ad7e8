//! Threads that push many streams, with everything that may go wrong.

use std::sync::mpsc;

use siren::Status;

use crate::abi::{self, How};
use crate::callers::{Canceller, Load, MAX_TEXT_BYTES, heard, hurried};
use crate::corpus::{Dice, Growing};
use crate::tally::{Kind, Tally};

/// Bytes of a push, at most.
const CHUNK: usize = 40;

struct Open<'a> {
    stream: u64,
    guard: u64,
    growing: &'a Growing,
    pushed: usize,
}

impl<'a> Open<'a> {
    /// The next bytes of the text, and what the stream scores with them.
    fn next(&self, dice: &mut Dice) -> (&'a [u8], f64) {
        let bytes = self.growing.text.as_bytes();
        let end = (self.pushed + 1 + dice.below(CHUNK)).min(bytes.len());
        (&bytes[self.pushed..end], self.growing.score(end))
    }

    fn score(&self) -> f64 {
        self.growing.score(self.pushed)
    }
}

/// Pushes `count` streams in a random order until the load stops. The first of its threads is
/// `number`.
pub fn pusher(load: &Load, number: usize, count: usize, canceller: &Canceller) {
    let mut dice = Dice::new(load.seed ^ (number as u64) << 32);
    let mut streams: Vec<Option<Open<'_>>> = std::iter::repeat_with(|| None).take(count).collect();
    while load.goes_on() {
        load.tally.beat(number);
        let index = dice.below(count);
        match streams[index].take() {
            None => streams[index] = open(load, &mut dice),
            // Streams outlive their guard, but not all of them for long, or few would be of one.
            Some(open) if load.was_replaced(open.guard) && dice.below(4) == 0 => {
                free(&open, &load.tally);
            }
            Some(open) => {
                let (kept, forked) = step(load, open, &mut dice, canceller);
                streams[index] = kept;
                if let Some(forked) = forked {
                    let other = streams[dice.below(count)].replace(forked);
                    if let Some(other) = other {
                        free(&other, &load.tally);
                    }
                }
            }
        }
    }
    for open in streams.iter().flatten() {
        free(open, &load.tally);
    }
}

fn open<'a>(load: &'a Load, dice: &mut Dice) -> Option<Open<'a>> {
    let growing = dice.pick(&load.corpus.growing);
    let guard = load.guard();
    match abi::stream(guard, growing.prompt) {
        Ok(stream) => {
            load.tally.count(Kind::StreamOpened);
            Some(Open { stream, guard, growing, pushed: 0 })
        }
        Err(status) => {
            if status != Status::InvalidHandle as i32 || !load.was_replaced(guard) {
                load.tally.fail(format!("a stream's opening: status {status}"));
            }
            None
        }
    }
}

fn free(open: &Open<'_>, tally: &Tally) {
    if abi::stream_free(open.stream) != 0 {
        tally.fail("a stream could not be freed".into());
    }
    tally.refused("a second free", abi::stream_free(open.stream), Status::InvalidHandle);
}

/// One call on a stream: the stream if it is still there, and a fork of it.
fn step<'a>(
    load: &'a Load,
    mut open: Open<'a>,
    dice: &mut Dice,
    canceller: &Canceller,
) -> (Option<Open<'a>>, Option<Open<'a>>) {
    let tally = &load.tally;
    let plain = How { wait: true, ..How::default() };
    let (bytes, score) = open.next(dice);
    if bytes.is_empty() {
        return (finish(open, tally), None);
    }
    match dice.below(100) {
        0..60 => {
            tally.count(Kind::Push);
            if tally.check("a push", abi::push(open.stream, bytes, plain), score, &[]) {
                open.pushed += bytes.len();
            }
        }
        60..72 => {
            tally.count(Kind::Push);
            let (how, end, _token) = hurried(dice, canceller);
            let result = abi::push(open.stream, bytes, how);
            if tally.check("a hurried push", result, score, &[end, Status::Busy]) {
                open.pushed += bytes.len();
            }
        }
        72..84 => return (push_async(open, tally, dice, canceller), None),
        84..88 => {
            let (what, bytes, expected): (_, &[u8], _) = match dice.coin() {
                true => ("invalid UTF-8 pushed", b"\xff", Status::InvalidUtf8),
                false => {
                    ("a push over the limit", &[b'x'; MAX_TEXT_BYTES + 1], Status::LimitExceeded)
                }
            };
            let status = abi::push(open.stream, bytes, plain).map_or_else(|code| code, |_| 0);
            tally.refused(what, status, expected);
        }
        88..90 => {
            tally.count(Kind::Reset);
            match abi::reset(open.stream) {
                0 => open.pushed = 0,
                status => tally.fail(format!("a reset: status {status}")),
            }
        }
        90..96 => {
            tally.count(Kind::Fork);
            match abi::fork(open.stream) {
                Ok(stream) => {
                    let forked = Open { stream, ..open };
                    return (Some(open), Some(forked));
                }
                Err(status) => tally.fail(format!("a fork: status {status}")),
            }
        }
        96..98 => return (finish(open, tally), None),
        _ => {
            free(&open, tally);
            return (None, None);
        }
    }
    (Some(open), None)
}

/// An asynchronous push: waited for, met by another one, or with its stream freed meanwhile.
fn push_async<'a>(
    mut open: Open<'a>,
    tally: &Tally,
    dice: &mut Dice,
    canceller: &Canceller,
) -> Option<Open<'a>> {
    tally.count(Kind::PushAsync);
    let (bytes, score) = open.next(dice);
    let (how, end, _token) = match dice.coin() {
        true => hurried(dice, canceller),
        false => (How::default(), Status::Busy, None),
    };
    let allowed = [end, Status::Busy];
    let (done, outcome) = mpsc::channel();
    let begun = abi::push_async(open.stream, bytes, how, move |result| {
        // Whoever waits for it may have given up.
        let _ = done.send(result);
    });
    if let Err(status) = begun {
        tally.check("a push's beginning", Err(status), score, &allowed);
        return Some(open);
    }
    let freed = dice.below(4) == 0;
    let meets = !freed && dice.coin();
    // An empty push changes nothing, whenever it comes.
    let met = meets.then(|| abi::push(open.stream, b"", How { wait: true, ..How::default() }));
    if freed {
        tally.count(Kind::FreedInFlight);
        free(&open, tally);
    }
    let result = heard(&outcome, "an asynchronous push", tally)?;
    let before = open.score();
    if tally.check("an asynchronous push", result, score, &allowed) {
        open.pushed += bytes.len();
    }
    match met {
        // It came after the other had ended.
        Some(Ok(scored)) => {
            tally.check("a second push", Ok(scored), open.score(), &[]);
        }
        Some(Err(status)) => {
            tally.check("a second push", Err(status), before, &[Status::InUse]);
        }
        None => {}
    }
    (!freed).then_some(open)
}

/// Ends a stream's text, sees that nothing can be added, and frees it.
fn finish<'a>(open: Open<'a>, tally: &Tally) -> Option<Open<'a>> {
    tally.count(Kind::Finish);
    let result = abi::finish(open.stream);
    if open.growing.text.is_char_boundary(open.pushed) {
        tally.check("a finish", result, open.score(), &[Status::Busy]);
    } else {
        let status = result.map_or_else(|code| code, |_| 0);
        tally.refused("a finish in a character", status, Status::InvalidUtf8);
    }
    if result.is_ok() {
        let status = abi::push(open.stream, b"x", How::default()).map_or_else(|code| code, |_| 0);
        tally.refused("a push to a finished stream", status, Status::InvalidArgument);
    }
    free(&open, tally);
    None
}
