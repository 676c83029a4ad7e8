//! Floats to codes: rows of activations at each product, weights once.
#![allow(unsafe_code)] // Memory is filled in parallel before its length is set, and viewed as bytes.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::super::cache::{Lines, Piece, Pieces};
use super::super::pack::{Line, PANEL, reserve};
use super::super::{PackError, PackedLinear};
use super::{SECTION_STEPS, STEP_K, STEP_LINES, Tile, TileKernel};
use crate::error::Result;
use crate::kernels::Arena;
use crate::kernels::arena::Buffer;

/// Values that are rotated together.
const ROTATED: usize = 64;
/// One input in so many is an outlier column, up to `MOST_OUTLIERS`.
const INPUTS_PER_OUTLIER: usize = 64;
const MOST_OUTLIERS: usize = 32;
/// The largest code, and the largest one of two digits.
const LARGEST: f32 = 127.0;
const LARGEST_PAIR: f32 = 127.0 * 128.0;
/// Below this a row's largest value counts as zero: its reciprocal must stay finite.
const SMALLEST: f32 = 1e-30;
/// Adding this rounds a small f32 to an integer, to nearest even, in its lowest bits.
const TO_INTEGER: f32 = 12_582_912.0;
/// Bytes of both outlier sections.
const SECTIONS: usize = 2 * SECTION_STEPS * STEP_K;
/// The code 0 as weights store it.
const ZERO: u8 = 128;

/// The kinds of pieces that a file holds of a layer.
const LINES: &str = "Int8";
const TABLES: &str = "Int8 scales";

/// Outlier columns of `k` inputs.
fn outlier_count(k: usize) -> usize {
    k.div_ceil(INPUTS_PER_OUTLIER).min(MOST_OUTLIERS)
}

/// What goes with a row of codes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowScales {
    pub(super) scale: f32,
    pub(super) outlier_scale: f32,
    /// Where the sums of the three sections start from: -128 times the sum of their codes.
    pub(super) offsets: [i32; 3],
}

/// Rows of activations as codes.
pub(super) struct Codes {
    lines: Buffer,
    /// Words of a row.
    pub(super) stride: usize,
    pub(super) rows: Vec<RowScales>,
}

/// Lines that rows of codes are written to, each its own.
struct Shared(*mut Line);

impl Shared {
    fn at(&self, line: usize) -> *mut Line {
        self.0.wrapping_add(line)
    }
}

// SAFETY: rows write disjoint lines, and are done before the lines are read.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Weights as codes.
pub(super) struct Weights {
    lines: Lines,
    pub(super) n: usize,
    pub(super) k: usize,
    /// The inputs that are rounded apart, ascending.
    outliers: Vec<usize>,
    /// One an output, padded to whole panels.
    scales: Vec<f32>,
    outlier_scales: Vec<f32>,
}

impl Weights {
    pub(super) fn quantise(layer: &PackedLinear, largest: &[f32]) -> Result<Self, PackError> {
        let (n, k) = (layer.n, layer.k);
        assert!(largest.len() == k, "{} inputs were seen of {k}", largest.len());
        let mut outliers: Vec<usize> = (0..k).collect();
        outliers.sort_by(|&a, &b| largest[b].total_cmp(&largest[a]).then(a.cmp(&b)));
        outliers.truncate(outlier_count(k));
        outliers.sort_unstable();
        outliers.shrink_to_fit();

        let count = n.div_ceil(PANEL);
        let mut weights = Self {
            lines: Lines::Own(Vec::new()),
            n,
            k,
            outliers,
            scales: vec![0.0; count * PANEL],
            outlier_scales: vec![0.0; count * PANEL],
        };
        if n == 0 || k == 0 {
            return Ok(weights);
        }
        let panel_lines = weights.panel_lines();
        let mut lines = reserve(count * panel_lines)?;
        let mut scales = std::mem::take(&mut weights.scales);
        let mut outlier_scales = std::mem::take(&mut weights.outlier_scales);
        let all = lines.spare_capacity_mut()[..count * panel_lines]
            .par_chunks_exact_mut(panel_lines)
            .zip(scales.par_chunks_exact_mut(PANEL))
            .zip(outlier_scales.par_chunks_exact_mut(PANEL));
        all.enumerate().for_each(|(panel, ((lines, scales), outlier_scales))| {
            lines.fill(MaybeUninit::new(Line([u32::from_ne_bytes([ZERO; 4]); 16])));
            // SAFETY: the lines were just written, and are plain bytes.
            let bytes = unsafe {
                let bytes = size_of_val(lines);
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), bytes)
            };
            let first = panel * PANEL;
            let columns = (n - first).min(PANEL);
            let mut rows = vec![0.0; columns * k];
            layer.rows(first..first + columns, &mut rows);
            let scales = rows.chunks_exact(k).zip(scales.iter_mut().zip(outlier_scales));
            let mut work = vec![0.0; weights.padded()];
            let mut codes = vec![0; SECTIONS + weights.padded()];
            for (column, (row, (scale, outlier_scale))) in scales.enumerate() {
                let found = weights.row(row, &mut work, &mut codes);
                // The rotation of both sides multiplies by `ROTATED`.
                *scale = found.scale / ROTATED as f32;
                *outlier_scale = found.outlier_scale * 128.0;
                // Activations have h, then l in the second section.
                let slots = weights.slots();
                let second = &mut codes[SECTION_STEPS * STEP_K..][..2 * slots];
                second.rotate_left(slots);
                for (step, codes) in codes.chunks_exact(STEP_K).enumerate() {
                    let word = &mut bytes[(step * PANEL + column) * STEP_K..][..STEP_K];
                    for (to, code) in word.iter_mut().zip(codes) {
                        *to = code.cast_unsigned() ^ ZERO;
                    }
                }
            }
        });
        // SAFETY: every panel wrote all of its lines.
        unsafe { lines.set_len(count * panel_lines) };
        Ok(Self { lines: Lines::Own(lines), scales, outlier_scales, ..weights })
    }

    /// What a file holds of them: the lines, and all else.
    pub(super) fn pieces(&self) -> [Piece<Cow<'_, [u8]>>; 2] {
        let (n, k) = (self.n, self.k);
        let mut tables: Vec<u8> = Vec::new();
        for scales in [&self.scales, &self.outlier_scales] {
            tables.extend_from_slice(bytemuck::cast_slice(scales));
        }
        self.outliers.iter().for_each(|i| tables.extend((*i as u64).to_ne_bytes()));
        [
            Piece { kind: LINES.into(), n, k, bytes: self.lines.as_bytes().into() },
            Piece { kind: TABLES.into(), n, k, bytes: tables.into() },
        ]
    }

    /// The weights of a layer as they lie in a file; `None` for anything else.
    pub(super) fn mapped(n: usize, k: usize, pieces: &mut Pieces) -> Option<Self> {
        let [lines, tables] = [pieces.next()?, pieces.next()?];
        let fits = |piece: &Piece<_>, kind| piece.kind == kind && piece.n == n && piece.k == k;
        if !fits(&lines, LINES) || !fits(&tables, TABLES) {
            return None;
        }
        let columns = n.div_ceil(PANEL).checked_mul(PANEL)?;
        let scale_bytes = columns.checked_mul(size_of::<f32>())?;
        let (scales, rest) = tables.bytes.split_at_checked(scale_bytes)?;
        let (outlier_scales, outliers) = rest.split_at_checked(scale_bytes)?;
        let floats = |bytes: &[u8]| bytemuck::try_cast_slice(bytes).ok().map(<[f32]>::to_vec);
        let (outliers, []) = outliers.as_chunks() else { return None };
        let outliers: Vec<_> = outliers.iter().map(|i| u64::from_ne_bytes(*i) as usize).collect();
        let sound = outliers.len() == outlier_count(k)
            && outliers.is_sorted_by(|a, b| a < b)
            && outliers.iter().all(|i| *i < k);
        let mut weights = Self {
            lines: Lines::Own(Vec::new()),
            n,
            k,
            outliers,
            scales: floats(scales)?,
            outlier_scales: floats(outlier_scales)?,
        };
        let len = (columns / PANEL).checked_mul(weights.panel_lines())?;
        weights.lines = Lines::mapped(lines.bytes, len)?;
        sound.then_some(weights)
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines.bytes()
            + (self.scales.capacity() + self.outlier_scales.capacity()) * size_of::<f32>()
            + self.outliers.capacity() * size_of::<usize>()
    }

    /// `n` in panels.
    pub(super) fn panels(&self) -> usize {
        self.scales.len() / PANEL
    }

    fn panel_lines(&self) -> usize {
        (2 * SECTION_STEPS + self.padded() / STEP_K) * STEP_LINES
    }

    /// k of the rotated section.
    fn padded(&self) -> usize {
        self.k.next_multiple_of(ROTATED)
    }

    /// Outlier columns in whole steps.
    fn slots(&self) -> usize {
        self.outliers.len().next_multiple_of(STEP_K)
    }

    /// A tile of the rows of codes from `row` and the panels from `panel` on; its output is for the
    /// caller to say.
    pub(super) fn tile(&self, codes: &Codes, row: usize, panel: usize) -> Tile {
        let panel_lines = self.panel_lines();
        Tile {
            codes: codes.lines.as_ptr().cast::<u32>().wrapping_add(row * codes.stride),
            codes_stride: codes.stride,
            rows: &raw const codes.rows[row],
            panel: &raw const self.lines[panel * panel_lines],
            panel_lines,
            ahead: std::ptr::null(),
            fetch: 0,
            outlier_words: self.slots() / STEP_K,
            steps: self.padded() / STEP_K,
            scales: &raw const self.scales[panel * PANEL],
            outlier_scales: &raw const self.outlier_scales[panel * PANEL],
            y: std::ptr::null_mut(),
            y_stride: 0,
        }
    }

    /// Rows of `x`, `[m, k]`, as codes.
    ///
    /// # Safety
    /// The CPU has the instructions of `K`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) unsafe fn codes<K: TileKernel>(&self, arena: &Arena, x: &[f32]) -> Result<Codes> {
        let m = x.len() / self.k;
        let code_lines = (SECTIONS + self.padded()) / size_of::<Line>();
        // A line more, so that the rows of a tile do not share one set of the L1 cache.
        let row_lines = code_lines + 1;
        let len = m.div_ceil(K::STRIP) * K::STRIP * row_lines;
        let mut buffer = arena.lend(len * size_of::<Line>() / size_of::<f32>())?;
        let lines: &mut [Line] = bytemuck::cast_slice_mut(&mut buffer);
        let mut rows = vec![RowScales::default(); m];
        let work = || vec![0.0; self.padded()];
        // By rows and not by strips: few rows are to occupy all threads.
        let all = rows.par_iter_mut().zip(x.par_chunks_exact(self.k));
        if K::STRIP == 1 {
            all.zip(lines.par_chunks_exact_mut(row_lines)).for_each_init(
                work,
                |work, ((scales, x), lines)| {
                    let codes = bytemuck::cast_slice_mut(&mut lines[..code_lines]);
                    // SAFETY: the CPU is the caller's promise.
                    *scales = unsafe { K::row(self, x, work, codes) };
                },
            );
        } else {
            let place = |row: usize, line: usize| {
                (row / K::STRIP * row_lines + line) * K::STRIP + row % K::STRIP
            };
            for row in m..m.next_multiple_of(K::STRIP) {
                (0..row_lines).for_each(|line| lines[place(row, line)] = Line([0; 16]));
            }
            let lines = Shared(lines.as_mut_ptr());
            all.enumerate().for_each_init(
                || (work(), vec![Line([0; 16]); code_lines]),
                |(work, codes), (row, (scales, x))| {
                    // SAFETY: the CPU is the caller's promise.
                    *scales = unsafe { K::row(self, x, work, bytemuck::cast_slice_mut(codes)) };
                    for (i, line) in codes.iter().enumerate() {
                        // SAFETY: inside the `len` lines, by `row < m` and `i < row_lines`; no other
                        // row has this place.
                        unsafe { *lines.at(place(row, i)) = *line };
                    }
                },
            );
        }
        Ok(Codes { lines: buffer, stride: row_lines * size_of::<Line>() / size_of::<u32>(), rows })
    }

    /// Writes the codes of `x`, `[k]`, as activations have them; `work` is of the padded length.
    #[inline(always)]
    pub(super) fn row(&self, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
        let (sections, rotated) = codes.split_at_mut(SECTIONS);
        // What outlier columns leave of them is read too.
        sections.fill(0);
        let (first, second) = sections.split_at_mut(SECTION_STEPS * STEP_K);
        work[..x.len()].copy_from_slice(x);
        work[x.len()..].fill(0.0);
        let mut apart = [0.0; MOST_OUTLIERS];
        for (apart, &i) in apart.iter_mut().zip(&self.outliers) {
            *apart = std::mem::take(&mut work[i]);
        }

        let (outlier_scale, inverse) = scale(&apart, LARGEST_PAIR);
        let slots = self.slots();
        let mut sums = [0i32; 3];
        for (i, v) in apart[..slots].iter().enumerate() {
            let pair = integer(v * inverse);
            let high = (pair + 64) >> 7;
            let [high, low] = [high, pair - (high << 7)].map(|digit| digit as i8);
            (first[i], second[i], second[slots + i]) = (high, high, low);
            sums[0] += i32::from(high);
            sums[1] += i32::from(high) + i32::from(low);
        }
        rotate(work);
        let (scale, inverse) = scale(work, LARGEST);
        for (code, v) in rotated.iter_mut().zip(&*work) {
            let value = integer(v * inverse);
            *code = value as i8;
            // It is the code, but for what is not finite, whose scale is NaN.
            sums[2] = sums[2].wrapping_add(value);
        }
        RowScales { scale, outlier_scale, offsets: sums.map(|sum| sum.wrapping_mul(-128)) }
    }
}

/// What a code of `values` stands for where the largest one is `codes`, and its reciprocal. NaN for
/// what holds a value that is not finite.
#[inline(always)]
fn scale(values: &[f32], codes: f32) -> (f32, f32) {
    // As integers: the same order, in which NaN is above all.
    let largest = values.iter().fold(0, |most, v| (v.to_bits() & 0x7fff_ffff).max(most));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / codes, codes / largest)
    }
}

/// The nearest integer, to even; of what is not finite, any.
#[inline(always)]
fn integer(v: f32) -> i32 {
    (v + TO_INTEGER).to_bits().wrapping_sub(TO_INTEGER.to_bits()).cast_signed()
}

/// The Hadamard transform, times 8, of the values that lie `x.len() / 64` apart.
#[inline(always)]
fn rotate(x: &mut [f32]) {
    let mut run = x.len() / ROTATED;
    while run < x.len() {
        for four in x.chunks_exact_mut(4 * run) {
            let (ab, cd) = four.split_at_mut(2 * run);
            let ((a, b), (c, d)) = (ab.split_at_mut(run), cd.split_at_mut(run));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (ab, cd) = ((*a + *b, *a - *b), (*c + *d, *c - *d));
                (*a, *b, *c, *d) = (ab.0 + cd.0, ab.1 + cd.1, ab.0 - cd.0, ab.1 - cd.1);
            }
        }
        run *= 4;
    }
}
