//! Every kernel of this CPU, forced by name, against plain references.

use super::pack::BLOCK;
use super::*;
use crate::kernels::{Arena, math};

/// A small linear congruential generator: the tests need no better.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

pub(super) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

fn to_bf16(v: &[f32]) -> Vec<bf16> {
    v.iter().map(|v| bf16::from_f32(*v)).collect()
}

fn widened(v: &[bf16]) -> Vec<f32> {
    v.iter().map(|v| v.to_f32()).collect()
}

fn pack(isa: Isa, w: Weights<'_>, n: usize, k: usize, precision: Precision) -> PackedLinear {
    PackedLinear::pack_for(isa, &[(w, n)], k, precision).unwrap()
}

/// The product, of inputs and to outputs that lie where numbers that are none were before.
fn matmul(layer: &PackedLinear, x: &[f32]) -> Vec<f32> {
    outputs(layer.matmul(&rows(x, layer.in_features(), layer.out_features()).into()))
}

fn outputs(y: Result<Rows>) -> Vec<f32> {
    y.unwrap().cpu().unwrap().to_vec()
}

/// Rows of `width`, whose arena lends what held no numbers for rows of up to `widest`.
fn rows(x: &[f32], width: usize, widest: usize) -> Rows {
    let arena = Arena::new(1 << 24);
    let most = x.len() / width.max(1) * width.max(widest) + 4000;
    let spoiled: Vec<_> = (0..3)
        .map(|_| {
            let mut rows = Rows::lend(&arena, 1, most).unwrap();
            rows.cpu_mut().unwrap().fill(f32::NAN);
            rows
        })
        .collect();
    drop(spoiled);
    Rows::copied(&arena, x, width).unwrap()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

pub(super) fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Whether `got` is `x · w` up to what `k` additions of f32 can lose.
fn assert_close(got: f32, x: &[f32], w: &[f32], what: &str) {
    let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
    let exact: f64 = products().sum();
    let size: f64 = products().map(f64::abs).sum();
    let bound = (x.len() + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * size + 1e-30;
    assert!((f64::from(got) - exact).abs() <= bound, "{what}: {got} for {exact} ± {bound:e}");
}

fn shapes() -> Vec<(usize, usize, usize)> {
    let mut rng = Rng(11);
    let mut shapes: Vec<_> =
        (0..40).map(|_| (1 + rng.below(40), 1 + rng.below(100), 1 + rng.below(300))).collect();
    shapes.extend([
        (1, 1, 1),
        (12, 32, BLOCK),
        (13, 33, BLOCK + 1),
        (2, 128, 2 * BLOCK),
        (5, 160, 2 * BLOCK - 1),
        (25, 70, 2 * BLOCK + 1),
        (7, 31, 2 * BLOCK + 301),
    ]);
    shapes
}

#[test]
fn every_kernel_agrees_with_an_exact_reference() {
    let mut rng = Rng(1);
    for (m, n, k) in shapes() {
        let (x, w) = (rng.floats(m * k), rng.floats(n * k));
        let w16: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
        let wb = to_bf16(&w);
        let from_f16: Vec<f32> = w16.iter().map(|v| v.to_f32()).collect();
        let kinds = [
            (Weights::F32(&w), &w),
            (Weights::F16(&w16), &from_f16),
            (Weights::Bf16(&wb), &widened(&wb)),
        ];
        for isa in isas() {
            for (weights, floats) in &kinds {
                for precision in [Precision::F32, Precision::Bf16] {
                    let layer = pack(isa, *weights, n, k, precision);
                    let y = matmul(&layer, &x);
                    let (x, floats) = match precision {
                        Precision::F32 | Precision::Int8 => (x.clone(), (*floats).clone()),
                        Precision::Bf16 => (widened(&to_bf16(&x)), widened(&to_bf16(floats))),
                    };
                    for (i, got) in y.iter().enumerate() {
                        let (x, w) = (&x[i / n * k..][..k], &floats[i % n * k..][..k]);
                        let what = format!("{isa:?} {precision:?} m {m} n {n} k {k} at {i}");
                        assert_close(*got, x, w, &what);
                    }
                }
            }
        }
    }
}

/// The chain of multiply-adds that the module promises.
fn chain(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum))
}

#[test]
fn f32_kernels_are_the_promised_chain_bit_for_bit() {
    let mut rng = Rng(2);
    for (m, n, k) in shapes() {
        let (x, wb) = (rng.floats(m * k), to_bf16(&rng.floats(n * k)));
        let w = widened(&wb);
        let want: Vec<f32> =
            (0..m * n).map(|i| chain(&x[i / n * k..][..k], &w[i % n * k..][..k])).collect();
        for isa in isas() {
            let narrow = matmul(&pack(isa, Weights::Bf16(&wb), n, k, Precision::F32), &x);
            let wide = matmul(&pack(isa, Weights::F32(&w), n, k, Precision::F32), &x);
            if isa == Isa::Amx {
                // Sums 32 k at a time where weights are bf16: the reference test holds it.
                continue;
            }
            assert_eq!(bits(&narrow), bits(&wide), "{isa:?} {m} {n} {k}: bf16 storage is exact");
            if isa != Isa::Portable || cfg!(target_arch = "aarch64") {
                assert_eq!(bits(&wide), bits(&want), "{isa:?} {m} {n} {k}");
            }
        }
    }
}

/// Blocks of `rows` rows of `k`, with scales that are plain numbers, and the values they stand for.
pub(super) fn blocks(rng: &mut Rng, of: BlockType, rows: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    for _ in 0..rows * k / of.elements() {
        let start = bytes.len();
        bytes.extend((0..of.bytes()).map(|_| rng.next() as u8));
        let block = &mut bytes[start..];
        let mut half = |at: usize| {
            block[at..at + 2].copy_from_slice(&f16::from_f32(rng.float() / 64.0).to_le_bytes());
        };
        match of {
            BlockType::Q6K => half(208),
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => half(0),
            _ => {
                half(0);
                half(2);
            }
        }
    }
    let mut values = Vec::new();
    of.widen_into(&bytes, &mut values);
    (bytes, values)
}

#[test]
fn compact_storage_is_the_f32_storage_of_its_values_bit_for_bit() {
    let mut rng = Rng(12);
    for (n, k) in [(1, 256), (33, 512), (70, 768), (131, 1536)] {
        let m = 27;
        let x = rng.floats(m * k);
        let halves: Vec<f16> = rng.floats(n * k).into_iter().map(f16::from_f32).collect();
        let floats: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
        let quantised = BlockType::ALL.map(|of| (of, blocks(&mut rng, of, n, k)));
        let mut kinds = vec![(Weights::F16(&halves), &floats)];
        kinds.extend(quantised.iter().map(|(of, (b, values))| (Weights::Blocks(*of, b), values)));
        for isa in isas() {
            for (compact, values) in &kinds {
                let compact = pack(isa, *compact, n, k, Precision::F32);
                let wide = pack(isa, Weights::F32(values), n, k, Precision::F32);
                for rows in [1, 2, 5, 12, 13, 27] {
                    let x = &x[..rows * k];
                    let what = format!("{isa:?} {:?} {rows} {n} {k}", compact.runs[0].storage);
                    assert!(bits(&matmul(&compact, x)) == bits(&matmul(&wide, x)), "{what}");
                }
            }
        }
    }
}

/// A file of mixed types keeps each part in its own; memory is that of the file, but for scales and
/// for padding.
#[test]
fn parts_of_several_types_stand_side_by_side() {
    let mut rng = Rng(13);
    let (m, k) = (7, 512);
    let (q4, q4_values) = blocks(&mut rng, BlockType::Q4K, 64, k);
    let (q6, q6_values) = blocks(&mut rng, BlockType::Q6K, 40, k);
    let plain = rng.floats(3 * k);
    let x = rng.floats(m * k);
    let parts = [
        (Weights::Blocks(BlockType::Q4K, &q4), 64),
        (Weights::Blocks(BlockType::Q6K, &q6), 40),
        (Weights::F32(&plain), 3),
    ];
    let values = [(&q4_values, 64), (&q6_values, 40), (&plain, 3)];
    for isa in isas() {
        let layer = PackedLinear::pack_for(isa, &parts, k, Precision::F32).unwrap();
        assert_eq!(layer.out_features(), 107);
        let together = matmul(&layer, &x);
        let mut start = 0;
        for (values, rows) in values {
            let alone = matmul(&pack(isa, Weights::F32(values), rows, k, Precision::F32), &x);
            for (row, alone) in alone.chunks(rows).enumerate() {
                assert_eq!(bits(&together[row * 107 + start..][..rows]), bits(alone), "{isa:?}");
            }
            start += rows;
        }
    }
    let layer = PackedLinear::pack(&parts[..1], k, Precision::F32).unwrap();
    assert!(layer.bytes() * 100 <= q4.len() * 103, "{} of {}", layer.bytes(), q4.len());
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    let bytes = [0; 144 * 2];
    let pack = |n, k| {
        let parts = [(Weights::Blocks(BlockType::Q4K, &bytes[..]), n)];
        PackedLinear::pack(&parts, k, Precision::F32).map(|_| ())
    };
    assert_eq!(pack(2, 256), Ok(()));
    assert_eq!(pack(4, 128), Err(PackError::Shape { part: 0, want: 512, got: 512 }));
    assert_eq!(pack(1, 256), Err(PackError::Shape { part: 0, want: 256, got: 512 }));
}

#[test]
fn a_row_depends_on_nothing_but_itself() {
    let mut rng = Rng(3);
    for (n, k) in [(70, 131), (100, BLOCK + 77), (320, 2 * BLOCK + 3), (70, 768)] {
        let m = 45;
        let (x, w) = (rng.floats(m * k), rng.floats(n * k));
        let wb = to_bf16(&w);
        for isa in isas() {
            for precision in [Precision::F32, Precision::Bf16] {
                let (q6, _) = blocks(&mut rng, BlockType::Q6K, n, k / 256 * 256);
                let quantised = Weights::Blocks(BlockType::Q6K, &q6);
                let with_blocks = precision == Precision::F32 && k.is_multiple_of(256);
                for weights in [Weights::F32(&w), Weights::Bf16(&wb), quantised] {
                    if matches!(weights, Weights::Blocks(..)) && !with_blocks {
                        continue;
                    }
                    let layer = pack(isa, weights, n, k, precision);
                    let alone: Vec<u32> =
                        x.chunks(k).flat_map(|row| bits(&matmul(&layer, row))).collect();
                    for threads in [1, 2, 3, 13] {
                        in_pool(threads, || {
                            let all = bits(&matmul(&layer, &x));
                            assert!(all == alone, "{isa:?} {precision:?}, {threads} threads");
                        });
                    }
                    // Random rows in random order, in numbers that reach every height of a tile.
                    for count in 1..=27 {
                        let rows: Vec<usize> = (0..count).map(|_| rng.below(m)).collect();
                        let x: Vec<f32> =
                            rows.iter().flat_map(|r| x[r * k..][..k].to_vec()).collect();
                        let want: Vec<u32> =
                            rows.iter().flat_map(|r| alone[r * n..][..n].to_vec()).collect();
                        assert!(
                            bits(&matmul(&layer, &x)) == want,
                            "{isa:?} {precision:?} {rows:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn parts_side_by_side_equal_each_alone() {
    let mut rng = Rng(4);
    let (m, k) = (9, 205);
    let (a, b, c) = (rng.floats(40 * k), to_bf16(&rng.floats(7 * k)), to_bf16(&rng.floats(33 * k)));
    let b_floats = widened(&b);
    let x = rng.floats(m * k);
    let layouts: [&[(Weights<'_>, usize)]; 2] = [
        &[(Weights::F32(&a), 40), (Weights::F32(&[]), 0), (Weights::Bf16(&b), 7)],
        &[(Weights::Bf16(&b), 7), (Weights::Bf16(&c), 33), (Weights::Bf16(&b), 7)],
    ];
    for isa in isas() {
        for precision in [Precision::F32, Precision::Bf16] {
            for parts in layouts {
                let layer = PackedLinear::pack_for(isa, parts, k, precision).unwrap();
                let together = matmul(&layer, &x);
                let n = layer.out_features();
                let mut start = 0;
                for (weights, rows) in parts.iter().filter(|(_, rows)| *rows > 0) {
                    let alone = matmul(&pack(isa, *weights, *rows, k, precision), &x);
                    for (row, alone) in alone.chunks(*rows).enumerate() {
                        let together = &together[row * n + start..][..*rows];
                        assert_eq!(bits(together), bits(alone), "{isa:?} {precision:?}");
                    }
                    start += rows;
                }
                assert_eq!(start, n);
            }
        }
    }
    // Each part keeps its type.
    let mixed = PackedLinear::pack(layouts[0], k, Precision::F32).unwrap();
    let is_f32: Vec<_> = mixed.runs.iter().map(|run| run.storage == Storage::F32).collect();
    assert_eq!(is_f32, [true, false]);
    let y = matmul(&mixed, &x);
    assert_close(y[46], &x[..k], &b_floats[6 * k..], "the last of the bf16 part");
}

#[test]
fn packing_is_the_same_on_any_number_of_threads() {
    let mut rng = Rng(5);
    let (m, n, k) = (3, 200, BLOCK + 9);
    let (x, w) = (rng.floats(m * k), rng.floats(n * k));
    let product = |threads| {
        in_pool(threads, || {
            matmul(&pack(Isa::detect(), Weights::F32(&w), n, k, Precision::F32), &x)
        })
    };
    assert_eq!(bits(&product(1)), bits(&product(3)));
}

#[test]
fn special_values_pass_through_unharmed() {
    let tiny = f32::from_bits(1);
    let special =
        [0.0, -0.0, tiny, -tiny, 1e-39, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, -f32::INFINITY];
    let special: Vec<f32> = special.into_iter().chain([f32::NAN, 1.0, -1.5]).collect();
    let mut rng = Rng(6);
    for isa in isas() {
        // Each against each: one product an output.
        let n = special.len();
        let layer = pack(isa, Weights::F32(&special), n, 1, Precision::F32);
        for (i, got) in matmul(&layer, &special).into_iter().enumerate() {
            let (x, w) = (special[i / n], special[i % n]);
            // Fused, a product too small to tell from zero keeps its sign; in two steps it does not.
            let want = [x.mul_add(w, 0.0), x * w + 0.0];
            let same =
                want.iter().any(|w| w.to_bits() == got.to_bits() || w.is_nan() && got.is_nan());
            assert!(same, "{isa:?}: {x} * {w} is {got}");
        }

        // Weights that only a copy without arithmetic keeps: subnormal bf16.
        let subnormal = [bf16::from_bits(1), bf16::from_bits(0x807f), bf16::from_bits(0x8000)];
        let layer = pack(isa, Weights::Bf16(&subnormal), 3, 1, Precision::F32);
        let want = match isa {
            Isa::Amx => [0.0; 3],
            _ => [subnormal[0].to_f32(), subnormal[1].to_f32(), 0.0],
        };
        assert_eq!(bits(&matmul(&layer, &[1.0])), bits(&want), "{isa:?}");

        // One row gone bad leaves the others alone, and bad stays bad under rounding.
        let (m, n, k) = (14, 40, 37);
        let w = rng.floats(n * k);
        let mut x = rng.floats(m * k);
        for precision in [Precision::F32, Precision::Bf16] {
            let layer = pack(isa, Weights::F32(&w), n, k, precision);
            for bad in [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::MAX] {
                x[5 * k + 36] = bad;
                for (i, v) in matmul(&layer, &x).into_iter().enumerate() {
                    let fine = i / n != 5 || bad == f32::MAX && precision == Precision::F32;
                    assert_eq!(v.is_finite(), fine, "{isa:?} {precision:?} {bad} at {i}: {v}");
                }
            }
        }
    }
}

#[test]
fn bf16_rounds_to_nearest_even_everywhere() {
    // Halfway cases around 1, down to even and up to even, and just past halfway.
    let x = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff].map(f32::from_bits);
    let want = [0x3f80_0000, 0x3f82_0000, 0x3f81_0000, 0x3f80_0000];
    for isa in isas() {
        let activations = pack(isa, Weights::F32(&[1.0]), 1, 1, Precision::Bf16);
        assert_eq!(bits(&matmul(&activations, &x)), want, "{isa:?}");
        let weights = pack(isa, Weights::F32(&x), 4, 1, Precision::Bf16);
        assert_eq!(bits(&matmul(&weights, &[1.0])), want, "{isa:?}");
    }
}

#[test]
fn empty_shapes_are_answered() {
    for isa in isas() {
        for precision in [Precision::F32, Precision::Bf16] {
            let no_inputs = pack(isa, Weights::Bf16(&[]), 5, 0, precision);
            let nothing = || Rows::lend(&Arena::new(0), 2, 0).unwrap();
            assert_eq!(outputs(no_inputs.matmul(&nothing().into())), [0.0; 10]);
            assert_eq!(no_inputs.bytes(), 0);

            let no_outputs = pack(isa, Weights::F32(&[]), 0, 7, precision);
            assert_eq!(matmul(&no_outputs, &[1.0; 14]), [0.0; 0]);
            let layer = pack(isa, Weights::F32(&[1.0; 6]), 2, 3, precision);
            assert_eq!(matmul(&layer, &[]), [0.0; 0]);
            let no_parts = PackedLinear::pack_for(isa, &[], 3, precision).unwrap();
            assert_eq!(matmul(&no_parts, &[1.0; 3]), [0.0; 0]);
        }
    }
}

/// The gate fused with its projections has the bits of one operation after the other, and inputs in
/// the layers' own form those of rows.
#[test]
fn fused_layers_have_the_bits_of_plain_ones() {
    let mut rng = Rng(5);
    for (m, k, inner) in [(1, 32, 32), (16, 70, 64), (33, 96, 32), (150, 2080, 320)] {
        let gate_up = to_bf16(&rng.floats(2 * inner * k));
        let down = to_bf16(&rng.floats(40 * inner));
        let x = rng.floats(m * k);
        for (isa, precision) in
            isas().flat_map(|isa| [Precision::F32, Precision::Bf16].map(|p| (isa, p)))
        {
            let gate_up = pack(isa, Weights::Bf16(&gate_up), 2 * inner, k, precision);
            let down = pack(isa, Weights::Bf16(&down), 40, inner, precision);
            let y = gate_up.matmul(&rows(&x, k, 2 * inner).into()).unwrap();
            let gated: Vec<f32> = y
                .cpu()
                .unwrap()
                .chunks_exact(2 * inner)
                .flat_map(|row| (0..inner).map(|i| math::silu(row[i]) * row[inner + i]))
                .collect();
            let plain = matmul(&down, &gated);

            let own = Inputs::converted(&rows(&x, k, 2 * inner), gate_up.form()).unwrap();
            assert_eq!(bits(&outputs(gate_up.matmul(&own))), bits(y.cpu().unwrap()));
            let fused = gate_up.swiglu(&own, down.form()).unwrap();
            let tiles = gate_up.form() != Form::Rows;
            assert_eq!(fused.is_some(), tiles, "{isa:?} {precision:?}");
            if let Some(fused) = fused {
                let fused = outputs(down.matmul(&fused));
                assert_eq!(bits(&fused), bits(&plain), "{m} {k} {inner} {precision:?}");
            }
        }
    }
}

#[test]
fn sizes_are_told_and_checked() {
    let w = [bf16::ONE; 33 * 5];
    let layer = PackedLinear::pack(&[(Weights::Bf16(&w), 33)], 5, Precision::F32).unwrap();
    assert_eq!((layer.in_features(), layer.out_features()), (5, 33));
    assert!(layer.bytes() >= 64 * 5 * 2, "two panels of bf16");

    let pack = |n, k| PackedLinear::pack(&[(Weights::Bf16(&w), n)], k, Precision::F32).map(|_| ());
    assert_eq!(pack(32, 5), Err(PackError::Shape { part: 0, want: 160, got: 165 }));
    assert_eq!(pack(usize::MAX, 5), Err(PackError::OutOfMemory { bytes: usize::MAX }));
    // No elements are enough for no inputs, however many outputs: nothing is stored for them.
    let many = [(Weights::F32(&[]), usize::MAX), (Weights::F32(&[]), 1)];
    let sum = PackedLinear::pack(&many, 0, Precision::F32).map(|_| ());
    assert_eq!(sum, Err(PackError::OutOfMemory { bytes: usize::MAX }));
}

#[test]
fn inputs_that_do_not_match_are_refused() {
    let layer = PackedLinear::pack(&[(Weights::Bf16(&[bf16::ONE; 6]), 2)], 3, Precision::F32);
    let layer = layer.unwrap();
    assert!(layer.matmul(&rows(&[1.0; 8], 4, 4).into()).is_err());
    assert_eq!(outputs(layer.matmul(&rows(&[1.0; 6], 3, 4).into())), [3.0; 4]);
}

#[test]
fn layers_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<PackedLinear>();
}
