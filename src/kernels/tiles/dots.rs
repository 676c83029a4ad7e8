//! Products by dot products of bf16 pairs in 512 bits.

use std::arch::x86_64::*;

use super::{Line, PANEL, Product, SIDE, STEP_LINES, Sums};
use crate::kernels::packed::share;

/// The most rows whose sums are in registers at once.
const MAX_ROWS: usize = 8;
/// Pairs of k in a tile.
const PAIRS: usize = SIDE;
/// How many lines ahead of its sums a product of several rows fetches right factors: the hardware
/// stops at every 4 KiB page, which one that computes for a while on each line notices.
const LINES_AHEAD: usize = 96;

/// See [`super::Unit::panels`].
pub(super) fn panels(rows: usize) -> usize {
    match rows {
        0..=2 => 4,
        3..=4 => 2,
        _ => 1,
    }
}

/// Some rows of a product, all in one strip.
#[derive(Clone, Copy)]
struct Part<'a> {
    product: &'a Product,
    /// Left factors of the first row.
    left: *const Line,
    from: *const f32,
    to: *mut f32,
}

/// Calls `multiply::<rows, panels>` for each of their shapes.
macro_rules! with_shape {
    ($rows:expr, $panels:expr, $part:expr) => {
        match ($rows, $panels) {
            (1, 4) => multiply::<1, 4>($part),
            (2, 4) => multiply::<2, 4>($part),
            (1, 2) => multiply::<1, 2>($part),
            (2, 2) => multiply::<2, 2>($part),
            (3, 2) => multiply::<3, 2>($part),
            (4, 2) => multiply::<4, 2>($part),
            (1, 1) => multiply::<1, 1>($part),
            (2, 1) => multiply::<2, 1>($part),
            (3, 1) => multiply::<3, 1>($part),
            (4, 1) => multiply::<4, 1>($part),
            (5, 1) => multiply::<5, 1>($part),
            (6, 1) => multiply::<6, 1>($part),
            (7, 1) => multiply::<7, 1>($part),
            (8, 1) => multiply::<8, 1>($part),
            (rows, panels) => unreachable!("a product of {rows} rows and {panels} panels"),
        }
    };
}

impl Product {
    /// # Safety
    /// As [`super::Multiplier::run`]; the CPU has AVX-512 BF16, and left factors are of one part.
    pub(super) unsafe fn by_dots(&self, height: usize) {
        for (first, left) in [(0, self.upper), (SIDE, self.lower)] {
            let rows = height.saturating_sub(first).min(SIDE);
            let count = rows.div_ceil(MAX_ROWS);
            for i in 0..count {
                let rows = share(rows, count, i);
                let row = first + rows.start;
                let at = |sums: Sums| sums.start.wrapping_add(row * sums.stride);
                let part = Part {
                    product: self,
                    left: left.wrapping_add(rows.start),
                    from: if self.from.start.is_null() { std::ptr::null() } else { at(self.from) },
                    to: at(self.to),
                };
                // SAFETY: the caller's operands, of which these are some rows.
                unsafe { with_shape!(rows.len(), self.panels, part) };
            }
        }
    }
}

/// # Safety
/// The part's operands are valid for `R` rows and `P` panels.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply<const R: usize, const P: usize>(part: Part<'_>) {
    let Part { product, mut left, from, to } = part;
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    if !from.is_null() {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (p, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row r of panel p of what is started from.
                let at = unsafe { from.add(r * product.from.stride + p * product.panel_sums) };
                // SAFETY: its 32 columns.
                *sums = unsafe { [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(PANEL / 2))] };
            }
        }
    }
    let mut right = product.panel.cast::<__m512bh>();
    for _ in 0..product.tiles {
        for pair in 0..PAIRS {
            let mut columns = [[zero(); 2]; P];
            for (p, columns) in columns.iter_mut().enumerate() {
                // SAFETY: a pair of k of panel p, two lines.
                let at = unsafe { right.add(p * product.panel_lines + 2 * pair) };
                if R > 2 {
                    for line in LINES_AHEAD..LINES_AHEAD + 2 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast());
                    }
                }
                // SAFETY: as above.
                *columns = unsafe { [at.read(), at.add(1).read()] };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the pair of row r.
                let x = unsafe { left.add(r).cast::<i32>().add(pair).read() };
                let x = pairs(_mm512_set1_epi32(x));
                for (sums, columns) in sums.iter_mut().zip(&columns) {
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, x, *column);
                    }
                }
            }
        }
        (left, right) = (left.wrapping_add(SIDE), right.wrapping_add(STEP_LINES));
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            // SAFETY: row r of panel p of the output, 32 columns.
            unsafe {
                let at = to.add(r * product.to.stride + p * product.panel_sums);
                _mm512_storeu_ps(at, sums[0]);
                _mm512_storeu_ps(at.add(PANEL / 2), sums[1]);
            }
        }
    }
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
