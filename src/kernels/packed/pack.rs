//! The packed layout, and how weights get there.
//!
//! Columns (output features) come in panels of 32, the last one padded with zero weights; k comes in
//! steps, and the steps in blocks of [`BLOCK`]. The panels of one block lie behind each other, then
//! those of the next, so that a run of panels over one block, a *slab* each, is contiguous memory.
//! `Bf16Tiles` knows no blocks: a panel over all of k is contiguous.
//! One step of a panel is:
//!
//! | storage | k per step | cache lines | content |
//! |---|---|---|---|
//! | `F32` | 1 | 2 | columns 0..32 |
//! | `Bf16Columns` | 1 | 1 | 16 words, column j below, column j + 16 above |
//! | `Bf16Tiles` | 2 | 2 | 32 words, one a column: even k below, odd k above; the steps padded with zeros to a multiple of 16 |
//! | `F16` | 1 | 1 | 32 halves of words, columns 0..32 |
//! | `Blocks` | 1 | | the table of `compact`, for each block of the file's format |
#![allow(unsafe_code)] // The allocation is filled in parallel before its length is set, and viewed as smaller integers.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::cache::{Lines, Piece};
use super::{PackError, Weights, compact};
use crate::kernels::BlockType;
use crate::sys::file::Mapped;

/// Columns in a panel.
pub(super) const PANEL: usize = 32;
/// Steps in a block over k.
pub(super) const BLOCK: usize = 512;

/// Steps of a tile of `Bf16Tiles`.
pub(super) const TILE_STEPS: usize = 16;

/// Columns that packing turns at a time.
const GROUP: usize = 4;

/// A cache line of packed weights.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(in crate::kernels) struct Line(pub(super) [u32; LINE_WORDS]);

const LINE_WORDS: usize = 16;

/// Floats that take the place of a line.
pub(in crate::kernels) const LINE_FLOATS: usize = size_of::<Line>() / size_of::<f32>();

// SAFETY: words, all of whose bits are values, without padding between them.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// How a panel stores its weights; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    Bf16Columns,
    Bf16Tiles,
    /// Widened to `F32` before it is multiplied.
    F16,
    /// As `F16`.
    Blocks(BlockType),
}

impl Storage {
    pub(super) const fn step_k(self) -> usize {
        match self {
            Storage::Bf16Tiles => 2,
            Storage::F32 | Storage::Bf16Columns | Storage::F16 | Storage::Blocks(_) => 1,
        }
    }

    /// Lines of `steps` steps of a panel, from a block's start on.
    pub(super) const fn lines(self, steps: usize) -> usize {
        match self {
            Storage::F32 | Storage::Bf16Tiles => 2 * steps,
            Storage::Bf16Columns | Storage::F16 => steps,
            Storage::Blocks(of) => steps / of.elements() * of.panel_words() / LINE_WORDS,
        }
    }

    /// `k` in steps.
    fn steps(self, k: usize) -> usize {
        let steps = k.div_ceil(self.step_k());
        if self == Storage::Bf16Tiles { steps.next_multiple_of(TILE_STEPS) } else { steps }
    }

    /// Whether slabs are widened to `F32` before kernels read them.
    pub(super) fn is_compact(self) -> bool {
        matches!(self, Storage::F16 | Storage::Blocks(_))
    }

    /// Steps that rows have to be a multiple of.
    fn grain(self) -> usize {
        match self {
            Storage::Blocks(of) => of.elements(),
            _ => 1,
        }
    }
}

/// How many panels, steps and lines packed weights have.
struct Extents {
    count: usize,
    steps: usize,
    len: usize,
}

impl Extents {
    /// `None` where they cannot be counted.
    fn of(storage: Storage, n: usize, k: usize) -> Option<Self> {
        let count = n.div_ceil(PANEL);
        let steps = storage.steps(k);
        let len = steps
            .checked_mul(size_of::<Line>() * 2)
            .and_then(|_| storage.lines(steps).checked_mul(count))
            .filter(|len| len.checked_mul(size_of::<Line>()).is_some())?;
        Some(Self { count, steps, len })
    }
}

/// Packed weights.
pub(super) struct Panels {
    pub(super) lines: Lines,
    pub(super) storage: Storage,
    pub(super) n: usize,
    pub(super) k: usize,
    /// `n` in panels.
    pub(super) count: usize,
    /// `k` in steps, padding included.
    pub(super) steps: usize,
}

impl Panels {
    pub(super) fn pack(
        parts: &[(Weights<'_>, usize)],
        k: usize,
        storage: Storage,
    ) -> Result<Self, PackError> {
        let uncountable = PackError::OutOfMemory { bytes: usize::MAX };
        let mut n = 0usize;
        for (part, &(weights, rows)) in parts.iter().enumerate() {
            let want = rows.checked_mul(k).ok_or(uncountable)?;
            if weights.len() != want || !k.is_multiple_of(storage.grain()) {
                return Err(PackError::Shape { part, want, got: weights.len() });
            }
            n = n.checked_add(rows).ok_or(uncountable)?;
        }
        let Extents { count, steps, len } = Extents::of(storage, n, k).ok_or(uncountable)?;
        let mut lines = reserve(len)?;

        if len > 0 {
            let spare = &mut lines.spare_capacity_mut()[..len];
            let fill = |block: usize, panel: usize, slab: &mut [MaybeUninit<Line>]| {
                fill_slab(slab, parts, k, storage, panel, block * BLOCK);
            };
            let slab_lines = storage.lines(BLOCK);
            if storage == Storage::Bf16Tiles {
                let panels = spare.par_chunks_mut(storage.lines(steps));
                panels.enumerate().for_each(|(panel, lines)| {
                    let slabs = lines.chunks_mut(slab_lines).enumerate();
                    slabs.for_each(|(block, slab)| fill(block, panel, slab));
                });
            } else {
                let (whole, last) = spare.split_at_mut((steps / BLOCK) * count * slab_lines);
                whole
                    .par_chunks_mut(slab_lines)
                    .enumerate()
                    .for_each(|(i, slab)| fill(i / count, i % count, slab));
                if !last.is_empty() {
                    last.par_chunks_mut(storage.lines(steps % BLOCK))
                        .enumerate()
                        .for_each(|(panel, slab)| fill(steps / BLOCK, panel, slab));
                }
            }
        }
        // SAFETY: the capacity is at least `len`, and the chunks above cover the first `len` lines,
        // each of which `fill_slab` writes.
        unsafe { lines.set_len(len) };
        Ok(Self { lines: Lines::Own(lines), storage, n, k, count, steps })
    }

    /// Packed weights of `k` inputs as they lie in a file; `None` for any other length.
    pub(super) fn mapped(storage: Storage, k: usize, piece: Piece<Mapped>) -> Option<Self> {
        let n = piece.n;
        let Extents { count, steps, len } = Extents::of(storage, n, k)?;
        let lines = Lines::mapped(piece.bytes, len)?;
        let whole = piece.k == k && k.is_multiple_of(storage.grain());
        whole.then_some(Self { lines, storage, n, k, count, steps })
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines.bytes()
    }

    /// Lines of a panel over all of k.
    pub(super) fn panel_lines(&self) -> usize {
        self.storage.lines(self.steps)
    }

    /// A panel over all of k, of `Bf16Tiles`.
    pub(super) fn panel(&self, panel: usize) -> &[Line] {
        let length = self.panel_lines();
        &self.lines[panel * length..][..length]
    }

    /// Where a panel of `Bf16Tiles` begins, to be fetched early; it need not exist.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn panel_start(&self, panel: usize) -> *const Line {
        self.lines.as_ptr().wrapping_add(panel * self.panel_lines())
    }

    /// The values of the output features `columns` of `panel`, `[columns, k]`.
    pub(super) fn rows(&self, panel: usize, columns: Range<usize>, rows: &mut [f32]) {
        let k = self.k;
        assert!(rows.len() == columns.len() * k && columns.end <= PANEL);
        let mut put = |at: usize, column: usize, value: f32| {
            if at < k {
                rows[(column - columns.start) * k + at] = value;
            }
        };
        for first in (0..self.steps).step_by(BLOCK) {
            let steps = (self.steps - first).min(BLOCK);
            let slab = match self.storage {
                Storage::Bf16Tiles => {
                    &self.panel(panel)[self.storage.lines(first)..][..self.storage.lines(steps)]
                }
                _ => self.slabs(first, steps, panel..panel + 1),
            };
            if self.storage.is_compact() {
                let mut widened = [compact::Unwritten::uninit(); compact::GROUP];
                for group in (0..steps).step_by(compact::GROUP) {
                    let widened = &mut widened[..(steps - group).min(compact::GROUP)];
                    compact::widen(self.storage, slab, group, widened, compact::halves);
                    for (i, step) in widened.iter().enumerate() {
                        // SAFETY: `widen` writes all of its output.
                        let step = unsafe { step.assume_init_ref() };
                        columns.clone().for_each(|c| put(first + group + i, c, step[c]));
                    }
                }
                continue;
            }
            let words: &[u32] = bytemuck::cast_slice(slab);
            let step_words = self.storage.lines(1) * LINE_WORDS;
            for (i, step) in words.chunks_exact(step_words).enumerate() {
                let at = (first + i) * self.storage.step_k();
                for c in columns.clone() {
                    let [below, above] =
                        [step[c % step_words] << 16, step[c % step_words] & 0xffff_0000]
                            .map(f32::from_bits);
                    match self.storage {
                        Storage::F32 => put(at, c, f32::from_bits(step[c])),
                        Storage::Bf16Columns => {
                            put(at, c, if c < step_words { below } else { above })
                        }
                        _ => {
                            put(at, c, below);
                            put(at + 1, c, above);
                        }
                    }
                }
            }
        }
    }

    /// The slabs of `panels` over the block from step `first` of `steps` steps: contiguous, each
    /// `storage.lines(steps)` lines.
    pub(super) fn slabs(&self, first: usize, steps: usize, panels: Range<usize>) -> &[Line] {
        let start = self.storage.lines(first) * self.count;
        let slab = self.storage.lines(steps);
        &self.lines[start + panels.start * slab..start + panels.end * slab]
    }
}

/// Room for `len` lines.
pub(super) fn reserve(len: usize) -> Result<Vec<Line>, PackError> {
    let mut lines: Vec<Line> = Vec::new();
    lines
        .try_reserve_exact(len)
        .map_err(|_| PackError::OutOfMemory { bytes: len.saturating_mul(size_of::<Line>()) })?;
    ask_for_huge_pages(lines.spare_capacity_mut());
    Ok(lines)
}

/// Asks the system to back the memory with huge pages where it leaves the choice to programs:
/// faulting the pages in takes half the time then, and so do misses of the TLB on large layers.
fn ask_for_huge_pages(memory: &mut [MaybeUninit<Line>]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let range = memory.as_mut_ptr_range();
        let (start, end) =
            (range.start.addr().next_multiple_of(HUGE), range.end.addr() / HUGE * HUGE);
        if start < end {
            // SAFETY: whole pages inside memory that is ours alone, and the advice changes no content.
            // It may be refused, and then nothing is lost.
            unsafe {
                libc::madvise(range.start.with_addr(start).cast(), end - start, libc::MADV_HUGEPAGE)
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Writes the slab of `panel` over the steps from `first`; its length says how many.
fn fill_slab(
    slab: &mut [MaybeUninit<Line>],
    parts: &[(Weights<'_>, usize)],
    k: usize,
    storage: Storage,
    panel: usize,
    first: usize,
) {
    for line in slab.iter_mut() {
        line.write(Line([0; 16]));
    }
    // SAFETY: every line was just written, and a line is 16 words, without padding.
    let words =
        unsafe { std::slice::from_raw_parts_mut(slab.as_mut_ptr().cast::<u32>(), slab.len() * 16) };
    if let Storage::Blocks(of) = storage {
        return fill_blocks(words, parts, k, of, panel, first);
    }
    let step_words = storage.lines(1) * LINE_WORDS;
    let k0 = first * storage.step_k();
    let k1 = (k0 + words.len() / step_words * storage.step_k()).min(k);
    let source = |column: usize| row(parts, k, panel * PANEL + column, k0..k1);

    let mut floats = [0.0; BLOCK];
    let mut halves = [[bf16::ZERO; 2 * BLOCK]; 2];
    let mut group = [[0; BLOCK]; GROUP];
    for column in (0..step_words).step_by(GROUP) {
        for (column, to) in (column..).zip(&mut group) {
            match storage {
                Storage::F32 => {
                    let from = as_f32(source(column), &mut floats[..k1 - k0]);
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = from.to_bits();
                    }
                }
                Storage::Bf16Columns => {
                    let [below, above] = &mut halves;
                    let below = as_bf16(source(column), &mut below[..k1 - k0]);
                    let above = as_bf16(source(column + PANEL / 2), &mut above[..k1 - k0]);
                    for ((to, below), above) in to.iter_mut().zip(below).zip(above) {
                        *to = word(*below, *above);
                    }
                }
                Storage::F16 => {
                    let below = source(2 * column);
                    let above = source(2 * column + 1);
                    for (i, to) in to[..k1 - k0].iter_mut().enumerate() {
                        *to = half_bits(below, i) | half_bits(above, i) << 16;
                    }
                }
                Storage::Blocks(_) => unreachable!("filled block by block"),
                Storage::Bf16Tiles => {
                    let (pairs, odd) =
                        as_bf16(source(column), &mut halves[0][..k1 - k0]).as_chunks();
                    for (to, &[even, odd]) in to.iter_mut().zip(pairs) {
                        *to = word(even, odd);
                    }
                    if let [even] = odd {
                        to[pairs.len()] = word(*even, bf16::ZERO);
                    }
                }
            }
        }
        transpose(&group, words, step_words, column);
    }
}

/// As [`fill_slab`], for quantised blocks; `words` are zeros.
fn fill_blocks(
    words: &mut [u32],
    parts: &[(Weights<'_>, usize)],
    k: usize,
    of: BlockType,
    panel: usize,
    first: usize,
) {
    let steps = words.len() / of.panel_words() * of.elements();
    for column in 0..PANEL {
        let row = row(parts, k, panel * PANEL + column, first..first + steps);
        let Some(Weights::Blocks(_, row)) = row else { continue };
        let words = words.chunks_exact_mut(of.panel_words());
        for (words, block) in words.zip(row.chunks_exact(of.bytes())) {
            compact::put(of, block, words, column);
        }
    }
}

/// The bits of an element of a row in half precision; zero for no row.
fn half_bits(row: Option<Weights<'_>>, i: usize) -> u32 {
    match row {
        Some(Weights::F16(row)) => row[i].to_bits().into(),
        _ => 0,
    }
}

/// Writes each step's words of a group of columns next to each other: word `column` onwards of a step.
fn transpose(group: &[[u32; BLOCK]; GROUP], words: &mut [u32], step_words: usize, column: usize) {
    const AT_ONCE: usize = 4;
    let steps = words.len() / step_words;
    let mut blocks = words.chunks_exact_mut(AT_ONCE * step_words);
    for (i, block) in blocks.by_ref().enumerate() {
        let mut square = [[0; AT_ONCE]; GROUP];
        for (square, from) in square.iter_mut().zip(group) {
            square.copy_from_slice(&from[i * AT_ONCE..][..AT_ONCE]);
        }
        for s in 0..AT_ONCE {
            let step: [u32; GROUP] = std::array::from_fn(|c| square[c][s]);
            block[s * step_words + column..][..GROUP].copy_from_slice(&step);
        }
    }
    let rest = blocks.into_remainder().chunks_exact_mut(step_words);
    for (step, s) in rest.zip(steps - steps % AT_ONCE..) {
        for (to, from) in step[column..].iter_mut().zip(group) {
            *to = from[s];
        }
    }
}

fn word(below: bf16, above: bf16) -> u32 {
    u32::from(below.to_bits()) | u32::from(above.to_bits()) << 16
}

/// Elements `range` of row `index` of the parts as one matrix, or nothing past its end.
fn row<'a>(
    parts: &[(Weights<'a>, usize)],
    k: usize,
    mut index: usize,
    range: Range<usize>,
) -> Option<Weights<'a>> {
    for &(weights, rows) in parts {
        if index < rows {
            let range = index * k + range.start..index * k + range.end;
            return Some(match weights {
                Weights::F32(w) => Weights::F32(&w[range]),
                Weights::Bf16(w) => Weights::Bf16(&w[range]),
                Weights::F16(w) => Weights::F16(&w[range]),
                Weights::Blocks(of, w) => {
                    let blocks = |at: usize| at / of.elements() * of.bytes();
                    Weights::Blocks(of, &w[blocks(range.start)..blocks(range.end)])
                }
            });
        }
        index -= rows;
    }
    None
}

/// The row as f32, in `buffer` (of its length) if it must be converted; zeros for no row.
fn as_f32<'a>(row: Option<Weights<'a>>, buffer: &'a mut [f32]) -> &'a [f32] {
    match row {
        Some(Weights::F32(w)) => return w,
        Some(Weights::Bf16(w)) => w.convert_to_f32_slice(buffer),
        Some(Weights::F16(w)) => w.convert_to_f32_slice(buffer),
        Some(Weights::Blocks(..)) => unreachable!("blocks have a storage of their own"),
        None => buffer.fill(0.0),
    }
    buffer
}

/// The row as bf16, in `buffer` (of its length) if it must be rounded; zeros for no row.
fn as_bf16<'a>(row: Option<Weights<'a>>, buffer: &'a mut [bf16]) -> &'a [bf16] {
    match row {
        Some(Weights::Bf16(w)) => return w,
        Some(Weights::F32(w)) => buffer.convert_from_f32_slice(w),
        Some(Weights::F16(w)) => {
            for (to, from) in buffer.iter_mut().zip(w) {
                *to = bf16::from_f32(from.to_f32());
            }
        }
        Some(Weights::Blocks(..)) => unreachable!("blocks have a storage of their own"),
        None => buffer.fill(bf16::ZERO),
    }
    buffer
}
