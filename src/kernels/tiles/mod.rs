//! Products of bf16 tiles, 16 rows by 32 columns by 32 k: on AMX, or by dot products of pairs in 512
//! bits. Sums are f32, in the order of k; subnormal numbers count as zero.
#![allow(unsafe_code)] // Products take raw pointers.

mod amx;
mod dots;

use std::arch::x86_64::*;

use super::packed::Line;
use crate::sys;
pub(super) use amx::Tiles;

/// Rows of a tile, and its columns of f32 on AMX.
pub(super) const SIDE: usize = 16;
/// k of a tile of factors: 64 bytes of bf16.
pub(super) const TILE_K: usize = 32;
/// Bytes from one row of a tile of left factors to the next, and from one such tile to the next.
const ROW: usize = 64;
pub(super) const TILE: usize = SIDE * ROW;
/// Columns of a panel of right factors, and its cache lines at each step of [`TILE_K`].
pub(super) const PANEL: usize = 2 * SIDE;
pub(super) const STEP_LINES: usize = 2 * SIDE;

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// AMX.
    Amx,
    /// Dot products of bf16 pairs in 512 bits.
    Dots,
}

impl Unit {
    /// Whether the CPU has it, and what makes tiles, and this process may use it.
    pub(super) fn available(self) -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bf16")
            && (self == Self::Dots || sys::amx::has_bf16())
    }

    /// The best that is available.
    pub(super) fn best() -> Option<Self> {
        [Self::Amx, Self::Dots].into_iter().find(|unit| unit.available())
    }

    /// How many panels a product of `rows` rows takes at once where there are as many: few rows need
    /// several, for enough independent sums.
    pub(super) fn panels(self, rows: usize) -> usize {
        match self {
            Self::Amx => 1,
            Self::Dots => dots::panels(rows),
        }
    }
}

/// A [`Unit`] at work, and its registers.
pub(super) struct Multiplier {
    unit: Unit,
    tiles: Tiles,
}

impl Multiplier {
    /// # Safety
    /// The unit is [`Unit::available`].
    pub(super) unsafe fn new(unit: Unit) -> Self {
        Self { unit, tiles: Tiles::default() }
    }

    /// # Safety
    /// The operands are valid for `tiles` steps along k, of which there is at least one, and an
    /// output of `height` rows and of the panels; `lower` is one only if there are more than 16.
    /// There are as many panels as [`Unit::panels`] says, or 1, and more than one part on AMX alone.
    pub(super) unsafe fn run<const PARTS: usize>(&mut self, product: &Product, height: usize) {
        // SAFETY: the caller's promises; the unit is there, by `new`.
        unsafe {
            match self.unit {
                Unit::Amx => {
                    self.tiles.shape(height);
                    product.on_amx::<PARTS>(height);
                }
                Unit::Dots => product.by_dots(height),
            }
        }
    }
}

/// A product of up to 32 rows of left factors with panels of right ones.
pub(super) struct Product {
    /// Left factors of the first 16 rows, and of those after them: tiles of `[16, 32]` bf16 along k,
    /// the parts of a tile behind each other.
    pub(super) upper: *const Line,
    pub(super) lower: *const Line,
    /// Right factors: `[16, 32]` pairs of bf16 for each tile along k, two lines a pair of k.
    pub(super) panel: *const Line,
    /// How many panels there are, lines from one to the next, and elements between their sums.
    pub(super) panels: usize,
    pub(super) panel_lines: usize,
    pub(super) panel_sums: usize,
    /// On AMX, lines to fetch into the cache meanwhile, and how many at each step, at least 2: they
    /// need not exist.
    pub(super) ahead: *const Line,
    pub(super) fetch: usize,
    /// Steps along k.
    pub(super) tiles: usize,
    /// What the sums start from, and where they go.
    pub(super) from: Sums,
    pub(super) to: Sums,
}

/// Sums of up to 32 rows and 32 columns a panel.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Null for zeros, which can only be started from.
    pub(super) start: *mut f32,
    /// From one row to the next, in elements.
    pub(super) stride: usize,
}

impl Sums {
    pub(super) const ZERO: Self = Self { start: std::ptr::null_mut(), stride: 0 };

    fn lower(self) -> *mut f32 {
        self.start.wrapping_add(SIDE * self.stride)
    }

    fn row_bytes(self) -> usize {
        self.stride * size_of::<f32>()
    }
}

/// A line of left factors: the nearest bf16 of 32 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn rounded(numbers: [__m512; 2]) -> Line {
    let halves = numbers.map(|numbers| nearest(numbers));
    // SAFETY: a line is 64 bytes, and so are the two vectors, plain bits both.
    unsafe { std::mem::transmute::<[__m256i; 2], Line>(halves) }
}

/// The nearest bf16 of 16 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn nearest(numbers: __m512) -> __m256i {
    // SAFETY: both are 32 bytes of plain bits.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(numbers)) }
}
