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

#![allow(unsafe_code)] // Rows are written where nothing was before; fetching takes a pointer.

use std::mem::MaybeUninit;

use half::f16;

use super::pack::{Line, PANEL, Storage};
use crate::kernels::blocks::{Block, BlockType};

/// Steps that have their quants together.
pub(super) const GROUP: usize = 32;
/// Steps that have their scales together, in every type.
const HALF: usize = GROUP / 2;

/// One value a column.
pub(super) type PerColumn<T> = [T; PANEL];
/// Where a row of values is to be written.
pub(super) type Unwritten = MaybeUninit<PerColumn<f32>>;

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

    const fn has_m(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K)
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
    if of.has_m() {
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

/// Widens the steps from `first` on of a panel's slab, as many as `out` has: of blocks whole groups.
/// The values are those of `BlockType::widen_into`, bit for bit, and all of `out` is written.
/// `halves` widens half precision, as many rows as it is given.
#[inline(always)]
pub(super) fn widen(
    storage: Storage,
    slab: &[Line],
    first: usize,
    out: &mut [Unwritten],
    halves: impl Fn(&[PerColumn<u16>], &mut [Unwritten]) + Copy,
) {
    use BlockType::*;
    // Each type gets code of its own: what `blocks` asks of it is known there.
    match storage {
        Storage::Blocks(Q4_0) => blocks(Q4_0, slab, first, out, halves),
        Storage::Blocks(Q4_1) => blocks(Q4_1, slab, first, out, halves),
        Storage::Blocks(Q5_0) => blocks(Q5_0, slab, first, out, halves),
        Storage::Blocks(Q5_1) => blocks(Q5_1, slab, first, out, halves),
        Storage::Blocks(Q8_0) => blocks(Q8_0, slab, first, out, halves),
        Storage::Blocks(Q4K) => blocks(Q4K, slab, first, out, halves),
        Storage::Blocks(Q5K) => blocks(Q5K, slab, first, out, halves),
        Storage::Blocks(Q6K) => blocks(Q6K, slab, first, out, halves),
        Storage::F16 => {
            let rows: &[PerColumn<u16>] = bytemuck::cast_slice(slab);
            let rows = rows[first..][..out.len()].chunks(GROUP);
            for (rows, out) in rows.zip(out.chunks_mut(GROUP)) {
                fetch_ahead(bytemuck::cast_slice(rows));
                halves(rows, out);
            }
        }
        _ => unreachable!("a storage that is multiplied as it is"),
    }
}

#[inline(always)]
fn blocks(
    of: BlockType,
    slab: &[Line],
    first: usize,
    out: &mut [Unwritten],
    halves: impl Fn(&[PerColumn<u16>], &mut [Unwritten]) + Copy,
) {
    let slab: &[u32] = bytemuck::cast_slice(slab);
    let in_block = of.elements() / GROUP;
    assert!(out.len().is_multiple_of(GROUP), "whole groups");
    for (i, out) in (first / GROUP..).zip(out.as_chunks_mut::<GROUP>().0) {
        let block = &slab[i / in_block * of.panel_words()..][..of.panel_words()];
        let i = i % in_block;
        let (head, groups) = block.split_at(of.head_words());
        let group = groups[i * of.group_words()..][..of.group_words()].as_chunks::<PANEL>().0;
        fetch_ahead(group.as_flattened());
        let bytes = |at: usize| -> PerColumn<u8> {
            bytemuck::cast(*head[at..].first_chunk::<8>().expect("inside a block's head"))
        };
        let mut dm = [Unwritten::new([0.0; PANEL]); 2];
        let there = if of.has_m() { 2 } else { 1 };
        halves(bytemuck::cast_slice(&head[..16 * there]), &mut dm[..there]);
        // SAFETY: zeros, where nothing else was written.
        let [d, m] = unsafe { [dm[0].assume_init(), dm[1].assume_init()] };
        match of {
            BlockType::Q4_0 => quants::<NONE, 8, false>(group, [&d; 2], &d, out),
            BlockType::Q5_0 => quants::<FIFTH, 16, false>(group, [&d; 2], &d, out),
            BlockType::Q4_1 => quants::<NONE, 0, true>(group, [&d; 2], &m, out),
            BlockType::Q5_1 => quants::<FIFTH, 0, true>(group, [&d; 2], &m, out),
            BlockType::Q8_0 => signed_bytes(bytemuck::cast_slice(group), &d, out),
            BlockType::Q4K | BlockType::Q5K => {
                let (mut d, mut m) = (d, m);
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

/// Asks for what lies two groups further: hardware stops at the end of a page, and where the
/// groups of several panels take turns.
#[inline(always)]
fn fetch_ahead(group: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for at in (0..group.len()).step_by(16) {
            let ahead = group.as_ptr().wrapping_add(2 * group.len() + at);
            // SAFETY: fetching reads nothing, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = group;
}

/// `(q - OFFSET) d`, and with `MIN` then `+ m`; `d` of the group's first and second half.
#[inline(always)]
fn quants<const HIGH: u32, const OFFSET: u32, const MIN: bool>(
    group: &[PerColumn<u32>],
    d: [&PerColumn<f32>; 2],
    m: &PerColumn<f32>,
    out: &mut [Unwritten; GROUP],
) {
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // The bits of these eight steps, lowest. (`map` would be a call, without vectors.)
        let mut high = [0; PANEL];
        for c in 0..PANEL {
            match HIGH {
                FIFTH => high[c] = group[4][c] >> (8 * i),
                FIFTH_AND_SIXTH => high[c] = group[4 + i / 2][c] >> (16 * (i % 2)),
                _ => {}
            }
        }
        let (low, d) = (&group[i], d[i / 2]);
        out[0].write(step::<0, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[1].write(step::<1, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[2].write(step::<2, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[3].write(step::<3, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[4].write(step::<4, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[5].write(step::<5, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[6].write(step::<6, HIGH, OFFSET, MIN>(low, &high, d, m));
        out[7].write(step::<7, HIGH, OFFSET, MIN>(low, &high, d, m));
    }
}

/// Step `J` of eight: every shift is known, so that there is one a column and no more.
#[inline(always)]
fn step<const J: usize, const HIGH: u32, const OFFSET: u32, const MIN: bool>(
    low: &PerColumn<u32>,
    high: &PerColumn<u32>,
    d: &PerColumn<f32>,
    m: &PerColumn<f32>,
) -> PerColumn<f32> {
    // As the lowest bits of a float of this size, a whole number is that much more.
    const BASE: u32 = 1 << 23;
    let base = (BASE as f32).to_bits();
    let mut row = [0.0; PANEL];
    for c in 0..PANEL {
        let low = low[c] >> (4 * J) & 0xf;
        let high = match HIGH {
            FIFTH => to_bit_4(high[c], J) & 0x10,
            FIFTH_AND_SIXTH => to_bit_4(high[c], 2 * J) & 0x30,
            _ => 0,
        };
        let q = f32::from_bits(low | high | base) - (BASE + OFFSET) as f32;
        let product = q * d[c];
        row[c] = if MIN { product + m[c] } else { product };
    }
    row
}

/// Moves bit `from` to bit 4.
#[inline(always)]
fn to_bit_4(bits: u32, from: usize) -> u32 {
    if from < 4 { bits << (4 - from) } else { bits >> (from - 4) }
}

/// `q d`
#[inline(always)]
fn signed_bytes(group: &[PerColumn<i8>], d: &PerColumn<f32>, out: &mut [Unwritten; GROUP]) {
    let d = *d;
    for (quants, out) in group.iter().zip(out) {
        let quants = *quants;
        let mut row = [0.0; PANEL];
        for c in 0..PANEL {
            row[c] = f32::from(quants[c]) * d[c];
        }
        out.write(row);
    }
}

/// For CPUs without instructions for it.
pub(super) fn halves(from: &[PerColumn<u16>], to: &mut [Unwritten]) {
    for (from, to) in from.iter().zip(to) {
        to.write(from.map(|bits| f16::from_bits(bits).to_f32()));
    }
}
