//! f32 multiply-adds in 512 bits.
#![allow(unsafe_code)] // Intrinsics on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::x86_64::*;

use super::compact::{self, Unwritten};
use super::drive::{ACT_STRIDE, Tile, TileKernel, lines_ahead};
use super::pack::{Line, PANEL, Storage};

/// The most rows of a tile whose sums 32 registers of 512 bits hold.
pub(super) const MAX_ROWS: usize = 12;

/// Panels that such a tile of `rows` rows spans.
pub(super) fn panels(rows: usize) -> usize {
    match rows {
        0..=2 => 4,
        3..=6 => 2,
        _ => 1,
    }
}

/// Calls `tile::<rows, panels, ...>` for each of their shapes.
macro_rules! with_shape {
    ($rows:ident, $panels:ident, $tile:ident $(, $more:ident)*; $argument:expr) => {
        match ($rows, $panels) {
            (1, 4) => $tile::<1, 4 $(, $more)*>($argument),
            (2, 4) => $tile::<2, 4 $(, $more)*>($argument),
            (3, 2) => $tile::<3, 2 $(, $more)*>($argument),
            (4, 2) => $tile::<4, 2 $(, $more)*>($argument),
            (5, 2) => $tile::<5, 2 $(, $more)*>($argument),
            (6, 2) => $tile::<6, 2 $(, $more)*>($argument),
            (1, 1) => $tile::<1, 1 $(, $more)*>($argument),
            (2, 1) => $tile::<2, 1 $(, $more)*>($argument),
            (3, 1) => $tile::<3, 1 $(, $more)*>($argument),
            (4, 1) => $tile::<4, 1 $(, $more)*>($argument),
            (5, 1) => $tile::<5, 1 $(, $more)*>($argument),
            (6, 1) => $tile::<6, 1 $(, $more)*>($argument),
            (7, 1) => $tile::<7, 1 $(, $more)*>($argument),
            (8, 1) => $tile::<8, 1 $(, $more)*>($argument),
            (9, 1) => $tile::<9, 1 $(, $more)*>($argument),
            (10, 1) => $tile::<10, 1 $(, $more)*>($argument),
            (11, 1) => $tile::<11, 1 $(, $more)*>($argument),
            (12, 1) => $tile::<12, 1 $(, $more)*>($argument),
            _ => unreachable!("no tile of {} rows and {} panels", $rows, $panels),
        }
    };
}
pub(super) use with_shape;

/// For bf16 storage, widened in registers, if `WIDEN`; else for f32 storage.
pub(super) struct Kernel<const WIDEN: bool>;

impl<const WIDEN: bool> TileKernel for Kernel<WIDEN> {
    const STORAGE: Storage = if WIDEN { Storage::Bf16Columns } else { Storage::F32 };
    const MAX_ROWS: usize = MAX_ROWS;

    fn panels(rows: usize) -> usize {
        panels(rows)
    }

    unsafe fn widen(storage: Storage, slab: &[Line], first: usize, out: &mut [Unwritten]) {
        // SAFETY: the CPU is the caller's promise.
        unsafe { widen(storage, slab, first, out) };
    }

    unsafe fn tile(rows: usize, panels: usize, t: &Tile) {
        // SAFETY: the caller's promises are those that `tile` asks for.
        unsafe { with_shape!(rows, panels, tile, WIDEN; t) }
    }
}

#[target_feature(enable = "avx512f")]
fn widen(storage: Storage, slab: &[Line], first: usize, out: &mut [Unwritten]) {
    compact::widen(storage, slab, first, out, |from, to| {
        for (from, to) in from.iter().zip(to) {
            for at in (0..PANEL).step_by(16) {
                // SAFETY: 16 of the row's halves are read, and as many of its floats written.
                unsafe {
                    let from = _mm256_loadu_si256(from.as_ptr().add(at).cast());
                    _mm512_storeu_ps(to.as_mut_ptr().cast::<f32>().add(at), _mm512_cvtph_ps(from));
                }
            }
        }
    });
}

/// # Safety
/// As [`TileKernel::tile`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize, const P: usize, const WIDEN: bool>(t: &Tile) {
    let step = if WIDEN { 16 } else { 32 };
    let slab = t.slab.cast::<f32>();
    let ahead = const { lines_ahead(R) };
    // SAFETY: the caller's tile.
    let mut sums = unsafe { load_sums::<R, P>(t) };
    for s in 0..t.steps {
        let mut columns = [[_mm512_setzero_ps(); 2]; P];
        for (p, columns) in columns.iter_mut().enumerate() {
            // SAFETY: step s of the slab of panel p.
            let at = unsafe { slab.add((p * t.steps + s) * step) };
            if ahead > 0 {
                for line in ahead..ahead + step / 16 {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line * 16).cast());
                }
            }
            *columns = if WIDEN {
                // SAFETY: the step's 16 words.
                let words = unsafe { _mm512_load_si512(at.cast()) };
                let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(high)]
            } else {
                // SAFETY: the step's 32 words.
                unsafe { [_mm512_load_ps(at), _mm512_load_ps(at.add(16))] }
            };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: activation s of row r.
            let x = _mm512_set1_ps(unsafe { t.acts.add(r * ACT_STRIDE + s).read() });
            for (sums, columns) in sums.iter_mut().zip(&columns) {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ps(x, *column, *sum);
                }
            }
        }
    }
    // SAFETY: the caller's tile.
    unsafe { store_sums(t, &sums) };
}

/// The sums of a tile: what the output holds, or zeros where it starts.
///
/// # Safety
/// The output tile has `R` rows and `P` panels.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_sums<const R: usize, const P: usize>(t: &Tile) -> [[[__m512; 2]; P]; R] {
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    if !t.first {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (p, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row r and panel p of the output tile.
                let y = unsafe { t.y.add(r * t.y_stride + p * PANEL) };
                // SAFETY: its 32 columns.
                *sums = unsafe { [_mm512_loadu_ps(y), _mm512_loadu_ps(y.add(16))] };
            }
        }
    }
    sums
}

/// Writes the sums of a tile.
///
/// # Safety
/// As [`load_sums`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store_sums<const R: usize, const P: usize>(t: &Tile, sums: &[[[__m512; 2]; P]; R]) {
    for (r, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            // SAFETY: row r and panel p of the output tile.
            let y = unsafe { t.y.add(r * t.y_stride + p * PANEL) };
            // SAFETY: its 32 columns.
            unsafe {
                _mm512_storeu_ps(y, sums[0]);
                _mm512_storeu_ps(y.add(16), sums[1]);
            }
        }
    }
}
