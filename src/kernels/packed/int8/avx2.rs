//! Dot products of bytes in 256 bits: by AVX-VNNI's instruction, or by those of AVX2 alone.
#![allow(unsafe_code)] // Intrinsics on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::x86_64::*;

use super::quantise::{RowScales, Weights};
use super::{SECTION_STEPS, STEP_LINES, Tile, TileKernel};

/// With AVX-VNNI.
pub(super) struct Vnni;

/// Without.
pub(super) struct Kernel;

/// Vectors of 8 columns that are summed at a time: half a panel, all that fit into registers.
const VECTORS: usize = 2;

/// A kernel whose tiles have up to `$most` rows, and whose dot product is `$dot`.
macro_rules! kernel {
    ($kernel:ident, $features:literal, $tile:ident, $dots:ident, $dot:ident,
     [$($rows:literal),+], $most:literal) => {
        impl TileKernel for $kernel {
            type Registers = ();

            const MAX_ROWS: usize = $most;

            fn panels(_rows: usize) -> usize {
                1
            }

            unsafe fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
                // SAFETY: the CPU is the caller's promise.
                unsafe { row(w, x, work, codes) }
            }

            unsafe fn tile((): &mut (), rows: usize, panels: usize, t: &Tile) {
                assert!(panels == 1);
                for half in 0..2 {
                    // SAFETY: the caller's promises are those that are asked for, and a panel has
                    // two halves.
                    unsafe {
                        match rows {
                            $($rows => $tile::<$rows>(t, half),)+
                            _ => unreachable!("no tile of {rows} rows"),
                        }
                    }
                }
            }
        }

        /// # Safety
        /// As [`TileKernel::tile`], for one panel; `half` is one of its two.
        #[target_feature(enable = $features)]
        unsafe fn $tile<const R: usize>(t: &Tile, half: usize) {
            // SAFETY: the caller's tile.
            unsafe {
                let mut sums = $dots::<R>(t, half, from_offsets(t, 0), 0, t.outlier_words);
                let low: Sums<R> = from_offsets(t, 1);
                for (sums, low) in sums.iter_mut().zip(low) {
                    for (sum, low) in sums.iter_mut().zip(low) {
                        *sum = _mm256_add_epi32(_mm256_slli_epi32::<7>(*sum), low);
                    }
                }
                let outliers = $dots(t, half, sums, SECTION_STEPS, 2 * t.outlier_words);
                // The output holds them meanwhile: there are no registers for both.
                store::<R>(t, half, &outliers, true);
                let sums = from_offsets(t, 2);
                let sums = $dots::<R>(t, half, sums, 2 * SECTION_STEPS, t.steps);
                store::<R>(t, half, &sums, false);
            }
        }

        /// Adds the products of `steps` steps from `first` on.
        ///
        /// # Safety
        /// As the tile's.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $dots<const R: usize>(
            t: &Tile,
            half: usize,
            mut sums: Sums<R>,
            first: usize,
            steps: usize,
        ) -> Sums<R> {
            for s in first..first + steps {
                // SAFETY: half of step s of the panel is one line, two aligned vectors.
                let columns = unsafe {
                    let at = t.panel.add(s * STEP_LINES + half).cast::<__m256i>();
                    [at.read(), at.add(1).read()]
                };
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: word s of row r.
                    let x = unsafe { t.codes.add(r * t.codes_stride + s).cast::<i32>().read() };
                    $dot(sums, columns, _mm256_set1_epi32(x));
                }
            }
            sums
        }
    };
}

kernel!(Vnni, "avx2,avxvnni", vnni_tile, vnni_dots, vnni_dot, [1, 2, 3, 4, 5, 6], 6);
kernel!(Kernel, "avx2", avx2_tile, avx2_dots, avx2_dot, [1, 2, 3, 4], 4);

/// [`Weights::row`] in 256 bits.
#[target_feature(enable = "avx2")]
fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
    w.row(x, work, codes)
}

type Sums<const R: usize> = [[__m256i; VECTORS]; R];

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn vnni_dot(sums: &mut [__m256i; VECTORS], columns: [__m256i; VECTORS], x: __m256i) {
    for (sum, column) in sums.iter_mut().zip(columns) {
        *sum = _mm256_dpbusd_avx_epi32(*sum, column, x);
    }
}

/// Bytes to 16 bits, those of even and of odd place: `_mm256_maddubs_epi16` would saturate.
#[target_feature(enable = "avx2")]
#[inline]
fn avx2_dot(sums: &mut [__m256i; VECTORS], columns: [__m256i; VECTORS], x: __m256i) {
    let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
    let odd = _mm256_srai_epi16::<8>(x);
    for (sum, column) in sums.iter_mut().zip(columns) {
        let low = _mm256_and_si256(column, _mm256_set1_epi16(0xff));
        let high = _mm256_srli_epi16::<8>(column);
        let products = _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
        *sum = _mm256_add_epi32(*sum, products);
    }
}

/// What the sums of section `section` start from.
///
/// # Safety
/// The tile has `R` rows.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn from_offsets<const R: usize>(t: &Tile, section: usize) -> Sums<R> {
    std::array::from_fn(|r| {
        // SAFETY: row r.
        [_mm256_set1_epi32(unsafe { (*t.rows.add(r)).offsets[section] }); VECTORS]
    })
}

/// Scales the sums into the output: of the outliers, or of the others, which are added.
///
/// # Safety
/// As the tile's; the output was written if `outliers` is not set.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store<const R: usize>(t: &Tile, half: usize, sums: &Sums<R>, outliers: bool) {
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: row r.
        let row = unsafe { &*t.rows.add(r) };
        let (scale, scales) =
            if outliers { (row.outlier_scale, t.outlier_scales) } else { (row.scale, t.scales) };
        let scale = _mm256_set1_ps(scale);
        for (i, sum) in sums.iter().enumerate() {
            let column = (half * VECTORS + i) * 8;
            // SAFETY: 8 columns' scales, and 8 columns of row r of the output tile.
            unsafe {
                let scale = _mm256_mul_ps(scale, _mm256_loadu_ps(scales.add(column)));
                let y = t.y.add(r * t.y_stride + column);
                let mut value = _mm256_mul_ps(_mm256_cvtepi32_ps(*sum), scale);
                if !outliers {
                    value = _mm256_add_ps(_mm256_loadu_ps(y), value);
                }
                _mm256_storeu_ps(y, value);
            }
        }
    }
}
