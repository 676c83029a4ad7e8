//! Writes `siren.h` and `siren-layout.json` into the directory that is named: `make header`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).expect("a directory"));
    std::fs::copy(env!("SIREN_GENERATED_HEADER"), directory.join("siren.h"))?;
    let layout = serde_json::to_string_pretty(&siren::ffi::layouts())?;
    std::fs::write(directory.join("siren-layout.json"), layout + "\n")
}
