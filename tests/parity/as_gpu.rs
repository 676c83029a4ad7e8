//! candle's operations on the CPU (`cpu-as-gpu`), as `candle-cuda` runs them on a GPU, against the
//! reference and against the CPU's own path.

use std::path::Path;

use siren::{DeviceChoice, Dtype, Guard, PushOptions, StreamOptions};

use crate::vectors::{Vector, Vectors, check_bf16};
use crate::{SMALL, TOLERANCE, fixture, options, worst_alone};

const CHUNK_BYTES: [usize; 4] = [1, 7, 40, 300];
/// Texts longer than this are not streamed in small pieces.
const STREAMED_BYTES: usize = 2000;

fn open(name: &str, device: DeviceChoice, dtype: Dtype, prefix_cache_bytes: usize) -> Guard {
    let options = options(&fixture(name), &fixture(name).join("backbone"));
    let threads = Some(2);
    Guard::open(siren::OpenOptions { device, dtype, threads, prefix_cache_bytes, ..options })
        .unwrap()
}

fn as_gpu(name: &str, dtype: Dtype, prefix_cache_bytes: usize) -> Guard {
    let guard = open(name, DeviceChoice::CpuAsGpu, dtype, prefix_cache_bytes);
    assert_eq!(guard.info().device, "cpu-as-gpu");
    guard
}

/// How far the scores of a batch are from the reference's in f32.
fn apart(guard: &Guard, vectors: &[Vector]) -> Vec<f64> {
    let inputs: Vec<_> = vectors.iter().map(Vector::input).collect();
    let results = guard.score_batch(&inputs, None).unwrap();
    let apart = |(result, v): (siren::Result<siren::Score>, &Vector)| {
        (result.unwrap().score - v.score).abs()
    };
    results.into_iter().zip(vectors).map(apart).collect()
}

fn worst(apart: &[f64]) -> f64 {
    apart.iter().copied().fold(0.0, f64::max)
}

/// Streams `text` on both guards: every push and every token must agree.
fn streams_agree(device: &Guard, cpu: &Guard, text: &str, chunk: usize) {
    let stream = |guard: &Guard| guard.stream(StreamOptions::default()).unwrap();
    let (ours, plain) = (stream(device), stream(cpu));
    let options = || PushOptions { token_scores: true, ..PushOptions::default() };
    for bytes in text.as_bytes().chunks(chunk) {
        let [ours, plain] = [&ours, &plain].map(|stream| stream.push(bytes, options()).unwrap());
        assert_eq!((ours.tokens, ours.truncated), (plain.tokens, plain.truncated));
        assert!((ours.score - plain.score).abs() <= TOLERANCE, "{} {}", ours.score, plain.score);
        assert_eq!(ours.token_scores.len(), plain.token_scores.len());
        for (ours, plain) in ours.token_scores.iter().zip(&plain.token_scores) {
            assert!((ours - plain).abs() <= TOLERANCE, "{text:?}: {ours} {plain}");
        }
    }
    let [fork, plain] = [ours, plain].map(|stream| {
        let fork = stream.fork().unwrap();
        stream.push(b" one way", options()).unwrap();
        fork.push(b" or the other", options()).unwrap()
    });
    assert!((fork.score - plain.score).abs() <= TOLERANCE, "a fork of {text:?}");
}

fn check(name: &str) {
    let vectors = Vectors::read(&fixture(name)).vectors;
    let guard = as_gpu(name, Dtype::F32, 0);
    let alone = worst_alone(&guard, &vectors, |v| v.score);
    let most = alone.max(worst(&apart(&guard, &vectors)));
    println!("{name}: worst f32 difference as on a GPU {most:.2e}");
    assert!(most <= TOLERANCE, "{name}: {most:e}");

    // What earlier texts left is gone on from, whole and in part.
    let guard = as_gpu(name, Dtype::F32, 64 << 20);
    for _ in 0..2 {
        let most = worst(&apart(&guard, &vectors));
        assert!(most <= TOLERANCE, "{name}, with the prefix cache: {most:e}");
    }
    assert!(guard.stats().cache_hits > 0, "{name}");

    let cpu = open(name, DeviceChoice::Cpu, Dtype::F32, 0);
    let texts = vectors.iter().filter_map(Vector::text);
    let texts = texts.filter(|text| !text.is_empty() && text.len() <= STREAMED_BYTES);
    for (text, chunk) in texts.step_by(9).zip(CHUNK_BYTES.into_iter().cycle()) {
        streams_agree(&guard, &cpu, text, chunk.max(text.len() / 12));
    }

    check_bf16(name, &apart(&as_gpu(name, Dtype::Bf16, 0), &vectors), vectors.iter());
}

small_fixtures!(check);

#[test]
fn int8_is_the_cpus_alone() {
    let (model, backbone): (&Path, _) = (&fixture(SMALL[0]), fixture(SMALL[0]).join("backbone"));
    let mut options = options(model, &backbone);
    (options.device, options.dtype) = (DeviceChoice::CpuAsGpu, Dtype::Int8);
    let error = Guard::open(options.clone()).err().unwrap();
    assert_eq!(error.status(), siren::Status::Unsupported);
    assert!(error.message().contains("int8"), "{error}");
    options.device = DeviceChoice::Auto;
    assert_eq!(Guard::open(options).unwrap().info().device, "cpu");
}
