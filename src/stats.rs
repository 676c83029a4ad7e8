//! What a guard has done so far, as numbers.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Status;

/// Upper bounds of the latency histogram's buckets in seconds; a last bucket holds the rest.
pub const LATENCY_BOUNDS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

/// Counters since a guard was opened, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Calls: scores, batches and pushes, failed ones included.
    pub requests: u64,
    /// Inputs of scores and batches.
    pub texts: u64,
    /// Pushes to streams.
    pub pushes: u64,
    /// Results, of inputs and pushes, that were harmful.
    pub harmful: u64,
    /// Tokens that ran through the backbone.
    pub tokens: u64,
    /// Tokens that an earlier call or push had run.
    pub tokens_reused: u64,
    /// Inputs that were cut at `max_length`.
    pub truncated: u64,
    /// Sequences that wait in the queue now.
    pub queue_depth: u64,
    /// Passes of the backbone.
    pub passes: u64,
    /// Sequences over all passes; divided by `passes`, the mean batch.
    pub pass_sequences: u64,
    /// Time in passes, in seconds: its growth over a second is how busy the guard is, 0 to 1.
    pub pass_seconds: f64,
    /// Tokens that a pass of several texts takes at most: `tokens` divided by `passes` times this is
    /// how full batches are.
    pub pass_tokens_limit: u64,
    /// Calls by the time from call to result: [`LATENCY_BOUNDS`], then the rest.
    pub latency_counts: [u64; LATENCY_BOUNDS.len() + 1],
    /// Sum of these times in seconds.
    pub latency_sum: f64,
    /// Bytes of keys, values and running sums now.
    pub kv_bytes: u64,
    /// Open streams, and those of them that keep nothing: parked, or not pushed yet.
    pub streams: u64,
    /// See `streams`.
    pub streams_parked: u64,
    /// Sequences in the prefix cache.
    pub cache_entries: u64,
    /// Lookups that found a part of a text in the prefix cache.
    pub cache_hits: u64,
    /// Lookups that found nothing.
    pub cache_misses: u64,
    /// Failed inputs, pushes and calls by status: `errors[status as usize]`.
    pub errors: [u64; 32],
}

impl Stats {
    /// The Prometheus text format (version 0.0.4), one metric a field, each name prefixed
    /// `siren_`.
    pub fn to_prometheus(&self) -> String {
        let mut page = Page(String::with_capacity(8 << 10));
        page.counter("requests", "Calls: scores, batches and pushes.", self.requests);
        page.counter("texts", "Inputs of scores and batches.", self.texts);
        page.counter("pushes", "Pushes to streams.", self.pushes);
        page.counter("harmful", "Results that were harmful.", self.harmful);
        page.counter("tokens", "Tokens that ran through the backbone.", self.tokens);
        page.counter(
            "tokens_reused",
            "Tokens that an earlier call or push had run.",
            self.tokens_reused,
        );
        page.counter("truncated", "Inputs that were cut at the maximal length.", self.truncated);
        page.gauge("queue_depth", "Sequences that wait in the queue.", self.queue_depth);
        page.counter("passes", "Passes of the backbone.", self.passes);
        page.counter("pass_sequences", "Sequences over all passes.", self.pass_sequences);
        page.counter("pass_seconds", "Time in passes.", self.pass_seconds);
        page.gauge(
            "pass_tokens_limit",
            "Tokens that a pass of several texts takes at most.",
            self.pass_tokens_limit,
        );
        page.histogram(
            "latency_seconds",
            "Time from call to result.",
            &self.latency_counts,
            self.latency_sum,
        );
        page.gauge("kv_bytes", "Bytes of keys, values and running sums.", self.kv_bytes);
        page.gauge("streams", "Open streams.", self.streams);
        page.gauge("streams_parked", "Open streams that were parked.", self.streams_parked);
        page.gauge("cache_entries", "Sequences in the prefix cache.", self.cache_entries);
        page.counter("cache_hits", "Lookups that the prefix cache answered.", self.cache_hits);
        page.counter("cache_misses", "Lookups that found nothing.", self.cache_misses);
        page.head("errors_total", "counter", "Failed inputs, pushes and calls by status.");
        for status in Status::ALL {
            let count = self.errors[status as usize];
            page.line(format_args!("errors_total{{status=\"{}\"}} {count}", status.name()));
        }
        page.0
    }
}

/// Metrics as text.
struct Page(String);

impl Page {
    fn line(&mut self, line: impl std::fmt::Display) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "siren_{line}");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP siren_{name} {help}\n# TYPE siren_{name} {kind}");
    }

    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    fn histogram(&mut self, name: &str, help: &str, counts: &[u64], sum: f64) {
        self.head(name, "histogram", help);
        let mut count = 0;
        let bounds = LATENCY_BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, bucket) in bounds.zip(counts) {
            count += bucket;
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!("{name}_sum {sum}"));
        self.line(format_args!("{name}_count {count}"));
    }
}

/// One number that only grows. Numbers do not wait for each other: a snapshot between two of them
/// may see one and not the other.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Of nanoseconds.
    fn seconds(&self) -> f64 {
        Duration::from_nanos(self.get()).as_secs_f64()
    }
}

/// What is counted while a guard works; see the fields of [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) texts: Counter,
    pub(crate) pushes: Counter,
    pub(crate) harmful: Counter,
    pub(crate) tokens: Counter,
    pub(crate) tokens_reused: Counter,
    pub(crate) truncated: Counter,
    pub(crate) passes: Counter,
    pub(crate) pass_sequences: Counter,
    pub(crate) pass_nanos: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    latency_counts: [Counter; LATENCY_BOUNDS.len() + 1],
    latency_nanos: Counter,
    errors: [Counter; 32],
}

impl Counters {
    /// A failed input, push or call.
    pub(crate) fn error(&self, status: Status) {
        self.errors[status as usize].add(1);
    }

    /// A call's time from call to result.
    pub(crate) fn latency(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.latency_counts[LATENCY_BOUNDS.partition_point(|&bound| bound < seconds)].add(1);
        self.latency_nanos.add(time.as_nanos() as u64);
    }

    /// What was counted so far; what a guard holds now is left 0.
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            requests: self.requests.get(),
            texts: self.texts.get(),
            pushes: self.pushes.get(),
            harmful: self.harmful.get(),
            tokens: self.tokens.get(),
            tokens_reused: self.tokens_reused.get(),
            truncated: self.truncated.get(),
            passes: self.passes.get(),
            pass_sequences: self.pass_sequences.get(),
            pass_seconds: self.pass_nanos.seconds(),
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            latency_counts: self.latency_counts.each_ref().map(Counter::get),
            latency_sum: self.latency_nanos.seconds(),
            errors: self.errors.each_ref().map(Counter::get),
            ..Stats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_become_stats() {
        let counters = Counters::default();
        counters.requests.add(2);
        counters.tokens.add(7);
        counters.pass_nanos.add(1_500_000_000);
        counters.error(Status::Busy);
        // A bound belongs to its bucket; what is over the last has a bucket too.
        counters.latency(Duration::from_millis(1));
        counters.latency(Duration::from_nanos(1_000_001));
        counters.latency(Duration::from_secs(100));
        let mut expected = Stats {
            requests: 2,
            tokens: 7,
            pass_seconds: 1.5,
            latency_sum: 100.002_000_001,
            ..Stats::default()
        };
        expected.errors[Status::Busy as usize] = 1;
        expected.latency_counts[0] = 1;
        expected.latency_counts[1] = 1;
        expected.latency_counts[LATENCY_BOUNDS.len()] = 1;
        assert_eq!(counters.snapshot(), expected);
    }

    /// `prometheus_client.parser` reads the same from this text.
    #[test]
    fn the_prometheus_text_is_exact() {
        let mut stats = Stats {
            requests: 4,
            texts: 5,
            pushes: 6,
            harmful: 1,
            tokens: 1234,
            tokens_reused: 56,
            truncated: 2,
            queue_depth: 3,
            passes: 7,
            pass_sequences: 11,
            pass_seconds: 0.25,
            pass_tokens_limit: 1024,
            latency_sum: 61.5015,
            kv_bytes: 1 << 30,
            streams: 9,
            streams_parked: 8,
            cache_entries: 10,
            cache_hits: 12,
            cache_misses: 13,
            ..Stats::default()
        };
        stats.latency_counts[1] = 2;
        stats.latency_counts[8] = 1;
        stats.latency_counts[15] = 1;
        stats.errors[Status::Busy as usize] = 14;
        stats.errors[Status::InUse as usize] = 15;
        assert_eq!(stats.to_prometheus(), include_str!("../tests/stats.prom"));
    }
}
