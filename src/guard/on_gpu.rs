//! Whole guards on an emulated GPU, against the reference and against the CPU.

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::vectors::{Vector, Vectors, check_bf16};
use super::Guard;
use crate::call::{CancelToken, Control, PushOptions, ScoreOptions, StreamOptions};
use crate::error::Status;
use crate::kernels::Emulation;
use crate::options::{DeviceChoice, Dtype, OpenOptions};
use crate::text::Input;

#[allow(dead_code)] // Some of it is for other tests.
#[path = "../../tests/parity/vectors.rs"]
mod vectors;

const TOLERANCE: f64 = 1e-4;
/// Rows of a chunk on the emulated GPU.
const CHUNK: usize = 128;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures").join(name)
}

fn options(name: &str, device: DeviceChoice, dtype: Dtype) -> OpenOptions {
    OpenOptions {
        backbone: Some(fixture(name).join("backbone").display().to_string()),
        device,
        dtype,
        threads: Some(2),
        prefix_cache_bytes: 0,
        ..OpenOptions::new(fixture(name).display().to_string())
    }
}

fn on_gpu(name: &str, dtype: Dtype) -> Guard {
    let guard = Guard::open(options(name, DeviceChoice::Emulated(Emulation::default()), dtype));
    let guard = guard.unwrap();
    assert_eq!(guard.info().device, "emulated");
    guard
}

/// Short texts, and one of several chunks.
fn some(vectors: &[Vector]) -> Vec<&Vector> {
    let short = vectors.iter().filter(|v| v.tokens <= 30).step_by(7);
    let long = vectors.iter().filter(|v| (CHUNK + 20..3 * CHUNK).contains(&v.tokens)).take(1);
    short.chain(long).collect()
}

fn batch(guard: &Guard, vectors: &[&Vector]) -> Vec<f64> {
    let inputs: Vec<_> = vectors.iter().map(|v| v.input()).collect();
    let results = guard.score_batch(&inputs, None).unwrap();
    results.into_iter().map(|result| result.unwrap().score).collect()
}

fn worst(ours: &[f64], expected: impl Iterator<Item = f64>) -> f64 {
    ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn check(name: &str) {
    let all = Vectors::read(&fixture(name)).vectors;
    let vectors = some(&all);
    let guard = on_gpu(name, Dtype::F32);
    let batched = batch(&guard, &vectors);
    let most = worst(&batched, vectors.iter().map(|v| v.score));
    assert!(most <= TOLERANCE, "{name}: {most:e}");
    for (vector, batched) in vectors.iter().zip(&batched).step_by(3) {
        let alone = guard.score(vector.input(), None).unwrap();
        assert_eq!((alone.tokens, alone.truncated), (vector.tokens, vector.truncated));
        assert!((alone.score - batched).abs() < 1e-6, "{name}: {} alone", vector.id);
    }

    let short: Vec<_> = all.iter().filter(|v| v.tokens <= 16).collect();
    let ours = batch(&on_gpu(name, Dtype::Bf16), &short);
    let apart: Vec<f64> = ours.iter().zip(&short).map(|(a, v)| (a - v.score).abs()).collect();
    check_bf16(name, &apart, short.into_iter());
}

#[test]
fn qwen3_scores_are_the_references() {
    check("qwen3-residual-last");
}

#[test]
fn scores_of_the_mlps_outputs_are_the_references() {
    check("qwen3-mlp-inner");
}

#[test]
fn llama_scores_with_biases_are_the_references() {
    check("llama-mlp-bias");
}

/// Every push, every token and every fork, in whichever order a block's threads run.
#[test]
fn streams_and_their_forks_score_as_on_the_cpu() {
    let name = "qwen3-residual-inner";
    let cpu = Guard::open(options(name, DeviceChoice::Cpu, Dtype::F32)).unwrap();
    for ascending in [true, false] {
        let device = DeviceChoice::Emulated(Emulation { ascending, ..Emulation::default() });
        let gpu = Guard::open(options(name, device, Dtype::F32)).unwrap();
        let guards = [&gpu, &cpu];
        let pushes =
            ["The first words", " of a text", "", " that grows, wor", "d by word, to its end."];
        let options = || PushOptions { token_scores: true, ..PushOptions::default() };
        let mut streams = guards.map(|guard| vec![guard.stream(StreamOptions::default()).unwrap()]);
        for (i, text) in pushes.iter().enumerate() {
            // The fork goes another way than the stream that it was forked from.
            if i == 2 {
                streams.iter_mut().for_each(|all| all.push(all[0].fork().unwrap()));
            }
            let [ours, plain] = &streams;
            for (stream, (ours, plain)) in ours.iter().zip(plain).enumerate() {
                let text = if stream == 1 { format!(" or not{text}") } else { (*text).to_owned() };
                let [ours, plain] =
                    [ours, plain].map(|stream| stream.push(text.as_bytes(), options()).unwrap());
                assert_eq!(ours.tokens, plain.tokens);
                assert!((ours.score - plain.score).abs() <= TOLERANCE, "push {i} of {stream}");
                assert_eq!(ours.token_scores.len(), plain.token_scores.len());
                for (ours, plain) in ours.token_scores.iter().zip(&plain.token_scores) {
                    assert!((ours - plain).abs() <= TOLERANCE, "a token of push {i} of {stream}");
                }
            }
        }
    }
}

/// What earlier texts left is gone on from, whole and in part, and is not changed by it.
#[test]
fn texts_go_on_from_what_the_prefix_cache_holds() {
    let name = "llama-residual-rope";
    let all = Vectors::read(&fixture(name)).vectors;
    let vectors = some(&all);
    let device = DeviceChoice::Emulated(Emulation::default());
    let options = OpenOptions { prefix_cache_bytes: 64 << 20, ..options(name, device, Dtype::F32) };
    let guard = Guard::open(options).unwrap();
    for _ in 0..2 {
        let most = worst(&batch(&guard, &vectors), vectors.iter().map(|v| v.score));
        assert!(most <= TOLERANCE, "{most:e}");
    }
    let stats = guard.stats();
    assert!(stats.cache_hits > 0 && stats.kv_bytes > 0);
    let text = |end: &str| format!("One beginning that both of these texts have in common, {end}");
    let cpu = Guard::open(self::options(name, DeviceChoice::Cpu, Dtype::F32)).unwrap();
    for end in ["and an end.", "and another, longer end than the first.", "and an end."] {
        let [ours, plain] =
            [&guard, &cpu].map(|guard| guard.score(Input::Text(&text(end)), None).unwrap().score);
        assert!((ours - plain).abs() <= TOLERANCE, "{end}: {ours}, not {plain}");
    }
}

/// What would be two passes on a CPU is one chunk of one pass, and attention is shared out to more blocks.
#[test]
fn a_large_gpu_takes_more_texts_in_a_pass() {
    let name = "qwen3-residual-last";
    let all = Vectors::read(&fixture(name)).vectors;
    let sizes = 100..=super::open::BATCH_TOKENS;
    let texts: Vec<_> = all.iter().filter(|v| sizes.contains(&v.tokens)).collect();
    assert!(texts.iter().map(|v| v.tokens).sum::<usize>() > super::open::BATCH_TOKENS);
    let device = DeviceChoice::Emulated(Emulation { processors: 132, ..Emulation::default() });
    let guard = Guard::open(options(name, device, Dtype::F32)).unwrap();
    assert_eq!(guard.stats().pass_tokens_limit, 4096);
    assert_eq!(on_gpu(name, Dtype::F32).stats().pass_tokens_limit, 1024);
    let passes = guard.stats().passes;
    let most = worst(&batch(&guard, &texts), texts.iter().map(|v| v.score));
    assert!(most <= TOLERANCE, "{most:e}");
    assert_eq!(guard.stats().passes - passes, 1);
}

/// Neither reads what is the other's.
#[test]
fn short_texts_run_between_the_steps_of_a_long_one() {
    let name = "qwen3-residual-last";
    let all = Vectors::read(&fixture(name)).vectors;
    let long = all.iter().filter(|v| v.tokens > super::open::BATCH_TOKENS);
    let long = long.min_by_key(|v| v.tokens).unwrap();
    let short: Vec<_> = all.iter().filter(|v| v.tokens <= 16).step_by(20).collect();
    let guard = on_gpu(name, Dtype::F32);
    let run = |v: &Vector| guard.score(v.input(), None).unwrap().score;
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(long));
        for vector in &short {
            assert!((run(vector) - vector.score).abs() <= TOLERANCE, "{}", vector.id);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!((running.join().unwrap() - long.score).abs() <= TOLERANCE);
    });
}

#[test]
fn a_text_that_is_cancelled_stops_between_two_chunks() {
    let guard = on_gpu("qwen3-residual-last", Dtype::F32);
    let text = "word ".repeat(1000);
    let cancel = CancelToken::new();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            cancel.cancel();
        });
        let control = Control { cancel: Some(cancel.clone()), ..Control::default() };
        let options = ScoreOptions { control, ..ScoreOptions::default() };
        guard.score(Input::Text(&text), options).unwrap_err()
    });
    assert_eq!(error.status(), Status::Cancelled);
    guard.score(Input::Text("fine"), None).unwrap();
    assert_eq!(guard.stats().passes, 1, "the pass of the long text ran to its end");
}

#[test]
fn a_gpu_that_computes_something_else_is_refused() {
    let name = "qwen3-residual-inner";
    let kernels = ["embed", "norm", "rotate", "attention", "merge", "gate", "add", "product"];
    let readouts = ["gather", "sum_pages"];
    let both = kernels
        .into_iter()
        .chain(readouts)
        .flat_map(|kernel| [(kernel, Dtype::F32), (kernel, Dtype::Bf16)]);
    for (without, dtype) in both.chain([("sum_f32", Dtype::F32), ("sum_bf16", Dtype::Bf16)]) {
        let emulation = Emulation { without: Some(without), ..Emulation::default() };
        let opened = Guard::open(options(name, DeviceChoice::Emulated(emulation), dtype));
        let error = opened.err().unwrap_or_else(|| panic!("opened without {without}"));
        assert_eq!(error.status(), Status::Internal);
        assert!(error.message().contains("first block"), "{without}: {error}");
    }
}

/// Short texts alone and together, pushes onto longer ones, and what is forked from them: the same
/// recordings serve all of it, in the same bits as launches that are not recorded.
#[test]
fn replayed_passes_give_the_bits_of_launched_ones() {
    let name = "qwen3-residual-inner";
    let scores = |has_graphs, dtype| -> Vec<f64> {
        let device = DeviceChoice::Emulated(Emulation { has_graphs, ..Emulation::default() });
        let guard = Guard::open(options(name, device, dtype)).unwrap();
        let words = |count: usize| "some words ".repeat(count);
        let mut scores = vec![];
        // Texts of which one layer's keys are held at a time, of several lengths.
        for count in [1, 3, 2, 9, 1] {
            scores.push(guard.score(Input::Text(&words(count)), None).unwrap().score);
        }
        let texts = ["one", "of two and", "three"].map(Input::Text);
        let batch = guard.score_batch(&texts, None).unwrap();
        scores.extend(batch.into_iter().map(|result| result.unwrap().score));
        // Streams, of which all layers' are held, in pages that are given back and lent again.
        for beginning in [40, 2] {
            let stream = guard.stream(StreamOptions::default()).unwrap();
            let options = || PushOptions { token_scores: true, ..PushOptions::default() };
            let push = |stream: &crate::stream::Stream, text: &str| {
                let push = stream.push(text.as_bytes(), options()).unwrap();
                [vec![push.score], push.token_scores].concat()
            };
            scores.extend(push(&stream, &words(beginning)));
            let fork = stream.fork().unwrap();
            for text in ["one way, ", "and on"] {
                scores.extend(push(&stream, text));
                scores.extend(push(&fork, &text.to_uppercase()));
            }
        }
        scores
    };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let replayed = scores(true, dtype);
        assert!(replayed.len() > 100);
        assert_eq!(replayed, scores(false, dtype), "{dtype:?}");
    }
}

/// A batch that has no room goes on in halves; what still has none is an error, and the guard goes on.
#[test]
fn a_full_gpu_runs_in_halves_and_says_so_where_that_is_not_enough() {
    let name = "qwen3-residual-inner";
    let texts: Vec<String> =
        (0..8).map(|i| format!("{i} {}", "of some words ".repeat(9))).collect();
    let inputs: Vec<_> = texts.iter().map(|text| Input::Text(text)).collect();
    let cpu = Guard::open(options(name, DeviceChoice::Cpu, Dtype::F32)).unwrap();
    let expected = cpu.score_batch(&inputs, None).unwrap();
    let (mut halved, mut refused, mut went_on) = (false, false, false);
    for kilobytes in (100..).step_by(20) {
        let emulation = Emulation { capacity: kilobytes << 10, ..Emulation::default() };
        let guard = match Guard::open(options(name, DeviceChoice::Emulated(emulation), Dtype::F32))
        {
            Ok(guard) => guard,
            Err(error) => {
                assert_eq!(error.status(), Status::OutOfMemory, "{error}");
                continue;
            }
        };
        for (result, expected) in guard.score_batch(&inputs, None).unwrap().iter().zip(&expected) {
            match (result, expected) {
                (Ok(ours), Ok(plain)) => assert!((ours.score - plain.score).abs() <= TOLERANCE),
                (Err(error), _) => {
                    assert_eq!(error.status(), Status::OutOfMemory, "{error}");
                    refused = true;
                }
                (Ok(_), Err(error)) => panic!("{error}"),
            }
        }
        match guard.stats().passes {
            0 => {}
            1 => break,
            _ => {
                halved = true;
                // One text runs at once, of rows that are padded: it may need more than two together.
                match guard.score(inputs[0], None) {
                    Ok(_) => went_on = true,
                    Err(error) => assert_eq!(error.status(), Status::OutOfMemory, "{error}"),
                }
            }
        }
    }
    assert!(halved && refused && went_on, "{halved} {refused} {went_on}");
}
