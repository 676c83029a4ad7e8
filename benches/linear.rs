//! Linear layers by dtype, in GFLOP/s (int8: GOP/s), beside what the CPU can do at most.
//!
//!     cargo bench --bench linear [-- THREADS]
//!
//! The three dtypes are measured in turns; a number is the median of a cell's calls, so that what else
//! the machine does meanwhile hits all of them alike. The shapes are those of Qwen3-0.6B (query, key
//! and value; gate and up; down; output) and of Qwen3-4B's gate.
#![allow(dead_code, unused_imports, unreachable_code)] // The kernels come by their files: they are no part of the API.
#![allow(unsafe_code)] // The peaks are loops of single instructions.
#![allow(missing_docs, clippy::print_stdout)]

use std::time::{Duration, Instant};

use kernels::packed::{Int8Linear, PackedLinear, Weights};
use kernels::{Arena, Inputs, Precision, Rows};

#[path = "../src/kernels"]
mod kernels {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Precision {
        F32,
        Bf16,
        Int8,
    }

    impl Precision {
        pub(crate) fn device_dtype(self) -> crate::error::Result<candle_core::DType> {
            unreachable!("the CPU alone is measured")
        }

        pub(crate) fn element(self) -> crate::error::Result<cuda::Element> {
            unreachable!("the CPU alone is measured")
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Heads;

    /// There is no GPU.
    pub(crate) mod cuda {
        use super::Heads;
        use crate::error::Result;

        pub(crate) enum Element {}

        #[derive(Clone, Debug)]
        pub(crate) enum Gpu {}

        impl Gpu {
            pub(crate) fn vector(&self, _: &[f32]) -> Result<Memory> {
                match *self {}
            }
        }

        #[derive(Debug)]
        pub(crate) enum Memory {}

        #[derive(Clone, Copy)]
        pub(crate) struct Shape {
            pub(crate) rows: usize,
            pub(crate) width: usize,
        }

        pub(crate) enum Emulation {}

        impl Emulation {
            pub(crate) fn gpu(self, _: Element) -> Gpu {
                match self {}
            }
        }

        pub(crate) fn open(_: usize, element: Element) -> Result<Gpu> {
            match element {}
        }

        pub(crate) fn check_heads(_: Heads) -> Result<()> {
            unreachable!("the CPU alone is measured")
        }
    }

    #[path = "arena.rs"]
    pub(crate) mod arena;
    #[path = "backend.rs"]
    mod backend;
    #[path = "blocks.rs"]
    mod blocks;
    #[path = "inputs.rs"]
    pub(crate) mod inputs;
    #[path = "math.rs"]
    pub(crate) mod math;
    #[path = "packed/mod.rs"]
    pub(crate) mod packed;
    #[path = "rows.rs"]
    mod rows;
    #[cfg(target_arch = "x86_64")]
    #[path = "strips.rs"]
    pub(crate) mod strips;
    #[cfg(target_arch = "x86_64")]
    #[path = "tiles/mod.rs"]
    pub(crate) mod tiles;

    pub(crate) use arena::Arena;
    pub(crate) use backend::Backend;
    pub(crate) use blocks::BlockType;
    pub(crate) use inputs::{Form, Inputs};
    pub(crate) use rows::Rows;
}

#[path = "../src/error.rs"]
mod error;

#[path = "../src/sys"]
mod sys {
    #[cfg(target_arch = "x86_64")]
    #[path = "amx.rs"]
    pub(crate) mod amx;
    #[path = "file.rs"]
    pub(crate) mod file;
    #[path = "memory.rs"]
    pub(crate) mod memory;
}

/// Inputs and outputs.
const SHAPES: [(usize, usize); 5] =
    [(1024, 4096), (1024, 6144), (3072, 1024), (2048, 1024), (2560, 9728)];
const ROWS: [usize; 5] = [1, 16, 32, 128, 512];
const TIME_OF_A_CELL: Duration = Duration::from_millis(600);
const FEWEST_ROUNDS: usize = 5;

fn main() {
    // cargo bench itself passes --bench.
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(2);
    println!("{threads} threads\n");
    #[cfg(target_arch = "x86_64")]
    peaks::print(threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    println!("| K, N | rows | f32 | bf16 | int8 | bf16 / f32 | int8 / bf16 |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    pool.install(|| SHAPES.iter().for_each(|&(k, n)| shape(k, n)));
}

/// Values in -1..1 that repeat seldom.
fn values(len: usize) -> impl Iterator<Item = f32> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) % 20_011) as f32 / 10_005.5 - 1.0)
}

fn shape(k: usize, n: usize) {
    let weights: Vec<half::bf16> = values(k * n).map(half::bf16::from_f32).collect();
    let parts = [(Weights::Bf16(&weights), n)];
    let pack = |precision| PackedLinear::pack(&parts, k, precision).expect("memory");
    let (f32, bf16) = (pack(Precision::F32), pack(Precision::Bf16));
    let int8 = Int8Linear::quantise(&f32, &vec![1.0; k]).expect("memory");
    for rows in ROWS {
        let x: Vec<f32> = values(rows * k).collect();
        let mut y = vec![0.0; rows * n];
        // Each layer is given its inputs as it wants them, as in a guard.
        let arena = Arena::new(rows * (n + 4 * k));
        let plain = Rows::copied(&arena, &x, k).expect("memory");
        let [for_f32, for_bf16] =
            [&f32, &bf16].map(|layer| Inputs::converted(&plain, layer.form()).expect("memory"));
        let mut seconds = [vec![], vec![], vec![]];
        let start = Instant::now();
        while seconds[0].len() < FEWEST_ROUNDS || start.elapsed() < TIME_OF_A_CELL {
            for (dtype, seconds) in seconds.iter_mut().enumerate() {
                let start = Instant::now();
                match dtype {
                    0 => drop(f32.matmul(&for_f32).expect("memory")),
                    1 => drop(bf16.matmul(&for_bf16).expect("memory")),
                    _ => int8.matmul(&arena, &x, &mut y).expect("memory"),
                }
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let ratio = |a: usize, b: usize| {
            median(seconds[b].iter().zip(&seconds[a]).map(|(b, a)| b / a).collect())
        };
        let (ratios, work) = ([ratio(1, 0), ratio(2, 1)], 2.0 * (rows * k * n) as f64 / 1e9);
        let [f, b, i] = seconds.clone().map(|seconds| work / median(seconds));
        let [b_f, i_b] = ratios;
        println!("| {k}, {n} | {rows} | {f:.0} | {b:.0} | {i:.0} | {b_f:.2} | {i_b:.2} |");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the CPU's instructions do when they wait for nothing but each other.
#[cfg(target_arch = "x86_64")]
mod peaks {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Instant;

    use super::sys::amx;

    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    const TIMES: usize = 2_000_000;
    const TILE_TIMES: usize = 400_000;

    pub(super) fn print(threads: usize) {
        println!("| instruction | at most, GFLOP/s or GOP/s |\n|---|--:|");
        let row = |name: &str, operations: usize, run: fn()| {
            let best = (0..7).map(|_| {
                let start = Instant::now();
                std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run))));
                (threads * operations) as f64 / start.elapsed().as_secs_f64() / 1e9
            });
            println!("| {name} | {:.0} |", best.fold(0.0, f64::max));
        };
        // SAFETY: each only where the CPU has its instructions.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                row("f32 FMA, 512 bits", 32 * SUMS * TIMES, || fma());
            }
            if is_x86_feature_detected!("avx512bf16") {
                row("bf16 dot products, 512 bits", 64 * SUMS * TIMES, || bf16_dots());
            }
            if is_x86_feature_detected!("avx512vnni") {
                row("int8 dot products, 512 bits", 128 * SUMS * TIMES, || int8_dots());
            }
            if amx::has_bf16() {
                row("bf16 tiles", 4 * 2 * 16 * 16 * 32 * TILE_TIMES, || tiles::<false>());
            }
            if amx::has_int8() {
                row("int8 tiles", 4 * 2 * 16 * 16 * 64 * TILE_TIMES, || tiles::<true>());
            }
        }
        println!();
    }

    #[target_feature(enable = "avx512f")]
    fn fma() {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..TIMES {
            // (`map` would be a call, without the instruction.)
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_dots() {
        // SAFETY: both are 64 bytes of plain bits.
        let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f00_3f00))) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..TIMES {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_dots() {
        let x = _mm512_set1_epi32(black_box(0x0102_0304));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..TIMES {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The CPU multiplies such tiles, and the process may use them.
    unsafe fn tiles<const INT8: bool>() {
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for tile in 0..8 {
            shapes.0[16 + 2 * tile] = 64;
            shapes.0[48 + tile] = 16;
        }
        // SAFETY: palette 1, eight tiles of 16 rows of 64 bytes, released at the end.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly));
            for _ in 0..TILE_TIMES {
                if INT8 {
                    asm!(
                        "tdpbsud tmm0, tmm4, tmm6",
                        "tdpbsud tmm1, tmm4, tmm7",
                        "tdpbsud tmm2, tmm5, tmm6",
                        "tdpbsud tmm3, tmm5, tmm7",
                        options(nostack, nomem)
                    );
                } else {
                    asm!(
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        options(nostack, nomem)
                    );
                }
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
