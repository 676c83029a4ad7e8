//! Puts a guard under load through the C ABI and looks for what must not happen.
//!
//!     siren-load MODEL [--seconds N] [--callers N] [--streams N] [--seed N] [--sanitizer]
//!     siren-load MODEL --cancel-latency [--max-length N]
//!
//! Every score must be, in every bit, the one that its text has when nothing else runs, whatever is
//! cancelled, runs late, is refused, forked or freed meanwhile; memory, threads and files must come
//! back to where they were, and an idle guard must leave the CPU alone. Otherwise the exit status
//! is 1. `--sanitizer` shows memory and threads without judging them, since a sanitizer has its own.
//! The second form measures how soon cancelled calls end.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program that reports.

mod abi;
mod callers;
mod cancel;
mod corpus;
mod memory;
mod process;
mod streams;
mod tally;
mod throughput;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use abi::Opening;
use callers::{Load, MAX_BATCH, MAX_QUEUE, MAX_TEXT_BYTES};
use corpus::{Corpus, MAX_LENGTH};
use memory::Memory;
use siren::Status;
use tally::{Kind, Tally};

const USAGE: &str = "usage: siren-load MODEL [--seconds N] [--callers N] [--streams N] [--seed N]
                        [--sanitizer]
       siren-load MODEL --cancel-latency [--max-length N]";
/// Threads that push the streams, at most.
const PUSHERS: usize = 8;
/// Nothing that a thread does takes longer, even under a sanitizer.
const STUCK: Duration = Duration::from_secs(240);
/// Seconds of load in which the prefix caches are full, and as many guards are freed as opened.
const WARM: u64 = 60;
const IDLE_WATCH: Duration = Duration::from_secs(3);
/// CPU time that counts as none: two ticks of the clock.
const IDLE_CPU: Duration = Duration::from_millis(20);
const LIMITS: Opening = Opening {
    threads: 0,
    max_length: MAX_LENGTH,
    max_text_bytes: MAX_TEXT_BYTES as u64,
    max_batch: MAX_BATCH as u64,
    max_queue: MAX_QUEUE as u64,
    max_streams: 0,
    kv_bytes: 0,
    no_prefix_cache: false,
};
/// One after the other, the guards that replace each other: scores depend on none of this. The
/// second has room for the keys of few streams, so that most of them are parked.
const OPENINGS: [Opening; 3] = [
    LIMITS,
    Opening { threads: 1, kv_bytes: 4 << 20, ..LIMITS },
    Opening { threads: 3, no_prefix_cache: true, ..LIMITS },
];

struct Arguments {
    model: String,
    cancel_latency: bool,
    sanitizer: bool,
    seconds: u64,
    callers: usize,
    streams: usize,
    seed: u64,
    max_length: u64,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> Option<Self> {
        let mut arguments = Self {
            model: given.next().filter(|model| !model.starts_with('-'))?,
            cancel_latency: false,
            sanitizer: false,
            seconds: 60,
            callers: 64,
            streams: 256,
            seed: 1,
            max_length: 8192,
        };
        while let Some(name) = given.next() {
            let mut number = || given.next()?.parse::<u64>().ok();
            match name.as_str() {
                "--cancel-latency" => arguments.cancel_latency = true,
                "--sanitizer" => arguments.sanitizer = true,
                "--seconds" => arguments.seconds = number()?,
                "--callers" => arguments.callers = number()? as usize,
                "--streams" => arguments.streams = number()? as usize,
                "--seed" => arguments.seed = number()?,
                "--max-length" => arguments.max_length = number()?,
                _ => return None,
            }
        }
        Some(arguments)
    }
}

/// Ends the process when a thread is stuck: it cannot be waited for.
fn watch(tally: &Tally, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(200));
        if let Some(thread) = tally.stuck(STUCK) {
            eprintln!("thread {thread} hangs; so far:");
            tally.print();
            std::process::exit(1);
        }
    }
}

/// Replaces the guard until the time is over, and takes a sample of memory each time.
fn replace(load: &Load, model: &str, time: Duration) -> Vec<f64> {
    let every = (time / 20).clamp(Duration::from_millis(250), Duration::from_secs(5));
    let start = Instant::now();
    let (mut samples, mut replaced) = (Vec::new(), 0);
    while start.elapsed() < time {
        thread::sleep(every);
        samples.push(process::rss());
        replaced += 1;
        match abi::open(model, OPENINGS[replaced % OPENINGS.len()]) {
            Ok(next) => {
                let old = load.guard.swap(next, Ordering::AcqRel);
                load.tally.count(Kind::GuardReplaced);
                if abi::free(old) != 0 {
                    load.tally.fail("a guard could not be freed".into());
                }
                load.tally.refused("a second free", abi::free(old), Status::InvalidHandle);
            }
            Err(words) => load.tally.fail(words),
        }
    }
    samples
}

/// The load itself: samples of resident memory.
fn under_load(load: &Load, arguments: &Arguments) -> Vec<f64> {
    let ended = AtomicBool::new(false);
    let pushers = PUSHERS.min(arguments.streams);
    let (canceller, tokens) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| watch(&load.tally, &ended));
        scope.spawn(|| callers::cancel_in_time(tokens, &load.tally));
        let mut threads = Vec::new();
        for number in 0..arguments.callers {
            let canceller = canceller.clone();
            threads.push(scope.spawn(move || callers::caller(load, number, &canceller)));
        }
        for index in 0..pushers {
            let number = arguments.callers + index;
            let count = (arguments.streams + index) / pushers;
            let canceller = canceller.clone();
            threads.push(scope.spawn(move || streams::pusher(load, number, count, &canceller)));
        }
        drop(canceller);
        let samples = replace(load, &arguments.model, Duration::from_secs(arguments.seconds));
        load.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            if thread.join().is_err() {
                load.tally.fail("a thread panicked".into());
            }
        }
        ended.store(true, Ordering::Relaxed);
        samples
    })
}

/// Waits for threads that are about to end.
fn settles(what: &str, now: impl Fn() -> u64, before: u64) -> Result<(), String> {
    for _ in 0..100 {
        if now() <= before {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{} {what} at the end, {before} before", now()))
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let model = &arguments.model;
    let (threads, files) = (process::threads(), process::open_files() as u64);
    let time = Duration::from_secs(arguments.seconds);
    throughput::measure(model, arguments.callers, (time / 20).min(Duration::from_secs(10)))?;

    let guard = abi::open(model, OPENINGS[0])?;
    let load = Load {
        corpus: Corpus::new(guard).map_err(|status| format!("status {status} at the start"))?,
        guard: AtomicU64::new(guard),
        stop: AtomicBool::new(false),
        tally: Tally::new(arguments.callers + PUSHERS),
        seed: arguments.seed,
    };
    let start = process::rss();
    let samples = under_load(&load, arguments);
    load.tally.print();
    let times = &load.tally.times;
    for share in [0.5, 0.95, 0.99] {
        let name = format!("a text under load, ms, quantile {share}");
        println!("{name:<40} {:>10.1}", times.quantile(share));
    }
    load.tally.verdict()?;
    let memory = Memory { judged: !arguments.sanitizer };
    memory.is_flat("under load", &samples, arguments.seconds >= WARM)?;

    abi::free(load.guard());
    let guard = abi::open(model, OPENINGS[0])?;
    memory.came_back("with a fresh guard", start)?;
    memory.peak(model)?;
    let before = process::cpu();
    thread::sleep(IDLE_WATCH);
    let idle = process::cpu() - before;
    println!("{:<40} {:>10}", "CPU time of 3 s idle, ms", idle.as_millis());
    if idle > IDLE_CPU {
        return Err(format!("an idle guard used {idle:?} of CPU time"));
    }
    abi::free(guard);
    memory.opens(model, (arguments.seconds * 3).clamp(30, 1000))?;
    if arguments.sanitizer {
        return Ok(());
    }
    settles("threads", process::threads, threads)?;
    settles("open files", || process::open_files() as u64, files)
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match arguments.cancel_latency {
        true => cancel::measure(&arguments.model, arguments.max_length),
        false => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("siren-load: {words}");
            ExitCode::FAILURE
        }
    }
}
