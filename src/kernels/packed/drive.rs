//! From a product to tiles: the tasks that threads share, the blocks over k, the rows of a tile.
#![allow(unsafe_code)] // Tasks write disjoint rectangles of `y`, which slices cannot express; tile kernels take pointers.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::compact::{self, GROUP, Unwritten};
use super::pack::{BLOCK, Line, PANEL, Panels, Storage};

/// The most rows a tile of any kernel has.
const ROWS: usize = 12;
/// Words from one row of a packed activation tile to the next: a block, and a cache line so that
/// the rows of a tile do not share one set of the L1 cache.
pub(super) const ACT_STRIDE: usize = BLOCK + 16;
/// How much of the packed weights a task works on at a time: half of a 1 MiB L2 cache.
const SLABS_BYTES: usize = 512 << 10;
/// Rows of a task: with its slabs in L2 as well, the part of `y` that it adds to stays close.
const TASK_ROWS: usize = 192;

/// Panels that are widened at a time: as many as the widest tile spans.
const WIDENED_PANELS: usize = 4;

/// How many cache lines of the slab a tile of `rows` rows prefetches ahead of its sums, 0 for not at
/// all. The hardware stops at every 4 KiB page, which a tile that computes for a while on each line
/// notices; one of a row or two asks for lines so fast that prefetching only adds instructions.
#[cfg(target_arch = "x86_64")]
pub(super) const fn lines_ahead(rows: usize) -> usize {
    match rows {
        0..=2 => 0,
        3..=6 => 64,
        _ => 128,
    }
}

/// What one call of a tile kernel works on.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Activations: row r at `r * ACT_STRIDE`, one a step.
    pub(super) acts: *const f32,
    /// The slab of the first panel.
    pub(super) slab: *const Line,
    /// Steps in the slab.
    pub(super) steps: usize,
    /// The output tile, `[rows, panels * PANEL]`.
    pub(super) y: *mut f32,
    /// From one output row to the next.
    pub(super) y_stride: usize,
    /// Whether the sums start from zero, or from what `y` holds.
    pub(super) first: bool,
}

/// The kernels of one instruction set for one storage.
pub(super) trait TileKernel {
    const STORAGE: Storage;
    /// The most rows of a tile, at most [`ROWS`].
    const MAX_ROWS: usize;

    /// How many panels a tile of `rows` rows spans where there are as many: few rows need several,
    /// for enough independent sums to fill the pipeline.
    fn panels(rows: usize) -> usize;

    /// Widens the steps from `first` on of a panel's slab in compact storage, as many as `out` has.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions.
    unsafe fn widen(storage: Storage, slab: &[Line], first: usize, out: &mut [Unwritten]) {
        compact::widen(storage, slab, first, out, compact::halves);
    }

    /// `y += acts · slab` for a tile of `rows` rows and `panels` panels, whose slabs follow one
    /// another.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions. `rows` is in `1..=MAX_ROWS` and `panels` is 1 or
    /// `panels(rows)`. The words, the slabs and the output tile that `tile` describes are valid, the
    /// first two initialised, the last so unless `first`, and nobody else uses the output tile.
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile);
}

/// The columns of a product from `first` on, in rows of `stride`.
pub(super) struct Columns<'a> {
    pub(super) y: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) first: usize,
}

impl Columns<'_> {
    /// How many rows there are, checked to be whole and to have the columns of `w`.
    pub(super) fn rows(&self, w: &Panels) -> usize {
        let m = self.y.len() / self.stride;
        assert!(self.y.len() == m * self.stride && self.first + w.n <= self.stride);
        m
    }

    /// Zeros for `n` columns.
    pub(super) fn clear(self, n: usize) {
        self.y.chunks_exact_mut(self.stride).for_each(|row| row[self.first..][..n].fill(0.0));
    }

    pub(super) fn output(self) -> Output {
        Output { start: self.y[self.first..].as_mut_ptr(), stride: self.stride }
    }
}

/// `y`, shared by tasks that write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

// SAFETY: the tasks of one call write disjoint rectangles and end before the call does.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// A grid of tasks: each `tiles` row tiles by `panels` panels.
#[derive(Clone, Copy)]
struct Grid {
    tiles: usize,
    panels: usize,
}

impl Grid {
    /// Few large tasks pack fewer activations and read weights from memory less often; every thread
    /// needs some.
    fn new(tiles: usize, w: &Panels, max_rows: usize, threads: usize) -> Self {
        let storage = if w.storage.is_compact() { Storage::F32 } else { w.storage };
        let slab = storage.lines(w.steps.min(BLOCK)) * size_of::<Line>();
        let mut task_panels = (SLABS_BYTES / slab.max(1)).clamp(1, w.count);
        let mut task_tiles = (TASK_ROWS / max_rows).clamp(1, tiles);
        if threads > 1 {
            let tasks = |t: usize, p: usize| tiles.div_ceil(t) * w.count.div_ceil(p);
            // Enough for the threads to end together, of panels enough for the widest tile;
            while tasks(task_tiles, task_panels) < 6 * threads {
                if task_tiles > 4 {
                    task_tiles = task_tiles.div_ceil(2);
                } else if task_panels > 4 {
                    task_panels = task_panels.div_ceil(2);
                } else if task_tiles > 1 {
                    task_tiles = task_tiles.div_ceil(2);
                } else {
                    break;
                }
            }
            // and smaller ones only where threads would have none.
            while tasks(task_tiles, task_panels) < threads && task_panels > 1 {
                task_panels = task_panels.div_ceil(2);
            }
        }
        Self { tiles: task_tiles, panels: task_panels }
    }
}

/// `y = x Wᵀ` with the kernels `K`.
///
/// `w` is packed for them; `x` and `y` are the same number of whole rows, of `w.k` and of
/// `y.stride`, which is not 0.
///
/// # Safety
/// The CPU has the instructions of `K`.
pub(super) unsafe fn run<K: TileKernel>(w: &Panels, round: bool, x: &[f32], y: Columns<'_>) {
    let m = y.rows(w);
    assert!(x.len() == m * w.k);
    assert!(w.storage == K::STORAGE || w.storage.is_compact() && K::STORAGE == Storage::F32);
    if w.k == 0 || w.n == 0 {
        return y.clear(w.n);
    }
    let tiles = m.div_ceil(K::MAX_ROWS);
    let threads = rayon::current_num_threads();
    let grid = Grid::new(tiles, w, K::MAX_ROWS, threads);
    let (across, down) = (w.count.div_ceil(grid.panels), tiles.div_ceil(grid.tiles));
    let output = y.output();
    // Tasks that share weights are neighbours, so that mostly one thread reads them.
    let task = |i: usize| {
        let (column, row) = (i / down, i % down);
        let panels = share(w.count, across, column);
        let tiles_here = share(tiles, down, row);
        let work = Work { w, round, x, y: output, m, all_tiles: tiles };
        // SAFETY: distinct tasks have distinct pairs of panel and tile ranges, which do not overlap;
        // `y` is m rows and outlives the tasks; the CPU is the caller's promise.
        unsafe {
            if w.storage.is_compact() {
                widening_task::<K>(work, tiles_here, panels);
            } else {
                task::<K>(work, tiles_here, panels);
            }
        }
    };
    if threads == 1 || across * down == 1 {
        (0..across * down).for_each(task);
    } else {
        (0..across * down).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// Part `i` of `parts` nearly equal ones of `0..whole`.
pub(in crate::kernels) fn share(whole: usize, parts: usize, i: usize) -> Range<usize> {
    i * whole / parts..(i + 1) * whole / parts
}

/// What all tasks of a product share.
#[derive(Clone, Copy)]
struct Work<'a> {
    w: &'a Panels,
    round: bool,
    x: &'a [f32],
    y: Output,
    /// Rows of `x` and `y`.
    m: usize,
    /// Tiles that the rows are shared out to.
    all_tiles: usize,
}

/// One task: the row tiles `tiles`, and `panels`.
///
/// # Safety
/// `y` points at `m` rows, and nobody else uses those rows and columns meanwhile. The CPU has the
/// instructions of `K`.
unsafe fn task<K: TileKernel>(work: Work<'_>, tiles: Range<usize>, panels: Range<usize>) {
    let w = work.w;
    for first in (0..w.steps).step_by(BLOCK) {
        let steps = (w.steps - first).min(BLOCK);
        let slabs = w.slabs(first, steps, panels.clone());
        // SAFETY: the caller's promises.
        unsafe { work.tiles::<K>(tiles.clone(), panels.clone(), slabs, first, steps) };
    }
}

/// As [`task`], for storage that is widened first.
///
/// # Safety
/// As [`task`].
unsafe fn widening_task<K: TileKernel>(work: Work<'_>, tiles: Range<usize>, panels: Range<usize>) {
    let w = work.w;
    // One row tile reads what was widened once: it may as well be in the L1 cache. Many read it
    // often, and each piece costs them a look at their sums: the L2 cache will do.
    let piece = if tiles.len() == 1 { GROUP } else { BLOCK };
    let mut widened = MaybeUninit::<[Line; 2 * BLOCK * WIDENED_PANELS]>::uninit();
    for block in (0..w.steps).step_by(BLOCK) {
        let block_steps = (w.steps - block).min(BLOCK);
        let mut panel = panels.start;
        while panel < panels.end {
            let group = panel..(panel + WIDENED_PANELS).min(panels.end);
            for offset in (0..block_steps).step_by(piece) {
                let steps = (block_steps - offset).min(piece);
                // SAFETY: the array has two lines for each step of each panel, which is a row, and
                // `widen` writes every row before they are read as lines.
                let slabs = unsafe {
                    let rows = widened.as_mut_ptr().cast::<Unwritten>();
                    for (i, panel) in group.clone().enumerate() {
                        let slab = w.slabs(block, block_steps, panel..panel + 1);
                        let out = rows.add(i * steps);
                        let out = std::slice::from_raw_parts_mut(out, steps);
                        K::widen(w.storage, slab, offset, out);
                    }
                    let lines = group.len() * Storage::F32.lines(steps);
                    std::slice::from_raw_parts(widened.as_ptr().cast::<Line>(), lines)
                };
                // SAFETY: the caller's promises.
                unsafe {
                    work.tiles::<K>(tiles.clone(), group.clone(), slabs, block + offset, steps);
                };
            }
            panel = group.end;
        }
    }
}

impl Work<'_> {
    /// Multiplies the rows of `tiles` with `slabs`: those of `panels` over the steps from `first`.
    ///
    /// # Safety
    /// As [`task`].
    unsafe fn tiles<K: TileKernel>(
        self,
        tiles: Range<usize>,
        panels: Range<usize>,
        slabs: &[Line],
        first: usize,
        steps: usize,
    ) {
        let Self { w, round, x, y, m, all_tiles } = self;
        let mut acts = Acts([[MaybeUninit::uninit(); ACT_STRIDE]; ROWS]);
        let slab_lines = K::STORAGE.lines(steps);
        for tile in tiles {
            let rows = share(m, all_tiles, tile);
            for (row, acts) in rows.clone().zip(&mut acts.0) {
                load(&x[row * w.k + first..][..steps], round, acts);
            }
            let mut panel = panels.start;
            while panel < panels.end {
                let column = panel * PANEL;
                let whole = (w.n / PANEL).min(panels.end).saturating_sub(panel);
                let at_once = K::panels(rows.len());
                let at_once = if whole >= at_once { at_once } else { 1 };
                let slab = &slabs[(panel - panels.start) * slab_lines..];
                assert!(rows.len() <= K::MAX_ROWS && slab.len() >= at_once * slab_lines);
                // SAFETY: inside `y`, by `rows.start < m` and `column < n`.
                let corner = unsafe { y.start.add(rows.start * y.stride + column) };
                let mut call = Tile {
                    acts: acts.0.as_ptr().cast(),
                    slab: slab.as_ptr(),
                    steps,
                    y: corner,
                    y_stride: y.stride,
                    first: first == 0,
                };
                if whole > 0 {
                    // SAFETY: `load` wrote `steps` words of each row, the slab was just measured, the
                    // tile's rows and whole panels lie inside `y` and belong to this task; `y` was
                    // initialised by its owner. The CPU is the caller's promise.
                    unsafe { K::tile(rows.len(), at_once, &call) };
                } else {
                    // The padded panel: on a copy, of which the columns that exist return.
                    let columns = w.n - column;
                    let mut copy = [[0.0f32; PANEL]; ROWS];
                    for (r, copy) in copy.iter_mut().enumerate().take(rows.len()) {
                        // SAFETY: `columns` elements of row `rows.start + r`, this task's.
                        let real = unsafe {
                            std::slice::from_raw_parts(corner.add(r * y.stride), columns)
                        };
                        copy[..columns].copy_from_slice(real);
                    }
                    call.y = copy.as_mut_ptr().cast();
                    call.y_stride = PANEL;
                    // SAFETY: as above, with the copy, `ROWS` rows of one panel, as the output.
                    unsafe { K::tile(rows.len(), 1, &call) };
                    for (r, copy) in copy.iter().enumerate().take(rows.len()) {
                        // SAFETY: as above, and no other view of `y` is alive in this task.
                        let real = unsafe {
                            std::slice::from_raw_parts_mut(corner.add(r * y.stride), columns)
                        };
                        real.copy_from_slice(&copy[..columns]);
                    }
                }
                panel += at_once;
            }
        }
    }
}

/// The activations of a row tile over a block, as the kernels read them.
#[repr(C, align(64))]
struct Acts([[MaybeUninit<f32>; ACT_STRIDE]; ROWS]);

/// Writes a row of at most a block, rounded to bf16 if `round`.
fn load(x: &[f32], round: bool, acts: &mut [MaybeUninit<f32>; ACT_STRIDE]) {
    assert!(x.len() <= BLOCK);
    if round {
        for (act, v) in acts.iter_mut().zip(x) {
            act.write(bf16::from_f32(*v).to_f32());
        }
    } else {
        acts[..x.len()].write_copy_of_slice(x);
    }
}
