//! The record of a verdict for a log that is kept.

use std::ffi::c_char;

use super::buffer::Buffer;
use super::error::siren_error;
use super::guard::siren_guard;
use super::score::{self, siren_input, siren_result};
use super::structs::{self, flag};
use super::version::SIREN_OK;
use super::{boundary, handle};
use crate::error::{Error, Result};
use crate::guard::{BestWindow, Score};

/// Writes the record of `result`, which `guard` gave `input`, as one JSON object into `buffer`, as
/// `siren_info_json` writes its own.
///
/// It holds the time (UTC, RFC 3339), score, threshold, is_harmful, tokens, truncated, the best
/// window if there were any, artifact_sha256 (of siren_config.json and siren.safetensors, one after
/// the other), base_model, backbone_revision, dtype, library_version, and text_sha256 and
/// text_bytes of the text as it was joined, before it was cleaned; never the text. A `result` that
/// has no score is `SIREN_INVALID_ARGUMENT`. `error` may be NULL, the other pointers as there. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_audit_json(
    guard: *mut siren_guard,
    input: *const siren_input,
    result: *const siren_result,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's structs.
        let (input, result) = unsafe { (structs::read(input)?, structs::read(result)?) };
        let score = score_of(&result)?;
        let buffer = Buffer::new(buffer, capacity, length)?;
        // SAFETY: the caller's texts, which outlive the call.
        let input = unsafe { score::safe_input(&input, &guard)? };
        // SAFETY: the caller's buffer and length.
        unsafe { buffer.write(&guard.audit(input, &score).to_string()) }
    })
}

/// A score that a caller hands back. What no call of this library wrote is not put on record.
fn score_of(result: &siren_result) -> Result<Score> {
    if result.status != SIREN_OK {
        return Err(Error::argument(format!(
            "siren_result.status is {}, expected a result that has a score",
            result.status
        )));
    }
    let is_harmful = flag("siren_result.is_harmful", result.is_harmful)?;
    let truncated = flag("siren_result.truncated", result.truncated)?;
    let range = 0.0..=1.0;
    let (score, threshold) = (result.score, result.threshold);
    let fits = range.contains(&score) && range.contains(&threshold);
    if !fits || is_harmful != (score >= threshold) {
        return Err(Error::argument(format!(
            "siren_result says score {score}, threshold {threshold} and is_harmful {}, which no \
             call wrote",
            result.is_harmful
        )));
    }
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let window = (result.windows != 0).then(|| BestWindow {
        count: size(result.windows),
        index: size(result.window_index),
        start: size(result.window_start),
        end: size(result.window_end),
    });
    let tokens = size(result.tokens);
    Ok(Score { score, is_harmful, threshold, tokens, truncated, window })
}
