//! Arbitrary bytes as a GGUF file, mapped and read: an error, or metadata and every tensor's values.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use siren::fuzzing;
use tempfile::TempDir;

static FILE: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("backbone.gguf");
    (dir, path)
});

fuzz_target!(|bytes: &[u8]| {
    let (_, path) = &*FILE;
    std::fs::write(path, bytes).expect("written");
    let [mapped, read] =
        [true, false].map(|map| fuzzing::gguf(path, map).map_err(|e| e.to_string()));
    assert_eq!(mapped, read);
    // No value comes from beyond the end of the file: the smallest have half a byte.
    assert!(read.is_err() || read.is_ok_and(|gguf| gguf.values <= 2 * bytes.len()));
});
