//! `siren bench`: how fast a guard is on this machine.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use siren::{Error, Guard, Input, OpenOptions, PushOptions, Result, StreamOptions};

use crate::args::BenchArgs;
use crate::output::{Outcome, bad_usage};

/// Cut to as many tokens as are asked for; common words are about one token each.
const WORDS: &str = " the people of this town walk along the river every day and talk about it";

pub fn run(args: &BenchArgs) -> Outcome {
    if args.stream.is_some() && args.tokens.len() != 1 {
        bad_usage("--stream measures one prefix: give --tokens one number");
    }
    let start = Instant::now();
    // Texts repeat, and none of their tokens is to be skipped.
    let options =
        OpenOptions { max_length: longest(args), prefix_cache_bytes: 0, ..args.model.options() };
    let guard = Guard::open(options)?;
    let load_ms = milliseconds(start);
    let (open_rss_mb, open_peak_rss_mb) = (memory("VmRSS"), memory("VmHWM"));
    let Measured { first_ms, runs, tokens, what, own } = match args.stream {
        Some(chunk) => stream(&guard, args, chunk)?,
        None => batch(&guard, args)?,
    };
    let median_ms = median(&runs);
    let tokens_per_s = tokens as f64 / median_ms * 1e3;
    let info = guard.info();
    let mut result = json!({
        "median_ms": median_ms,
        "min_ms": runs[0],
        "max_ms": runs[runs.len() - 1],
        "first_ms": first_ms,
        "tokens_per_s": tokens_per_s,
        "tokens": tokens,
        "repeat": args.repeat,
        "load_ms": load_ms,
        "open_rss_mb": open_rss_mb,
        "open_peak_rss_mb": open_peak_rss_mb,
        "rss_mb": memory("VmRSS"),
        "peak_rss_mb": memory("VmHWM"),
        "weight_mb": info.weight_bytes as f64 / 1e6,
        "device": info.device,
        "dtype": info.dtype,
        "threads": info.threads,
    });
    for (key, value) in own {
        result[key] = value;
    }
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{result}")?;
    } else {
        writeln!(
            out,
            "{median_ms:.1} ms a {what} (median of {}), {tokens_per_s:.0} tokens/s, {} on {} with \
             {} threads\nloaded in {load_ms:.0} ms; {:.0} MB of weights, resident {:.0} MB, at most \
             {:.0} MB",
            args.repeat,
            info.dtype,
            info.device,
            info.threads,
            info.weight_bytes as f64 / 1e6,
            memory("VmRSS").unwrap_or(0.0),
            memory("VmHWM").unwrap_or(0.0),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was timed.
struct Measured {
    first_ms: f64,
    /// Milliseconds, in ascending order.
    runs: Vec<f64>,
    /// That one run reads.
    tokens: usize,
    /// A run, for a person.
    what: String,
    /// Besides what every measurement has.
    own: Vec<(&'static str, Value)>,
}

/// Whole texts.
fn batch(guard: &Guard, args: &BenchArgs) -> Result<Measured> {
    let texts = args
        .tokens
        .iter()
        .map(|&tokens| text(guard, tokens as usize))
        .collect::<Result<Vec<_>>>()?;
    let batch: Vec<Input<'_>> =
        (0..args.batch as usize).map(|i| Input::Text(&texts[i % texts.len()])).collect();
    let score = || guard.score_batch(&batch, None)?.into_iter().collect::<Result<Vec<_>>>();
    let (first_ms, scores) = timed(score)?;
    let runs = (0..args.repeat).map(|_| Ok(timed(score)?.0)).collect::<Result<Vec<_>>>()?;
    let tokens = scores.iter().map(|score| score.tokens).sum();
    Ok(Measured {
        first_ms,
        runs: ascending(runs),
        tokens,
        what: format!("call of {} texts with {tokens} tokens", args.batch),
        own: vec![
            ("batch", json!(args.batch)),
            ("scores", scores.iter().map(|score| score.score).collect()),
        ],
    })
}

/// Pushes of `chunk` tokens, each onto a stream of its own that has read `--tokens` tokens, and
/// scoring the same text whole.
fn stream(guard: &Guard, args: &BenchArgs, chunk: u32) -> Result<Measured> {
    let prefix = text(guard, args.tokens[0] as usize)?;
    let whole = text(guard, (args.tokens[0] + chunk) as usize)?;
    let chunk = &whole[prefix.len()..];
    let push = || {
        let stream = guard.stream(StreamOptions::default())?;
        let before = stream.push(prefix.as_bytes(), PushOptions::default())?.tokens;
        let (ms, push) = timed(|| stream.push(chunk.as_bytes(), PushOptions::default()))?;
        Ok::<_, Error>((ms, before, push))
    };
    let score = || timed(|| guard.score(Input::Text(&whole), None));
    let (first_ms, before, pushed) = push()?;
    let (_, scored) = score()?;
    let (mut runs, mut whole_runs) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        runs.push(push()?.0);
        whole_runs.push(score()?.0);
    }
    let runs = ascending(runs);
    let whole_ms = median(&ascending(whole_runs));
    let ratio = whole_ms / median(&runs);
    let tokens = pushed.tokens - before;
    Ok(Measured {
        first_ms,
        runs,
        tokens,
        what: format!(
            "push of {tokens} tokens onto {before}, {ratio:.1} times as fast as scoring all of them \
             again in {whole_ms:.1} ms"
        ),
        own: vec![
            ("prefix_tokens", json!(before)),
            ("whole_ms", json!(whole_ms)),
            ("ratio", json!(ratio)),
            ("scores", json!([pushed.score, scored.score])),
        ],
    })
}

/// Texts longer than the artifact's `max_length` are measured whole.
fn longest(args: &BenchArgs) -> Option<usize> {
    let asked = args.tokens.iter().max().map(|&n| n as usize + args.stream.unwrap_or(0) as usize);
    args.model.max_length.map(|n| n as usize).or(asked)
}

/// A text of exactly `tokens` tokens, or the nearest that this tokenizer can make.
fn text(guard: &Guard, tokens: usize) -> Result<String> {
    let words: Vec<&str> = WORDS.split_inclusive(' ').collect();
    let mut text = String::new();
    let mut best = String::new();
    for word in words.iter().cycle().take(4 * tokens + 16) {
        text.push_str(word);
        let (count, truncated) = guard.count_tokens(Input::Text(&text))?;
        if count > tokens || truncated {
            return Ok(best);
        }
        best.clone_from(&text);
        if count == tokens {
            return Ok(best);
        }
    }
    Err(Error::argument(format!("no text of {tokens} tokens could be made")))
}

/// Milliseconds of one call, and its result.
fn timed<T>(call: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let result = call()?;
    Ok((milliseconds(start), result))
}

fn ascending(mut runs: Vec<f64>) -> Vec<f64> {
    runs.sort_by(f64::total_cmp);
    runs
}

/// Of runs in ascending order.
fn median(runs: &[f64]) -> f64 {
    (runs[(runs.len() - 1) / 2] + runs[runs.len() / 2]) / 2.0
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A size of this process in MB (10^6 bytes), where the system tells.
fn memory(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
