//! Dot products of bytes in 512 bits.
#![allow(unsafe_code)] // Intrinsics on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::x86_64::*;

use super::super::avx512::{MAX_ROWS, panels, with_shape};
use super::super::drive::lines_ahead;
use super::quantise::{RowScales, Weights};
use super::{PANEL, SECTION_STEPS, STEP_LINES, Tile, TileKernel};

pub(super) struct Kernel;

impl TileKernel for Kernel {
    type Registers = ();

    const MAX_ROWS: usize = MAX_ROWS;

    fn panels(rows: usize) -> usize {
        panels(rows)
    }

    unsafe fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
        // SAFETY: the CPU is the caller's promise.
        unsafe { row(w, x, work, codes) }
    }

    unsafe fn tile((): &mut (), rows: usize, panels: usize, t: &Tile) {
        // SAFETY: the caller's promises are those that `tile` asks for.
        unsafe { with_shape!(rows, panels, tile; t) }
    }
}

/// [`Weights::row`] in 512 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
    w.row(x, work, codes)
}

type Sums<const R: usize, const P: usize> = [[[__m512i; 2]; P]; R];

/// # Safety
/// As [`TileKernel::tile`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<const R: usize, const P: usize>(t: &Tile) {
    // SAFETY: the caller's tile.
    unsafe {
        let mut sums = dots::<R, P>(t, from_offsets(t, 0), 0, t.outlier_words);
        let low: Sums<R, P> = from_offsets(t, 1);
        each(&mut sums, |sum, r, p, half| {
            *sum = _mm512_add_epi32(_mm512_slli_epi32::<7>(*sum), low[r][p][half]);
        });
        let outliers = dots(t, sums, SECTION_STEPS, 2 * t.outlier_words);
        // The output holds them meanwhile: there are no registers for both.
        store::<R, P>(t, &outliers, true);
        let sums = dots::<R, P>(t, from_offsets(t, 2), 2 * SECTION_STEPS, t.steps);
        store::<R, P>(t, &sums, false);
    }
}

/// What the sums of section `section` start from.
///
/// # Safety
/// The tile has `R` rows.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn from_offsets<const R: usize, const P: usize>(t: &Tile, section: usize) -> Sums<R, P> {
    std::array::from_fn(|r| {
        // SAFETY: row r.
        [[_mm512_set1_epi32(unsafe { (*t.rows.add(r)).offsets[section] }); 2]; P]
    })
}

/// Calls `change` for each vector of sums, with its row, panel and half of the panel.
#[target_feature(enable = "avx512f")]
#[inline]
fn each<const R: usize, const P: usize>(
    sums: &mut Sums<R, P>,
    mut change: impl FnMut(&mut __m512i, usize, usize, usize),
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        for (p, sums) in sums.iter_mut().enumerate() {
            for (half, sum) in sums.iter_mut().enumerate() {
                change(sum, r, p, half);
            }
        }
    }
}

/// Adds the products of `steps` steps from `first` on.
///
/// # Safety
/// As [`TileKernel::tile`].
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn dots<const R: usize, const P: usize>(
    t: &Tile,
    mut sums: Sums<R, P>,
    first: usize,
    steps: usize,
) -> Sums<R, P> {
    let ahead = const { lines_ahead(R) };
    for s in first..first + steps {
        let mut columns = [[_mm512_setzero_si512(); 2]; P];
        for (p, columns) in columns.iter_mut().enumerate() {
            // SAFETY: step s of panel p, two aligned vectors.
            let at = unsafe { t.panel.add(p * t.panel_lines + s * STEP_LINES).cast::<__m512i>() };
            if ahead > 0 {
                for line in ahead..ahead + STEP_LINES {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast());
                }
            }
            // SAFETY: as above.
            *columns = unsafe { [at.read(), at.add(1).read()] };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: word s of row r.
            let x = unsafe { t.codes.add(r * t.codes_stride + s).cast::<i32>().read() };
            let x = _mm512_set1_epi32(x);
            for (sums, columns) in sums.iter_mut().zip(&columns) {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbusd_epi32(*sum, *column, x);
                }
            }
        }
    }
    sums
}

/// Scales the sums into the output: of the outliers, or of the others, which are added.
///
/// # Safety
/// As [`TileKernel::tile`]; the output was written if `outliers` is not set.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store<const R: usize, const P: usize>(t: &Tile, sums: &Sums<R, P>, outliers: bool) {
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: row r.
        let row = unsafe { &*t.rows.add(r) };
        let (scale, scales) =
            if outliers { (row.outlier_scale, t.outlier_scales) } else { (row.scale, t.scales) };
        let scale = _mm512_set1_ps(scale);
        for (p, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                let column = p * PANEL + half * 16;
                // SAFETY: 16 columns' scales, and 16 columns of row r of the output tile.
                unsafe {
                    let scale = _mm512_mul_ps(scale, _mm512_loadu_ps(scales.add(column)));
                    let y = t.y.add(r * t.y_stride + column);
                    let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), scale);
                    if !outliers {
                        value = _mm512_add_ps(_mm512_loadu_ps(y), value);
                    }
                    _mm512_storeu_ps(y, value);
                }
            }
        }
    }
}
