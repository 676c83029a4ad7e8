//! Quantised backbones: the reference runs the values that the `gguf` package reads from the same
//! file (`make_gguf.py`).

use std::path::{Path, PathBuf};

use siren::{Dtype, Guard, Status};

use crate::vectors::{Vector, Vectors};
use crate::{TOLERANCE, options, worst_alone};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/gguf").join(name)
}

fn check(name: &str, quantised: &str) {
    let model = fixture(name);
    let backbone = model.join("backbone.gguf");
    let vectors = Vectors::read(&model);
    let open = |dtype, threads, max_length| {
        let mut options = options(&model, &backbone);
        (options.dtype, options.threads, options.max_length) = (dtype, threads, max_length);
        Guard::open(options)
    };
    let guard = open(Dtype::Auto, Some(2), None).unwrap();
    assert_eq!((guard.info().dtype, &guard.info().backbone_path), ("f32", &backbone));
    let worst = worst_alone(&guard, &vectors.vectors, |v| v.score);
    println!("{name}: worst f32 difference {worst:.2e}");
    assert!(worst <= TOLERANCE, "{name}: {worst:e}");

    // A text's score does not depend on its neighbours or on the threads: not in one bit.
    let inputs: Vec<_> = vectors.vectors.iter().map(Vector::input).collect();
    let alone: Vec<f64> =
        inputs.iter().map(|input| guard.score(*input, None).unwrap().score).collect();
    for threads in [2, 1, 3] {
        let guard = open(Dtype::F32, Some(threads), None).unwrap();
        let results = guard.score_batch(&inputs, None).unwrap();
        let scores: Vec<f64> = results.into_iter().map(|result| result.unwrap().score).collect();
        assert_eq!(scores, alone, "{name}: a batch on {threads} threads changes scores");
    }
    for vector in &vectors.max_length_vectors {
        let guard = open(Dtype::F32, Some(2), vector.max_length).unwrap();
        let worst = worst_alone(&guard, std::slice::from_ref(vector), |v| v.score);
        assert!(worst <= TOLERANCE, "{name}, max_length {:?}: {worst:e}", vector.max_length);
    }

    match (open(Dtype::Bf16, Some(2), None), quantised) {
        (Ok(guard), "") => {
            let worst = worst_alone(&guard, &vectors.vectors, |v| v.score);
            assert!(worst < 0.1, "{name}: bf16 is off by {worst:e}");
        }
        (Err(error), words) if !words.is_empty() => {
            assert_eq!(error.status(), Status::Unsupported);
            assert!(error.message().contains(words), "{error}");
        }
        (opened, _) => {
            panic!("{name} in bf16: {:?}", opened.map(|_| ()).map_err(|e| e.to_string()))
        }
    }
}

#[test]
fn blocks_of_32_beside_plain_types() {
    check("qwen3-mixed", r#"tensor "blk.0.attn_q.weight" is quantised (Q4_0): use dtype f32"#);
}

#[test]
fn k_blocks_rope_factors_and_paired_rows() {
    check("llama-k", r#"tensor "blk.0.attn_q.weight" is quantised (Q4_K): use dtype f32"#);
}

#[test]
fn half_precision_with_biases() {
    check("llama-half", "");
}

/// The reference's tokenizer is not the file's metadata; what stands beside the file wins.
#[test]
fn a_tokenizer_beside_the_file_wins() {
    let model = fixture("qwen3-mixed");
    let dir = tempfile::tempdir().unwrap();
    let backbone = dir.path().join("backbone.gguf");
    std::fs::copy(model.join("backbone.gguf"), &backbone).unwrap();
    let open = || Guard::open(options(&model, &backbone));
    let tokens = |guard: Guard| {
        let vectors = Vectors::read(&model);
        let texts = vectors.vectors.iter();
        texts.map(|v| guard.score(v.input(), None).unwrap().tokens).sum::<usize>()
    };
    let own = tokens(open().unwrap());
    let beside = dir.path().join("tokenizer.json");
    let other = crate::fixture("llama-short").join("backbone/tokenizer.json");
    std::fs::copy(other, &beside).unwrap();
    assert_ne!(tokens(open().unwrap()), own);
    std::fs::write(&beside, "{").unwrap();
    let error = open().map(|_| ()).unwrap_err();
    assert!(error.message().contains(&beside.display().to_string()), "{error}");
}

#[test]
fn a_directory_may_hold_one_gguf_file_instead() {
    let model = fixture("llama-half");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(model.join("backbone.gguf"), dir.path().join("any-name.gguf")).unwrap();
    let guard = Guard::open(options(&model, dir.path())).unwrap();
    assert_eq!(guard.info().backbone_path, dir.path().join("any-name.gguf"));
    std::fs::write(dir.path().join("second.gguf"), "").unwrap();
    let error = Guard::open(options(&model, dir.path())).map(|_| ()).unwrap_err();
    assert!(error.message().contains("found 2 .gguf files, expected one"), "{error}");
}
