//! llm-siren in a process of its own: the same texts, timed there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use siren::{Error, Info, Result, Status};

const SCRIPT: &str = include_str!("reference.py");
/// The version that this one is held against in its tests.
const PACKAGE: &str = "llm-siren==0.2.0";

pub struct Reference {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    python: String,
    /// What it said of itself when it had opened.
    pub opened: Value,
    /// Resident memory now and at most, in MB, where the system tells.
    pub rss_mb: [Value; 2],
}

/// One call there.
pub struct Answer {
    pub ms: f64,
    pub scores: Vec<f64>,
}

impl Reference {
    /// The guard that `info` describes, on the same device and as many threads, in the same dtype:
    /// where it has none such, in its own default, bf16.
    ///
    /// # Errors
    /// `NotFound` when the interpreter or the package is not there, `Unsupported` for a GGUF
    /// backbone, `Internal` with its own words when it fails.
    pub fn open(python: &str, info: &Info) -> Result<Self> {
        if !info.backbone_path.is_dir() {
            return Err(failed(
                Status::Unsupported,
                format!(
                    "it reads no GGUF backbone ({}), a directory was expected",
                    info.backbone_path.display()
                ),
            ));
        }
        let asked = json!({
            "artifact": absolute(&info.model_dir)?,
            "backbone": absolute(&info.backbone_path)?,
            "device": info.device,
            "dtype": if info.dtype == "f32" { "float32" } else { "bfloat16" },
            "threads": info.threads,
            "max_length": info.max_length,
        });
        let mut process = Command::new(python)
            .args(["-c", SCRIPT, &asked.to_string()])
            .env("OMP_NUM_THREADS", info.threads.to_string())
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                failed(
                    Status::NotFound,
                    format!(
                        "{python:?} cannot be started ({error}); name a Python interpreter that \
                         has {PACKAGE} with --python"
                    ),
                )
            })?;
        let requests = process.stdin.take().expect("it is piped");
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut reference = Self {
            process,
            requests,
            answers,
            python: python.into(),
            opened: Value::Null,
            rss_mb: [Value::Null, Value::Null],
        };
        reference.opened = reference.answer()?;
        let field = |name| reference.opened[name].clone();
        reference.rss_mb = [field("open_rss_mb"), field("open_peak_rss_mb")];
        Ok(reference)
    }

    /// Scores texts in one call.
    pub fn score(&mut self, texts: &[&str]) -> Result<Answer> {
        // When it has ended, the answer tells.
        let _ = writeln!(self.requests, "{}", json!({ "texts": texts }));
        let answer = self.answer()?;
        self.rss_mb = ["rss_mb", "peak_rss_mb"].map(|name| answer[name].clone());
        let scores: Option<Vec<f64>> =
            answer["scores"].as_array().and_then(|all| all.iter().map(Value::as_f64).collect());
        match (answer["ms"].as_f64(), scores) {
            (Some(ms), Some(scores)) if scores.len() == texts.len() => Ok(Answer { ms, scores }),
            _ => Err(failed(
                Status::Internal,
                format!("{answer} is no answer to {} texts", texts.len()),
            )),
        }
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        let Ok(answer) = serde_json::from_str::<Value>(&line) else {
            let how = match (read, self.process.wait()) {
                (Ok(0), Ok(status)) => status.to_string(),
                _ => format!("{line:?} is not an answer"),
            };
            return Err(failed(Status::Internal, format!("{} ended early: {how}", self.python)));
        };
        match (answer["missing"].as_str(), answer["error"].as_str()) {
            (Some(module), _) => Err(failed(
                Status::NotFound,
                format!(
                    "{} has no module {module:?}; install the package with `{} -m pip install \
                     {PACKAGE}`, or name another interpreter with --python",
                    self.python, self.python
                ),
            )),
            (None, Some(words)) => Err(failed(Status::Internal, words.into())),
            _ => Ok(answer),
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // It holds gigabytes, and may be anywhere.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn failed(status: Status, words: String) -> Error {
    Error::new(status, format!("--against llm-siren: {words}"))
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|error| Error::io(path.display(), &error))?;
    path.to_str().map(str::to_owned).ok_or_else(|| {
        failed(Status::Unsupported, format!("{} is not valid Unicode", path.display()))
    })
}
