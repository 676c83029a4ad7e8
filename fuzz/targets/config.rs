//! Arbitrary bytes as `siren_config.json` over a good head, and as a backbone's `config.json` over
//! good weights: an error, or a guard whose scores are scores.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{copy, fixture, is_score};
use siren::{DeviceChoice, Guard, Input, OpenOptions, fuzzing};
use tempfile::TempDir;

/// A copy of a fixture whose configurations are written over.
struct Model(TempDir);

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy(&fixture("qwen3-short"), dir.path());
    Model(dir)
});

impl Model {
    fn artifact(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn backbone(&self) -> PathBuf {
        self.0.path().join("backbone")
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let good = fixture("qwen3-short");
    let map = choice & 2 == 0;
    let (model, backbone) = if choice & 1 == 0 {
        std::fs::write(MODEL.artifact().join("siren_config.json"), bytes).expect("written");
        if fuzzing::artifact(&MODEL.artifact(), map).is_err() {
            return;
        }
        (MODEL.artifact(), good.join("backbone"))
    } else {
        let path = MODEL.backbone().join("config.json");
        std::fs::write(&path, bytes).expect("written");
        if fuzzing::backbone_config(&path).is_err() {
            return;
        }
        (good, MODEL.backbone())
    };
    let options = OpenOptions {
        backbone: Some(backbone.display().to_string()),
        device: DeviceChoice::Cpu,
        threads: Some(1),
        map,
        ..OpenOptions::new(model.display().to_string())
    };
    let Ok(guard) = Guard::open(options) else { return };
    for text in ["", "How do I bake bread? In an oven, slowly."] {
        if let Ok(result) = guard.score(Input::Text(text), None) {
            assert!(is_score(result.score), "{result:?}");
        }
    }
});
