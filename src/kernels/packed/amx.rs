//! Products of bf16 tiles on AMX: 16 rows by 16 columns by 32 k at a time, sums in f32.
//!
//! Activations in f32 are split into three bf16 that add up to them, so that every product with a
//! bf16 weight is exact; then only the sums round, as in any f32 product. A sum's order is that of
//! k alone: 32 k at a time, the parts of an activation one after the other.
#![allow(unsafe_code)] // Tile instructions on raw pointers; tasks write disjoint rectangles of `y`.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::drive::{Columns, Output, share};
use super::pack::{Line, PANEL, Panels, Storage, TILE_STEPS};

/// Rows of a tile, and its columns of f32.
pub(super) const SIDE: usize = 16;
/// k of a tile of activations: 64 bytes of bf16.
const TILE_K: usize = 2 * TILE_STEPS;
/// Bytes from one row of a tile of activations to the next, and from one such tile to the next.
const ROW: usize = 64;
const TILE: usize = SIDE * ROW;
/// Bytes of a task's activations, so that they stay in a 2 MiB L2 cache beside a panel.
const TASK_BYTES: usize = 1 << 20;
/// Pairs of strips of 16 rows that share a panel, where there are as many: the cache is filled
/// with these over a part of k rather than with fewer over all of it.
const TASK_PAIRS: usize = 4;
/// Panels of a task at the most.
const TASK_PANELS: usize = 8;
/// Cache lines of a panel at each step along k.
const STEP_LINES: usize = Storage::Bf16Tiles.lines(TILE_STEPS);
/// How far ahead, in lines, weights are fetched where each is used for at most 32 rows.
const LINES_AHEAD: usize = 8 * STEP_LINES;

/// `y = x Wᵀ`, with activations in `PARTS` bf16 each: 1 rounds them, 3 keep them.
///
/// `x` and `y` are the same number of whole rows, of `w.k` and of `y.stride`, which is not 0.
///
/// # Safety
/// The CPU has AVX-512 BF16 and AMX BF16, and this process may use its tiles.
pub(super) unsafe fn run<const PARTS: usize>(w: &Panels, x: &[f32], y: Columns<'_>) {
    let m = y.rows(w, x);
    assert!(w.storage == Storage::Bf16Tiles);
    if w.k == 0 || w.n == 0 {
        return y.clear(w.n);
    }
    // SAFETY: the CPU is the caller's promise.
    let acts = unsafe { Acts::<PARTS>::load(w, x, m) };
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
}

/// Activations by tiles: `[m / 16, steps / 16, PARTS]` of `[16, 32]` bf16, the last rows unwritten.
struct Acts<const PARTS: usize> {
    lines: Vec<Line>,
    /// Bytes of a strip of 16 rows.
    strip: usize,
}

impl<const PARTS: usize> Acts<PARTS> {
    /// # Safety
    /// As [`run`].
    unsafe fn load(w: &Panels, x: &[f32], m: usize) -> Self {
        let strip_lines = w.steps / TILE_STEPS * PARTS * SIDE;
        let mut lines: Vec<Line> = Vec::with_capacity(m.div_ceil(SIDE) * strip_lines);
        let strips = lines.spare_capacity_mut()[..m.div_ceil(SIDE) * strip_lines]
            .par_chunks_exact_mut(strip_lines)
            .zip(x.par_chunks(SIDE * w.k));
        strips.for_each(|(strip, rows)| {
            for r in 0..SIDE {
                match rows.get(r * w.k..(r + 1) * w.k) {
                    // SAFETY: the CPU is the caller's promise.
                    Some(row) => unsafe { load_row::<PARTS>(row, &mut strip[r..]) },
                    None => strip[r..].iter_mut().step_by(SIDE).for_each(|line| {
                        line.write(Line([0; 16]));
                    }),
                }
            }
        });
        let len = m.div_ceil(SIDE) * strip_lines;
        // SAFETY: every line of every strip was just written.
        unsafe { lines.set_len(len) };
        Self { lines, strip: strip_lines * size_of::<Line>() }
    }
}

/// Writes a row's lines, which are 16 apart: `PARTS` for every 32 k, zeros past its end.
#[target_feature(enable = "avx512f,avx512bf16")]
fn load_row<const PARTS: usize>(x: &[f32], lines: &mut [MaybeUninit<Line>]) {
    let mut lines = lines.iter_mut().step_by(SIDE);
    for x in x.chunks(TILE_K) {
        let mut rest = [0, SIDE].map(|from| {
            let left = x.len().saturating_sub(from).min(SIDE) as u32;
            let mask = ((1u32 << left) - 1) as u16;
            // SAFETY: the mask has a bit for each of the floats that are there.
            unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(from)) }
        });
        for _ in 0..PARTS {
            let part = if PARTS == 1 { rest.map(|x| rounded(x)) } else { cut_off(&mut rest) };
            if let Some(line) = lines.next() {
                // SAFETY: a line is 64 bytes, and so are the two vectors, plain bits both.
                line.write(unsafe { std::mem::transmute::<[__m256i; 2], Line>(part) });
            }
        }
    }
}

/// The nearest bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn rounded(x: __m512) -> __m256i {
    // SAFETY: both are 32 bytes of plain bits.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}

/// The upper halves, which are bf16, of what then is left: exact, and never more than the number.
#[target_feature(enable = "avx512f")]
#[inline]
fn cut_off(rest: &mut [__m512; 2]) -> [__m256i; 2] {
    rest.each_mut().map(|rest| {
        let bits = _mm512_castps_si512(*rest);
        let upper = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        *rest = _mm512_sub_ps(*rest, _mm512_castsi512_ps(upper));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits))
    })
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
    let mut tiles = Tiles::default();
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
            let upper = acts.lines.as_ptr().wrapping_byte_add(strip);
            // SAFETY: inside `y`, by `row < m` and `column < n`.
            let corner = unsafe { y.start.add(row * y.stride + column) };
            tiles.shape(height);
            let mut call = Call {
                upper,
                lower: upper.wrapping_byte_add(acts.strip),
                slab: slab.as_ptr(),
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
                unsafe { call.run::<PARTS>(height) };
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
            (call.y, call.stride) = (copy.as_mut_ptr().cast(), PANEL);
            // SAFETY: as above, with the copy as the output.
            unsafe { call.run::<PARTS>(height) };
            for (r, copy) in copy.iter().enumerate().take(height) {
                out(r).copy_from_slice(&copy[..columns]);
            }
        }
    }
}

/// The tile registers' shapes, which this thread has from `shape` on until this is dropped.
#[derive(Default)]
pub(super) struct Tiles {
    /// Rows of the output; 0 while none were asked for.
    rows: usize,
}

impl Tiles {
    /// Sums in 0 to 3 (two above two), activations in 4 and 5, weights in 6 and 7, for an output of
    /// `rows` rows, at most 32. The registers' contents are lost if the shapes change.
    pub(super) fn shape(&mut self, rows: usize) {
        /// The operand of `ldtilecfg`.
        #[repr(C, align(64))]
        struct Shapes {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        if self.rows == rows {
            return;
        }
        let (upper, lower) = (rows.min(SIDE) as u8, rows.saturating_sub(SIDE) as u8);
        let mut shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let heights = [upper, upper, lower, lower, upper, lower, SIDE as u8, SIDE as u8];
        for (tile, height) in heights.into_iter().enumerate() {
            if height > 0 {
                (shapes.rows[tile], shapes.row_bytes[tile]) = (height, ROW as u16);
            }
        }
        // SAFETY: palette 1 has eight tiles of at most 16 rows of 64 bytes; who made this promised
        // that the process may use them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        self.rows = rows;
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: the tiles were configured, and hold nothing that is still wanted.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// One product of tiles.
struct Call {
    /// Activations of the first 16 rows, and of those after them.
    upper: *const Line,
    lower: *const Line,
    slab: *const Line,
    /// Weights to fetch meanwhile, and how many lines at each step: they need not exist.
    ahead: *const Line,
    fetch: usize,
    /// Steps along k.
    tiles: usize,
    y: *mut f32,
    /// From one output row to the next, in elements.
    stride: usize,
    /// Whether the sums start from zero, or from what `y` holds.
    first: bool,
}

/// Multiplies along k: `$part` are the instructions of one part of the activations, whose tiles
/// are `{at}` bytes from where the step's first ones are.
macro_rules! along_k {
    ($call:ident, $advance:literal, [$($part:expr),+]) => {
        asm!(
            "2:",
            "tileloadd tmm6, [{slab} + {pair}]",
            "tileloadd tmm7, [{slab} + {pair} + 64]",
            $($part,)+
            "mov {left}, {fetch}",
            "3:",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "add {ahead}, 128",
            "sub {left}, 2",
            "ja 3b",
            "add {slab}, 2048",
            $advance,
            "dec {tiles}",
            "jnz 2b",
            slab = inout(reg) $call.slab => _,
            upper = inout(reg) $call.upper => _,
            lower = inout(reg) $call.lower => _,
            ahead = inout(reg) $call.ahead => _,
            tiles = inout(reg) $call.tiles => _,
            left = out(reg) _,
            fetch = in(reg) $call.fetch,
            pair = in(reg) 2 * ROW,
            row = in(reg) ROW,
            options(nostack, readonly),
        )
    };
}

/// One part of up to 32 rows, or of up to 16.
macro_rules! two_strips {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{upper} + {row} + ",
            $at,
            "]\n",
            "tileloadd tmm5, [{lower} + {row} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}
macro_rules! one_strip {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{upper} + {row} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7",
        )
    };
}

impl Call {
    /// # Safety
    /// The operands are valid for `tiles` steps along k, of which there is at least one, and an
    /// output of `height` rows and 32 columns; `lower` is one only if there are more than 16. The
    /// tile registers have the shapes for `height` rows.
    unsafe fn run<const PARTS: usize>(&self, height: usize) {
        let lower_y = self.y.wrapping_add(SIDE * self.stride);
        let bytes = self.stride * size_of::<f32>();
        let two = height > SIDE;
        // SAFETY: the caller's operands; only tile registers change, which Rust never uses.
        unsafe {
            if self.first {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
                if two {
                    asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
                }
            } else {
                asm!("tileloadd tmm0, [{y} + {n}]", "tileloadd tmm1, [{y} + {n} + 64]",
                    y = in(reg) self.y, n = in(reg) bytes, options(nostack, readonly));
                if two {
                    asm!("tileloadd tmm2, [{y} + {n}]", "tileloadd tmm3, [{y} + {n} + 64]",
                        y = in(reg) lower_y, n = in(reg) bytes, options(nostack, readonly));
                }
            }
            match (two, PARTS) {
                (true, 1) => {
                    along_k!(self, "add {upper}, 1024\nadd {lower}, 1024", [two_strips!(0)])
                }
                (true, 3) => along_k!(
                    self,
                    "add {upper}, 3072\nadd {lower}, 3072",
                    [two_strips!(0), two_strips!(1024), two_strips!(2048)]
                ),
                (false, 1) => {
                    along_k!(self, "add {upper}, 1024\nadd {lower}, 1024", [one_strip!(0)])
                }
                (false, 3) => along_k!(
                    self,
                    "add {upper}, 3072\nadd {lower}, 3072",
                    [one_strip!(0), one_strip!(1024), one_strip!(2048)]
                ),
                _ => unreachable!("activations in {PARTS} parts"),
            }
            asm!("tilestored [{y} + {n}], tmm0", "tilestored [{y} + {n} + 64], tmm1",
                y = in(reg) self.y, n = in(reg) bytes, options(nostack));
            if two {
                asm!("tilestored [{y} + {n}], tmm2", "tilestored [{y} + {n} + 64], tmm3",
                    y = in(reg) lower_y, n = in(reg) bytes, options(nostack));
            }
        }
    }
}
