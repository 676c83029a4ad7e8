//! Whole texts to scores: prepare, queue, conclude.

use std::sync::Arc;

use rayon::prelude::*;

use super::core::Completion;
use super::{BestWindow, Core, OwnedInput, Score};
use crate::call::{Control, ScoreOptions};
use crate::engine::{Job, Ran};
use crate::error::{Error, Result, Status};
use crate::stream::ends;
use crate::text::{self, Growing, Input};
use crate::windows::Layout;

/// The token ids of a text, or of each of its windows, special ones included.
type Sequences = Vec<Arc<[u32]>>;

/// How a call's texts are read and judged.
struct Rules {
    threshold: f64,
    layout: Option<Layout>,
}

/// What the results of a call's jobs are made into.
struct Plan {
    threshold: f64,
    inputs: Vec<Result<Planned>>,
}

/// One input: what is known before it runs.
struct Planned {
    tokens: usize,
    truncated: bool,
    /// With windows, where each lies in the text; else there is one job.
    windows: Option<Vec<(usize, usize)>>,
}

impl Core {
    pub(super) fn score_batch(
        &self,
        inputs: &[Input<'_>],
        options: &ScoreOptions,
    ) -> Result<Vec<Result<Score>>> {
        self.check()?;
        options.control.check()?;
        let rules = self.rules(inputs.len(), options)?;
        let (plan, jobs) = self.plan(inputs, rules, &options.control);
        let ran = self.scheduler.run(jobs, &options.control)?;
        Ok(self.conclude(plan, ran))
    }

    pub(super) fn score_batch_async(
        self: &Arc<Self>,
        inputs: Vec<OwnedInput>,
        options: ScoreOptions,
        done: impl FnOnce(Result<Vec<Result<Score>>>) + Send + 'static,
    ) -> Result<()> {
        let core = self.clone();
        let begin = || {
            self.check()?;
            let rules = self.rules(inputs.len(), &options)?;
            Ok(move |completion: Completion<_>| {
                let inputs: Vec<_> = inputs.iter().map(OwnedInput::as_input).collect();
                let (plan, jobs) = core.plan(&inputs, rules, &options.control);
                let concludes = core.clone();
                core.submit(jobs, options.control, move |ran| {
                    completion.answer(ran.map(|ran| concludes.conclude(plan, ran)));
                });
            })
        };
        self.detach(begin, done)
    }

    pub(super) fn count_tokens(&self, input: Input<'_>) -> Result<(usize, bool)> {
        self.home.check()?;
        let (planned, _) = self.pool.install(|| self.prepare(input, None, &Control::default()))?;
        Ok((planned.tokens, planned.truncated))
    }

    pub(super) fn check_batch(&self, count: usize) -> Result<()> {
        let limit = self.options.max_batch;
        if count > limit {
            return Err(Error::new(
                Status::LimitExceeded,
                format!("the batch has {count} inputs, more than the limit of {limit}"),
            ));
        }
        Ok(())
    }

    /// What `options` come to for `count` inputs.
    fn rules(&self, count: usize, options: &ScoreOptions) -> Result<Rules> {
        let threshold = self.threshold(options.threshold)?;
        let layout = options.windows.map(|windows| self.layout(windows)).transpose()?;
        self.check_batch(count)?;
        Ok(Rules { threshold, layout })
    }

    fn plan(&self, inputs: &[Input<'_>], rules: Rules, control: &Control) -> (Plan, Vec<Job>) {
        self.counters.texts.add(inputs.len() as u64);
        let prepared: Vec<Result<(Planned, Sequences)>> = self.pool.install(|| {
            let prepare =
                |input: &Input<'_>| text::caught(|| self.prepare(*input, rules.layout, control));
            inputs.par_iter().map(prepare).collect()
        });
        let mut jobs = Vec::new();
        let inputs = prepared
            .into_iter()
            .map(|prepared| {
                let (planned, sequences) = prepared?;
                let cache = planned.windows.is_none();
                jobs.extend(sequences.into_iter().map(|s| Job { cache, ..Job::new(s) }));
                Ok(planned)
            })
            .collect();
        (Plan { threshold: rules.threshold, inputs }, jobs)
    }

    /// An input's token ids, in windows if there is a `layout`.
    fn prepare(
        &self,
        input: Input<'_>,
        layout: Option<Layout>,
        control: &Control,
    ) -> Result<(Planned, Sequences)> {
        if input == (Input::Exchange { prompt: None, response: None }) {
            return Err(Error::argument(
                "text, prompt and response are all absent, expected one of them",
            ));
        }
        self.check_text(input.len())?;
        control.check()?;
        let text = input.join();
        #[cfg(feature = "planted-panics")]
        assert!(text != super::planted::WHILE_PREPARING, "{text}");
        let Some(layout) = layout else {
            let found = self.tokenizer.encode(&text::clean(&text), self.info.max_length)?;
            let planned =
                Planned { tokens: found.ids.len(), truncated: found.truncated, windows: None };
            return Ok((planned, vec![found.ids.into()]));
        };
        let growing = Growing::new(None);
        let next = growing.next(&self.tokenizer, &text, usize::MAX, control)?;
        let view = growing.view(&next);
        let special = self.tokenizer.special();
        let tokens = view.len();
        let (sequences, windows) = (0..layout.count(tokens))
            .map(|index| {
                let range = layout.range(index, tokens);
                let ids = special.around(view.range(range.clone()).map(|token| token.id));
                (ids, ends(&view, range))
            })
            .unzip();
        let tokens = special.len() + tokens;
        Ok((Planned { tokens, truncated: false, windows: Some(windows) }, sequences))
    }

    /// One result an input; `ran` has one for each job, in their order.
    fn conclude(&self, plan: Plan, ran: Vec<Result<Ran>>) -> Vec<Result<Score>> {
        // The prefix cache may have grown.
        self.live.fit();
        let mut ran = ran.into_iter();
        plan.inputs
            .into_iter()
            .map(|planned| {
                let result = planned.and_then(|planned| {
                    let count = planned.windows.as_ref().map_or(1, Vec::len);
                    // All of them, also after one that failed: the next input's come behind.
                    let scores: Vec<_> = ran.by_ref().take(count).collect();
                    score_of(&planned, plan.threshold, scores)
                });
                match &result {
                    Ok(score) => {
                        self.counters.truncated.add(score.truncated.into());
                        self.counters.harmful.add(score.is_harmful.into());
                    }
                    Err(error) => self.counters.error(error.status()),
                }
                result
            })
            .collect()
    }
}

/// The score of one input, from those of its windows.
fn score_of(planned: &Planned, threshold: f64, ran: Vec<Result<Ran>>) -> Result<Score> {
    let mut best: Option<(usize, f32)> = None;
    for (index, ran) in ran.into_iter().enumerate() {
        let ran = ran?;
        let score = *ran.scores.last().ok_or_else(|| Error::internal("no score"))?;
        if best.is_none_or(|(_, best)| score > best) {
            best = Some((index, score));
        }
    }
    let (index, score) = best.ok_or_else(|| Error::internal("a text without a result"))?;
    let score = f64::from(score);
    Ok(Score {
        score,
        is_harmful: score >= threshold,
        threshold,
        tokens: planned.tokens,
        truncated: planned.truncated,
        window: planned.windows.as_ref().map(|windows| {
            let (start, end) = windows[index];
            BestWindow { count: windows.len(), index, start, end }
        }),
    })
}
