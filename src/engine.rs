//! Token ids to scores: backbone and readout, as the scheduler runs them.

use std::sync::Arc;

use crate::backbone::{self, Decoder, Segment};
use crate::error::Result;
use crate::kernels::{Kv, Meter};
use crate::prefix_cache::PrefixCache;
use crate::readout::{self, Head, Known, Reading, Readings, Selection};
use crate::schedule;
use crate::stats::Counters;

/// Rows of features that go through the head at once.
const HEAD_ROWS: usize = 256;

/// The forward pass, on the guard's own pool.
pub(crate) struct Engine {
    pub(crate) decoder: Decoder,
    pub(crate) selection: Selection,
    pub(crate) head: Head,
    pub(crate) pool: Arc<rayon::ThreadPool>,
    /// Counts the bytes of everything that is kept of tokens.
    pub(crate) meter: Meter,
    /// What earlier jobs ran.
    pub(crate) cache: Arc<PrefixCache>,
    pub(crate) counters: Arc<Counters>,
    /// Tokens of the text that panics.
    #[cfg(feature = "planted-panics")]
    pub(crate) fatal: Vec<u32>,
}

/// A text's beginning that has run, with what it takes to go on from there. Clones share it.
#[derive(Clone)]
pub(crate) struct Prefix {
    /// May hold more tokens than have run.
    tokens: Arc<[u32]>,
    length: usize,
    kv: Kv,
    neurons: Known,
}

impl Prefix {
    /// The tokens that have run.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens[..self.length]
    }

    /// The part of it that `tokens` begin with, if there is one.
    pub(crate) fn of(mut self, tokens: &[u32]) -> Option<Self> {
        self.length = common(self.tokens(), tokens);
        self.kv.truncate(self.length);
        self.neurons.truncate(self.length);
        (self.length > 0).then_some(self)
    }
}

/// How many tokens two texts have in common at their beginnings.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// One text to run.
pub(crate) struct Job {
    /// The whole text, at least one token.
    pub(crate) tokens: Arc<[u32]>,
    /// What has run of it before; without it, the prefix cache is asked.
    pub(crate) prefix: Option<Prefix>,
    /// Give back what it takes to go on from here.
    pub(crate) keep: bool,
    /// Put it into the prefix cache, if that keeps texts of its size.
    pub(crate) cache: bool,
    /// Score every beginning of the text that ends with this token or a later one, instead of the
    /// whole text alone.
    pub(crate) running_from: Option<usize>,
}

impl Job {
    /// Scores a text as a whole.
    pub(crate) fn new(tokens: Arc<[u32]>) -> Self {
        Self { tokens, prefix: None, keep: false, cache: true, running_from: None }
    }

    fn known(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.length)
    }
}

/// What came of a [`Job`].
pub(crate) struct Ran {
    /// One score for each beginning that was asked for; the last is the whole text's.
    pub(crate) scores: Vec<f32>,
    /// The whole text, when it was to be kept.
    pub(crate) prefix: Option<Prefix>,
}

impl From<&backbone::Part> for readout::Part {
    fn from(part: &backbone::Part) -> Self {
        Self { text: part.segment, rows: part.rows.clone(), position: part.position }
    }
}

/// A batch of jobs at work.
pub(crate) struct Pass {
    jobs: Vec<Job>,
    readings: Readings,
    pass: backbone::Pass,
    /// Tokens that run.
    tokens: usize,
    /// Tokens that had run before.
    reused: usize,
}

impl Pass {
    fn lengths(jobs: &[Job]) -> impl Iterator<Item = usize> {
        jobs.iter().map(|job| job.tokens.len())
    }
}

impl Engine {
    fn find(&self, tokens: &[u32]) -> Option<Prefix> {
        if !self.cache.is_on() {
            return None;
        }
        let found = self.cache.find(tokens);
        let counters = &self.counters;
        let counter = if found.is_some() { &counters.cache_hits } else { &counters.cache_misses };
        counter.add(1);
        found
    }
}

impl schedule::Engine for Engine {
    type Job = Job;
    type Output = Ran;
    type Pass = Pass;

    /// Tokens that `job` has still to run.
    fn tokens(&self, job: &Job) -> usize {
        job.tokens.len() - job.known()
    }

    fn begin(&self, mut jobs: Vec<Job>) -> Pass {
        #[cfg(feature = "planted-panics")]
        assert!(
            jobs.iter().all(|job| *job.tokens != *self.fatal),
            "{}",
            crate::guard::planted::IN_THE_WORKER
        );
        let mut segments = Vec::with_capacity(jobs.len());
        let mut readings = Vec::with_capacity(jobs.len());
        let (mut to_run, mut all_reused) = (0, 0);
        for job in &mut jobs {
            let tokens = job.tokens.clone();
            let known = job.prefix.take().or_else(|| self.find(&tokens));
            let reused = known.as_ref().map_or(0, |prefix| prefix.length);
            to_run += tokens.len() - reused;
            all_reused += reused;
            job.cache &= reused < tokens.len() && self.cache.keeps(tokens.len());
            let keep = job.keep || job.cache;
            let (segment, neurons) = match known {
                Some(Prefix { length, kv, neurons, .. }) => {
                    (Segment::resume(tokens, length, kv), Some(neurons))
                }
                None => (Segment::new(&self.decoder, tokens, keep, &self.meter), None),
            };
            let running_from = job.running_from;
            readings.push(Reading::new(&self.selection, neurons, keep, running_from, &self.meter));
            segments.push(segment);
        }
        Pass {
            jobs,
            readings: Readings::new(readings),
            pass: backbone::Pass::new(&self.decoder, segments),
            tokens: to_run,
            reused: all_reused,
        }
    }

    fn give_back(&self, pass: Pass) -> Vec<Job> {
        let Pass { mut jobs, readings, pass, .. } = pass;
        let parts = pass.into_segments().into_iter().zip(readings.into_texts());
        for (job, (segment, reading)) in jobs.iter_mut().zip(parts) {
            let (tokens, length) = (segment.tokens.clone(), segment.start);
            if length == 0 {
                continue;
            }
            if let (Some(mut kv), Some(neurons)) = (segment.into_kv(), reading.into_known(length)) {
                kv.truncate(length);
                job.prefix = Some(Prefix { tokens, length, kv, neurons });
            }
        }
        jobs
    }

    /// Runs a part of `pass` that takes some tens of milliseconds on a small model; true when
    /// there is no more. Nothing is computed for jobs that are not `live`, as far as that can be.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    fn advance(&self, pass: &mut Pass, live: &[bool]) -> Result<bool> {
        let Pass { jobs, readings, pass, .. } = pass;
        // Of a text that was given up, parts are left out.
        jobs.iter_mut().zip(live).for_each(|(job, live)| job.cache &= live);
        if !pass.has_room() {
            readings.reserve(&self.selection, Pass::lengths(jobs), pass.is_at_once())?;
        }
        self.pool.install(|| {
            let is_complete =
                pass.advance(&self.decoder, |i| live[i], &mut |layer, states, parts, places| {
                    let parts = parts.iter().map(readout::Part::from);
                    readings.observe(&self.selection, layer, states, parts, places)
                })?;
            if is_complete {
                readings.complete(&self.selection, Pass::lengths(jobs))?;
            }
            Ok(is_complete)
        })
    }

    /// One result a job, in their order.
    ///
    /// # Errors
    /// Of the whole: `Internal`, `OutOfMemory`. Of one job: `NonFinite`.
    fn finish(&self, pass: Pass) -> Result<Vec<Result<Ran>>> {
        let Pass { jobs, readings, pass, tokens, reused, .. } = pass;
        let mut readings = readings.into_texts();
        self.counters.tokens.add(tokens as u64);
        self.counters.tokens_reused.add(reused as u64);
        let mut scores: Vec<Result<Vec<f32>>> = jobs.iter().map(|_| Ok(vec![])).collect();
        self.pool.install(|| {
            let (mut features, mut rows) = (Vec::new(), Vec::new());
            let mut flush = |features: &mut Vec<f32>, rows: &mut Vec<usize>| -> Result<()> {
                let computed = self.head.scores(features)?;
                features.clear();
                for (job, score) in rows.drain(..).zip(computed) {
                    match (&mut scores[job], score) {
                        (Ok(scores), Ok(score)) => scores.push(score),
                        (failed @ Ok(_), Err(error)) => *failed = Err(error),
                        (Err(_), _) => {}
                    }
                }
                Ok(())
            };
            for (i, (job, reading)) in jobs.iter().zip(&mut readings).enumerate() {
                let tokens = job.tokens.len();
                let first = job.running_from.unwrap_or(tokens).min(tokens - 1);
                for start in (first..tokens).step_by(HEAD_ROWS) {
                    let lasts = start..tokens.min(start + HEAD_ROWS);
                    rows.extend(lasts.clone().map(|_| i));
                    reading.add_features(&self.selection, lasts, &mut features)?;
                    if rows.len() >= HEAD_ROWS {
                        flush(&mut features, &mut rows)?;
                    }
                }
            }
            flush(&mut features, &mut rows)
        })?;
        let segments = pass.into_segments().into_iter();
        Ok(jobs
            .into_iter()
            .zip(readings)
            .zip(segments)
            .zip(scores)
            .map(|(((job, reading), segment), scores)| {
                let scores = scores?;
                let prefix = match (reading.into_kept(), segment.into_kv()) {
                    (Some(neurons), Some(kv)) => {
                        let length = job.tokens.len();
                        Some(Prefix { tokens: job.tokens, length, kv, neurons })
                    }
                    _ => None,
                };
                if job.cache
                    && let Some(prefix) = &prefix
                {
                    self.cache.insert(prefix.clone());
                }
                Ok(Ran { scores, prefix: prefix.filter(|_| job.keep) })
            })
            .collect())
    }
}
