//! The CPU linear layer on 8-bit integers: `y = x Wᵀ` with weights and activations rounded to int8,
//! summed exactly in i32.
//!
//! **The scheme.** One scale an output feature and one a row of `x`. Two things keep that accurate
//! on real activations, where a few channels are hundreds of times larger than the others:
//! - *Outlier columns*: the inputs that were largest in a calibration text (1 in 64, 32 at the most)
//!   are left out of the int8 product. They are rounded to 15 bits instead, as two int8 digits
//!   `128 h + l`, with scales of their own; `l l` products, below the rounding, are dropped.
//! - *Rotation*: what is left of a row, and of each weight row, goes through a Hadamard transform
//!   of 64 (an orthogonal one, so that the product stays), which spreads what is large over 64
//!   values. It mixes the values that lie `k / 64` apart, so that all steps are on whole vectors.
//!
//! **Exactness.** Sums of integers do not round, and the few f32 operations around them have one
//! order: every kernel, on every CPU, gives the same bits, and a row of `y` depends on that row of
//! `x` and on `W` alone.
//!
//! **The layout.** k comes in steps of 4. Columns come in panels of 32, the last one padded with
//! zeros; a panel is contiguous, and a step of it is 32 words, one a column. Weights are stored as
//! `w + 128`, unsigned, as the dot product instructions want one side; what that adds, 128 times the
//! sum of the row's codes, is where a sum starts from, negated. A panel, like a row of codes, has:
//!
//! | steps | row of codes | panel |
//! |---|---|---|
//! | 16, the first `outliers / 4` used | h | h |
//! | 16, the first `outliers / 2` used | h, then l | l, then h |
//! | `k / 4`, k padded to a multiple of 64 | rotated | rotated |
#![allow(unsafe_code)] // One promise to the driver: the CPU has what the layer was packed for.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod quantise;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::cache::{Piece, Pieces};
use super::drive::{Output, share};
use super::pack::{Line, PANEL};
use super::{PackError, PackedLinear};
use crate::error::Result;
use crate::kernels::Arena;
use crate::kernels::math::{self, Widest};
#[cfg(target_arch = "x86_64")]
use crate::sys;
use quantise::{Codes, RowScales, Weights};

/// k in a step.
const STEP_K: usize = 4;
/// Steps of each of the two sections that outlier columns take.
const SECTION_STEPS: usize = 16;
/// Cache lines of a step of a panel.
const STEP_LINES: usize = 2;
/// The most rows a tile of any kernel has.
const ROWS: usize = 32;
/// Bytes of codes that a task works on, so that they stay in the cache beside a panel.
const TASK_BYTES: usize = 512 << 10;
/// Panels of a task at the most.
const TASK_PANELS: usize = 8;

/// The instructions a layer computes with, chosen when it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Tiles of bytes.
    Amx,
    /// Dot products of bytes in 512 bits.
    Avx512Vnni,
    /// Dot products of bytes in 256 bits.
    AvxVnni,
    /// Dot products of pairs of 16 bits in 256 bits.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Isa {
    const ALL: [Isa; 5] = [Isa::Amx, Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2, Isa::Portable];

    /// Whether this CPU has every instruction that the kernels of `self` use.
    fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Isa::Amx => Isa::Avx512Vnni.available() && sys::amx::has_int8(),
            Isa::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            Isa::Avx2 => is_x86_feature_detected!("avx2"),
            Isa::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Isa::Portable)
    }

    /// The best this CPU has.
    pub(super) fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }
}

/// A linear layer's weights in int8; see the module.
pub(crate) struct Int8Linear {
    isa: Isa,
    weights: Weights,
}

impl Int8Linear {
    /// Rounds the weights of `layer`; `largest`, `[k]`, is how large each input was in the
    /// calibration text. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`PackError::OutOfMemory`].
    pub(crate) fn quantise(layer: &PackedLinear, largest: &[f32]) -> Result<Self, PackError> {
        Self::quantise_for(Isa::detect(), layer, largest)
    }

    fn quantise_for(isa: Isa, layer: &PackedLinear, largest: &[f32]) -> Result<Self, PackError> {
        // The kernels' safety rests on this line: no layer exists for instructions the CPU lacks.
        assert!(isa.available(), "{isa:?} is not available on this CPU");
        Ok(Self { isa, weights: Weights::quantise(layer, largest)? })
    }

    /// What a file holds of the layer.
    pub(crate) fn pieces(&self) -> [Piece<Cow<'_, [u8]>>; 2] {
        self.weights.pieces()
    }

    /// The layer of `n` outputs and `k` inputs that is next in a file; `None` if it is none.
    pub(crate) fn mapped(n: usize, k: usize, pieces: &mut Pieces) -> Option<Self> {
        Some(Self { isa: Isa::detect(), weights: Weights::mapped(n, k, pieces)? })
    }

    /// The memory that the weights and their scales take.
    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// The length of an input row, k.
    pub(crate) fn in_features(&self) -> usize {
        self.weights.k
    }

    /// The length of an output row, n.
    pub(crate) fn out_features(&self) -> usize {
        self.weights.n
    }

    /// Overwrites `y`, `[m, n]`, with `x Wᵀ` for `x`, `[m, k]`, both row-major. A row of `x` that
    /// holds what is not finite gives a row of NaN. Runs on the current rayon pool.
    ///
    /// # Errors
    /// `OutOfMemory`.
    ///
    /// # Panics
    /// Where `x` and `y` are not the same number of whole rows.
    pub(crate) fn matmul(&self, arena: &Arena, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.run(arena, x, y, End::Sums)
    }

    /// As [`Self::matmul`], of outputs that are the gate's and then as many of the up projection's:
    /// overwrites `y`, `[m, n / 2]`, with `silu(gate) * up`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    ///
    /// # Panics
    /// As there, and where [`Self::has_swiglu`] does not say so.
    pub(crate) fn swiglu(&self, arena: &Arena, x: &[f32], y: &mut [f32]) -> Result<()> {
        assert!(self.has_swiglu(), "gate and up share a panel: {} outputs", self.weights.n);
        self.run(arena, x, y, End::Swiglu)
    }

    /// Whether gate and up are whole panels.
    pub(crate) fn has_swiglu(&self) -> bool {
        self.weights.n.is_multiple_of(2 * PANEL)
    }

    fn run(&self, arena: &Arena, x: &[f32], y: &mut [f32], end: End) -> Result<()> {
        let (n, k) = (end.columns(&self.weights), self.weights.k);
        let m = y.len().checked_div(n).unwrap_or(0);
        assert!(m * n == y.len(), "y is not whole rows of {n}: {}", y.len());
        assert!(n == 0 || m * k == x.len(), "x is not {m} rows of {k}: {}", x.len());
        if m == 0 || k == 0 {
            y.fill(0.0);
            return Ok(());
        }
        let w = &self.weights;
        // SAFETY: `quantise_for` saw that the CPU has `self.isa`, and these are its kernels.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                // A tile needs more rows than that to be worth its price; the bits are the same.
                Isa::Amx if m <= avx512::Kernel::MAX_ROWS => {
                    run::<avx512::Kernel>(w, arena, x, y, end)
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Amx => run::<amx::Kernel>(w, arena, x, y, end),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => run::<avx512::Kernel>(w, arena, x, y, end),
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni => run::<avx2::Vnni>(w, arena, x, y, end),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => run::<avx2::Kernel>(w, arena, x, y, end),
                _ => run::<portable::Kernel>(w, arena, x, y, end),
            }
        }
    }
}

/// What becomes of a product's sums.
#[derive(Clone, Copy)]
enum End {
    /// They are the outputs.
    Sums,
    /// The first half is a gate, the second what it lets through.
    Swiglu,
}

impl End {
    fn columns(self, w: &Weights) -> usize {
        match self {
            Self::Sums => w.n,
            Self::Swiglu => w.n / 2,
        }
    }

    /// Panels of outputs.
    fn panels(self, w: &Weights) -> usize {
        match self {
            Self::Sums => w.panels(),
            Self::Swiglu => w.panels() / 2,
        }
    }
}

/// What one call of a tile kernel works on.
#[derive(Clone, Copy)]
struct Tile {
    /// Codes of the first row, by words of a step; see [`TileKernel::STRIP`].
    codes: *const u32,
    /// Words of a row of codes.
    codes_stride: usize,
    /// What goes with each row of codes.
    rows: *const RowScales,
    /// The first panel; the others follow, `panel_lines` apart.
    panel: *const Line,
    panel_lines: usize,
    /// Weights that a kernel may fetch meanwhile, and how many lines for each 32 that it reads: none
    /// where no other tile reads this panel. They need not exist.
    ahead: *const Line,
    fetch: usize,
    /// Words of outlier columns in the first section, half of those in the second.
    outlier_words: usize,
    /// Steps of the rotated section.
    steps: usize,
    /// Scales of the columns, and of their outliers.
    scales: *const f32,
    outlier_scales: *const f32,
    /// The output tile, `[rows, panels * PANEL]`, and elements from one row of it to the next.
    y: *mut f32,
    y_stride: usize,
}

impl Tile {
    /// Tiles that share a panel fetch the one `panels` further on, each its part; the hardware does that
    /// better for one alone, which goes through its panels without a stop.
    fn fetch_ahead(&mut self, panels: isize, &Place { part, parts, .. }: &Place) {
        if parts > 1 {
            let next = self.panel.wrapping_offset(panels * self.panel_lines as isize);
            self.ahead = next.wrapping_add(self.panel_lines * part / parts);
            self.fetch = 32usize.div_ceil(parts);
        }
    }
}

/// The kernels of one instruction set.
///
/// An output is `h * (row.outlier_scale * outlier_scale) + q * (row.scale * scale)`, where `h` is
/// `128 *` the first section's sum `+` the second's, `q` is the third's, each sum with the
/// row's offset, and the products and the sum round as they stand.
trait TileKernel {
    /// What a thread holds between the tiles of a task.
    type Registers: Default;

    /// The most rows of a tile, at most [`ROWS`]; a multiple of [`Self::STRIP`].
    const MAX_ROWS: usize;
    /// Rows whose codes lie interleaved, a cache line of each in turns. Where there are several, all
    /// tiles but the last have `MAX_ROWS` rows.
    const STRIP: usize = 1;

    /// How many panels a tile of `rows` rows spans where there are as many.
    fn panels(rows: usize) -> usize;

    /// [`Weights::row`], compiled for the kernel's instructions.
    ///
    /// # Safety
    /// The CPU has them.
    unsafe fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
        w.row(x, work, codes)
    }

    /// Writes a tile of `rows` rows and `panels` panels.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions. `rows` is in `1..=MAX_ROWS` and `panels` is 1 or
    /// `panels(rows)`. Everything that `tile` points to is valid for them, and nobody else uses
    /// the output tile.
    unsafe fn tile(registers: &mut Self::Registers, rows: usize, panels: usize, tile: &Tile);
}

/// `y = x Wᵀ` with the kernels `K`, or what `end` makes of it; `x` and `y` are the same number of
/// whole rows.
///
/// # Safety
/// The CPU has the instructions of `K`.
///
/// # Errors
/// `OutOfMemory`.
unsafe fn run<K: TileKernel>(
    w: &Weights,
    arena: &Arena,
    x: &[f32],
    y: &mut [f32],
    end: End,
) -> Result<()> {
    // SAFETY: the CPU is the caller's promise.
    let codes = &unsafe { w.codes::<K>(arena, x)? };
    let (m, columns, panels) = (codes.rows.len(), end.columns(w), end.panels(w));
    assert!(y.len() == m * columns);
    let tiles = m.div_ceil(K::MAX_ROWS);
    let task_tiles = (TASK_BYTES / (codes.stride * STEP_K * K::MAX_ROWS)).max(4);
    let down = tiles.div_ceil(task_tiles);
    let threads = rayon::current_num_threads();
    let widest = panels.div_ceil(K::panels(1)).max(1);
    let across = panels.div_ceil(TASK_PANELS).max((6 * threads).div_ceil(down)).min(widest);
    let y = Output { start: y.as_mut_ptr(), stride: columns };
    let task = |i: usize| {
        // Tasks that share weights are neighbours, so that mostly one thread reads them.
        let panels = share(panels, across, i / down);
        let tiles = share(tiles, down, i % down);
        // SAFETY: distinct tasks have distinct pairs of panel and tile ranges, which do not overlap;
        // `y` is m rows and outlives the tasks; the CPU is the caller's promise.
        unsafe {
            match end {
                End::Sums => task::<K>(w, codes, y, tiles, panels),
                End::Swiglu => gated_task::<K>(w, codes, y, tiles, panels),
            }
        }
    };
    if threads == 1 || across * down == 1 {
        (0..across * down).for_each(task);
    } else {
        (0..across * down).into_par_iter().with_max_len(1).for_each(task);
    }
    Ok(())
}

/// The rows of a tile of the kernels `K`, out of `m`.
fn rows_of<K: TileKernel>(m: usize, tile: usize) -> Range<usize> {
    if K::STRIP == 1 {
        return share(m, m.div_ceil(K::MAX_ROWS), tile);
    }
    tile * K::MAX_ROWS..m.min((tile + 1) * K::MAX_ROWS)
}

/// A call of a tile kernel in a task: which rows, and which panels.
struct Place {
    rows: Range<usize>,
    panel: usize,
    panels: usize,
    /// Which of the `parts` tiles that read these panels.
    part: usize,
    parts: usize,
}

impl Place {
    /// Calls `visit` for the row tiles `tiles` of `m` rows and for `panels`, of which those below `whole`
    /// have all of their columns: panels in turns, each with all tiles.
    fn each<K: TileKernel>(
        m: usize,
        whole: usize,
        tiles: Range<usize>,
        panels: Range<usize>,
        mut visit: impl FnMut(Self),
    ) {
        let most = K::panels(rows_of::<K>(m, tiles.start).len());
        let mut panel = panels.start;
        while panel < panels.end {
            let width = if whole.min(panels.end) >= panel + most { most } else { 1 };
            for tile in tiles.clone() {
                let rows = rows_of::<K>(m, tile);
                let mut at = panel;
                while at < panel + width {
                    // The last tile may have a row less, and then span more panels, or fewer.
                    let at_once = K::panels(rows.len());
                    let at_once = if panel + width - at >= at_once { at_once } else { 1 };
                    let (part, parts) = (tile - tiles.start, tiles.len());
                    visit(Self { rows: rows.clone(), panel: at, panels: at_once, part, parts });
                    at += at_once;
                }
            }
            panel += width;
        }
    }
}

/// One task: the row tiles `tiles`, and `panels`.
///
/// # Safety
/// `y` points at as many rows of `w.n` as there are of codes, and nobody else uses those rows and
/// columns meanwhile. The CPU has the instructions of `K`.
unsafe fn task<K: TileKernel>(
    w: &Weights,
    codes: &Codes,
    y: Output,
    tiles: Range<usize>,
    panels: Range<usize>,
) {
    let whole = w.n / PANEL;
    let mut registers = K::Registers::default();
    Place::each::<K>(codes.rows.len(), whole, tiles, panels, |place| {
        let Place { rows, panel, panels, .. } = &place;
        // SAFETY: inside `y`, by `rows.start < m` and `panel < w.panels()`.
        let corner = unsafe { y.start.add(rows.start * w.n + panel * PANEL) };
        let mut call = w.tile(codes, rows.start, *panel);
        (call.y, call.y_stride) = (corner, w.n);
        call.fetch_ahead(1, &place);
        if *panel < whole {
            // SAFETY: the tile's rows and whole panels lie inside `y` and belong to this task, and
            // codes and weights have them. The CPU is the caller's promise.
            unsafe { K::tile(&mut registers, rows.len(), *panels, &call) };
        } else {
            // The padded panel: on a copy, of which the columns that exist go to `y`.
            let mut copy = [[0.0f32; PANEL]; ROWS];
            (call.y, call.y_stride) = (copy.as_mut_ptr().cast(), PANEL);
            // SAFETY: as above, with the copy, `ROWS` rows of one panel, as the output.
            unsafe { K::tile(&mut registers, rows.len(), 1, &call) };
            let columns = w.n - panel * PANEL;
            for (r, copy) in copy.iter().enumerate().take(rows.len()) {
                // SAFETY: `columns` elements of row `rows.start + r`, this task's.
                let real = unsafe { std::slice::from_raw_parts_mut(corner.add(r * w.n), columns) };
                real.copy_from_slice(&copy[..columns]);
            }
        }
    });
}

/// One task of [`End::Swiglu`]: the row tiles `tiles`, and `panels` of the gate, each with its panel of
/// the up projection.
///
/// # Safety
/// As [`task`], for `y` of half as many columns.
unsafe fn gated_task<K: TileKernel>(
    w: &Weights,
    codes: &Codes,
    y: Output,
    tiles: Range<usize>,
    panels: Range<usize>,
) {
    let apart = w.panels() / 2;
    let widest = Widest::detect();
    let mut registers = K::Registers::default();
    let mut sums = [[0.0f32; ROWS * PANEL]; 2];
    Place::each::<K>(codes.rows.len(), apart, tiles, panels, |place| {
        let Place { rows, panel, panels, .. } = &place;
        let columns = panels * PANEL;
        assert!(rows.len() * columns <= ROWS * PANEL);
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut call = w.tile(codes, rows.start, panel + half * apart);
            (call.y, call.y_stride) = (sums.as_mut_ptr(), columns);
            let next = apart as isize;
            call.fetch_ahead(if half == 0 { next } else { 1 - next }, &place);
            // SAFETY: `sums` has the tile's rows of its panels, and codes and weights have them. The
            // CPU is the caller's promise.
            unsafe { K::tile(&mut registers, rows.len(), *panels, &call) };
        }
        let [gate, up] = &sums;
        let both = gate.chunks_exact(columns).zip(up.chunks_exact(columns));
        for (row, (gate, up)) in rows.clone().zip(both) {
            // SAFETY: columns of a row of `y` that are this task's.
            let y = unsafe {
                let start = y.start.add(row * y.stride + panel * PANEL);
                std::slice::from_raw_parts_mut(start, columns)
            };
            widest.run(
                #[inline(always)]
                || math::swiglu(gate, up, y),
            );
        }
    });
}
