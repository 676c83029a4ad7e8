//! Linear layers of bf16 weights on AMX.
//!
//! Activations in f32 are split into three bf16 that add up to them, so that every product with a
//! bf16 weight is exact; then only the sums round, as in any f32 product. A sum's order is that of
//! k alone: 32 k at a time, the parts of an activation one after the other.
#![allow(unsafe_code)] // Products of tiles take raw pointers; tasks write disjoint rectangles of `y`.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::drive::{Columns, Output, share};
use super::pack::{Line, Panels, Storage, TILE_STEPS};
use crate::error::Result;
use crate::kernels::arena::{Arena, Buffer};
use crate::kernels::tiles::{PANEL, Product, SIDE, STEP_LINES, TILE, TILE_K, Tiles, rounded};

const _: () = assert!(TILE_K == 2 * TILE_STEPS && PANEL == super::pack::PANEL);
const _: () = assert!(STEP_LINES == Storage::Bf16Tiles.lines(TILE_STEPS));

/// Bytes of a task's activations, so that they stay in a 2 MiB L2 cache beside a panel.
const TASK_BYTES: usize = 1 << 20;
/// Pairs of strips of 16 rows that share a panel, where there are as many: the cache is filled
/// with these over a part of k rather than with fewer over all of it.
const TASK_PAIRS: usize = 4;
/// Panels of a task at the most.
const TASK_PANELS: usize = 8;
/// How far ahead, in lines, weights are fetched where each is used for at most 32 rows.
const LINES_AHEAD: usize = 8 * STEP_LINES;

/// `y = x Wᵀ`, with activations in `PARTS` bf16 each: 1 rounds them, 3 keep them.
///
/// `x` and `y` are the same number of whole rows, of `w.k` and of `y.stride`, which is not 0.
///
/// # Safety
/// The CPU has AVX-512 BF16 and AMX BF16, and this process may use its tiles.
/// # Errors
/// `OutOfMemory`.
pub(super) unsafe fn run<const PARTS: usize>(
    w: &Panels,
    x: &[f32],
    y: Columns<'_>,
    arena: &Arena,
) -> Result<()> {
    let m = y.rows(w, x);
    assert!(w.storage == Storage::Bf16Tiles);
    if w.k == 0 || w.n == 0 {
        y.clear(w.n);
        return Ok(());
    }
    // SAFETY: the CPU is the caller's promise.
    let acts = unsafe { Acts::<PARTS>::load(w, x, m, arena)? };
    let threads = rayon::current_num_threads();
    let pairs = m.div_ceil(2 * SIDE);
    let down = pairs.div_ceil((TASK_BYTES / (2 * acts.strip)).max(TASK_PAIRS));
    let across = w.count.div_ceil(TASK_PANELS).max((4 * threads).div_ceil(down)).min(w.count);
    let output = y.output();
    let task = |i: usize| {
        let panels = share(w.count, across, i / down);
        let pairs = share(pairs, down, i % down);
        let rows = pairs.start * 2 * SIDE..m.min(pairs.end * 2 * SIDE);
        // SAFETY: distinct tasks have distinct ranges of panels and rows, which do not overlap; `y`
        // is m rows and outlives the tasks; the CPU is the caller's promise.
        unsafe { task(w, &acts, output, rows, panels) }
    };
    if threads == 1 || across * down == 1 {
        (0..across * down).for_each(task);
    } else {
        (0..across * down).into_par_iter().with_max_len(1).for_each(task);
    }
    Ok(())
}

/// Activations by tiles: `[m / 16, steps / 16, PARTS]` of `[16, 32]` bf16, the last rows any.
struct Acts<const PARTS: usize> {
    /// [`Line`]s.
    buffer: Buffer,
    /// Bytes of a strip of 16 rows.
    strip: usize,
}

impl<const PARTS: usize> Acts<PARTS> {
    /// # Safety
    /// As [`run`].
    unsafe fn load(w: &Panels, x: &[f32], m: usize, arena: &Arena) -> Result<Self> {
        let strip_lines = w.steps / TILE_STEPS * PARTS * SIDE;
        let line_floats = size_of::<Line>() / size_of::<f32>();
        let mut buffer = arena.lend(m.div_ceil(SIDE) * strip_lines * line_floats)?;
        let lines: &mut [Line] = bytemuck::cast_slice_mut(&mut buffer);
        let strips = lines.par_chunks_exact_mut(strip_lines).zip(x.par_chunks(SIDE * w.k));
        strips.for_each(|(strip, rows)| {
            for (r, row) in rows.chunks_exact(w.k).enumerate() {
                // SAFETY: the CPU is the caller's promise.
                unsafe { load_row::<PARTS>(row, &mut strip[r..]) };
            }
        });
        Ok(Self { buffer, strip: strip_lines * size_of::<Line>() })
    }

    fn start(&self) -> *const Line {
        self.buffer.as_ptr().cast()
    }
}

/// Writes a row's lines, which are 16 apart: `PARTS` for every 32 k, zeros past its end.
#[target_feature(enable = "avx512f,avx512bf16")]
fn load_row<const PARTS: usize>(x: &[f32], lines: &mut [Line]) {
    let mut lines = lines.iter_mut().step_by(SIDE);
    for x in x.chunks(TILE_K) {
        let mut rest = [0, SIDE].map(|from| {
            let left = x.len().saturating_sub(from).min(SIDE) as u32;
            let mask = ((1u32 << left) - 1) as u16;
            // SAFETY: the mask has a bit for each of the floats that are there.
            unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(from)) }
        });
        for _ in 0..PARTS {
            let part = if PARTS == 1 { rounded(rest) } else { cut_off(&mut rest) };
            if let Some(line) = lines.next() {
                *line = part;
            }
        }
    }
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

/// One task: the rows `rows`, a multiple of 32 or the last ones, times `panels`.
///
/// # Safety
/// `y` points at `m` rows, `rows` are some of them, and nobody else uses those rows and
/// columns meanwhile. The CPU has the instructions, and the process may use tiles.
unsafe fn task<const PARTS: usize>(
    w: &Panels,
    acts: &Acts<PARTS>,
    y: Output,
    rows: Range<usize>,
    panels: Range<usize>,
) {
    // SAFETY: the CPU is the caller's promise.
    let mut tiles = unsafe { Tiles::new() };
    let pairs = rows.len().div_ceil(2 * SIDE);
    let along_k = w.steps / TILE_STEPS;
    let blocks = along_k.div_ceil((TASK_BYTES / (pairs * 2 * PARTS * TILE)).max(1));
    for (block, panel) in (0..blocks).flat_map(|b| panels.clone().map(move |panel| (b, panel))) {
        let steps = share(along_k, blocks, block);
        let slab = &w.panel(panel)[steps.start * STEP_LINES..steps.end * STEP_LINES];
        let column = panel * PANEL;
        let columns = (w.n - column).min(PANEL);
        for (pair, row) in rows.clone().step_by(2 * SIDE).enumerate() {
            let height = (rows.end - row).min(2 * SIDE);
            let strip = row / SIDE * acts.strip + steps.start * PARTS * TILE;
            let upper = acts.start().wrapping_byte_add(strip);
            // SAFETY: inside `y`, by `row < m` and `column < n`.
            let corner = unsafe { y.start.add(row * y.stride + column) };
            tiles.shape(height);
            let mut product = Product {
                upper,
                lower: upper.wrapping_byte_add(acts.strip),
                panel: slab.as_ptr(),
                // Each pair of strips fetches its share of the panel after this one.
                ahead: match pairs {
                    1 => slab.as_ptr().wrapping_add(LINES_AHEAD),
                    _ => w
                        .panel_start(panel + 1)
                        .wrapping_add(steps.start * STEP_LINES + slab.len() * pair / pairs),
                },
                fetch: if pairs == 1 { STEP_LINES } else { STEP_LINES.div_ceil(pairs) },
                tiles: steps.len(),
                y: corner,
                stride: y.stride,
                first: block == 0,
            };
            if columns == PANEL {
                // SAFETY: the strips and the slab have these steps (the lower strip is read where
                // more than 16 rows are), the output is this task's, and the tiles have its height.
                unsafe { product.run::<PARTS>(height) };
                continue;
            }
            // The padded panel: on a copy, of which the columns that exist return.
            let mut copy = [[0.0f32; PANEL]; 2 * SIDE];
            let out = |r: usize| {
                // SAFETY: `columns` elements of row `row + r`, this task's.
                unsafe { std::slice::from_raw_parts_mut(corner.add(r * y.stride), columns) }
            };
            for (r, copy) in copy.iter_mut().enumerate().take(height) {
                copy[..columns].copy_from_slice(out(r));
            }
            (product.y, product.stride) = (copy.as_mut_ptr().cast(), PANEL);
            // SAFETY: as above, with the copy as the output.
            unsafe { product.run::<PARTS>(height) };
            for (r, copy) in copy.iter().enumerate().take(height) {
                out(r).copy_from_slice(&copy[..columns]);
            }
        }
    }
}
