//! One record of a verdict for a log that is kept: what was decided, by what, on which text. Never
//! the text itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::guard::{Guard, Score};
use crate::text::Input;

impl Guard {
    /// The record of `score`, which this guard gave `input`, as one JSON object.
    ///
    /// `time` is now, in UTC (RFC 3339). `artifact_sha256` is of `siren_config.json` and
    /// `siren.safetensors`, one after the other; `text_sha256` and `text_bytes` are of the text as
    /// it was joined, before it was cleaned. `backbone_revision` is null for the default branch.
    pub fn audit(&self, input: Input<'_>, score: &Score) -> Value {
        let info = self.info();
        let text = input.join();
        // A clock that stands before 1970 is a clock that was never set.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut record = json!({
            "time": rfc3339(now),
            "score": score.score,
            "threshold": score.threshold,
            "is_harmful": score.is_harmful,
            "tokens": score.tokens,
            "truncated": score.truncated,
            "artifact_sha256": info.artifact_sha256,
            "base_model": info.base_model.model_id,
            "backbone_revision": info.base_model.revision,
            "dtype": info.dtype,
            "library_version": env!("CARGO_PKG_VERSION"),
            "text_sha256": hex(Sha256::digest(text.as_bytes()).as_slice()),
            "text_bytes": text.len(),
        });
        if let Some(window) = score.window {
            record["window"] = json!({
                "count": window.count,
                "index": window.index,
                "start": window.start,
                "end": window.end,
            });
        }
        record
    }
}

/// A digest in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time since 1970 as `2026-01-31T23:59:59.123Z`.
fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years counted from March: the leap day is a year's last. 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (400 * era + year, month + 3),
        _ => (400 * era + year + 1, month - 9),
    };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since_1970.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u -d @SECONDS +%FT%T` prints them.
        let known = [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_868_799, "2000-02-29T23:59:59"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_735_689_600, "2025-01-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (253_402_300_799, "9999-12-31T23:59:59"),
        ];
        for (seconds, expected) in known {
            let time = Duration::from_secs(seconds) + Duration::from_millis(7);
            assert_eq!(rfc3339(time), format!("{expected}.007Z"));
        }
    }
}
