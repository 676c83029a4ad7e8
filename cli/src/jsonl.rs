//! `siren score --jsonl`: one object a line in, one a line out, in the same order.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::{Value, json};
use siren::{Error, Guard, Input, Result, Score, Status};

use crate::output::{Failure, Outcome};

/// Lines that are scored in one call, when that many wait.
const MAX_LINES: usize = 256;

/// Scores standard input line by line. A single line is answered at once; lines that wait share
/// calls.
pub fn run(guard: &Guard, threshold: Option<f64>, strict: bool) -> Outcome {
    let lines = read_lines();
    let mut out = std::io::stdout().lock();
    let mut failed = false;
    while let Ok(first) = lines.recv() {
        let mut batch = vec![first];
        batch.extend(lines.try_iter().take(MAX_LINES - 1));
        let batch = batch.into_iter().collect::<std::io::Result<Vec<_>>>()?;
        let requests: Vec<Request> = batch.iter().map(|line| Request::parse(line)).collect();
        for (request, result) in requests.iter().zip(score(guard, &requests, threshold)?) {
            failed |= result.is_err();
            serde_json::to_writer(&mut out, &answer(&request.id, result))
                .map_err(|e| Failure::from(std::io::Error::from(e)))?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    Ok(if failed && strict { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Reads on a thread of its own, so that what has come so far is scored while more comes.
fn read_lines() -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = sync_channel(2 * MAX_LINES);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            let blank = matches!(&line, Ok(line) if line.iter().all(u8::is_ascii_whitespace));
            if !blank && sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// One line.
struct Request {
    id: Value,
    content: Result<Content>,
}

enum Content {
    Text(String),
    Exchange { prompt: Option<String>, response: Option<String> },
}

impl Request {
    fn parse(line: &[u8]) -> Self {
        let object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => {
                let error = Error::argument("the line is not a JSON object");
                return Self { id: Value::Null, content: Err(error) };
            }
            Err(e) => {
                let error = Error::argument(format!("the line is not valid JSON: {e}"));
                return Self { id: Value::Null, content: Err(error) };
            }
        };
        let id = object.get("id").cloned().unwrap_or(Value::Null);
        Self { id, content: content(&object) }
    }
}

fn content(object: &serde_json::Map<String, Value>) -> Result<Content> {
    let string = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::argument(format!("{key:?} is not a string"))),
    };
    for key in ["stream", "messages"] {
        if object.get(key).is_some_and(|value| !value.is_null()) {
            return Err(Error::new(
                Status::Unsupported,
                format!("{key:?} is not served by this version"),
            ));
        }
    }
    match (string("text")?, string("prompt")?, string("response")?) {
        (Some(text), None, None) => Ok(Content::Text(text)),
        (Some(_), ..) => Err(Error::argument(
            "\"text\" stands together with \"prompt\" or \"response\", expected one or the other",
        )),
        (None, None, None) => {
            Err(Error::argument("the line has none of \"text\", \"prompt\" and \"response\""))
        }
        (None, prompt, response) => Ok(Content::Exchange { prompt, response }),
    }
}

/// One result a request; requests that did not parse keep their error.
fn score(
    guard: &Guard,
    requests: &[Request],
    threshold: Option<f64>,
) -> Result<Vec<Result<Score>>> {
    let inputs: Vec<Input<'_>> = requests
        .iter()
        .filter_map(|request| request.content.as_ref().ok())
        .map(|content| match content {
            Content::Text(text) => Input::Text(text),
            Content::Exchange { prompt, response } => {
                Input::Exchange { prompt: prompt.as_deref(), response: response.as_deref() }
            }
        })
        .collect();
    let mut scores = guard.score_batch(&inputs, threshold)?.into_iter();
    Ok(requests
        .iter()
        .map(|request| match &request.content {
            Ok(_) => {
                scores.next().unwrap_or_else(|| Err(Error::internal("a line without a result")))
            }
            Err(error) => Err(error.clone()),
        })
        .collect())
}

fn answer(id: &Value, result: Result<Score>) -> Value {
    match result {
        Ok(score) => json!({
            "id": id,
            "score": score.score,
            "is_harmful": score.is_harmful,
            "threshold": score.threshold,
            "tokens": score.tokens,
            "truncated": score.truncated,
        }),
        Err(error) => json!({
            "id": id,
            "error": { "status": error.status().name(), "message": error.message() },
        }),
    }
}
