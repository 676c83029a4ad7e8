//! Tests that measure the whole process run in one of their own.

use std::process::Command;
use std::time::{Duration, Instant};

const MARK: &str = "SIREN_BEHAVIOUR_CHILD";

/// Runs `body` in a child process that runs only the test `name` (its full path) and nothing
/// beside it. The child must succeed and leave standard error empty.
pub fn run(name: &str, body: impl FnOnce()) {
    if std::env::var(MARK).is_ok_and(|mark| mark == name) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, name)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "no test is called {name}:\n{stdout}");
    assert_eq!(stderr, "", "{name} wrote to standard error");
    print_measurements(&stdout);
}

/// Hands on what the child measured.
#[allow(clippy::print_stdout)] // What a test measured is for its reader.
fn print_measurements(stdout: &str) {
    for line in stdout.lines().filter(|line| line.contains("measured: ")) {
        println!("{line}");
    }
}

/// Says what was measured, for the reader of `--nocapture`.
#[allow(clippy::print_stdout)] // As above.
pub fn measured(what: impl std::fmt::Display) {
    println!("measured: {what}");
}

/// What a piece of work took.
pub struct Cost {
    pub wall: Duration,
    /// Processor time, in seconds: what is left when others use the machine too.
    pub cpu: f64,
    /// MiB by which the process's peak of memory rose.
    pub mib: u64,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wall, cpu, mib } = self;
        write!(f, "{:.2} s, {cpu:.2} s of CPU, {mib} MiB more", wall.as_secs_f64())
    }
}

/// Runs `body` and tells what it took; CPU and memory are 0 where the system does not tell.
pub fn cost(body: impl FnOnce()) -> Cost {
    // Linux starts the peak anew from what is resident now.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (peak, cpu, start) = (peak_mib(), cpu_seconds(), Instant::now());
    body();
    Cost { wall: start.elapsed(), cpu: cpu_seconds() - cpu, mib: peak_mib().saturating_sub(peak) }
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Time of all threads, from ticks of a hundredth of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
