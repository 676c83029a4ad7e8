//! Every kernel of this CPU, forced by name, against plain references.

use super::super::tests::{Rng, blocks, in_pool};
use super::super::{BlockType, Precision, Weights as Floats};
use super::*;

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

fn layer(isa: Isa, w: &[f32], n: usize, k: usize, largest: &[f32]) -> Int8Linear {
    let floats = PackedLinear::pack(&[(Floats::F32(w), n)], k, Precision::F32).unwrap();
    Int8Linear::quantise_for(isa, &floats, largest).unwrap()
}

/// One whose memory has been something else.
fn used_arena() -> Arena {
    const FLOATS: usize = 1 << 16;
    let arena = Arena::new(FLOATS);
    arena.lend(FLOATS).unwrap().fill(f32::NAN);
    arena
}

/// The product, checked to read nothing around `x` and to write nothing around `y`.
fn matmul(layer: &Int8Linear, x: &[f32]) -> Vec<f32> {
    let (k, n) = (layer.in_features(), layer.out_features());
    const AROUND: usize = 40;
    const MARK: f32 = 12345.5;
    let len = x.len() / k * n;
    let mut xs = vec![f32::NAN; x.len() + 2 * AROUND];
    xs[AROUND..][..x.len()].copy_from_slice(x);
    let mut ys = vec![MARK; len + 2 * AROUND];
    // What `y` holds before must not matter.
    ys[AROUND..][..len].fill(f32::NAN);
    layer.matmul(&used_arena(), &xs[AROUND..][..x.len()], &mut ys[AROUND..][..len]).unwrap();
    assert!(ys[..AROUND].iter().chain(&ys[AROUND + len..]).all(|v| *v == MARK));
    ys[AROUND..][..len].to_vec()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Activations with channels that are far larger than the others: as many as are outlier columns.
fn activations(rng: &mut Rng, m: usize, k: usize) -> Vec<f32> {
    let mut x = rng.floats(m * k);
    for row in x.chunks_mut(k) {
        row[0] *= 800.0;
        if k > 64 {
            row[k / 2] *= 30.0;
        }
    }
    x
}

fn largest(x: &[f32], k: usize) -> Vec<f32> {
    let mut largest = vec![0.0f32; k];
    for row in x.chunks(k) {
        for (largest, v) in largest.iter_mut().zip(row) {
            *largest = largest.max(v.abs());
        }
    }
    largest
}

fn shapes() -> Vec<(usize, usize, usize)> {
    let mut rng = Rng(21);
    let mut shapes: Vec<_> =
        (0..30).map(|_| (1 + rng.below(30), 1 + rng.below(140), 1 + rng.below(700))).collect();
    shapes.extend([(1, 1, 1), (12, 32, 64), (13, 33, 65), (2, 128, 4), (25, 161, 2051)]);
    shapes
}

#[test]
fn every_kernel_gives_the_same_bits_and_is_near_the_exact_product() {
    let mut rng = Rng(1);
    for (m, n, k) in shapes() {
        let (x, w) = (activations(&mut rng, m, k), rng.floats(n * k));
        let largest = largest(&x, k);
        let portable = matmul(&layer(Isa::Portable, &w, n, k, &largest), &x);
        for isa in isas() {
            let y = matmul(&layer(isa, &w, n, k, &largest), &x);
            assert!(bits(&y) == bits(&portable), "{isa:?}: m {m} n {n} k {k}");
        }
        for (i, got) in portable.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            // 1/254 of the largest rotated value, about 3 standard deviations, in each factor; and
            // 15 bits of the outliers.
            let size =
                |v: &mut dyn Iterator<Item = f32>| v.map(f64::from).map(|v| v * v).sum::<f64>();
            let quiet = size(&mut x.iter().copied().filter(|v| v.abs() <= 1.0)).sqrt();
            let weights = size(&mut w.iter().copied()).sqrt();
            let loud = f64::from(x[0].abs().max(1.0) + x[k / 2].abs());
            let bound = 0.06 * quiet * (weights / (k as f64).sqrt()) + loud * 3e-4 + 1e-6;
            assert!((f64::from(*got) - exact).abs() <= bound, "m {m} n {n} k {k}: {got} {exact}");
        }
    }
}

#[test]
fn swiglu_is_that_of_the_products_to_the_last_bit() {
    let mut rng = Rng(5);
    for (m, inner, k) in [(1, 32, 64), (2, 256, 70), (5, 96, 130), (13, 64, 64), (70, 160, 200)] {
        let (x, w) = (activations(&mut rng, m, k), rng.floats(2 * inner * k));
        for isa in isas() {
            let layer = layer(isa, &w, 2 * inner, k, &largest(&x, k));
            assert!(layer.has_swiglu());
            let want: Vec<f32> = matmul(&layer, &x)
                .chunks(2 * inner)
                .flat_map(|row| {
                    let (gate, up) = row.split_at(inner);
                    gate.iter().zip(up).map(|(gate, up)| math::silu(*gate) * up).collect::<Vec<_>>()
                })
                .collect();
            for threads in [1, 3] {
                let mut y = vec![f32::NAN; m * inner];
                in_pool(threads, || layer.swiglu(&used_arena(), &x, &mut y).unwrap());
                assert!(bits(&y) == bits(&want), "{isa:?}: m {m} inner {inner} k {k}");
            }
        }
    }
    assert!(!layer(Isa::detect(), &[0.5; 96 * 64], 96, 64, &[1.0; 64]).has_swiglu());
}

/// What the module says, in integers and without tiles.
#[test]
fn small_integers_come_out_exactly() {
    // One row of 64 whose rotation is exact: every value is the same power of two.
    let k = 64;
    let x: Vec<f32> = (0..k).map(|i| if i == 5 { 300.0 } else { 0.0 }).collect();
    let w: Vec<f32> = (0..3 * k).map(|i| if i % k == 5 { (i / k) as f32 } else { 0.0 }).collect();
    for isa in isas() {
        // The channel as an outlier, and as one of the others: all 64 codes are 127 then.
        for loud in [5, 6] {
            let mut largest = vec![0.0; k];
            largest[loud] = 1.0;
            let y = matmul(&layer(isa, &w, 3, k, &largest), &x);
            assert_eq!(y.map_rounded(), [0.0, 300.0, 600.0], "{isa:?} {loud}");
        }
    }
}

trait Rounded {
    fn map_rounded(&self) -> Vec<f32>;
}

impl Rounded for Vec<f32> {
    fn map_rounded(&self) -> Vec<f32> {
        self.iter().map(|v| (v * 1000.0).round() / 1000.0).collect()
    }
}

#[test]
fn a_row_depends_on_nothing_but_itself() {
    let mut rng = Rng(3);
    for (n, k) in [(70, 131), (100, 577), (320, 2051)] {
        let m = 45;
        let (x, w) = (activations(&mut rng, m, k), rng.floats(n * k));
        let largest = largest(&x, k);
        for isa in isas() {
            let layer = layer(isa, &w, n, k, &largest);
            let alone: Vec<u32> = x.chunks(k).flat_map(|row| bits(&matmul(&layer, row))).collect();
            for threads in [1, 2, 3, 13] {
                let all = in_pool(threads, || bits(&matmul(&layer, &x)));
                assert!(all == alone, "{isa:?}, {threads} threads");
            }
            // Random rows in random order, in numbers that reach every height of a tile.
            for count in 1..=27 {
                let rows: Vec<usize> = (0..count).map(|_| rng.below(m)).collect();
                let x: Vec<f32> = rows.iter().flat_map(|r| x[r * k..][..k].to_vec()).collect();
                let want: Vec<u32> =
                    rows.iter().flat_map(|r| alone[r * n..][..n].to_vec()).collect();
                assert!(bits(&matmul(&layer, &x)) == want, "{isa:?} {rows:?}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_is_nan_and_leaves_the_others_alone() {
    let mut rng = Rng(4);
    let (m, n, k) = (14, 40, 130);
    let w = rng.floats(n * k);
    let fine = rng.floats(m * k);
    for isa in isas() {
        let layer = layer(isa, &w, n, k, &largest(&fine, k));
        let want = matmul(&layer, &fine);
        for bad in [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 63, 64, 129] {
                let mut x = fine.clone();
                x[5 * k + place] = bad;
                for (i, v) in matmul(&layer, &x).into_iter().enumerate() {
                    let same = v.to_bits() == want[i].to_bits();
                    assert!(if i / n == 5 { v.is_nan() } else { same }, "{isa:?} {bad} {place}");
                }
            }
        }
        let zeros = matmul(&layer, &vec![0.0; k]);
        assert_eq!(zeros, vec![0.0; n]);
        assert!(matmul(&layer, &vec![f32::MIN_POSITIVE / 2.0; k]).iter().all(|v| *v == 0.0));
    }
}

/// What a layer was packed in, and by what kernels, must not show: only its values do.
#[test]
fn weights_of_every_storage_are_the_same() {
    let mut rng = Rng(6);
    let (m, k) = (3, 1280);
    let x = activations(&mut rng, m, k);
    let largest = largest(&x, k);
    let halves: Vec<half::bf16> =
        rng.floats(70 * k).iter().map(|v| half::bf16::from_f32(*v)).collect();
    let singles: Vec<half::f16> =
        rng.floats(70 * k).iter().map(|v| half::f16::from_f32(*v)).collect();
    let floats = rng.floats(70 * k);
    let widened: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
    let mut kinds = vec![
        (Floats::Bf16(&halves), widened),
        (Floats::F16(&singles), singles.iter().map(|v| v.to_f32()).collect()),
        (Floats::F32(&floats), floats.clone()),
    ];
    let quantised = BlockType::ALL.map(|of| (of, blocks(&mut rng, of, 70, k)));
    kinds.extend(quantised.iter().map(|(of, (b, v))| (Floats::Blocks(*of, b), v.clone())));
    let rounded = |packed: &PackedLinear| {
        let layer = Int8Linear::quantise_for(Isa::Portable, packed, &largest).unwrap();
        bits(&matmul(&layer, &x))
    };
    let of_values = |values: &[f32]| {
        bits(&matmul(&layer(Isa::Portable, values, values.len() / k, k, &largest), &x))
    };
    for isa in super::super::tests::isas() {
        for (stored, values) in &kinds {
            let packed = PackedLinear::pack_for(isa, &[(*stored, 70)], k, Precision::F32).unwrap();
            assert!(rounded(&packed) == of_values(values), "{isa:?} {stored:?}");
        }
        // Parts of several types, which do not end where panels do.
        let parts: Vec<_> = kinds.iter().map(|(stored, _)| (*stored, 70)).collect();
        let values: Vec<f32> = kinds.iter().flat_map(|(_, values)| values.clone()).collect();
        let packed = PackedLinear::pack_for(isa, &parts, k, Precision::F32).unwrap();
        assert!(rounded(&packed) == of_values(&values), "{isa:?}");
        let packed = PackedLinear::pack_for(isa, &parts[..1], k, Precision::Bf16).unwrap();
        assert!(rounded(&packed) == of_values(&kinds[0].1), "{isa:?} rounded to bf16");
    }
    // An odd number of inputs, in pairs.
    let (k, largest) = (1101, &largest[..1101]);
    let want = bits(&matmul(&layer(Isa::Portable, &kinds[0].1[..9 * k], 9, k, largest), &x[..k]));
    for isa in super::super::tests::isas() {
        for precision in [Precision::F32, Precision::Bf16] {
            let parts = [(Floats::Bf16(&halves[..9 * k]), 9)];
            let packed = PackedLinear::pack_for(isa, &parts, k, precision).unwrap();
            let layer = Int8Linear::quantise_for(Isa::Portable, &packed, largest).unwrap();
            assert!(bits(&matmul(&layer, &x[..k])) == want, "{isa:?} {precision:?}");
        }
    }
}

#[test]
fn sizes_are_told_and_empty_shapes_answered() {
    let w = vec![1.0; 33 * 1024];
    let layer = layer(Isa::detect(), &w, 33, 1024, &vec![1.0; 1024]);
    assert_eq!((layer.in_features(), layer.out_features()), (1024, 33));
    let codes = 64 * (1024 + 128);
    assert!((codes..codes + 4096).contains(&layer.bytes()), "{}", layer.bytes());
    layer.matmul(&used_arena(), &[], &mut []).unwrap();

    let empty = |n, k| {
        let floats = PackedLinear::pack(&[(Floats::F32(&[]), n)], k, Precision::F32).unwrap();
        Int8Linear::quantise(&floats, &vec![0.0; k]).unwrap()
    };
    let mut y = [f32::NAN; 10];
    empty(5, 0).matmul(&used_arena(), &[], &mut y).unwrap();
    assert_eq!(y, [0.0; 10]);
    empty(0, 7).matmul(&used_arena(), &[1.0; 14], &mut []).unwrap();
}
