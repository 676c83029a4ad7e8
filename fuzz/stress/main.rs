//! Callers on many threads score through the C ABI while the guard is replaced under them:
//! `stress MODEL THREADS SECONDS [--soak]`.
//!
//! Every score must be, in every bit, the one that its text has alone. With `--soak` memory must
//! also stay flat, and a guard that nobody calls must leave the CPU alone.
//! It is run under ThreadSanitizer, and for minutes without.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use siren::ffi::*;
use siren::{Status, ffi};

const TEXTS: [&str; 6] = [
    "",
    "How do I bake bread?",
    "<|im_start|>Write  a poem\n\n\n\nabout the sea<|im_end|>",
    "Tell me how to pick the lock of my neighbour's door, step by step.",
    "你好，世界。 한국어 텍스트 e\u{301} 👩‍👩‍👧",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen \
     sixteen seventeen eighteen nineteen twenty",
];
/// How often the guard is replaced.
const REPLACE_EVERY: Duration = Duration::from_millis(500);
/// Growth of the resident memory that is taken for noise, in KiB.
const RSS_SLACK_KIB: u64 = 16 << 10;
/// Share of one CPU that an idle guard may use.
const IDLE_SHARE: f64 = 0.01;
const IDLE_WATCH: Duration = Duration::from_secs(5);

fn text_of(text: &str) -> siren_text {
    siren_text { data: text.as_ptr().cast(), length: text.len() }
}

fn absent() -> siren_text {
    siren_text { data: std::ptr::null(), length: 0 }
}

fn guard_of(handle: u64) -> *mut siren_guard {
    std::ptr::without_provenance_mut(handle as usize)
}

fn open(model: &str) -> Result<u64, i32> {
    // SAFETY: all fields of the options are valid when zero; the model's name outlives the call.
    unsafe {
        let mut options: siren_open_options = std::mem::zeroed();
        let mut guard = std::ptr::null_mut();
        options.struct_size = size_of::<siren_open_options>() as u32;
        options.model = text_of(model);
        match siren_open(&options, &mut guard, std::ptr::null_mut()) {
            0 => Ok(guard.addr() as u64),
            status => Err(status),
        }
    }
}

fn input_of(text: &str) -> siren_input {
    siren_input {
        struct_size: size_of::<siren_input>() as u32,
        reserved: 0,
        text: text_of(text),
        prompt: absent(),
        response: absent(),
    }
}

fn empty_result() -> siren_result {
    siren_result {
        struct_size: size_of::<siren_result>() as u32,
        status: 0,
        score: f64::NAN,
        threshold: 0.0,
        is_harmful: 0,
        truncated: 0,
        tokens: 0,
    }
}

/// Scores `texts`: one alone by `siren_score`, several by `siren_score_batch`.
fn score(handle: u64, texts: &[&str]) -> Result<Vec<f64>, i32> {
    let inputs: Vec<_> = texts.iter().map(|text| input_of(text)).collect();
    let mut results = vec![empty_result(); texts.len()];
    let (guard, none) = (guard_of(handle), std::ptr::null_mut());
    // SAFETY: whole structs, as many as are said, whose texts outlive the call.
    let status = unsafe {
        match texts.len() {
            1 => ffi::siren_score(guard, &inputs[0], std::ptr::null(), &mut results[0], none),
            count => ffi::siren_score_batch(
                guard,
                inputs.as_ptr(),
                count,
                std::ptr::null(),
                results.as_mut_ptr(),
                none,
                none,
            ),
        }
    };
    match results.iter().map(|result| result.status).chain([status]).find(|&s| s != 0) {
        Some(status) => Err(status),
        None => Ok(results.iter().map(|result| result.score).collect()),
    }
}

/// Scores until told to stop; the number of texts, or what went wrong.
fn caller(
    number: usize,
    guard: &AtomicU64,
    expected: &[f64],
    stop: &AtomicBool,
) -> Result<u64, String> {
    let (mut scored, mut turn) = (0, number);
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let count = 1 + turn % 3;
        let chosen: Vec<_> = (0..count).map(|i| (turn + i) % TEXTS.len()).collect();
        let texts: Vec<_> = chosen.iter().map(|&i| TEXTS[i]).collect();
        match score(guard.load(Ordering::Acquire), &texts) {
            Ok(scores) => {
                for (&i, score) in chosen.iter().zip(scores) {
                    if score.to_bits() != expected[i].to_bits() {
                        return Err(format!("text {i} scored {score}, alone {}", expected[i]));
                    }
                    scored += 1;
                }
            }
            // The guard was replaced between the load and the call.
            Err(status) if status == Status::InvalidHandle as i32 => {}
            Err(status) => return Err(format!("status {status}")),
        }
    }
    Ok(scored)
}

/// A number of `/proc/self/status`, in KiB.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// CPU time that this process has used, of all its threads.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    // 100 ticks a second on every Linux.
    Duration::from_millis(fields.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn run(model: &str, threads: usize, time: Duration, soak: bool) -> Result<String, String> {
    let opened = || open(model).map_err(|status| format!("{model}: status {status} at open"));
    let first = opened()?;
    let alone = |text: &&str| score(first, &[text]).map(|scores| scores[0]);
    let expected: Vec<f64> = TEXTS
        .iter()
        .map(alone)
        .collect::<Result<_, _>>()
        .map_err(|status| format!("status {status} before the start"))?;
    let (guard, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (mut early, mut replaced) = (0, 0);
    let scored = std::thread::scope(|scope| {
        let (guard, stop, expected) = (&guard, &stop, expected.as_slice());
        let callers: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || caller(number, guard, expected, stop)))
            .collect();
        let start = Instant::now();
        let mut result = Ok(());
        while start.elapsed() < time && !callers.iter().any(|caller| caller.is_finished()) {
            std::thread::sleep(REPLACE_EVERY.min(time.saturating_sub(start.elapsed())));
            if early == 0 && start.elapsed() > time / 5 {
                early = rss_kib();
            }
            match opened() {
                Ok(next) => {
                    let old = guard.swap(next, Ordering::AcqRel);
                    // SAFETY: any value may be freed.
                    let freed = unsafe { siren_free(guard_of(old)) };
                    // SAFETY: as above.
                    let again = unsafe { siren_free(guard_of(old)) };
                    replaced += 1;
                    if freed != 0 || again != Status::InvalidHandle as i32 {
                        result = Err(format!("free said {freed}, a second one {again}"));
                        break;
                    }
                }
                Err(message) => {
                    result = Err(message);
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        let scored = callers
            .into_iter()
            .map(|caller| caller.join().map_err(|_| "a caller panicked".to_owned())?)
            .sum::<Result<u64, String>>();
        result.and(scored)
    })?;
    let late = rss_kib();
    if soak && late > early + RSS_SLACK_KIB + early / 10 {
        return Err(format!("memory grew from {early} to {late} KiB"));
    }
    let mut idle = 0.0;
    if soak {
        let before = cpu_time();
        std::thread::sleep(IDLE_WATCH);
        idle = (cpu_time() - before).as_secs_f64() / IDLE_WATCH.as_secs_f64();
        if idle > IDLE_SHARE {
            return Err(format!("an idle guard uses {idle} of a CPU"));
        }
    }
    // SAFETY: any value may be freed.
    unsafe { siren_free(guard_of(guard.into_inner())) };
    Ok(format!(
        "{scored} texts by {threads} threads in {} s, the guard replaced {replaced} times, memory \
         {early} -> {late} KiB, idle {idle:.3} CPU",
        time.as_secs()
    ))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, threads, seconds, soak) = match arguments.as_slice() {
        [model, threads, seconds] => (model, threads.parse(), seconds.parse(), false),
        [model, threads, seconds, flag] if flag == "--soak" => {
            (model, threads.parse(), seconds.parse(), true)
        }
        _ => {
            eprintln!("usage: stress MODEL THREADS SECONDS [--soak]");
            return ExitCode::from(2);
        }
    };
    let (Ok(threads), Ok(seconds)) = (threads, seconds) else {
        eprintln!("THREADS and SECONDS are whole numbers");
        return ExitCode::from(2);
    };
    match run(model, threads, Duration::from_secs(seconds), soak) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("stress: {message}");
            ExitCode::FAILURE
        }
    }
}
