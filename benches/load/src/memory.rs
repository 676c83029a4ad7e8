//! Memory that must come back.

use std::thread;
use std::time::Duration;

use crate::abi::{self, How, Opening};
use crate::process;

/// Growth of the resident memory that is taken for noise, in MB, beside a quarter of it: how many
/// replaced guards are still held varies.
const SLACK: f64 = 16.0;
/// What a peak may leave behind, in MB.
const PEAK_SLACK: f64 = 32.0;
/// Texts of a large batch.
const BATCH: usize = 2000;
/// An unbroken word takes some 130 times its size to tokenise.
const WORD: usize = 1 << 20;

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

pub struct Memory {
    /// Whether memory that stays is a failure.
    pub judged: bool,
}

impl Memory {
    /// Shows `samples`, taken at even intervals, and, where they `must` be flat, compares the last fifth
    /// with the third: what comes before is warming up.
    pub fn is_flat(&self, what: &str, samples: &[f64], must: bool) -> Result<(), String> {
        let fifth = samples.len() / 5;
        let (early, late) = (median(&samples[2 * fifth..3 * fifth]), median(&samples[4 * fifth..]));
        let tenths = samples.chunks(samples.len().div_ceil(10).max(1)).map(median);
        let tenths: Vec<String> = tenths.map(|mb| format!("{mb:.0}")).collect();
        println!("resident memory {what}, MB, by tenths: {}", tenths.join(" "));
        if must && self.judged && late > early * 1.25 + SLACK {
            return Err(format!("memory {what} grew from {early:.1} to {late:.1} MB"));
        }
        Ok(())
    }

    /// Sees that memory is again what it was `before` a peak.
    pub fn came_back(&self, what: &str, before: f64) -> Result<(), String> {
        thread::sleep(Duration::from_millis(500));
        let free = process::rss();
        abi::give_back_free_memory();
        let after = process::rss();
        println!(
            "resident memory {what}: {free:.0} MB, {after:.0} without what malloc holds, {before:.0} before"
        );
        if self.judged && after > before + PEAK_SLACK {
            return Err(format!("{:.0} MB {what} did not come back", after - before));
        }
        Ok(())
    }

    /// Runs `work`, and sees that memory comes down again.
    fn comes_down(&self, what: &str, work: impl FnOnce() -> Result<(), i32>) -> Result<(), String> {
        let before = process::rss();
        process::forget_peak();
        work().map_err(|status| format!("{what}: status {status}"))?;
        println!("resident memory with {what}: {:.0} MB", process::peak());
        self.came_back(&format!("after {what}"), before)
    }

    pub fn peak(&self, model: &str) -> Result<(), String> {
        let guard = abi::open(model, Opening { no_prefix_cache: true, ..Opening::default() })?;
        self.comes_down("a large batch", || {
            let texts: Vec<String> = (0..BATCH)
                .map(|i| format!("{i}: {}", "one two three four five ".repeat(20)))
                .collect();
            let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
            abi::score_batch(guard, &texts, How::default())?
                .into_iter()
                .find_map(Result::err)
                .map_or(Ok(()), Err)
        })?;
        self.comes_down("an unbroken word of 1 MiB", || {
            abi::score(guard, None, &vec![b'x'; WORD], How::default()).map(drop)
        })?;
        abi::free(guard);
        Ok(())
    }

    /// Opens, uses and frees a guard `times` times.
    pub fn opens(&self, model: &str, times: u64) -> Result<(), String> {
        let (mut samples, before) = (Vec::new(), process::rss());
        for _ in 0..times {
            let guard = abi::open(model, Opening::default())?;
            let scored = abi::score(guard, None, b"How do I bake bread?", How::default());
            if scored.is_err() || abi::free(guard) != 0 {
                return Err("a guard that was just opened does not score and close".into());
            }
            samples.push(process::rss());
        }
        let what = format!("over {times} guards opened and freed");
        self.is_flat(&what, &samples, true)?;
        self.came_back(&what, before)
    }
}
