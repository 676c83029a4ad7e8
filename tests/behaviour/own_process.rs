//! Tests that measure the whole process run in one of their own.

use std::process::Command;

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

/// The most memory that this process has held, in MiB; `None` where the system does not tell.
pub fn peak_mib() -> Option<u64> {
    status_mib("VmHWM:")
}

fn status_mib(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

/// MiB by which `body` raised the process's peak.
pub fn peak_growth_mib(body: impl FnOnce()) -> u64 {
    // Linux starts the peak anew from what is resident now.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = peak_mib().unwrap_or(0);
    body();
    peak_mib().unwrap_or(0) - before
}
