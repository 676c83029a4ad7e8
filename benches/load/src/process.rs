//! What this process takes of the machine, as Linux tells it.

use std::time::Duration;

/// A number of `/proc/self/status`: KiB for `VmRSS` and `VmHWM`, a count for `Threads`.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Resident memory in MB.
pub fn rss() -> f64 {
    status("VmRSS:") as f64 * 1024.0 / 1e6
}

pub fn threads() -> u64 {
    status("Threads:")
}

pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// CPU time that all threads have used.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    // 100 ticks a second on every Linux.
    Duration::from_millis(fields.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// The most resident memory, in MB, since [`forget_peak`].
pub fn peak() -> f64 {
    status("VmHWM:") as f64 * 1024.0 / 1e6
}

pub fn forget_peak() {
    // Where the system refuses it, the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
