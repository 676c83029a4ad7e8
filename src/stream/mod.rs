//! A response that grows, scored after every push at the cost of its new tokens.

mod live;
mod track;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub(crate) use live::Live;
use live::Seat;
pub(crate) use track::ends;
use track::{Rules, Track, Wanted};

use crate::call::{Control, PushOptions, StreamOptions};
use crate::engine::{Job, Ran};
use crate::error::{Error, Result, Status};
use crate::guard::{BestWindow, Completion, Core};
use crate::text::{self, Growing, Next};
use crate::windows::Layout;

/// Where a stream's running score first reached the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// 0-based index in the tokens of that prefix, special ones and the prompt's counted.
    pub token: usize,
    /// Offset in the pushed bytes of that token's end.
    pub byte: usize,
}

/// What a stream's whole prefix scores after a push.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Probability that the prefix is harmful, from 0 to 1: an f32, widened.
    pub score: f64,
    /// `score >= threshold`: of this prefix, whatever earlier ones scored.
    pub is_harmful: bool,
    /// The threshold that was compared with.
    pub threshold: f64,
    /// Tokens of the prefix that were scored, special ones and the prompt's included.
    pub tokens: usize,
    /// The prefix has more tokens than `max_length`, and the rest was not read.
    pub truncated: bool,
    /// The first crossing; once reported it stays.
    pub first_crossing: Option<Crossing>,
    /// Pushed bytes, whole characters, that a proxy may show: up to the last token at or before
    /// which no running score reached the threshold (with a hysteresis, as part of a run that may
    /// still become a crossing). Bytes that may still become a marker, and white space at the end,
    /// are held back. Never shrinks, also where a later push makes other tokens of the last word
    /// and one of these crosses: the crossing may then lie before it.
    pub cleared: usize,
    /// With windows: which one scored highest.
    pub window: Option<BestWindow>,
    /// When asked for: the running score after each token that this push ran, of which the first
    /// is `first_scored` in the prefix's tokens.
    pub token_scores: Vec<f64>,
    /// Index of the first token of `token_scores`.
    pub first_scored: usize,
}

/// A growing response on a guard, after an optional prompt. It keeps what it needs of its guard
/// alive. It belongs to one thread at a time: a call while another runs is `InUse`.
pub struct Stream {
    shared: Arc<Shared>,
}

struct Shared {
    core: Arc<Core>,
    rules: Rules,
    prompt: Option<String>,
    in_windows: bool,
    /// As many tokens of text as are ever looked at.
    limit: usize,
    seat: Arc<Seat>,
    /// Absent while a call has it.
    state: Mutex<Option<State>>,
}

#[derive(Clone)]
struct State {
    growing: Growing,
    /// Pushed bytes that are whole characters.
    pushed: usize,
    /// The first bytes of a character that was split between pushes.
    split: Vec<u8>,
    track: Track,
    finished: bool,
}

/// The state while a call has it; it goes back when the call ends, however that is.
struct Taken {
    shared: Arc<Shared>,
    state: Option<State>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner) = self.state.take();
    }
}

impl Stream {
    pub(crate) fn new(core: Arc<Core>, options: StreamOptions) -> Result<Self> {
        core.check()?;
        let threshold = core.threshold(options.threshold)?;
        let prompt = options.prompt.filter(|prompt| !prompt.is_empty());
        core.check_text(prompt.as_ref().map_or(0, String::len))?;
        let special = core.tokenizer.special().clone();
        let room = core.info.max_length - special.len();
        let layout = match options.windows {
            Some(windows) => core.layout(windows)?,
            None => Layout::single(room),
        };
        let rules = Rules { threshold, hysteresis: options.hysteresis.max(1), layout, special };
        let seat = core.live.seat()?;
        let state = State::new(prompt.as_deref());
        Ok(Self {
            shared: Arc::new(Shared {
                limit: if options.windows.is_some() { usize::MAX } else { room },
                in_windows: options.windows.is_some(),
                core,
                rules,
                prompt,
                seat,
                state: Mutex::new(Some(state)),
            }),
        })
    }

    /// Adds `bytes` of UTF-8 (a character may be split between pushes) and scores the prefix.
    ///
    /// # Errors
    /// As [`crate::Guard::score`]; also `InUse`, and `InvalidUtf8`. The stream is then as it was
    /// before.
    pub fn push(&self, bytes: &[u8], options: impl Into<PushOptions>) -> Result<Push> {
        self.call(bytes, options.into(), false)
    }

    /// Says that nothing more comes: the last result, with every byte cleared that can be. Pushes
    /// are `InvalidArgument` from then on, until [`Stream::reset`].
    ///
    /// # Errors
    /// As [`Stream::push`]; `InvalidUtf8` when half a character is held back.
    pub fn finish(&self, options: impl Into<PushOptions>) -> Result<Push> {
        self.call(b"", options.into(), true)
    }

    /// Forgets what was pushed and keeps the prompt and the options.
    ///
    /// # Errors
    /// `InUse`, `Forked`.
    pub fn reset(&self) -> Result<()> {
        let mut taken = self.take()?;
        taken.state = Some(State::new(self.shared.prompt.as_deref()));
        Ok(())
    }

    /// A second stream in the same state; what has run is shared, not run again.
    ///
    /// # Errors
    /// `InUse`, `Forked`; `LimitExceeded` when too many streams are open.
    pub fn fork(&self) -> Result<Stream> {
        let taken = self.take()?;
        let Shared { core, rules, prompt, in_windows, limit, seat, .. } = &*self.shared;
        let other = core.live.seat()?;
        other.put(seat.all());
        core.live.fit();
        Ok(Self {
            shared: Arc::new(Shared {
                core: core.clone(),
                rules: rules.clone(),
                prompt: prompt.clone(),
                in_windows: *in_windows,
                limit: *limit,
                seat: other,
                state: Mutex::new(taken.state.clone()),
            }),
        })
    }

    /// As [`Stream::push`], without blocking: `done` is called once, on a thread of the guard's
    /// own, and may call into the guard. The stream is in use until then.
    ///
    /// # Errors
    /// `InUse`, `Busy` and bad arguments at once; `done` is then not called.
    pub fn push_async(
        &self,
        bytes: Vec<u8>,
        options: PushOptions,
        done: impl FnOnce(Result<Push>) + Send + 'static,
    ) -> Result<()> {
        self.call_async(bytes, options, false, done)
    }

    /// As [`Stream::finish`], without blocking: `done` is called as by [`Stream::push_async`].
    ///
    /// # Errors
    /// As [`Stream::push_async`].
    pub fn finish_async(
        &self,
        options: PushOptions,
        done: impl FnOnce(Result<Push>) + Send + 'static,
    ) -> Result<()> {
        self.call_async(vec![], options, true, done)
    }

    fn call_async(
        &self,
        bytes: Vec<u8>,
        options: PushOptions,
        last: bool,
        done: impl FnOnce(Result<Push>) + Send + 'static,
    ) -> Result<()> {
        let core = &self.shared.core;
        core.counters.pushes.add(1);
        let begin = || {
            let taken = self.take()?;
            taken.check_open()?;
            Ok(move |completion: Completion<_>| match taken.plan(&bytes, last, &options.control) {
                Err(error) => {
                    drop(taken);
                    completion.answer(Err(error));
                }
                Ok((plan, jobs)) => {
                    let core = taken.shared.core.clone();
                    core.submit(jobs, options.control, move |ran| {
                        let complete = |ran| taken.complete(plan, ran, options.token_scores);
                        completion.answer(ran.and_then(complete));
                    });
                }
            })
        };
        core.detach(begin, done)
    }

    fn call(&self, bytes: &[u8], options: PushOptions, last: bool) -> Result<Push> {
        let core = &self.shared.core;
        let start = Instant::now();
        core.counters.pushes.add(1);
        let push = || {
            options.control.check()?;
            let taken = self.take()?;
            taken.check_open()?;
            let (plan, jobs) = core.pool.install(|| taken.plan(bytes, last, &options.control))?;
            let ran = core.scheduler.run(jobs, &options.control)?;
            taken.complete(plan, ran, options.token_scores)
        };
        let pushed = push();
        core.count(start, pushed.as_ref().err());
        pushed
    }

    fn take(&self) -> Result<Taken> {
        self.shared.core.check()?;
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        let state = state.ok_or_else(|| {
            Error::new(
                Status::InUse,
                "another call is using this stream: it belongs to one thread at a time",
            )
        })?;
        Ok(Taken { shared: self.shared.clone(), state: Some(state) })
    }
}

/// What a push will change when its jobs have run.
struct Plan {
    next: Next,
    wanted: Vec<Wanted>,
    pushed: usize,
    split: Vec<u8>,
    last: bool,
}

impl State {
    fn new(prompt: Option<&str>) -> Self {
        Self {
            growing: Growing::new(prompt),
            pushed: 0,
            split: vec![],
            track: Track::default(),
            finished: false,
        }
    }
}

impl Taken {
    fn state(&self) -> Result<&State> {
        self.state.as_ref().ok_or_else(|| Error::internal("a stream without its state"))
    }

    fn check_open(&self) -> Result<()> {
        if self.state()?.finished {
            return Err(Error::argument("the stream was finished: reset it to push again"));
        }
        Ok(())
    }

    /// What is to be run when `bytes` are added; changes nothing.
    fn plan(&self, bytes: &[u8], last: bool, control: &Control) -> Result<(Plan, Vec<Job>)> {
        let Shared { core, rules, limit, seat, .. } = &*self.shared;
        let state = self.state()?;
        core.check_text(bytes.len().saturating_add(state.growing.unsettled_bytes()))?;
        let (more, split) = whole_characters(&state.split, bytes, state.pushed)?;
        if last && !split.is_empty() {
            return Err(Error::new(
                Status::InvalidUtf8,
                format!(
                    "the stream ends inside a character, {} bytes after byte {}",
                    split.len(),
                    state.pushed
                ),
            ));
        }
        let next = text::caught(|| {
            #[cfg(feature = "planted-panics")]
            assert!(more != crate::guard::planted::WHILE_PREPARING, "{more}");
            state.growing.next(&core.tokenizer, &more, *limit, control)
        })?;
        let view = state.growing.view(&next);
        let wanted = state.track.wanted(rules, &view);
        let jobs = wanted
            .iter()
            .filter_map(|window| {
                window.job(rules, view.len(), seat.get(window.index()), |tokens| {
                    seat.live().keeps(tokens.saturating_mul(core.info.kv_token_bytes))
                })
            })
            .collect();
        let pushed = state.pushed + more.len();
        Ok((Plan { next, wanted, pushed, split, last }, jobs))
    }

    /// Takes in what came of the jobs.
    fn complete(mut self, plan: Plan, ran: Vec<Result<Ran>>, token_scores: bool) -> Result<Push> {
        let shared = self.shared.clone();
        let mut ran = ran.into_iter().collect::<Result<Vec<_>>>()?.into_iter();
        let Plan { next, wanted, pushed, split, last } = plan;
        let mut kept = Vec::new();
        let ran: Vec<Option<Ran>> = wanted
            .iter()
            .map(|window| {
                if !window.is_to_run() {
                    kept.extend(shared.seat.get(window.index()).map(|p| (window.index(), p)));
                    return None;
                }
                let mut ran = ran.next()?;
                kept.extend(ran.prefix.take().map(|prefix| (window.index(), prefix)));
                Some(ran)
            })
            .collect();
        let mut state = self.state()?.clone();
        let scored = state.track.update(&shared.rules, &mut state.growing, next, wanted, ran)?;
        state.pushed = pushed;
        state.split = split;
        state.finished = last;
        if last && state.track.crossing.is_none() && !scored.truncated {
            state.track.cleared = pushed;
        }
        kept.retain(|(index, _)| *index >= state.track.folded());
        shared.seat.put(kept);
        shared.core.live.fit();
        let score = f64::from(scored.score);
        let threshold = shared.rules.threshold;
        let push = Push {
            score,
            is_harmful: score >= threshold,
            threshold,
            tokens: scored.tokens,
            truncated: scored.truncated,
            first_crossing: state.track.crossing,
            cleared: state.track.cleared,
            window: shared.in_windows.then_some(scored.window),
            token_scores: if token_scores { scored.token_scores } else { vec![] },
            first_scored: scored.first_scored,
        };
        shared.core.counters.harmful.add(push.is_harmful.into());
        self.state = Some(state);
        Ok(push)
    }
}

/// The whole characters of what was held back and what is new, and what is held back now.
///
/// # Errors
/// `InvalidUtf8` for bytes that no later ones can make a character of.
fn whole_characters(split: &[u8], bytes: &[u8], pushed: usize) -> Result<(String, Vec<u8>)> {
    let mut all = split.to_vec();
    all.extend_from_slice(bytes);
    match std::str::from_utf8(&all) {
        Ok(_) => {}
        Err(e) if e.error_len().is_none() => {
            let held = all.split_off(e.valid_up_to());
            let text = String::from_utf8(all).unwrap_or_default();
            return Ok((text, held));
        }
        Err(e) => {
            let at = pushed + e.valid_up_to();
            return Err(Error::new(
                Status::InvalidUtf8,
                format!("the pushed bytes are not valid UTF-8 at byte {at} of the stream"),
            ));
        }
    }
    Ok((String::from_utf8(all).unwrap_or_default(), vec![]))
}
