//! Linear layers of bf16 weights on tiles.
//!
//! On AMX, activations in f32 are split into three bf16 that add up to them, so that every product
//! with a bf16 weight is exact; then only the sums round, as in any f32 product. A sum's order is
//! that of k alone: a tile at a time, the parts of an activation one after the other.
#![allow(unsafe_code)] // Products of tiles take raw pointers; tasks write disjoint parts of the result.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::drive::{Columns, Output, share};
use super::pack::{Line, Panels, Storage, TILE_STEPS};
use crate::error::Result;
use crate::kernels::math;
use crate::kernels::strips::{self, Layout, Strips};
use crate::kernels::tiles::{
    Multiplier, PANEL, Product, SIDE, STEP_LINES, Sums, TILE, TILE_K, Unit,
};

const _: () = assert!(TILE_K == 2 * TILE_STEPS && PANEL == super::pack::PANEL && PANEL == TILE_K);
const _: () = assert!(STEP_LINES == Storage::Bf16Tiles.lines(TILE_STEPS));

/// Rows of a pair of strips, which a product takes.
const PAIR: usize = 2 * SIDE;
/// Bytes of a task's activations, so that they stay in a 2 MiB L2 cache beside a panel.
const TASK_BYTES: usize = 1 << 20;
/// Pairs of strips that share a panel, where there are as many: the cache is filled with these over
/// a part of k rather than with fewer over all of it.
const TASK_PAIRS: usize = 4;
/// Panels of a task at the most.
const TASK_PANELS: usize = 8;
/// How far ahead, in lines, weights are fetched where each is used for at most 32 rows.
const LINES_AHEAD: usize = 8 * STEP_LINES;

/// `y = x Wᵀ`.
///
/// # Safety
/// `x` was made of rows of `w.k`, as many as `y` has. The unit is available, and multiplies as many
/// parts as `x` has.
pub(super) unsafe fn run(unit: Unit, w: &Panels, x: &Strips, y: Columns<'_>) -> Result<()> {
    assert!(w.storage == Storage::Bf16Tiles && y.rows(w) == x.rows());
    if w.k == 0 || w.n == 0 {
        y.clear(w.n);
        return Ok(());
    }
    let y = y.output();
    // SAFETY: tasks have distinct rows and columns of `y`, which outlives them.
    share_out(unit, w, x, w.count, |work| unsafe {
        work.run(y);
        Ok(())
    })
}

/// As [`run`], of outputs that are the gate's and then as many of the up projection's, to strips of
/// `silu(gate) * up`.
///
/// # Errors
/// `OutOfMemory`.
///
/// # Safety
/// `x` was made of rows of `w.k`, which is not 0, and `out` of as many rows of `w.n / 2`; the unit as
/// there.
pub(super) unsafe fn swiglu(unit: Unit, w: &Panels, x: &Strips, out: &mut Strips) -> Result<()> {
    let layout = out.layout();
    assert!(w.storage == Storage::Bf16Tiles && w.n == 2 * layout.tiles * PANEL && w.k > 0);
    assert!(out.rows() == x.rows() && layout.parts == x.layout().parts);
    let out = Lines { start: out.lines_mut().as_mut_ptr(), layout };
    // SAFETY: tasks have distinct tiles of `out`, which outlives them.
    share_out(unit, w, x, layout.tiles, |work| unsafe { work.swiglu(out) })
}

/// Some panels and some rows of a product.
struct Work<'a> {
    unit: Unit,
    w: &'a Panels,
    x: &'a Strips,
    /// Of outputs, as [`share_out`] was told to count them.
    panels: Range<usize>,
    /// A multiple of [`PAIR`], or the last ones.
    rows: Range<usize>,
}

/// Panels that a product takes at once.
struct Taken {
    first: usize,
    count: usize,
    /// Panels from one to the next, and elements from its sums to those.
    apart: usize,
    sums: usize,
    /// The panel that is needed after these.
    next: usize,
}

/// Strips that tasks share, each of which writes its own lines.
#[derive(Clone, Copy)]
struct Lines {
    start: *mut Line,
    layout: Layout,
}

// SAFETY: the tasks of one call write distinct lines and end before the call does.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

/// Shares `panels` panels of outputs and the rows of `x` out to tasks on the current rayon pool.
fn share_out(
    unit: Unit,
    w: &Panels,
    x: &Strips,
    panels: usize,
    task: impl Fn(Work<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let pairs = x.rows().div_ceil(PAIR);
    let pair_bytes = 2 * x.layout().lines() * size_of::<Line>();
    let down = pairs.div_ceil((TASK_BYTES / pair_bytes).max(TASK_PAIRS)).max(1);
    let threads = rayon::current_num_threads();
    let across = panels.div_ceil(TASK_PANELS).max((4 * threads).div_ceil(down)).min(panels);
    (0..across * down).into_par_iter().with_max_len(1).try_for_each(|i| {
        let pairs = share(pairs, down, i % down);
        let rows = pairs.start * PAIR..x.rows().min(pairs.end * PAIR);
        task(Work { unit, w, x, panels: share(panels, across, i / down), rows })
    })
}

impl Work<'_> {
    fn pairs(&self) -> usize {
        self.rows.len().div_ceil(PAIR)
    }

    /// The parts of k, in tiles, over each of which the activations stay in the cache.
    fn blocks(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let Layout { tiles, parts } = self.x.layout();
        let count = tiles.div_ceil((TASK_BYTES / (self.pairs() * 2 * parts * TILE)).max(1));
        (0..count).map(move |block| share(tiles, count, block))
    }

    /// Rows of pair `pair` of strips.
    fn height(&self, pair: usize) -> usize {
        (self.rows.len() - pair * PAIR).min(PAIR)
    }

    /// Multiplies pair `pair` of strips with panels of the weights over the tiles `k`.
    ///
    /// # Safety
    /// The sums are this task's, for the pair's rows and 32 columns a panel.
    unsafe fn multiply(
        &self,
        multiplier: &mut Multiplier,
        panels: &Taken,
        pair: usize,
        k: &Range<usize>,
        [from, to]: [Sums; 2],
    ) {
        let pairs = self.pairs();
        let row = self.rows.start + pair * PAIR;
        let height = self.height(pair);
        let layout = self.x.layout();
        let strip = row / SIDE * layout.lines() + k.start * layout.parts * SIDE;
        let slab = &self.w.panel(panels.first)[k.start * STEP_LINES..k.end * STEP_LINES];
        let upper = self.x.lines()[strip..].as_ptr();
        let product = Product {
            upper,
            lower: upper.wrapping_add(layout.lines()),
            panel: slab.as_ptr(),
            panels: panels.count,
            panel_lines: panels.apart * self.w.panel_lines(),
            panel_sums: panels.sums,
            // Each pair of strips fetches its share of the panel after this one.
            ahead: match pairs {
                1 => slab.as_ptr().wrapping_add(LINES_AHEAD),
                _ => self
                    .w
                    .panel_start(panels.next)
                    .wrapping_add(k.start * STEP_LINES + slab.len() * pair / pairs),
            },
            fetch: if pairs == 1 { STEP_LINES } else { STEP_LINES.div_ceil(pairs) },
            tiles: k.len(),
            from,
            to,
        };
        // SAFETY: the strips and the panels have these tiles (the lower strip is read where there are
        // more than 16 rows), and the sums are the caller's promise.
        unsafe {
            match layout.parts {
                1 => multiplier.run::<1>(&product, height),
                _ => multiplier.run::<3>(&product, height),
            }
        }
    }

    /// # Safety
    /// `y` has the panels' columns and the rows, and nobody else uses them meanwhile.
    unsafe fn run(self, y: Output) {
        // SAFETY: the unit is available.
        let mut multiplier = unsafe { Multiplier::new(self.unit) };
        // Several pairs of strips take a panel in turns.
        let at_once = if self.pairs() == 1 { self.unit.panels(self.height(0)) } else { 1 };
        for (block, k) in self.blocks().enumerate() {
            let mut panel = self.panels.start;
            while panel < self.panels.end {
                let column = panel * PANEL;
                let columns = (self.w.n - column).min(PANEL);
                let whole = (self.w.n / PANEL).min(self.panels.end).saturating_sub(panel);
                let count = if whole >= at_once { at_once } else { 1 };
                let panels =
                    Taken { first: panel, count, apart: 1, sums: PANEL, next: panel + count };
                panel += count;
                for pair in 0..self.pairs() {
                    let row = self.rows.start + pair * PAIR;
                    // SAFETY: inside `y`.
                    let start = unsafe { y.start.add(row * y.stride + column) };
                    let y = Sums { start, stride: y.stride };
                    let from = |y| if block == 0 { Sums::ZERO } else { y };
                    if columns == PANEL {
                        // SAFETY: the caller's promise.
                        unsafe { self.multiply(&mut multiplier, &panels, pair, &k, [from(y), y]) };
                        continue;
                    }
                    // The padded panel: on a copy, of which the columns that exist return.
                    let mut copy = [[0.0f32; PANEL]; PAIR];
                    let real = |r: usize| {
                        // SAFETY: `columns` elements of row `row + r`, this task's.
                        unsafe {
                            std::slice::from_raw_parts_mut(y.start.add(r * y.stride), columns)
                        }
                    };
                    let height = self.height(pair);
                    for (r, copy) in copy.iter_mut().enumerate().take(height) {
                        copy[..columns].copy_from_slice(real(r));
                    }
                    let sums = Sums { start: copy.as_mut_ptr().cast(), stride: PANEL };
                    // SAFETY: the copy has all the columns.
                    unsafe {
                        self.multiply(&mut multiplier, &panels, pair, &k, [from(sums), sums]);
                    };
                    for (r, copy) in copy.iter().enumerate().take(height) {
                        real(r).copy_from_slice(&copy[..columns]);
                    }
                }
            }
        }
    }

    /// # Errors
    /// `OutOfMemory`.
    ///
    /// # Safety
    /// `out` has the panels as tiles, and the rows, and nobody else uses them meanwhile.
    unsafe fn swiglu(self, out: Lines) -> Result<()> {
        let blocks = self.blocks().len();
        // A pair's sums of gate and up; over parts of k, those of every panel are parked.
        let places = if blocks == 1 { 1 } else { self.panels.len() } * self.pairs();
        let mut parked = self.x.arena().lend(places * 2 * PAIR * PANEL)?;
        let (pairs_of_sums, _) = parked.as_chunks_mut::<{ 2 * PAIR * PANEL }>();
        // SAFETY: the unit is available.
        let mut multiplier = unsafe { Multiplier::new(self.unit) };
        let at_once = if self.pairs() == 1 { self.unit.panels(self.height(0)).min(2) } else { 1 };
        for (block, k) in self.blocks().enumerate() {
            for (i, panel) in self.panels.clone().enumerate() {
                let first = if blocks == 1 { 0 } else { i * self.pairs() };
                let sums = &mut pairs_of_sums[first..][..self.pairs()];
                let apart = out.layout.tiles;
                for half in 0..2 / at_once {
                    let first = panel + half * apart;
                    let next = if at_once == 1 && half == 0 { panel + apart } else { panel + 1 };
                    let panels = Taken { first, count: at_once, apart, sums: PAIR * PANEL, next };
                    for (pair, sums) in sums.iter_mut().enumerate() {
                        let start = sums[half * PAIR * PANEL..].as_mut_ptr();
                        let to = Sums { start, stride: PANEL };
                        let from = if block == 0 { Sums::ZERO } else { to };
                        // SAFETY: the sums are for a whole pair, of the gate and then of the up
                        // projection.
                        unsafe { self.multiply(&mut multiplier, &panels, pair, &k, [from, to]) };
                    }
                }
                if block + 1 < blocks {
                    continue;
                }
                for (pair, sums) in sums.iter().enumerate() {
                    let rows = self.rows.start + pair * PAIR..self.rows.end;
                    // SAFETY: the caller's promise; strips are there only with AVX-512 BF16.
                    unsafe {
                        match out.layout.parts {
                            1 => gated::<1>(sums, out, panel, rows),
                            _ => gated::<3>(sums, out, panel, rows),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// `silu(gate) * up` of up to [`PAIR`] rows, from the sums of gate and up, to tile `tile` of `rows`.
///
/// # Safety
/// The CPU has AVX-512 BF16; the tiles are in `out`, and nobody else uses them meanwhile.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn gated<const PARTS: usize>(
    sums: &[f32; 2 * PAIR * PANEL],
    out: Lines,
    tile: usize,
    rows: Range<usize>,
) {
    let (gate, up) = sums.split_at(PAIR * PANEL);
    let both = gate.as_chunks::<PANEL>().0.iter().zip(up.as_chunks::<PANEL>().0);
    for (row, (gate, up)) in rows.zip(both) {
        let mut products = [0f32; PANEL];
        math::swiglu(gate, up, &mut products);
        // SAFETY: two vectors are a panel wide.
        let products = unsafe {
            [_mm512_loadu_ps(products.as_ptr()), _mm512_loadu_ps(products[SIDE..].as_ptr())]
        };
        let strip = row / SIDE * out.layout.lines() + tile * PARTS * SIDE + row % SIDE;
        for (part, line) in strips::parts::<PARTS>(products).into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { out.start.add(strip + part * SIDE).write(line) };
        }
    }
}
