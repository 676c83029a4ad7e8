//! The kernels against their twins, and the twins against candle's operations: on the emulated GPU,
//! and on a real one where there is one.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::bf16;

use super::emulated::{self, Emulation};
use super::names;
use super::twin::{self, Text};
use super::{
    Chunk, Columns, Element, Gpu, Graphs, Memory, Norms, Pages, Part, Places, Read, Reading, Shape,
};
use crate::error::{Error, Result, Status};
use crate::kernels::kv::{KvShape, Meter, PAGE_TOKENS, Tensors};
use crate::kernels::{Heads, Joined, Kv, Precision, Span, composed};

/// Heads of models that tensor cores serve, and of others.
const HEADS: [Heads; 5] = [
    Heads { query: 4, key_value: 2, dim: 64 },
    Heads { query: 3, key_value: 1, dim: 128 },
    Heads { query: 2, key_value: 2, dim: 128 },
    Heads { query: 6, key_value: 2, dim: 20 },
    Heads { query: 5, key_value: 1, dim: 256 },
];

/// What a test runs on.
type Gpus = fn(Element) -> Vec<Gpu>;

/// Whose threads run in either order.
fn emulated_gpus(element: Element) -> Vec<Gpu> {
    [true, false]
        .map(|ascending| Emulation { ascending, ..Emulation::default() }.gpu(element))
        .into()
}

/// Tests that run on emulated GPUs, and, with the feature, on the machine's.
macro_rules! on_gpus {
    ($($test:ident),* $(,)?) => {
        mod emulated_gpu {
            $(#[test]
            fn $test() {
                super::$test(super::emulated_gpus);
            })*
        }

        #[cfg(feature = "cuda")]
        mod real_gpu {
            $(#[test]
            fn $test() {
                super::$test(crate::kernels::cuda::driver::real_gpu::gpus);
            })*
        }
    };
}

on_gpus!(
    rows_equal_their_twins,
    a_product_has_the_shapes_that_it_is_asked_for,
    products_are_exact,
    attention_over_pages_equals_its_twin,
    neurons_are_gathered_or_summed_text_by_text,
    pages_are_shared_until_one_is_written,
);

/// Numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn number(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// As `element` stores them.
    fn numbers(&mut self, count: usize, element: Element) -> Vec<f32> {
        (0..count).map(|_| rounding(element)(2.0 * self.number())).collect()
    }
}

fn rounding(element: Element) -> fn(f32) -> f32 {
    match element {
        Element::F32 => |x| x,
        Element::Bf16 => |x| bf16::from_f32(x).to_f32(),
    }
}

fn upload(gpu: &Gpu, values: &[f32]) -> Memory {
    match gpu.element() {
        Element::F32 => gpu.upload(values).unwrap(),
        Element::Bf16 => {
            gpu.upload(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()).unwrap()
        }
    }
}

fn numbers(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        Element::Bf16 => bytes
            .chunks_exact(2)
            .map(|x| bytemuck::pod_read_unaligned::<bf16>(x).to_f32())
            .collect(),
    }
}

fn download(memory: &Memory, count: usize) -> Vec<f32> {
    let element = memory.gpu().element();
    let mut bytes = vec![0; count * element.bytes()];
    memory.read(&mut bytes).unwrap();
    numbers(element, &bytes)
}

/// Holds `ours` against `twin`; in bf16 a result may be rounded to the next number.
#[track_caller]
fn close(ours: &[f32], twin: &[f32], element: Element, what: &str) {
    let most = match element {
        Element::F32 => 2e-6,
        Element::Bf16 => 1.0 / 128.0,
    };
    assert_eq!(ours.len(), twin.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(twin).enumerate() {
        // What is not written is NaN in both.
        let equal = (a - b).abs() <= most * b.abs().max(0.25) || (a.is_nan() && b.is_nan());
        assert!(equal, "{what}: {a} at {i}, expected {b}");
    }
}

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

fn rows_equal_their_twins(gpus: Gpus) {
    for element in ELEMENTS {
        let round = rounding(element);
        for gpu in gpus(element) {
            for (rows, width) in [(1, 8), (3, 20), (2, 7), (5, 1032), (2, 4104), (7, 33)] {
                let what = format!("{element:?} [{rows}, {width}]");
                let shape = Shape { rows, width };
                let mut random = Random(rows as u64 * 7919 + width as u64);
                let mut x = random.numbers(rows * width, element);
                let y = random.numbers(rows * width, element);
                let weight = random.numbers(width, Element::F32);
                let on_gpu = |values: &[f32]| upload(&gpu, values);
                let (gx, gy, gw) = (on_gpu(&x), on_gpu(&y), gpu.upload(&weight).unwrap());

                let tokens: Vec<u32> = (0..9).map(|i| i * 7 % rows as u32).collect();
                let places = of_tokens(&gpu, &tokens, rows).unwrap();
                let (ours, _) = gpu.embed(&gx, shape, &places).unwrap();
                let expected = twin::embed(&x, width, &tokens);
                assert_eq!(download(&ours, 9 * width), expected, "{what}");
                assert!(of_tokens(&gpu, &[rows as u32], rows).is_err());
                let places = of_tokens(&gpu, &[0], rows + 1).unwrap();
                assert!(gpu.embed(&gx, shape, &places).is_err());

                let ours = gpu.norm(&gx, None, &gw, shape, 1e-5).unwrap();
                let expected = twin::norm(&mut x, None, &weight, 1e-5, round);
                close(&download(&ours, rows * width), &expected, element, &what);
                let ours = gpu.norm(&gx, Some(&gy), &gw, shape, 1e-5).unwrap();
                let expected = twin::norm(&mut x, Some(&y), &weight, 1e-5, round);
                close(&download(&ours, rows * width), &expected, element, &what);
                assert_eq!(download(&gx, rows * width), x, "{what}");

                gpu.add(&gx, &gy, shape, rows).unwrap();
                twin::add(&mut x, &y, round);
                gpu.add(&gx, &gy, shape, 1).unwrap();
                twin::add(&mut x, &y[..width], round);
                assert_eq!(download(&gx, rows * width), x, "{what}");

                let joined = random.numbers(rows * width * 2, element);
                let ours = gpu.gate(&on_gpu(&joined), shape).unwrap();
                let expected = twin::gate(&joined, width, round);
                close(&download(&ours, rows * width), &expected, element, &what);
                assert!(gpu.gate(&gx, shape).is_err(), "half of what is needed");
            }
        }
    }
}

/// What is recorded is done once a run, with what lies in memory by then.
#[test]
fn launches_are_recorded_once_and_replayed() {
    let shape = Shape { rows: 1, width: 8 };
    let run = |graphs: &Graphs, fails: &[usize]| -> (Vec<f32>, usize) {
        let gpu = graphs.gpu();
        let sum = upload(gpu, &[0.0; 8]);
        let mut calls = 0;
        for run in 1..=3 {
            let inputs = [run as f32; 8];
            let mut launches = |memory: &Arc<Memory>| {
                calls += 1;
                // Lent again and again, and of no use.
                drop(memory.gpu().lend(100)?);
                if fails.contains(&calls) {
                    return Err(Error::new(Status::OutOfMemory, "planted"));
                }
                memory.gpu().add(&sum, memory, shape, 1)
            };
            // SAFETY: the sum stays.
            unsafe { graphs.run(16, 64, bytemuck::bytes_of(&inputs), &mut launches).unwrap() };
        }
        (download(&sum, 8), calls)
    };
    let with = |has_graphs| {
        Graphs::new(&Emulation { has_graphs, ..Emulation::default() }.gpu(Element::F32))
    };
    // A rehearsal and a recording.
    assert_eq!(run(&with(true), &[]), (vec![6.0; 8], 2));
    // Where one fails for want of memory, another one of each.
    assert_eq!(run(&with(true), &[1]), (vec![6.0; 8], 3));
    assert_eq!(run(&with(true), &[2]), (vec![6.0; 8], 4));
    // Without a recording: each time.
    assert_eq!(run(&with(true), &[1, 2]), (vec![6.0; 8], 5));
    assert_eq!(run(&with(true), &[2, 4]), (vec![6.0; 8], 7));
    assert_eq!(run(&with(false), &[]), (vec![6.0; 8], 4));
}

/// Places of rows that attend to nothing.
fn of_tokens(gpu: &Gpu, tokens: &[u32], vocabulary: usize) -> Result<Places> {
    let heads = Heads { query: 1, key_value: 1, dim: 2 };
    let mut pages = Pages::of_keys(gpu, kv_shape(1, heads), &Meter::default());
    pages.reserve(0, tokens.len())?;
    let parts = &[Part { rows: 0..tokens.len(), position: 0, segment: 0, pages: &pages }];
    let zeros = &vec![0.0; tokens.len()][..];
    Places::new(gpu, &Chunk { parts, tokens, vocabulary, rotations: (zeros, zeros), heads })
}

fn a_product_has_the_shapes_that_it_is_asked_for(gpus: Gpus) {
    for element in ELEMENTS {
        for gpu in gpus(element) {
            let shape = Shape { rows: 2, width: 3 };
            let x = upload(&gpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let weight = upload(&gpu, &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
            let y = gpu.linear(&x, &weight, shape, 2).unwrap();
            assert_eq!(download(&y, 4), [1.0, 5.0, 4.0, 11.0]);
            let error = gpu.linear(&x, &weight, shape, 3).map(|_| ()).unwrap_err();
            assert_eq!(error.status(), Status::Internal);
        }
    }
}

/// To f32's precision, so not TF32's; in bf16 rounded once.
fn products_are_exact(gpus: Gpus) {
    for element in ELEMENTS {
        for gpu in gpus(element) {
            for (rows, inputs, outputs) in [(1, 1032, 40), (5, 64, 7), (33, 256, 70)] {
                let mut random = Random(rows as u64);
                let x = random.numbers(rows * inputs, element);
                let weight = random.numbers(outputs * inputs, element);
                let shape = Shape { rows, width: inputs };
                let on_gpu = [&x, &weight].map(|values| upload(&gpu, values));
                let ours = gpu.linear(&on_gpu[0], &on_gpu[1], shape, outputs).unwrap();
                let ours = download(&ours, rows * outputs);
                for (i, ours) in ours.into_iter().map(f64::from).enumerate() {
                    let row = &x[i / outputs * inputs..][..inputs];
                    let column = &weight[i % outputs * inputs..][..inputs];
                    let terms = || row.iter().zip(column).map(|(a, b)| f64::from(a * b));
                    let (sum, sizes) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let rounded = if element == Element::Bf16 { sum.abs() / 256.0 } else { 0.0 };
                    let what = format!("{element:?} [{rows}, {inputs}] {outputs}, at {i}");
                    let apart = (ours - sum).abs();
                    assert!(apart <= 2e-6 * sizes + rounded, "{what}: {ours}, expected {sum}");
                }
            }
        }
    }
}

/// Texts side by side: tokens that ran before, and rows; and layers of pages.
type Case = (Vec<(usize, usize)>, usize);

fn cases() -> Vec<Case> {
    vec![
        (vec![(0, 1)], 1),
        (vec![(0, 15), (0, 16), (3, 17)], 2),
        (vec![(64, 6), (0, 3), (17, 47)], 1),
        (vec![(0, 70), (5, 1)], 3),
        (vec![(200, 2), (128, 1)], 2),
    ]
}

/// Runs a case on `gpu` and on the twins, for layer 0 and then the last one, and compares.
fn compare_attention(gpu: &Gpu, (texts, layers): &Case, heads: Heads, with_norms: bool) {
    let element = gpu.element();
    let round = rounding(element);
    let what = format!("{element:?} {texts:?} of {layers} layers, {heads:?}");
    let shape = kv_shape(*layers, heads);
    let meter = Meter::default();
    let mut random = Random(heads.dim as u64 + texts.len() as u64);
    // Their first tokens run in a chunk of their own.
    for layer in (0..*layers).step_by((layers - 1).max(1)) {
        let mut pages = Vec::new();
        let mut twins = Vec::new();
        for &(known, new) in texts {
            let mut ours = Pages::of_keys(gpu, shape, &meter);
            ours.reserve(0, known + new).unwrap();
            let numbers = shape.width() * layers * PAGE_TOKENS;
            let blank = vec![vec![f32::NAN; numbers]; ours.pages().len()];
            pages.push(ours);
            let layer_stride = if *layers == 1 { 0 } else { shape.width() * PAGE_TOKENS };
            twins.push(Text { rows: 0..0, position: 0, layer_stride, pages: blank });
        }
        for first in [true, false] {
            let mut row = 0;
            let mut parts = Vec::new();
            for (i, &(known, new)) in texts.iter().enumerate() {
                let (position, count) = if first { (0, known) } else { (known, new) };
                let rows = row..row + count;
                row = rows.end;
                twins[i].rows = rows.clone();
                twins[i].position = position;
                if count > 0 {
                    parts.push(Part { rows, position, segment: i, pages: &pages[i] });
                }
            }
            if row == 0 {
                continue;
            }
            let mut qkv = random.numbers(row * heads.qkv(), element);
            let angles = random.numbers(row * heads.dim / 2, Element::F32);
            let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
            let weights = random.numbers(2 * heads.dim, Element::F32);
            let (query, key) = weights.split_at(heads.dim);
            let on_gpu = [query, key].map(|weight| gpu.upload(weight).unwrap());
            let norms = with_norms.then(|| Norms { query: &on_gpu[0], key: &on_gpu[1], eps: 1e-6 });
            let tokens = &vec![0; row][..];
            let rotations = (&cos[..], &sin[..]);
            let chunk = Chunk { parts: &parts, tokens, vocabulary: 1, rotations, heads };
            let places = Places::new(gpu, &chunk).unwrap();
            let rows = upload(gpu, &qkv);
            gpu.rotate(&rows, &places, layer, norms).unwrap();
            let norms = with_norms.then_some((query, key, 1e-6));
            twin::rotate(&mut qkv, &mut twins, layer, (&cos, &sin), norms, heads, round);
            for (ours, twin) in pages.iter().zip(&mut twins) {
                for (ours, twin) in ours.pages().iter().zip(&mut twin.pages) {
                    let ours = numbers(element, &ours.memory.read().unwrap());
                    close(&ours, twin, element, &what);
                    // So that a difference of rounding does not show again below.
                    *twin = ours;
                }
            }
            let ours = download(&rows, qkv.len());
            for (ours, twin) in
                ours.chunks_exact(heads.qkv()).zip(qkv.chunks_exact_mut(heads.qkv()))
            {
                let queries = heads.query * heads.dim;
                close(&ours[..queries], &twin[..queries], element, &what);
                twin[..queries].copy_from_slice(&ours[..queries]);
            }
            if first {
                continue;
            }
            let (ours, _) = gpu.attention(&rows, &places, layer).unwrap();
            let ours = download(&ours, row * heads.query * heads.dim);
            let twin = twin::attention(&qkv, &twins, layer, heads, round);
            let most = match element {
                Element::F32 => 2e-5,
                // Weights are rounded to bf16 before they are multiplied.
                Element::Bf16 => 0.02,
            };
            for (i, (a, b)) in ours.iter().zip(&twin).enumerate() {
                assert!((a - b).abs() < most, "{what}: {a} at {i}, expected {b}");
            }
        }
    }
    drop(meter);
}

fn attention_over_pages_equals_its_twin(gpus: Gpus) {
    for element in ELEMENTS {
        for gpu in gpus(element) {
            for heads in HEADS {
                for (i, case) in cases().iter().enumerate() {
                    compare_attention(&gpu, case, heads, i % 2 == 0);
                }
            }
        }
    }
}

fn neurons_are_gathered_or_summed_text_by_text(gpus: Gpus) {
    let heads = Heads { query: 1, key_value: 1, dim: 2 };
    for element in ELEMENTS {
        for gpu in gpus(element) {
            for (width, count) in [(5, 3), (40, 33), (300, 129)] {
                let mut random = Random(width as u64);
                let meter = Meter::default();
                let columns: Vec<u32> = (0..count).map(|i| (i * 2 % width) as u32).collect();
                let (features, start) = (count + 4, 3);
                // Texts 0 and 2 keep their tokens' neurons, text 2 from a chunk before; of it the
                // sums of its first 18 tokens are asked for, and then each token's numbers.
                let chunks: [&[(usize, usize, usize)]; 2] =
                    [&[(2, 0, 4), (3, 0, 1)], &[(0, 0, 3), (1, 7, 20), (2, 4, 17), (3, 1, 2)]];
                let lengths = [3, 27, 21, 3];
                let (mut keys, mut kept) = (vec![], vec![]);
                for tokens in lengths {
                    let mut pages = Pages::of_keys(&gpu, kv_shape(1, heads), &meter);
                    pages.reserve(0, tokens).unwrap();
                    keys.push(pages);
                    let mut pages = Pages::of_neurons(&gpu, features, &meter);
                    pages.reserve(0, tokens).unwrap();
                    kept.push(pages);
                }
                let read = |text: usize, summed: usize| Read {
                    pages: matches!(text, 0 | 2).then_some(&kept[text]),
                    summed,
                    rows: summed..lengths[text],
                };
                let texts = [read(0, 3), read(1, 27), read(2, 18), read(3, 3)];
                let reading = Reading::new(&gpu, &texts, features, None).unwrap();
                let chosen = Columns::new(&gpu, &columns, start).unwrap();
                // What the model gives: a row for each token that runs.
                let mut expected = lengths.map(|_| vec![]);
                for chunk in chunks {
                    let mut parts = Vec::new();
                    let mut row = 0;
                    for &(text, position, count) in chunk {
                        let rows = row..row + count;
                        row = rows.end;
                        parts.push(Part { rows, position, segment: text, pages: &keys[text] });
                    }
                    let states = random.numbers(row * width, element);
                    let rotations = &vec![0.0; row][..];
                    let tokens = &vec![0; row][..];
                    let rotations = (rotations, rotations);
                    let chunk_of = Chunk { parts: &parts, tokens, vocabulary: 1, rotations, heads };
                    let places = Places::new(&gpu, &chunk_of).unwrap();
                    let on_gpu = upload(&gpu, &states);
                    reading.observe(&on_gpu, width, &places, &chosen).unwrap();
                    for part in &parts {
                        for row in part.rows.clone() {
                            let row = &states[row * width..][..width];
                            expected[part.segment].push(row.to_vec());
                        }
                    }
                }
                // The features that no column is read for are another layer's: here nobody's.
                let results = reading.finish().unwrap();
                let of = |row: &[f32], f: usize| -> f32 {
                    let column = f.checked_sub(start).and_then(|c| columns.get(c));
                    column.map_or(0.0, |&c| row[c as usize])
                };
                let is_read = |f: usize| (start..start + count).contains(&f);
                for (text, rows) in expected.iter().enumerate() {
                    let summed = texts[text].summed.min(rows.len());
                    for f in (0..features).filter(|&f| is_read(f)) {
                        let sum: f64 = rows[..summed].iter().map(|r| f64::from(of(r, f))).sum();
                        let ours = results.sums[text * features + f];
                        assert!((ours - sum).abs() < 1e-9, "text {text}, {f}: {ours}, not {sum}");
                    }
                }
                assert_eq!(results.rows.len(), 3 * features);
                for (ours, row) in results.rows.chunks_exact(features).zip(&expected[2][18..]) {
                    for f in (0..features).filter(|&f| is_read(f)) {
                        assert_eq!(ours[f], of(row, f));
                    }
                }
            }
        }
    }
}

/// What is shared is copied before it is written, and what is given back is lent again.
fn pages_are_shared_until_one_is_written(gpus: Gpus) {
    let heads = Heads { query: 2, key_value: 1, dim: 64 };
    let shape = kv_shape(2, heads);
    let page_bytes = shape.width() * 2 * PAGE_TOKENS * 2;
    for gpu in gpus(Element::Bf16) {
        let meter = Meter::default();
        let mut pages = Pages::of_keys(&gpu, shape, &meter);
        pages.reserve(0, 40).unwrap();
        assert_eq!(meter.bytes(), 3 * page_bytes);
        let addresses = |pages: &Pages| -> Vec<u64> {
            pages.pages().iter().map(|page| page.memory.address).collect()
        };
        let before = addresses(&pages);
        let mut copy = pages.clone();
        copy.truncate(20);
        assert_eq!((meter.bytes(), addresses(&copy)), (3 * page_bytes, before[..2].to_vec()));
        copy.reserve(20, 30).unwrap();
        assert_eq!((addresses(&pages), addresses(&copy)[0]), (before.clone(), before[0]));
        assert_ne!(addresses(&copy)[1], before[1]);
        assert_eq!(meter.bytes(), 4 * page_bytes);
        let given_back = addresses(&copy)[1];
        drop(copy);
        assert_eq!(meter.bytes(), 3 * page_bytes);
        let mut other = Pages::of_keys(&gpu, shape, &meter);
        other.reserve(0, 1).unwrap();
        assert_eq!(addresses(&other), [given_back]);
    }
}

/// What is launched is found under a name that the compiler has not changed.
#[test]
fn every_kernel_has_its_name() {
    let lacking: Vec<_> = names::all().filter(|name| !emulated::exports(name)).collect();
    assert!(lacking.is_empty(), "no `extern \"C\"` kernel: {lacking:?}");
}

#[test]
fn a_full_gpu_says_so_after_it_has_given_back_what_lies_ready() {
    let gpu = Emulation { capacity: 1000, ..Emulation::default() }.gpu(Element::F32);
    drop(gpu.lend(600).unwrap());
    // The 600 bytes lie ready, and are of no use for these.
    let held = gpu.lend(700).unwrap();
    let error = gpu.lend(400).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory);
    drop(held);
    gpu.lend(400).unwrap();
}

/// The twins' own ground: candle's operations.
#[test]
fn twins_equal_candles_operations() {
    let exact: fn(f32) -> f32 = |x| x;
    let tensor = |values: &[f32], width: usize| {
        Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap()
    };
    let flat = |x: Tensor| -> Vec<f32> { x.flatten_all().unwrap().to_vec1().unwrap() };
    let mut random = Random(1);
    for (rows, width) in [(1, 6), (5, 34)] {
        let mut x = random.numbers(rows * width, Element::F32);
        let weight = random.numbers(width, Element::F32);
        let plain = composed::rms_norm(&tensor(&x, width), &tensor(&weight, width), 1e-5);
        let ours = twin::norm(&mut x, None, &weight, 1e-5, exact);
        close(&ours, &flat(plain.unwrap()), Element::F32, "norm");
        let joined = random.numbers(rows * width * 2, Element::F32);
        let plain = composed::silu_mul(&tensor(&joined, 2 * width)).unwrap();
        close(&twin::gate(&joined, width, exact), &flat(plain), Element::F32, "gate");
    }
    for heads in HEADS {
        for (known, new) in [(0, 1), (17, 40), (33, 2)] {
            let shape = kv_shape(2, heads);
            let mut kv = Kv::Tensors(tensors(shape));
            let numbers = shape.width() * 2 * PAGE_TOKENS;
            let pages = vec![vec![f32::NAN; numbers]; usize::div_ceil(known + new, PAGE_TOKENS)];
            let layer_stride = shape.width() * PAGE_TOKENS;
            let mut texts = [Text { rows: 0..0, position: 0, layer_stride, pages }];
            for (position, count) in [(0, known), (known, new)] {
                if count == 0 {
                    continue;
                }
                let mut qkv = random.numbers(count * heads.qkv(), Element::F32);
                let angles = random.numbers(count * heads.dim / 2, Element::F32);
                let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
                let weights = random.numbers(2 * heads.dim, Element::F32);
                let (query, key) = weights.split_at(heads.dim);
                let rotated = composed::norm_and_rotate(
                    &tensor(&qkv, heads.qkv()),
                    &tensor(&cos, heads.dim / 2),
                    &tensor(&sin, heads.dim / 2),
                    Some((&tensor(query, heads.dim), &tensor(key, heads.dim), 1e-6)),
                    heads,
                )
                .unwrap();
                let rows = crate::kernels::Rows::on_device(rotated.clone()).unwrap();
                let rows = Joined::rotated(rows, heads);
                kv.store(1, position, &rows, 0..count).unwrap();
                texts[0].rows = 0..count;
                texts[0].position = position;
                let norms = Some((query, key, 1e-6));
                twin::rotate(&mut qkv, &mut texts, 1, (&cos, &sin), norms, heads, exact);
                let span = Span { rows: 0..count, position, kv: &kv, layer: 1 };
                let plain = flat(composed::attention(&rotated, &[span], heads).unwrap());
                let ours = twin::attention(&qkv, &texts, 1, heads, exact);
                for (a, b) in ours.iter().zip(&plain) {
                    assert!((a - b).abs() < 2e-5, "{heads:?}: {a}, expected {b}");
                }
            }
        }
    }
}

/// The precision counts for pages of the CPU alone.
fn kv_shape(layers: usize, heads: Heads) -> KvShape {
    KvShape { layers, heads, precision: Precision::F32 }
}

fn tensors(shape: KvShape) -> Tensors {
    Tensors::new(shape, shape.token_bytes(&crate::kernels::Backend::Cpu), &Meter::default())
}
