//! Left factors of products of tiles: rows of bf16, 16 rows a strip.
//!
//! A number may be kept in three bf16 that add up to it, so that its product with another bf16 is
//! exact.
#![allow(unsafe_code)] // Vectors of instructions that the CPU was seen to have.

use std::arch::x86_64::*;

use super::arena::{Arena, Buffer};
use super::packed::{LINE_FLOATS, Line};
use super::tiles::{SIDE, TILE_K, rounded};
use crate::error::Result;

/// `[rows / 16, width / 32, parts, 16]` lines of 32 bf16; past the last row they hold anything, past
/// a row's end zeros. There are none where the CPU has no AVX-512 BF16.
pub(super) struct Strips {
    buffer: Buffer,
    layout: Layout,
    rows: usize,
}

/// How a strip is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Tiles along a row.
    pub(super) tiles: usize,
    /// bf16 that a number is kept in: 1 rounds it, 3 keep it.
    pub(super) parts: usize,
}

impl Layout {
    /// Lines of a strip.
    pub(super) fn lines(self) -> usize {
        self.tiles * self.parts * SIDE
    }
}

impl Strips {
    /// Strips for `rows` rows of `width` numbers that are still to be written.
    ///
    /// # Errors
    /// `OutOfMemory`.
    ///
    /// # Safety
    /// The CPU has AVX-512 BF16.
    pub(super) unsafe fn lend(
        arena: &Arena,
        rows: usize,
        width: usize,
        parts: usize,
    ) -> Result<Self> {
        assert!(matches!(parts, 1 | 3));
        let layout = Layout { tiles: width.div_ceil(TILE_K), parts };
        let buffer = arena.lend(rows.div_ceil(SIDE) * layout.lines() * LINE_FLOATS)?;
        Ok(Self { buffer, layout, rows })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn lines(&self) -> &[Line] {
        bytemuck::cast_slice(&self.buffer)
    }

    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(&mut self.buffer)
    }

    pub(super) fn arena(&self) -> &Arena {
        self.buffer.arena()
    }
}

/// Writes `row` as row `r` of a strip.
///
/// # Safety
/// The CPU has AVX-512 BF16.
pub(super) unsafe fn write_row(layout: Layout, strip: &mut [Line], r: usize, row: &[f32]) {
    assert!(row.len() <= layout.tiles * TILE_K);
    // SAFETY: the CPU is the caller's promise.
    unsafe {
        match layout.parts {
            1 => write::<1>(row, strip[r..].iter_mut().step_by(SIDE)),
            _ => write::<3>(row, strip[r..].iter_mut().step_by(SIDE)),
        }
    }
}

/// Writes `numbers` to the columns of `row` from `column` on, whole tiles, of strips at `start`.
///
/// # Safety
/// The CPU has AVX-512 BF16; the tiles are in the strips, and nobody else uses their row meanwhile.
pub(super) unsafe fn write_columns(
    layout: Layout,
    start: *mut Line,
    row: usize,
    column: usize,
    numbers: &[f32],
) {
    assert!(column.is_multiple_of(TILE_K) && numbers.len().is_multiple_of(TILE_K));
    let first = row / SIDE * layout.lines() + column / TILE_K * layout.parts * SIDE + row % SIDE;
    let count = numbers.len() / TILE_K * layout.parts;
    // SAFETY: the caller's promises. Lines of a row are 16 apart, those between are other rows'.
    unsafe {
        let lines = (0..count).map(|i| &mut *start.add(first + i * SIDE));
        match layout.parts {
            1 => write::<1>(numbers, lines),
            _ => write::<3>(numbers, lines),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn write<'l, const PARTS: usize>(row: &[f32], mut lines: impl Iterator<Item = &'l mut Line>) {
    for numbers in row.chunks(TILE_K) {
        let numbers = [0, SIDE].map(|from| {
            let left = numbers.len().saturating_sub(from).min(SIDE) as u32;
            let mask = ((1u32 << left) - 1) as u16;
            // SAFETY: the mask has a bit for each of the floats that are there.
            unsafe { _mm512_maskz_loadu_ps(mask, numbers.as_ptr().wrapping_add(from)) }
        });
        for (part, line) in parts::<PARTS>(numbers).into_iter().zip(lines.by_ref()) {
            *line = part;
        }
    }
}

/// The parts of 32 numbers.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn parts<const PARTS: usize>(mut numbers: [__m512; 2]) -> [Line; PARTS] {
    if PARTS == 1 {
        return [rounded(numbers); PARTS];
    }
    std::array::from_fn(
        #[inline(always)]
        |_| cut_off(&mut numbers),
    )
}

/// The upper halves, which are bf16, of what then is left: exact, and never more than the number.
#[target_feature(enable = "avx512f")]
#[inline]
fn cut_off(rest: &mut [__m512; 2]) -> Line {
    let part = rest.each_mut().map(|rest| {
        let bits = _mm512_castps_si512(*rest);
        let upper = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        *rest = _mm512_sub_ps(*rest, _mm512_castsi512_ps(upper));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits))
    });
    // SAFETY: a line is 64 bytes, and so are the two vectors, plain bits both.
    unsafe { std::mem::transmute::<[__m256i; 2], Line>(part) }
}
