//! f32 multiply-adds in 256 bits.
#![allow(unsafe_code)] // Intrinsics on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::x86_64::*;

use super::compact::{self, Unwritten};
use super::drive::{ACT_STRIDE, Tile, TileKernel, lines_ahead};
use super::pack::{Line, PANEL, Storage};

/// For bf16 storage, widened in registers, if `WIDEN`; else for f32 storage.
pub(super) struct Kernel<const WIDEN: bool>;

impl<const WIDEN: bool> TileKernel for Kernel<WIDEN> {
    const STORAGE: Storage = if WIDEN { Storage::Bf16Columns } else { Storage::F32 };
    const MAX_ROWS: usize = 6;

    fn panels(rows: usize) -> usize {
        if rows <= 1 { 2 } else { 1 }
    }

    unsafe fn widen(storage: Storage, slab: &[Line], first: usize, out: &mut [Unwritten]) {
        // SAFETY: the CPU is the caller's promise.
        unsafe { widen(storage, slab, first, out) };
    }

    unsafe fn tile(rows: usize, panels: usize, t: &Tile) {
        // SAFETY: the caller's promises are those that `tile` asks for.
        unsafe {
            match (rows, panels) {
                (1, 2) => tile::<1, 4, WIDEN>(t, 0),
                (1, 1) => tile::<1, 2, WIDEN>(t, 0),
                (2, 1) => tile::<2, 2, WIDEN>(t, 0),
                (3, 1) => both_halves::<3, WIDEN>(t),
                (4, 1) => both_halves::<4, WIDEN>(t),
                (5, 1) => both_halves::<5, WIDEN>(t),
                (6, 1) => both_halves::<6, WIDEN>(t),
                _ => unreachable!("no tile of {rows} rows and {panels} panels"),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(storage: Storage, slab: &[Line], first: usize, out: &mut [Unwritten]) {
    compact::widen(storage, slab, first, out, |from, to| {
        for (from, to) in from.iter().zip(to) {
            for at in (0..PANEL).step_by(8) {
                // SAFETY: 8 of the row's halves are read, and as many of its floats written.
                unsafe {
                    let from = _mm_loadu_si128(from.as_ptr().add(at).cast());
                    _mm256_storeu_ps(to.as_mut_ptr().cast::<f32>().add(at), _mm256_cvtph_ps(from));
                }
            }
        }
    });
}

/// # Safety
/// As [`TileKernel::tile`], for one panel.
#[target_feature(enable = "avx2,fma")]
unsafe fn both_halves<const R: usize, const WIDEN: bool>(t: &Tile) {
    for half in 0..2 {
        // SAFETY: a panel has two halves.
        unsafe { tile::<R, 1, WIDEN>(t, half) };
    }
}

/// A tile of `H` half panels from half panel `first_half` on. A half panel is the columns 0..8 and
/// 16..24 of a panel, or the others: those that eight words of bf16 storage hold.
///
/// # Safety
/// As [`TileKernel::tile`], for as many panels as the halves are of.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const H: usize, const WIDEN: bool>(t: &Tile, first_half: usize) {
    let step = if WIDEN { 16 } else { 32 };
    let ahead = const { lines_ahead(R) };
    let slab = t.slab.cast::<f32>();
    let mut sums = [[[_mm256_setzero_ps(); 2]; H]; R];
    if !t.first {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (h, sums) in sums.iter_mut().enumerate() {
                let column = (first_half + h) / 2 * PANEL + (first_half + h) % 2 * 8;
                // SAFETY: row r and that column of the output tile.
                let y = unsafe { t.y.add(r * t.y_stride + column) };
                // SAFETY: 8 of its columns, and the 8 that lie 16 further.
                *sums = unsafe { [_mm256_loadu_ps(y), _mm256_loadu_ps(y.add(16))] };
            }
        }
    }
    for s in 0..t.steps {
        let mut columns = [[_mm256_setzero_ps(); 2]; H];
        for (h, columns) in columns.iter_mut().enumerate() {
            let (panel, half) = ((first_half + h) / 2, (first_half + h) % 2);
            // SAFETY: that half of step s of the panel's slab.
            let at = unsafe { slab.add((panel * t.steps + s) * step + half * 8) };
            if ahead > 0 && half == 0 {
                for line in ahead..ahead + step / 16 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line * 16).cast());
                }
            }
            *columns = if WIDEN {
                // SAFETY: 8 words of the step's 16.
                let words = unsafe { _mm256_load_si256(at.cast()) };
                let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(high)]
            } else {
                // SAFETY: 8 words of the step's 32, and those 16 further.
                unsafe { [_mm256_load_ps(at), _mm256_load_ps(at.add(16))] }
            };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: activation s of row r.
            let x = _mm256_set1_ps(unsafe { t.acts.add(r * ACT_STRIDE + s).read() });
            for (sums, columns) in sums.iter_mut().zip(&columns) {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm256_fmadd_ps(x, *column, *sum);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (h, sums) in sums.iter().enumerate() {
            let column = (first_half + h) / 2 * PANEL + (first_half + h) % 2 * 8;
            // SAFETY: row r and that column of the output tile.
            let y = unsafe { t.y.add(r * t.y_stride + column) };
            // SAFETY: 8 of its columns, and the 8 that lie 16 further.
            unsafe {
                _mm256_storeu_ps(y, sums[0]);
                _mm256_storeu_ps(y.add(16), sums[1]);
            }
        }
    }
}
