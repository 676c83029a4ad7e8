//! How soon a call ends that is cancelled or past its deadline, and its worker is free again.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use siren::Status;

use crate::abi::{self, How, Opening};
use crate::corpus::Dice;

/// Words, of about a token each.
const LENGTHS: [usize; 3] = [128, 500, 4100];
const ROUNDS: usize = 30;
/// Calls are ended within these milliseconds: a pass goes layer by layer, so that it has been at all
/// of a long text's tokens by then.
const AFTER: usize = 2000;
/// What is scored to see that the worker is free.
const SHORT: &[u8] = b"hello";

/// Prints the distribution of `times` in milliseconds.
fn report(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!("{what:<44} median {:>6.1}, p95 {:>6.1}, most {:>6.1} ms", at(0.5), at(0.95), at(1.0));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn timed<T>(work: impl FnOnce() -> Result<T, i32>) -> Result<(Duration, T), String> {
    let start = Instant::now();
    let done = work().map_err(|status| format!("status {status}"))?;
    Ok((start.elapsed(), done))
}

pub fn measure(model: &str, max_length: u64) -> Result<(), String> {
    let opening = Opening { max_length, no_prefix_cache: true, ..Opening::default() };
    let guard = abi::open(model, opening)?;
    let short = || timed(|| abi::score(guard, None, SHORT, How::default()));
    short()?;
    let idle = (0..10).map(|_| short().map(|(time, _)| ms(time))).collect::<Result<_, _>>()?;
    report("a short text alone", idle);
    for words in LENGTHS {
        let text = "peace ".repeat(words);
        let plain = || abi::score(guard, None, text.as_bytes(), How::default());
        let (whole, scored) = timed(plain)?;
        println!("{} tokens take {:.0} ms", scored.tokens, ms(whole));
        for by_deadline in [false, true] {
            let (returned, free) = ends(guard, text.as_bytes(), whole, by_deadline)?;
            let how = if by_deadline { "deadline" } else { "cancel" };
            report(&format!("{how} to the call's return"), returned);
            report(&format!("{how} to a short text's score"), free);
        }
    }
    abi::free(guard);
    Ok(())
}

/// Ends calls at random moments of the time that they take: milliseconds until each returned, and
/// until a short text that came right then had its score.
fn ends(
    guard: u64,
    text: &[u8],
    whole: Duration,
    by_deadline: bool,
) -> Result<(Vec<f64>, Vec<f64>), String> {
    let mut dice = Dice::new(1);
    let (mut returned, mut free) = (Vec::new(), Vec::new());
    while returned.len() < ROUNDS {
        let after = 1 + dice.below((whole.as_millis() as usize * 8 / 10).clamp(1, AFTER)) as u64;
        let token = abi::token();
        let timeout_ms = if by_deadline { after } else { 0 };
        let cancel = if by_deadline { 0 } else { token };
        let due = Instant::now() + Duration::from_millis(after);
        let (done, outcome) = mpsc::channel();
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                let how = How { cancel, timeout_ms, ..How::default() };
                let result = abi::score(guard, None, text, how);
                // The receiver waits below.
                let _ = done.send((result.map(drop), Instant::now()));
            });
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let start = if by_deadline { due } else { Instant::now() };
            abi::cancel(token);
            let scored = abi::score(guard, None, SHORT, How::default());
            let freed = start.elapsed();
            let outcome = outcome.recv().map_err(|e| e.to_string())?;
            abi::token_free(token);
            scored.map_err(|status| format!("a short text: status {status}"))?;
            Ok::<_, String>((outcome, start, freed))
        })?;
        let ((status, at), start, freed) = result;
        let expected = if by_deadline { Status::DeadlineExceeded } else { Status::Cancelled };
        match status {
            Err(status) if status == expected as i32 => {
                returned.push(ms(at.saturating_duration_since(start)));
                free.push(ms(freed));
            }
            // It was faster this time.
            Ok(()) => {}
            Err(status) => return Err(format!("a call that was to be ended: status {status}")),
        }
    }
    Ok((returned, free))
}
