//! What a guard has done so far.

use std::ffi::c_char;

use super::buffer::Buffer;
use super::error::siren_error;
use super::guard::siren_guard;
use super::structs::{self, AbiStruct};
use super::{boundary, handle};
use crate::stats::{LATENCY_BOUNDS, Stats};

/// Buckets of `siren_guard_stats.latency_counts`.
pub const SIREN_LATENCY_BUCKETS: usize = 16;
/// Statuses that `siren_guard_stats.errors` has room for.
pub const SIREN_STATUS_LIMIT: usize = 32;

const _: () = assert!(SIREN_LATENCY_BUCKETS == LATENCY_BOUNDS.len() + 1);

/// Counters since a guard was opened, and what it holds now. They are read one after the other, so
/// calls that run meanwhile may be in some and not in others.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_guard_stats {
    /// `sizeof(siren_guard_stats)`
    pub struct_size: u32,
    /// 0
    pub reserved: u32,
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
    /// Calls by the seconds from call to result: up to 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
    /// 0.2, 0.5, 1, 2, 5, 10, 20, 60, and longer. Each call is in one bucket.
    pub latency_counts: [u64; SIREN_LATENCY_BUCKETS],
    /// Sum of these times in seconds.
    pub latency_sum: f64,
    /// Bytes of keys, values and running sums now.
    pub kv_bytes: u64,
    /// Open streams.
    pub streams: u64,
    /// Those of them that keep nothing: parked, or not pushed yet.
    pub streams_parked: u64,
    /// Sequences in the prefix cache.
    pub cache_entries: u64,
    /// Lookups that found a part of a text in the prefix cache.
    pub cache_hits: u64,
    /// Lookups that found nothing.
    pub cache_misses: u64,
    /// Failed inputs, pushes and calls by status: `errors[SIREN_BUSY]` is how many were
    /// `SIREN_BUSY`.
    pub errors: [u64; SIREN_STATUS_LIMIT],
}

// SAFETY: repr(C), size first; numbers.
unsafe impl AbiStruct for siren_guard_stats {
    const NAME: &'static str = "siren_guard_stats";
    const FIRST_SIZE: usize = 544;
}

const _: () = assert!(size_of::<siren_guard_stats>() == 544);

/// Prepares `stats`, a struct of `struct_size` bytes, for use. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stats_init(stats: *mut siren_guard_stats, struct_size: u32) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(stats, struct_size) }
    })
}

/// Tells what `guard` has done so far. `stats` must not be NULL, and is untouched on failure;
/// `error` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stats(
    guard: *mut siren_guard,
    stats: *mut siren_guard_stats,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's struct.
        unsafe { structs::check_output(stats)? };
        // SAFETY: checked above.
        unsafe { structs::write(stats, &stats_of(guard.stats())) };
        Ok(())
    })
}

/// Writes what `guard` has done so far in the text format of Prometheus (version 0.0.4) into
/// `buffer`, as `siren_info_json` writes its JSON.
///
/// Numbers grow: between a call for the length and the one for the text it may grow by some bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stats_prometheus(
    guard: *mut siren_guard,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        let buffer = Buffer::new(buffer, capacity, length)?;
        // SAFETY: the caller's buffer and length.
        unsafe { buffer.write(&guard.stats().to_prometheus()) }
    })
}

fn stats_of(stats: Stats) -> siren_guard_stats {
    // Taken apart, so that a new field cannot be forgotten here.
    let Stats {
        requests,
        texts,
        pushes,
        harmful,
        tokens,
        tokens_reused,
        truncated,
        queue_depth,
        passes,
        pass_sequences,
        pass_seconds,
        pass_tokens_limit,
        latency_counts,
        latency_sum,
        kv_bytes,
        streams,
        streams_parked,
        cache_entries,
        cache_hits,
        cache_misses,
        errors,
    } = stats;
    siren_guard_stats {
        struct_size: size_of::<siren_guard_stats>() as u32,
        reserved: 0,
        requests,
        texts,
        pushes,
        harmful,
        tokens,
        tokens_reused,
        truncated,
        queue_depth,
        passes,
        pass_sequences,
        pass_seconds,
        pass_tokens_limit,
        latency_counts,
        latency_sum,
        kv_bytes,
        streams,
        streams_parked,
        cache_entries,
        cache_hits,
        cache_misses,
        errors,
    }
}
