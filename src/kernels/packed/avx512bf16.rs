//! Dot products of bf16 pairs in 512 bits.
#![allow(unsafe_code)] // Intrinsics on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::{MAX_ROWS, load_sums, panels, store_sums, with_shape};
use super::drive::{ACT_STRIDE, Tile, TileKernel, lines_ahead};
use super::pack::{BLOCK, Storage};

/// For pairs of bf16.
pub(super) struct Kernel;

impl TileKernel for Kernel {
    const STORAGE: Storage = Storage::Bf16Pairs;
    const MAX_ROWS: usize = MAX_ROWS;

    fn panels(rows: usize) -> usize {
        panels(rows)
    }

    unsafe fn load(x: &[f32], _round: bool, words: &mut [MaybeUninit<u32>; BLOCK]) {
        // SAFETY: the CPU is the caller's promise.
        unsafe { load(x, words) };
    }

    unsafe fn tile(rows: usize, panels: usize, t: Tile) {
        // SAFETY: the caller's promises are those that `tile` asks for.
        unsafe { with_shape!(rows, panels, tile; t) }
    }
}

/// Rounds a row to bf16 and pads it with zeros to whole pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
fn load(x: &[f32], words: &mut [MaybeUninit<u32>; BLOCK]) {
    assert!(x.len() <= 2 * BLOCK);
    let (vectors, rest) = x.as_chunks::<16>();
    let (words, _) = words.as_chunks_mut::<8>();
    let store = |words: &mut [MaybeUninit<u32>; 8], x: __m512| {
        // SAFETY: 32 bytes to write into; a bf16 vector is plain bits.
        unsafe { words.as_mut_ptr().cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(x)) };
    };
    for (x, words) in vectors.iter().zip(&mut *words) {
        // SAFETY: 16 floats to read.
        store(words, unsafe { _mm512_loadu_ps(x.as_ptr()) });
    }
    if !rest.is_empty() {
        // SAFETY: the mask has a bit for each of the floats that are there.
        let x = unsafe { _mm512_maskz_loadu_ps((1 << rest.len()) - 1, rest.as_ptr()) };
        store(&mut words[vectors.len()], x);
    }
}

/// # Safety
/// As [`TileKernel::tile`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const R: usize, const P: usize>(t: Tile) {
    let slab = t.slab.cast::<__m512bh>();
    let ahead = const { lines_ahead(R) };
    // SAFETY: the caller's tile.
    let mut sums = unsafe { load_sums::<R, P>(&t) };
    for s in 0..t.steps {
        let mut columns = [[zero(); 2]; P];
        for (p, columns) in columns.iter_mut().enumerate() {
            // SAFETY: step s of the slab of panel p, two aligned vectors.
            let at = unsafe { slab.add((p * t.steps + s) * 2) };
            if ahead > 0 {
                for line in ahead..ahead + 2 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast());
                }
            }
            // SAFETY: as above.
            *columns = unsafe { [at.read(), at.add(1).read()] };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: word s of row r.
            let x = unsafe { t.acts.cast::<i32>().add(r * ACT_STRIDE + s).read() };
            let x = pairs(_mm512_set1_epi32(x));
            for (sums, columns) in sums.iter_mut().zip(&columns) {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, x, *column);
                }
            }
        }
    }
    // SAFETY: the caller's tile.
    unsafe { store_sums(&t, &sums) };
}

#[target_feature(enable = "avx512f")]
#[inline]
fn pairs(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain bits.
    unsafe { std::mem::transmute(words) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn zero() -> __m512bh {
    pairs(_mm512_setzero_si512())
}
