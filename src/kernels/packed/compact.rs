//! Storage that is widened to an f32 slab before it is multiplied: half precision, and quantised
//! blocks.
//!
//! A panel of quantised weights holds, for each block of k, the same bits as the 32 rows' blocks in
//! the file, turned so that neighbours in memory are columns:
//!
//! | words | what | of |
//! |--:|---|---|
//! | 16 | `d` of each column, in half precision | all |
//! | 16 | `m` of each column, in half precision | `Q4_1`, `Q5_1`, `Q4_K`, `Q5_K` |
//! | 8 a scale | a byte a column | `Q4_K`, `Q5_K` (8 scales), `Q6_K` (16) |
//! | 8 a min | a byte a column | `Q4_K`, `Q5_K` (8 mins) |
//!
//! and then for each 32 steps of the block
//!
//! | words | what | of |
//! |--:|---|---|
//! | 4 x 32 | lower four bits of eight steps of a column, the first lowest | all but `Q8_0` |
//! | 32 | fifth bits of the 32 steps of a column | `Q5_0`, `Q5_1`, `Q5_K` |
//! | 2 x 32 | fifth and sixth bits of 16 steps of a column | `Q6_K` |
//! | 32 x 8 | a signed byte a column | `Q8_0` |
//!
//! The scales and mins of `Q4_K` and `Q5_K` have 8 bits instead of 6, which adds less than 3%.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::pack::{Line, PANEL, Storage};
use crate::kernels::blocks::{Block, BlockType};

/// Steps that have their quants together.
pub(super) const GROUP: usize = 32;
/// Steps that have their scales together, in every type.
const HALF: usize = GROUP / 2;

/// One value a column.
type Columns<T> = [T; PANEL];

/// How the bits above the lower four are kept.
const NONE: u32 = 0;
const FIFTH: u32 = 1;
const FIFTH_AND_SIXTH: u32 = 2;

impl BlockType {
    /// Words of a panel for one block of k.
    pub(super) const fn panel_words(self) -> usize {
        self.head_words() + self.elements() / GROUP * self.group_words()
    }

    /// Words before the quants.
    const fn head_words(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 16,
            Self::Q4_1 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K => 32 + 8 * 8 + 8 * 8,
            Self::Q6K => 16 + 16 * 8,
        }
    }

    /// Words of the quants of a group.
    const fn group_words(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4 * PANEL,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5 * PANEL,
            Self::Q6K => 6 * PANEL,
            Self::Q8_0 => 8 * PANEL,
        }
    }
}

/// Writes a column of a panel's block from the bytes of a row's. `words` are the panel's, zeros
/// where nothing was written.
pub(super) fn put(of: BlockType, bytes: &[u8], words: &mut [u32], column: usize) {
    let block = Block::read(of, bytes);
    let (head, groups) = words.split_at_mut(of.head_words());
    let head: &mut [u8] = bytemuck::cast_slice_mut(head);
    head[2 * column..][..2].copy_from_slice(&block.d.to_le_bytes());
    let mut scales = |from: usize, scales: &[u8]| {
        for (i, scale) in scales.iter().enumerate() {
            head[from + i * PANEL + column] = *scale;
        }
    };
    match of {
        BlockType::Q4K | BlockType::Q5K => {
            scales(128, &block.scales[..8]);
            scales(128 + 8 * PANEL, &block.mins);
        }
        BlockType::Q6K => scales(64, &block.scales),
        _ => {}
    }
    if matches!(of, BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K) {
        head[64 + 2 * column..][..2].copy_from_slice(&block.m.to_le_bytes());
    }
    for (group, quants) in groups
        .chunks_exact_mut(of.group_words())
        .zip(block.quants[..of.elements()].chunks_exact(GROUP))
    {
        if of == BlockType::Q8_0 {
            let group: &mut [u8] = bytemuck::cast_slice_mut(group);
            for (step, q) in quants.iter().enumerate() {
                group[step * PANEL + column] = *q;
            }
            continue;
        }
        for (i, quants) in quants.chunks_exact(8).enumerate() {
            let word = quants.iter().rev().fold(0, |word, q| word << 4 | u32::from(q & 15));
            group[i * PANEL + column] = word;
        }
        let high = |quants: &[u8], bits: u32| {
            quants.iter().rev().fold(0, |word, q| word << bits | u32::from(q >> 4))
        };
        match group.len() / PANEL {
            5 => group[4 * PANEL + column] = high(quants, 1),
            6 => {
                for (i, quants) in quants.chunks_exact(HALF).enumerate() {
                    group[(4 + i) * PANEL + column] = high(quants, 2);
                }
            }
            _ => {}
        }
    }
}

/// Widens the steps from `first` on of a panel's slab, as many as `out` has. `halves` widens half
/// precision.
#[inline(always)]
pub(super) fn widen_slab(
    storage: Storage,
    slab: &[Line],
    first: usize,
    out: &mut [Columns<f32>],
    halves: impl Fn(&Columns<u16>) -> Columns<f32> + Copy,
) {
    let words = bytemuck::cast_slice(slab);
    match storage {
        Storage::F16 => {
            let slab: &[u16] = bytemuck::cast_slice(words);
            let slab: &[f16] = slab[first * PANEL..][..out.len() * PANEL].reinterpret_cast();
            slab.convert_to_f32_slice(out.as_flattened_mut());
        }
        Storage::Blocks(of) => widen(of, words, first, out, halves),
        _ => unreachable!("a storage that is multiplied as it is"),
    }
}

/// Widens whole groups of steps of a panel's slab, the first from step `first` on. The same values as `BlockType::widen_into`, bit for bit.
#[inline(always)]
fn widen(
    of: BlockType,
    slab: &[u32],
    first: usize,
    out: &mut [Columns<f32>],
    halves: impl Fn(&Columns<u16>) -> Columns<f32> + Copy,
) {
    let in_block = of.elements() / GROUP;
    for (i, out) in (first / GROUP..).zip(out.as_chunks_mut::<GROUP>().0) {
        let block = &slab[i / in_block * of.panel_words()..][..of.panel_words()];
        let i = i % in_block;
        let (head, groups) = block.split_at(of.head_words());
        let group = groups[i * of.group_words()..][..of.group_words()].as_chunks::<PANEL>().0;
        let words = |at: usize| halves(bytemuck::cast_ref(word_array::<16>(head, at)));
        let bytes = |at: usize| -> &Columns<u8> { bytemuck::cast_ref(word_array::<8>(head, at)) };
        let d = words(0);
        match of {
            BlockType::Q4_0 => quants::<NONE, 8, false>(group, [&d; 2], &d, out),
            BlockType::Q5_0 => quants::<FIFTH, 16, false>(group, [&d; 2], &d, out),
            BlockType::Q4_1 => quants::<NONE, 0, true>(group, [&d; 2], &words(16), out),
            BlockType::Q5_1 => quants::<FIFTH, 0, true>(group, [&d; 2], &words(16), out),
            BlockType::Q8_0 => signed_bytes(bytemuck::cast_slice(group), &d, out),
            BlockType::Q4K | BlockType::Q5K => {
                let (mut d, mut m) = (d, words(16));
                let (scales, mins) = (bytes(32 + 8 * i), bytes(96 + 8 * i));
                for c in 0..PANEL {
                    d[c] *= f32::from(scales[c]);
                    // Adding this is what subtracting the product is.
                    m[c] = -(m[c] * f32::from(mins[c]));
                }
                if of == BlockType::Q4K {
                    quants::<NONE, 0, true>(group, [&d; 2], &m, out);
                } else {
                    quants::<FIFTH, 0, true>(group, [&d; 2], &m, out);
                }
            }
            BlockType::Q6K => {
                let mut scaled = [d; 2];
                for (half, d) in scaled.iter_mut().enumerate() {
                    let scales = bytes(16 + 8 * (2 * i + half));
                    for c in 0..PANEL {
                        d[c] *= f32::from(scales[c] as i8);
                    }
                }
                let [a, b] = &scaled;
                quants::<FIFTH_AND_SIXTH, 32, false>(group, [a, b], a, out);
            }
        }
    }
}

fn word_array<const N: usize>(words: &[u32], at: usize) -> &[u32; N] {
    words[at..].first_chunk().expect("inside a block's head")
}

/// `(q - OFFSET) d`, and with `MIN` then `+ m`; `d` of the group's first and second half.
#[inline(always)]
fn quants<const HIGH: u32, const OFFSET: i32, const MIN: bool>(
    group: &[Columns<u32>],
    d: [&Columns<f32>; 2],
    m: &Columns<f32>,
    out: &mut [Columns<f32>; GROUP],
) {
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (low, d) = (&group[i], d[i / 2]);
        for (j, out) in out.iter_mut().enumerate() {
            for c in 0..PANEL {
                let low = low[c] >> (4 * j) & 15;
                let high = match HIGH {
                    FIFTH => (group[4][c] >> (8 * i + j) & 1) << 4,
                    FIFTH_AND_SIXTH => (group[4 + i / 2][c] >> (2 * (8 * (i % 2) + j)) & 3) << 4,
                    _ => 0,
                };
                let product = ((low | high) as i32 - OFFSET) as f32 * d[c];
                out[c] = if MIN { product + m[c] } else { product };
            }
        }
    }
}

/// `q d`
#[inline(always)]
fn signed_bytes(group: &[Columns<i8>], d: &Columns<f32>, out: &mut [Columns<f32>; GROUP]) {
    for (quants, out) in group.iter().zip(out) {
        for c in 0..PANEL {
            out[c] = f32::from(quants[c]) * d[c];
        }
    }
}

/// For CPUs without instructions for it.
pub(super) fn halves(from: &Columns<u16>) -> Columns<f32> {
    from.map(|bits| f16::from_bits(bits).to_f32())
}
