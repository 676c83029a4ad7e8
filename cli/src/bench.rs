//! `siren bench`: how fast a guard is on this machine.

mod chart;
mod measure;
mod reference;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use siren::{Error, Guard, Info, OpenOptions};

use crate::args::BenchArgs;
use crate::output::{FAINT, Outcome, STRONG, bad_usage};
use measure::{Against, Bench, Pushed, Texts, Timing, milliseconds};
use reference::Reference;

/// What is measured when nobody says: what fits into the guard's longest text.
const TOKENS: [u32; 6] = [16, 32, 64, 128, 256, 512];
const BATCHES: [u32; 4] = [1, 4, 8, 16];
const PREFIXES: [u32; 3] = [100, 500, 1000];

pub fn run(args: &BenchArgs) -> Outcome {
    let report = Report::measure(args)?;
    if let Some(path) = &args.svg {
        std::fs::write(path, chart::draw(&report))
            .map_err(|error| Error::io(path.display(), &error))?;
    }
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{}", report.to_json())?;
    } else {
        report.print(&mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All that was measured.
struct Report {
    info: Info,
    load_ms: f64,
    open_rss_mb: Option<f64>,
    open_peak_rss_mb: Option<f64>,
    rss_mb: Option<f64>,
    peak_rss_mb: Option<f64>,
    /// One text a call, by its tokens.
    latency: Vec<Texts>,
    /// Batches of the same texts, by their size.
    throughput: Vec<Texts>,
    stream: Vec<Pushed>,
    /// What llm-siren said of itself.
    reference: Option<Value>,
}

impl Report {
    fn measure(args: &BenchArgs) -> siren::Result<Self> {
        let asked = Asked::by(args);
        let start = Instant::now();
        let guard = Guard::open(asked.options(args))?;
        let load_ms = milliseconds(start);
        let (open_rss_mb, open_peak_rss_mb) = (memory("VmRSS"), memory("VmHWM"));
        let info = guard.info().clone();
        let asked = asked.within(info.max_length);
        let reference = args.against.map(|_| Reference::open(&args.python, &info)).transpose()?;
        let mut bench = Bench { guard, reference, repeat: args.repeat };
        let latency =
            asked.tokens.iter().map(|&n| bench.texts(1, &[n])).collect::<Result<_, _>>()?;
        let throughput = asked
            .batches
            .iter()
            .map(|&batch| bench.texts(batch as usize, &asked.batch_tokens))
            .collect::<Result<_, _>>()?;
        let stream =
            asked.prefixes.iter().map(|&n| bench.push(n, args.push)).collect::<Result<_, _>>()?;
        let reference = bench.reference.map(|reference| {
            let mut opened = reference.opened.clone();
            [opened["rss_mb"], opened["peak_rss_mb"]] = reference.rss_mb.clone();
            opened
        });
        let (rss_mb, peak_rss_mb) = (memory("VmRSS"), memory("VmHWM"));
        Ok(Self {
            info,
            load_ms,
            open_rss_mb,
            open_peak_rss_mb,
            rss_mb,
            peak_rss_mb,
            latency,
            throughput,
            stream,
            reference,
        })
    }

    fn to_json(&self) -> Value {
        let info = &self.info;
        let mut report = json!({
            "model": info.model_dir.display().to_string(),
            "backbone": info.backbone_path.display().to_string(),
            "device": info.device,
            "dtype": info.dtype,
            "threads": info.threads,
            "load_ms": self.load_ms,
            "weight_mb": megabytes(info.weight_bytes),
            "open_rss_mb": self.open_rss_mb,
            "open_peak_rss_mb": self.open_peak_rss_mb,
            "rss_mb": self.rss_mb,
            "peak_rss_mb": self.peak_rss_mb,
            "latency": self.latency.iter().map(Texts::to_json).collect::<Vec<_>>(),
            "throughput": self.throughput.iter().map(Texts::to_json).collect::<Vec<_>>(),
            "stream": self.stream.iter().map(Pushed::to_json).collect::<Vec<_>>(),
        });
        if let Some(reference) = &self.reference {
            report["against"] = reference.clone();
        }
        report
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let info = &self.info;
        writeln!(out, "{STRONG}{}{STRONG:#}", info.model_dir.display())?;
        writeln!(
            out,
            "  {}\n  opened in {:.0} ms; {:.0} MB of weights, resident {}, at most {}; after the \
             run {}, at most {}",
            self.title(),
            self.load_ms,
            megabytes(info.weight_bytes),
            Size(self.open_rss_mb),
            Size(self.open_peak_rss_mb),
            Size(self.rss_mb),
            Size(self.peak_rss_mb),
        )?;
        if let Some(reference) = &self.reference {
            writeln!(
                out,
                "  llm-siren {} on torch {} in {}: opened in {:.0} ms; resident {}, at most {}",
                reference["version"].as_str().unwrap_or("?"),
                reference["torch"].as_str().unwrap_or("?"),
                reference["dtype"].as_str().unwrap_or("?"),
                reference["load_ms"].as_f64().unwrap_or(f64::NAN),
                Size(reference["rss_mb"].as_f64()),
                Size(reference["peak_rss_mb"].as_f64()),
            )?;
        }
        let theirs = if self.reference.is_some() { "  llm-siren  ratio  apart" } else { "" };
        let head = "   median      min      max";
        if !self.latency.is_empty() {
            writeln!(out, "\n{FAINT}one text, ms{FAINT:#}")?;
            writeln!(out, "  tokens{head}  tokens/s{theirs}")?;
            for row in &self.latency {
                let Texts { tokens, timing, against, .. } = row;
                write!(out, "  {tokens:>6}{}  {:>8.0}", Times(timing), row.tokens_per_s())?;
                writeln!(out, "{}", Beside(against))?;
            }
        }
        if !self.throughput.is_empty() {
            writeln!(out, "\n{FAINT}texts in one call, ms{FAINT:#}")?;
            writeln!(out, "   texts  tokens{head}  texts/s  tokens/s{theirs}")?;
            for row in &self.throughput {
                let Texts { batch, tokens, timing, against, .. } = row;
                let (texts, rate) = (row.texts_per_s(), row.tokens_per_s());
                write!(out, "  {batch:>6}  {tokens:>6}{}", Times(timing))?;
                writeln!(out, "  {texts:>7.1}  {rate:>8.0}{}", Beside(against))?;
            }
        }
        if !self.stream.is_empty() {
            writeln!(out, "\n{FAINT}a push onto a stream, ms{FAINT:#}")?;
            writeln!(out, "  tokens    onto{head}  all again  ratio{theirs}")?;
            for row in &self.stream {
                let Pushed { prefix, tokens, timing, whole, against, .. } = row;
                write!(out, "  {tokens:>6}  {prefix:>6}{}", Times(timing))?;
                writeln!(
                    out,
                    "  {:>9.1}  {:>5.1}{}",
                    whole.median(),
                    row.ratio(),
                    Beside(against)
                )?;
            }
        }
        Ok(())
    }

    /// What it ran on.
    fn title(&self) -> String {
        let Info { dtype, device, threads, .. } = &self.info;
        format!("{dtype} on {device} with {threads} threads")
    }
}

/// Milliseconds in a table.
struct Times<'a>(&'a Timing);

impl std::fmt::Display for Times<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(timing) = self;
        write!(f, "{:>9.1}{:>9.1}{:>9.1}", timing.median(), timing.least(), timing.most())
    }
}

/// llm-siren's columns of a table.
struct Beside<'a>(&'a Option<Against>);

impl std::fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(against) = self.0 else { return Ok(()) };
        let Against { timing, ratio, apart } = against;
        write!(f, "  {:>9.1}  {ratio:>5.2}  {apart:>5.0e}", timing.median())
    }
}

/// Megabytes, where the system tells.
struct Size(Option<f64>);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(mb) => write!(f, "{mb:.0} MB"),
            None => f.write_str("unknown"),
        }
    }
}

/// What is to be measured.
struct Asked {
    tokens: Vec<u32>,
    batches: Vec<u32>,
    batch_tokens: Vec<u32>,
    prefixes: Vec<u32>,
    push: u32,
    /// By name, so that it may not be left out.
    chosen: bool,
}

impl Asked {
    fn by(args: &BenchArgs) -> Self {
        let chosen = [&args.tokens, &args.batch, &args.stream].iter().any(|list| !list.is_empty());
        let or = |given: &[u32], all: &[u32]| if chosen { given.to_vec() } else { all.to_vec() };
        let asked = Self {
            tokens: or(&args.tokens, &TOKENS),
            batches: or(&args.batch, &BATCHES),
            batch_tokens: args.batch_tokens.clone(),
            prefixes: or(&args.stream, &PREFIXES),
            push: args.push,
            chosen,
        };
        match args.model.max_length.filter(|&most| chosen && most < asked.longest()) {
            Some(most) => bad_usage(&format!(
                "a text of {} tokens is longer than --max-length {most}",
                asked.longest()
            )),
            None => asked,
        }
    }

    /// In tokens.
    fn longest(&self) -> u32 {
        let batched = if self.batches.is_empty() { &[][..] } else { &self.batch_tokens };
        let pushed = self.prefixes.iter().map(|n| n + self.push);
        self.tokens.iter().chain(batched).copied().chain(pushed).max().unwrap_or(0)
    }

    fn options(&self, args: &BenchArgs) -> OpenOptions {
        let options = args.model.options();
        // What was chosen is measured, also past the artifact's `max_length`.
        let chosen = self.chosen.then(|| self.longest() as usize);
        // Texts repeat, and none of their tokens is to be skipped.
        OpenOptions { max_length: options.max_length.or(chosen), prefix_cache_bytes: 0, ..options }
    }

    /// What fits into the guard's longest text.
    fn within(self, max_length: usize) -> Self {
        let fit = |list: Vec<u32>, more: u32| -> Vec<u32> {
            list.into_iter().filter(|&n| (n + more) as usize <= max_length).collect()
        };
        let batch_tokens = fit(self.batch_tokens, 0);
        Self {
            tokens: fit(self.tokens, 0),
            batches: if batch_tokens.is_empty() { Vec::new() } else { self.batches },
            batch_tokens,
            prefixes: fit(self.prefixes, self.push),
            ..self
        }
    }
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// A size of this process in MB (10^6 bytes), where the system tells.
fn memory(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
