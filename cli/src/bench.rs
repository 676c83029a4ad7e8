//! `siren bench`: how fast a guard is on this machine.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use siren::{Error, Guard, Input, OpenOptions, Result, Score};

use crate::args::BenchArgs;
use crate::output::Outcome;

/// Cut to as many tokens as are asked for; common words are about one token each.
const WORDS: &str = " the people of this town walk along the river every day and talk about it";

pub fn run(args: &BenchArgs) -> Outcome {
    let start = Instant::now();
    let options = OpenOptions { max_length: longest(args), ..args.model.options() };
    let guard = Guard::open(options)?;
    let load_ms = milliseconds(start);
    let (open_rss_mb, open_peak_rss_mb) = (memory("VmRSS"), memory("VmHWM"));
    let texts = args
        .tokens
        .iter()
        .map(|&tokens| text(&guard, tokens as usize))
        .collect::<Result<Vec<_>>>()?;
    let batch: Vec<Input<'_>> =
        (0..args.batch as usize).map(|i| Input::Text(&texts[i % texts.len()])).collect();
    let (first_ms, scores) = timed(&guard, &batch)?;
    let tokens: usize = scores.iter().map(|score| score.tokens).sum();
    let mut runs = Vec::new();
    for _ in 0..args.repeat {
        runs.push(timed(&guard, &batch)?.0);
    }
    runs.sort_by(f64::total_cmp);
    let median_ms = (runs[(runs.len() - 1) / 2] + runs[runs.len() / 2]) / 2.0;
    let info = guard.info();
    let result = json!({
        "median_ms": median_ms,
        "min_ms": runs[0],
        "max_ms": runs[runs.len() - 1],
        "first_ms": first_ms,
        "tokens_per_s": tokens as f64 / median_ms * 1e3,
        "tokens": tokens,
        "batch": args.batch,
        "repeat": args.repeat,
        "scores": scores.iter().map(|score| score.score).collect::<Vec<_>>(),
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
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{result}")?;
    } else {
        writeln!(
            out,
            "{median_ms:.1} ms a call (median of {}), {:.0} tokens/s: {} texts, {tokens} tokens, {} \
             on {} with {} threads\nloaded in {load_ms:.0} ms; {:.0} MB of weights, resident {:.0} MB, \
             at most {:.0} MB",
            args.repeat,
            tokens as f64 / median_ms * 1e3,
            args.batch,
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

/// Texts longer than the artifact's `max_length` are measured whole.
fn longest(args: &BenchArgs) -> Option<usize> {
    let asked = args.tokens.iter().max().map(|&n| n as usize);
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

/// Milliseconds of one call, and its scores.
fn timed(guard: &Guard, batch: &[Input<'_>]) -> Result<(f64, Vec<Score>)> {
    let start = Instant::now();
    let results = guard.score_batch(batch, None)?;
    let ms = milliseconds(start);
    Ok((ms, results.into_iter().collect::<Result<_>>()?))
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
