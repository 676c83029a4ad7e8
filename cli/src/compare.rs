//! `siren compare`: what another dtype, backbone or device does to the scores of texts.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use siren::{Control, Error, Guard, Input, OpenOptions, OwnedInput, Result, Score, ScoreOptions};

use crate::args::CompareArgs;
use crate::jsonl;
use crate::output::{FAINT, Failure, HARMFUL, Outcome, STRONG, excerpt};

/// Texts that are scored in one call.
const BATCH: usize = 256;
const EXCERPT_WIDTH: usize = 60;

/// One line of the file.
struct Line {
    /// From 1.
    number: usize,
    input: Result<OwnedInput>,
}

/// A guard as it was opened.
struct Side {
    dtype: &'static str,
    device: String,
    backbone: String,
    scores: Vec<Result<Score>>,
}

/// A text that both sides scored.
struct Pair<'a> {
    line: &'a Line,
    score: f64,
    against: f64,
    changed: bool,
}

impl Pair<'_> {
    fn difference(&self) -> f64 {
        (self.score - self.against).abs()
    }
}

pub fn run(args: &CompareArgs) -> Outcome {
    let lines = match &args.file {
        Some(path) => read(BufReader::new(open(path)?), args.jsonl)?,
        None => read(std::io::stdin().lock(), args.jsonl)?,
    };
    let options = args.model.options();
    let mut other = options.clone();
    other.dtype = args.against_dtype.unwrap_or(other.dtype);
    other.device = args.against_device.unwrap_or(other.device);
    other.backbone = args.against_backbone.clone().or(other.backbone);
    // One after the other: two guards may not fit into memory.
    let side = score(options, &lines, args.threshold)?;
    let against = score(other, &lines, args.threshold)?;

    let mut pairs = Vec::new();
    let mut failed: Option<(usize, &Error)> = None;
    let mut failures = 0;
    for (line, scores) in lines.iter().zip(side.scores.iter().zip(&against.scores)) {
        match scores {
            (Ok(a), Ok(b)) => pairs.push(Pair {
                line,
                score: a.score,
                against: b.score,
                changed: a.is_harmful != b.is_harmful,
            }),
            (Err(error), _) | (_, Err(error)) => {
                failures += 1;
                failed = failed.or(Some((line.number, error)));
            }
        }
    }
    pairs.sort_by(|a, b| b.difference().total_cmp(&a.difference()));
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{}", report(&side, &against, &pairs, failures, args.worst as usize))?;
    } else {
        print(&mut out, &side, &against, &pairs, args.worst as usize)?;
    }
    if let Some((line, error)) = failed {
        let message = format!("{failures} texts were not scored; line {line}: {}", error.message());
        return Err(Failure::Library(Error::new(error.status(), message)));
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::argument(format!("{}: {e}", path.display())))
}

fn read(source: impl BufRead, is_jsonl: bool) -> std::io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (index, line) in source.split(b'\n').enumerate() {
        let line = line?;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let input = match (is_jsonl, std::str::from_utf8(line)) {
            (true, _) => jsonl::whole(line),
            (false, Ok(text)) => Ok(OwnedInput::Text(text.to_owned())),
            (false, Err(_)) => {
                Err(Error::new(siren::Status::InvalidUtf8, "the line is not valid UTF-8"))
            }
        };
        lines.push(Line { number: index + 1, input });
    }
    Ok(lines)
}

fn score(options: OpenOptions, lines: &[Line], threshold: Option<f64>) -> Result<Side> {
    let guard = Guard::open(options)?;
    let mut scores = Vec::with_capacity(lines.len());
    for batch in lines.chunks(BATCH) {
        let inputs: Vec<Input<'_>> =
            batch.iter().filter_map(|line| Some(line.input.as_ref().ok()?.as_input())).collect();
        let control = Control { wait: true, ..Control::default() };
        let options = ScoreOptions { threshold, control, ..ScoreOptions::default() };
        let mut scored = guard.score_batch(&inputs, options)?.into_iter();
        for line in batch {
            scores.push(match &line.input {
                Ok(_) => scored.next().unwrap_or_else(|| Err(Error::argument("not scored"))),
                Err(error) => Err(error.clone()),
            });
        }
    }
    let info = guard.info();
    let backbone = info.backbone_path.display().to_string();
    Ok(Side { dtype: info.dtype, device: info.device.clone(), backbone, scores })
}

/// The smallest difference that a share `q` of the texts does not exceed; `pairs` descend.
fn quantile(pairs: &[Pair<'_>], q: f64) -> Option<f64> {
    let rank = (q * pairs.len() as f64).ceil().max(1.0) as usize;
    pairs.len().checked_sub(rank).map(|i| pairs[i].difference())
}

fn changed(pairs: &[Pair<'_>]) -> usize {
    pairs.iter().filter(|pair| pair.changed).count()
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn report(side: &Side, against: &Side, pairs: &[Pair<'_>], failed: usize, worst: usize) -> Value {
    let opened = |side: &Side| json!({ "dtype": side.dtype, "device": side.device, "backbone": side.backbone });
    let worst: Vec<Value> = pairs
        .iter()
        .take(worst)
        .map(|pair| {
            json!({
                "line": pair.line.number,
                "score": pair.score,
                "against": pair.against,
                "changed": pair.changed,
            })
        })
        .collect();
    json!({
        "texts": pairs.len(),
        "failed": failed,
        "guard": opened(side),
        "against": opened(against),
        "difference": {
            "median": quantile(pairs, 0.5),
            "p99": quantile(pairs, 0.99),
            "worst": quantile(pairs, 1.0),
        },
        "changed": changed(pairs),
        "changed_share": share(changed(pairs), pairs.len()),
        "worst": worst,
    })
}

fn print(
    out: &mut impl Write,
    side: &Side,
    against: &Side,
    pairs: &[Pair<'_>],
    worst: usize,
) -> std::io::Result<()> {
    for (name, side) in [("guard", side), ("against", against)] {
        writeln!(
            out,
            "{STRONG}{name:<8}{STRONG:#} {} on {}, {}",
            side.dtype, side.device, side.backbone
        )?;
    }
    writeln!(out, "{STRONG}texts{STRONG:#}    {}", pairs.len())?;
    let at = |q| quantile(pairs, q).unwrap_or(0.0);
    writeln!(
        out,
        "scores differ by {:.5} in the median, {:.5} at the 99th percentile, {:.5} at most",
        at(0.5),
        at(0.99),
        at(1.0)
    )?;
    let changes = changed(pairs);
    writeln!(out, "decisions changed: {changes} ({:.2}%)", 100.0 * share(changes, pairs.len()))?;
    for Pair { line, score, against, changed } in pairs.iter().take(worst) {
        let text = match &line.input {
            Ok(OwnedInput::Text(text)) => text.clone(),
            Ok(OwnedInput::Exchange { prompt, response }) => {
                [prompt.as_deref(), response.as_deref()].map(Option::unwrap_or_default).join(" ⏎ ")
            }
            Err(_) => String::new(),
        };
        let (style, mark) = if *changed { (HARMFUL, "changed") } else { (FAINT, "") };
        let (number, text) = (line.number, excerpt(text.trim_start(), EXCERPT_WIDTH));
        writeln!(
            out,
            "{FAINT}line {number:<6}{FAINT:#} {score:.4} {against:.4}  \
             {style}{mark:<7}{style:#}  {text}"
        )?;
    }
    Ok(())
}
