//! Arbitrary bytes as the files of a checkpoint, mapped and read: an error, or every tensor's
//! values.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{copy, fixture};
use siren::fuzzing;
use tempfile::TempDir;

/// An artifact, a checkpoint of one file, and one of a good shard behind an index.
struct Dirs {
    artifact: TempDir,
    single: TempDir,
    sharded: TempDir,
}

static DIRS: LazyLock<Dirs> = LazyLock::new(|| {
    let dir = || tempfile::tempdir().expect("a temporary directory");
    let dirs = Dirs { artifact: dir(), single: dir(), sharded: dir() };
    let good = fixture("qwen3-short");
    copy(&good, dirs.artifact.path());
    let shard = dirs.sharded.path().join("model-00001-of-00001.safetensors");
    std::fs::copy(good.join("siren.safetensors"), shard).expect("copied");
    dirs
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let write = |dir: &TempDir, name: &str| {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    };
    match choice % 3 {
        0 => {
            write(&DIRS.artifact, "siren.safetensors");
            // Which of two tensors at one place is wrong depends on the order of a hash map.
            let [mapped, read] = [true, false]
                .map(|map| fuzzing::artifact(DIRS.artifact.path(), map).map_err(|e| e.status()));
            assert_eq!(mapped, read);
        }
        1 => {
            write(&DIRS.single, "model.safetensors");
            let [mapped, read] = [true, false]
                .map(|map| fuzzing::checkpoint(DIRS.single.path(), map).map_err(|e| e.status()));
            assert_eq!(mapped, read);
            // No value comes from beyond the end of the file.
            assert!(read.is_ok_and(|values| values * 2 <= bytes.len()) || mapped.is_err());
        }
        _ => {
            write(&DIRS.sharded, "model.safetensors.index.json");
            let _ = fuzzing::checkpoint(DIRS.sharded.path(), true);
        }
    }
});
