//! The load in small, on the demo guard.

use std::process::Command;

#[test]
fn some_seconds_under_load() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let status = Command::new(env!("CARGO_BIN_EXE_siren-load"))
        .args([model, "--seconds", "8"])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
