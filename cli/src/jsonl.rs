//! `siren score --jsonl`: one object a line in, one a line out, in the same order.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::{Map, Value, json};
use siren::{Error, Guard, OwnedInput, Push, Result, Score, Status};

use crate::output::{Failure, Outcome, crossing_json, window_json};
use crate::score::How;

/// Lines that are scored in one call, when that many wait.
const MAX_LINES: usize = 256;
/// Streams of waiting lines that are pushed to at once: as many pushes share the guard's passes.
const MAX_STREAMS: usize = 16;

/// Scores standard input line by line. A single line is answered at once; lines that wait share
/// calls.
pub fn run(guard: &Guard, how: &How, strict: bool) -> Outcome {
    // Options that this guard cannot serve are no line's error.
    guard.stream(how.stream(None))?;
    let lines = read_lines();
    let mut out = std::io::stdout().lock();
    let mut failed = false;
    while let Ok(first) = lines.recv() {
        let mut batch = vec![first];
        batch.extend(lines.try_iter().take(MAX_LINES - 1));
        let batch = batch.into_iter().collect::<std::io::Result<Vec<_>>>()?;
        let requests: Vec<Request> = batch.iter().map(|line| Request::parse(line)).collect();
        for (request, result) in requests.iter().zip(score(guard, &requests, how)?) {
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

/// What a line asks to be scored as a whole.
///
/// # Errors
/// What is wrong with the line; that it is a stream.
pub fn whole(line: &[u8]) -> Result<OwnedInput> {
    match Request::parse(line).content? {
        Content::Whole(input) => Ok(input),
        Content::Stream { .. } => {
            Err(Error::argument("the line is a \"stream\", expected a text as a whole"))
        }
    }
}

/// One line.
struct Request {
    id: Value,
    content: Result<Content>,
}

enum Content {
    Whole(OwnedInput),
    Stream { prompt: Option<String>, chunks: Vec<String> },
}

/// What a line scored.
enum Scored {
    Whole(Score),
    Stream {
        chunks: Vec<Push>,
        /// Of the whole, also when there are no chunks.
        last: Push,
    },
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

fn content(object: &Map<String, Value>) -> Result<Content> {
    let string = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::argument(format!("{key:?} is not a string"))),
    };
    if object.get("messages").is_some_and(|value| !value.is_null()) {
        return Err(Error::new(Status::Unsupported, "\"messages\" is not served by this version"));
    }
    match (string("text")?, string("prompt")?, string("response")?, chunks(object)?) {
        (None, prompt, None, Some(chunks)) => Ok(Content::Stream { prompt, chunks }),
        (.., Some(_)) => Err(Error::argument(
            "\"stream\" stands together with \"text\" or \"response\", expected one or the other",
        )),
        (Some(text), None, None, None) => Ok(Content::Whole(OwnedInput::Text(text))),
        (Some(_), ..) => Err(Error::argument(
            "\"text\" stands together with \"prompt\" or \"response\", expected one or the other",
        )),
        (None, None, None, None) => Err(Error::argument(
            "the line has none of \"text\", \"prompt\", \"response\" and \"stream\"",
        )),
        (None, prompt, response, None) => {
            Ok(Content::Whole(OwnedInput::Exchange { prompt, response }))
        }
    }
}

/// The chunks of a stream.
fn chunks(object: &Map<String, Value>) -> Result<Option<Vec<String>>> {
    let values = match object.get("stream") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(Error::argument("\"stream\" is not an array of strings")),
    };
    let chunk = |(index, value): (usize, &Value)| {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| Error::argument(format!("\"stream\"[{index}] is not a string")))
    };
    values.iter().enumerate().map(chunk).collect::<Result<_>>().map(Some)
}

/// One result a request; requests that did not parse keep their error. Texts run in one call,
/// streams beside it.
fn score(guard: &Guard, requests: &[Request], how: &How) -> Result<Vec<Result<Scored>>> {
    let mut texts = Vec::new();
    let mut streams = Vec::new();
    let mut results = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        match &request.content {
            Ok(Content::Whole(input)) => texts.push((index, input.as_input())),
            Ok(Content::Stream { prompt, chunks }) => streams.push((index, prompt, chunks)),
            Err(error) => results.push((index, Err(error.clone()))),
        }
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            while let Some((index, prompt, chunks)) =
                streams.get(next.fetch_add(1, Ordering::Relaxed))
            {
                done.push((*index, push_all(guard, how, prompt, chunks)));
            }
            done
        };
        let threads: Vec<_> =
            (0..streams.len().min(MAX_STREAMS)).map(|_| scope.spawn(work)).collect();
        if !texts.is_empty() {
            let inputs: Vec<_> = texts.iter().map(|(_, input)| *input).collect();
            let scores = how.score(guard, &inputs)?.into_iter();
            let scores = scores.map(|score| score.map(Scored::Whole));
            results.extend(texts.iter().map(|(index, _)| *index).zip(scores));
        }
        for thread in threads {
            let done = thread.join();
            results.extend(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        Ok::<_, Error>(())
    })?;
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn push_all(
    guard: &Guard,
    how: &How,
    prompt: &Option<String>,
    chunks: &[String],
) -> Result<Scored> {
    let stream = guard.stream(how.stream(prompt.clone()))?;
    let push = |chunk: &str| stream.push(chunk.as_bytes(), how.push());
    let chunks = chunks.iter().map(|chunk| push(chunk)).collect::<Result<Vec<_>>>()?;
    let last = chunks.last().cloned().map_or_else(|| push(""), Ok)?;
    Ok(Scored::Stream { chunks, last })
}

fn answer(id: &Value, result: Result<Scored>) -> Value {
    let (mut answer, window) = match result {
        Ok(Scored::Whole(score)) => (
            json!({
                "id": id,
                "score": score.score,
                "is_harmful": score.is_harmful,
                "threshold": score.threshold,
                "tokens": score.tokens,
                "truncated": score.truncated,
            }),
            score.window,
        ),
        Ok(Scored::Stream { chunks, last }) => (
            json!({
                "id": id,
                "scores": chunks.iter().map(|push| push.score).collect::<Vec<_>>(),
                "is_harmful": last.is_harmful,
                "threshold": last.threshold,
                "first_crossing": crossing_json(last.first_crossing),
                "tokens": chunks.iter().map(|push| push.tokens).collect::<Vec<_>>(),
                "truncated": chunks.iter().map(|push| push.truncated).collect::<Vec<_>>(),
            }),
            last.window,
        ),
        Err(error) => (
            json!({
                "id": id,
                "error": { "status": error.status().name(), "message": error.message() },
            }),
            None,
        ),
    };
    if let Some(window) = window {
        answer["window"] = window_json(window);
    }
    answer
}
