//! `siren watch`: a text is scored while it is written.

mod live;
mod tail;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::json;
use siren::{Error, Guard, Push, PushOptions, Status, Stream, StreamOptions};

use crate::args::WatchArgs;
use crate::output::{Failure, Outcome, Row, bad_usage, crossing_json, window_json};
use live::Live;
use tail::{AROUND, Tail};

/// What the process ends with when the text crossed.
const CROSSED: u8 = 3;
/// Bytes of a push, about: a file that is piped in is scored step by step, as a model's answer is.
const MAX_PUSH: usize = 16 << 10;
const READ: usize = 4 << 10;

pub fn run(args: &WatchArgs) -> Outcome {
    if std::io::stdin().is_terminal() {
        bad_usage("nothing to watch: pipe a text in, as in `model | siren watch`");
    }
    let guard = Guard::open(args.model.options())?;
    let stream = guard.stream(StreamOptions {
        prompt: args.prompt.clone(),
        threshold: args.threshold,
        hysteresis: args.hysteresis as usize,
        windows: args.windows.windows(),
    })?;
    let mut watch = Watch::new(args);
    let followed = follow(args, &stream, &mut watch);
    let said = watch.leave().map_err(Failure::from).and_then(|()| watch.say(&followed?));
    match said {
        // When nobody reads on, what is known is the answer.
        Ok(()) | Err(Failure::Closed) if watch.crossed => Ok(ExitCode::from(CROSSED)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) => Err(failure),
    }
}

/// Pushes standard input to its end, or to the crossing; gives the last result.
fn follow(args: &WatchArgs, stream: &Stream, watch: &mut Watch<'_>) -> Result<Push, Failure> {
    let reads = read();
    while let Some(bytes) = next(&reads)? {
        watch.tail.add(&bytes);
        let push = stream.push(&bytes, PushOptions::default())?;
        watch.take(&push, false)?;
        if args.stop_at_crossing && watch.crossed {
            return Ok(push);
        }
    }
    let push = stream.finish(PushOptions::default())?;
    watch.take(&push, true)?;
    Ok(push)
}

/// Reads on a thread of its own, so that what comes while a push runs waits for the next one.
fn read() -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = sync_channel(MAX_PUSH / READ);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; READ];
        loop {
            let read = match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => Ok(buffer[..count].to_vec()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = read.is_err();
            if sender.send(read).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

/// What has come since the last push; `None` at the end.
fn next(reads: &Receiver<std::io::Result<Vec<u8>>>) -> std::io::Result<Option<Vec<u8>>> {
    let Ok(first) = reads.recv() else { return Ok(None) };
    let mut bytes = first?;
    while bytes.len() < MAX_PUSH
        && let Ok(more) = reads.try_recv()
    {
        bytes.append(&mut more?);
    }
    Ok(Some(bytes))
}

/// What is shown of a stream.
struct Watch<'a> {
    args: &'a WatchArgs,
    tail: Tail,
    live: Option<Live>,
    crossed: bool,
    /// The last byte that was passed on.
    passed: Option<u8>,
}

impl<'a> Watch<'a> {
    fn new(args: &'a WatchArgs) -> Self {
        // Text that is passed on may run over the same terminal, also through the next command of a
        // pipe: it is live enough, and the line would tear it.
        let is_hidden = args.json || args.pass;
        Self {
            args,
            tail: Tail::default(),
            live: if is_hidden { None } else { Live::new() },
            crossed: false,
            passed: None,
        }
    }

    /// Passes on what `push` cleared, and shows what it scored.
    fn take(&mut self, push: &Push, finished: bool) -> Result<(), Failure> {
        self.crossed = push.first_crossing.is_some();
        let cleared = self.tail.cleared(push);
        if self.args.pass && !cleared.is_empty() {
            let mut out = std::io::stdout().lock();
            out.write_all(&cleared)?;
            out.flush()?;
            self.passed = cleared.last().copied();
        }
        if self.args.json {
            self.print(|out| writeln!(out, "{}", self.object(push, finished)))?;
        }
        if self.args.pass && push.truncated && !self.crossed {
            return Err(Failure::Library(Error::new(
                Status::LimitExceeded,
                format!(
                    "the text is longer than {} tokens, and what follows was not read and is not \
                     passed on: --windows reads it",
                    push.tokens
                ),
            )));
        }
        if let Some(live) = &self.live {
            live.show(push, &self.tail);
        }
        Ok(())
    }

    fn object(&self, push: &Push, finished: bool) -> serde_json::Value {
        let mut object = json!({
            "score": push.score,
            "is_harmful": push.is_harmful,
            "threshold": push.threshold,
            "tokens": push.tokens,
            "truncated": push.truncated,
            "first_crossing": crossing_json(push.first_crossing),
            "bytes": self.tail.len(),
            "cleared": push.cleared,
            "finished": finished,
        });
        if let Some(window) = push.window {
            object["window"] = window_json(window);
        }
        object
    }

    /// Leaves the terminal with its cursor where a line begins.
    fn leave(&mut self) -> std::io::Result<()> {
        self.live = None;
        let mut stderr = std::io::stderr();
        if self.passed.is_some_and(|byte| byte != b'\n') && stderr.is_terminal() {
            writeln!(stderr)?;
        }
        Ok(())
    }

    /// The last word, for a person.
    fn say(&self, push: &Push) -> Result<(), Failure> {
        if self.args.json {
            return Ok(());
        }
        let (bytes, threshold) = (self.tail.len(), push.threshold);
        let text = match push.first_crossing {
            Some(crossing) => {
                let marked = self.tail.marked(crossing, AROUND);
                format!("crossed {threshold} at byte {}: {marked}", crossing.byte)
            }
            None if push.truncated => format!(
                "{bytes} bytes; what was read did not cross {threshold}, --windows reads the rest"
            ),
            None => format!("{bytes} bytes, did not cross {threshold}"),
        };
        let row = Row {
            score: push.score,
            is_harmful: push.is_harmful,
            tokens: push.tokens,
            truncated: push.truncated,
            window: push.window,
            text,
        };
        self.print(|out| row.write(out))?;
        Ok(())
    }

    /// To standard output, unless the text goes there.
    fn print(
        &self,
        print: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if self.args.pass { print(&mut anstream::stderr()) } else { print(&mut anstream::stdout()) }
    }
}
