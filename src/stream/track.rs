//! From the running scores of a growing text to its score, its first crossing, and the bytes that
//! may be shown.

use std::sync::Arc;

use super::Crossing;
use crate::engine::{Job, Ran, common};
use crate::error::{Error, Result};
use crate::guard::BestWindow;
use crate::text::{Growing, Next, Special, View};
use crate::windows::Layout;

/// What does not change over a stream's life.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) threshold: f64,
    /// Tokens in a row at or above the threshold that make a crossing; at least 1.
    pub(super) hysteresis: usize,
    pub(super) layout: Layout,
    /// What stands around every window.
    pub(super) special: Arc<Special>,
}

/// What is known of a stream's windows.
#[derive(Clone, Default)]
pub(super) struct Track {
    /// Windows that can never change and that another follows: how many, and the best of them.
    folded: usize,
    best: Option<Best>,
    /// As the tokens of the folded windows left it.
    run: Run,
    /// The windows after them; the last one grows.
    windows: Vec<Window>,
    pub(super) crossing: Option<Crossing>,
    /// Pushed bytes that may be shown.
    pub(super) cleared: usize,
}

#[derive(Clone, Copy)]
struct Best {
    score: f32,
    index: usize,
    start: usize,
    end: usize,
}

/// One window that was scored.
#[derive(Clone)]
struct Window {
    /// With the special tokens.
    tokens: Arc<[u32]>,
    score: f32,
    /// Running scores of the text's tokens from `first` on.
    first: usize,
    running: Vec<f32>,
}

/// How many tokens in a row have been at or above the threshold, and where they began.
#[derive(Clone, Copy, Default)]
struct Run {
    length: usize,
    /// Where, in pushed bytes, the last token before them has ended and they have not begun.
    safe: usize,
}

/// A window that is to be run, or that is as it was.
pub(super) struct Wanted {
    index: usize,
    tokens: Arc<[u32]>,
    /// The first of the text's tokens whose running score is wanted.
    first: usize,
    /// Running scores from `first` on that are known.
    known: Vec<f32>,
    /// The score, when nothing is to be run.
    score: Option<f32>,
    /// Whether something of this window ran before.
    is_new: bool,
}

impl Track {
    /// The windows of the text that `view` shows.
    pub(super) fn wanted(&self, rules: &Rules, view: &View<'_>) -> Vec<Wanted> {
        let tokens = view.len();
        (self.folded..rules.layout.count(tokens))
            .map(|index| {
                let range = rules.layout.range(index, tokens);
                let text = view.range(range.clone()).map(|token| token.id);
                let sequence: Arc<[u32]> = rules.special.around(text);
                let first = view.first_pushed().max(rules.layout.fresh(index)).min(range.end);
                let old = self.windows.get(index - self.folded);
                let mut wanted = Wanted {
                    index,
                    first,
                    known: vec![],
                    score: None,
                    is_new: old.is_none(),
                    tokens: sequence,
                };
                if let Some(old) = old {
                    let same = common(&old.tokens, &wanted.tokens)
                        .saturating_sub(rules.special.before.len());
                    let known = old.first..(range.start + same).min(range.end);
                    if known.contains(&first) {
                        wanted.known = old.running[first - old.first..]
                            .iter()
                            .copied()
                            .take(known.end - first)
                            .collect();
                    }
                    wanted.score = (old.tokens == wanted.tokens
                        && wanted.known.len() == range.end - first)
                        .then_some(old.score);
                }
                wanted
            })
            .collect()
    }

    /// Takes in what came of the windows, and tells what the text scores.
    ///
    /// # Errors
    /// `Internal` when scores are missing.
    pub(super) fn update(
        &mut self,
        rules: &Rules,
        growing: &mut Growing,
        next: Next,
        wanted: Vec<Wanted>,
        ran: Vec<Option<Ran>>,
    ) -> Result<Scored> {
        let view = growing.view(&next);
        let may_show = next.held_from.min(next.cut_from);
        let before = rules.special.before.len();
        let tokens = view.len();
        let first_run = wanted
            .iter()
            .filter(|w| w.score.is_none())
            .map(|w| w.first + w.known.len())
            .min()
            .unwrap_or(tokens)
            // Windows of nothing but prompt run without a running score.
            .max(view.first_pushed());
        self.windows = wanted
            .into_iter()
            .zip(ran)
            .map(|(wanted, ran)| {
                let Wanted { index, tokens: sequence, first, mut known, score, .. } = wanted;
                let end = rules.layout.range(index, tokens).end;
                let score = match (score, ran) {
                    (Some(score), _) => score,
                    (None, Some(ran)) => {
                        let missing = end - first - known.len();
                        known.extend(ran.scores.iter().take(missing));
                        *ran.scores.last().ok_or_else(|| Error::internal("no score"))?
                    }
                    (None, None) => return Err(Error::internal("a window without a score")),
                };
                Ok(Window { tokens: sequence, score, first, running: known })
            })
            .collect::<Result<_>>()?;

        let mut run = self.run;
        let mut best = self.best;
        let mut token_scores = Vec::new();
        let mut foldable = 0;
        for (i, window) in self.windows.iter().enumerate() {
            let index = self.folded + i;
            let range = rules.layout.range(index, tokens);
            let floor = best.map_or(f32::NEG_INFINITY, |best| best.score);
            let running = view.tokens(window.first).zip(&window.running);
            for (token, (place, score)) in (window.first..).zip(running) {
                let score = score.max(floor);
                if f64::from(score) >= rules.threshold {
                    if run.length == 0 {
                        // The two may share a character.
                        run.safe = run.safe.min(place.start);
                    }
                    run.length += 1;
                } else {
                    run.length = 0;
                    run.safe = place.end;
                }
                if run.length == rules.hysteresis && self.crossing.is_none() {
                    self.crossing = Some(Crossing { token: before + token, byte: place.end });
                    self.cleared = self.cleared.max(run.safe.min(may_show));
                }
                if token >= first_run {
                    token_scores.push(f64::from(score));
                }
            }
            if best.is_none_or(|best| window.score > best.score) {
                let (start, end) = ends(&view, range.clone());
                best = Some(Best { score: window.score, index, start, end });
            }
            // A window that another follows is full; when its tokens stay, so does its score.
            if i + 1 < self.windows.len() && foldable == i && range.end <= view.settled() {
                foldable += 1;
                (self.run, self.best) = (run, best);
            }
        }
        if self.crossing.is_none() {
            self.cleared = self.cleared.max(run.safe.min(may_show));
        }
        let best = best.ok_or_else(|| Error::internal("a text without a window"))?;
        let count = self.folded + self.windows.len();
        let scored = Scored {
            score: best.score,
            tokens: rules.special.len() + tokens,
            truncated: next.truncated,
            window: BestWindow { count, index: best.index, start: best.start, end: best.end },
            first_scored: before + first_run,
            token_scores,
        };
        self.folded += foldable;
        self.windows.drain(..foldable);
        let kept_from = rules.layout.range(self.folded, tokens).start;
        growing.commit(next);
        growing.forget_before(kept_from);
        Ok(scored)
    }

    /// How many windows are done for good.
    pub(super) fn folded(&self) -> usize {
        self.folded
    }
}

/// The pushed bytes of a window.
pub(crate) fn ends(view: &View<'_>, range: std::ops::Range<usize>) -> (usize, usize) {
    let mut tokens = view.range(range);
    let first = tokens.next();
    let last = tokens.last().or(first);
    (first.map_or(0, |token| token.start), last.map_or(0, |token| token.end))
}

/// What a text scores after a push.
pub(super) struct Scored {
    pub(super) score: f32,
    pub(super) tokens: usize,
    pub(super) truncated: bool,
    pub(super) window: BestWindow,
    pub(super) first_scored: usize,
    pub(super) token_scores: Vec<f64>,
}

impl Wanted {
    /// Whether it has no score yet.
    pub(super) fn is_to_run(&self) -> bool {
        self.score.is_none()
    }

    /// Which window this is.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// What is to be run for it, if anything is, when the text may be kept if `keeps` says so of
    /// its tokens.
    pub(super) fn job(
        &self,
        rules: &Rules,
        view_len: usize,
        prefix: Option<crate::engine::Prefix>,
        keeps: impl FnOnce(usize) -> bool,
    ) -> Option<Job> {
        if self.score.is_some() {
            return None;
        }
        let range = rules.layout.range(self.index, view_len);
        let from = self.first + self.known.len();
        let running_from =
            (from < range.end).then(|| rules.special.before.len() + from - range.start);
        Some(Job {
            prefix: prefix.and_then(|prefix| prefix.of(&self.tokens)),
            keep: keeps(self.tokens.len()),
            // Later pushes find what they need in the stream's own place.
            cache: self.is_new && self.index == 0,
            running_from,
            tokens: self.tokens.clone(),
        })
    }
}
