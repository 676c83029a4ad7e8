//! Pages of keys and values for attention in tiles: bf16, laid out so that a block's right factors are
//! copies of their lines.
//!
//! Of a head, a page has `[dim / 2, PAGE_TOKENS]` words of its keys, a word of an element and the next
//! one, and `[dim / 32, PAGE_TOKENS / 2, 32]` words of its values, a word of a token and the next one.
#![allow(unsafe_code)] // Lines are taken for vectors.

use std::arch::x86_64::*;

use super::tiled::{PAGES, PANELS, vector};
use crate::kernels::joined::View;
use crate::kernels::kv::PAGE_TOKENS;
use crate::kernels::packed::Line;
use crate::kernels::tiles::{PANEL, SIDE, STEP_LINES, TILE_K, nearest, rounded};

/// Lines of a page's values that are a step's part of a panel.
const PAGE_LINES: usize = STEP_LINES / 2;

/// Keys and values of a page, or nothing.
pub(super) type Page<'p> = (&'p [Line], &'p [Line]);

/// The right factors of the first `panels` panels of keys, `[panels, dim / 32, 16, 2]`.
pub(super) fn load_keys(block: &[Page<'_>; PAGES], panels: usize, dim: usize, out: &mut [Line]) {
    let out = out.chunks_exact_mut(dim / TILE_K * STEP_LINES);
    for (pages, panel) in block.as_chunks::<2>().0.iter().zip(out).take(panels) {
        for (half, (keys, _)) in pages.iter().enumerate() {
            // Of a page that is not there, whatever stood here is masked.
            for (line, keys) in panel[half..].iter_mut().step_by(2).zip(*keys) {
                *line = *keys;
            }
        }
    }
}

/// The right factors of the first `count` values, in whole panels, `[dim / 32, PANELS, 16, 2]`.
pub(super) fn load_values(block: &[Page<'_>; PAGES], count: usize, dim: usize, out: &mut [Line]) {
    let pages = count.div_ceil(PANEL) * 2;
    for (i, (_, values)) in block.iter().enumerate().take(pages) {
        let tokens = count.saturating_sub(i * PAGE_TOKENS).min(PAGE_TOKENS);
        for panel in 0..dim / PANEL {
            let at = (panel * PANELS + i / 2) * STEP_LINES + i % 2 * PAGE_LINES;
            let lines = &mut out[at..at + PAGE_LINES];
            if tokens == PAGE_TOKENS {
                lines.copy_from_slice(&values[panel * PAGE_LINES..][..PAGE_LINES]);
                continue;
            }
            // What a page holds past the last token is from before: it may be no number, and then
            // 0 times it is none either.
            let (written, rest) = lines.split_at_mut(tokens.div_ceil(2) * 2);
            if !written.is_empty() {
                written.copy_from_slice(&values[panel * PAGE_LINES..][..written.len()]);
            }
            rest.fill(Line::default());
            if !tokens.is_multiple_of(2) {
                for line in &mut written[tokens - 1..] {
                    let words: &mut [u32; 16] = bytemuck::cast_mut(line);
                    words.iter_mut().for_each(|word| *word &= 0xffff);
                }
            }
        }
    }
}

/// Writes the keys and values of rows into a page's keys and values of all heads, from its token `first`
/// on.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn write(keys: &mut [Line], values: &mut [Line], first: usize, qkv: View<'_>) {
    let dim = qkv.heads().dim;
    let written = (((1u32 << qkv.len()) - 1) << first) as u16;
    let mut rotated = vec![0.0; PAGE_TOKENS * dim];
    let of_heads = keys.chunks_exact_mut(dim / 2).zip(values.chunks_exact_mut(dim / 2));
    for (head, (keys, values)) in of_heads.enumerate() {
        for (row, key) in rotated.chunks_exact_mut(dim).enumerate().take(qkv.len()) {
            qkv.key(row, head, key);
        }
        for (step, lines) in keys.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
            let mut pairs = [_mm512_setzero_si512(); PAGE_TOKENS];
            let tokens = pairs[first..].iter_mut().zip(rotated.chunks_exact(dim));
            for (pairs, key) in tokens.take(qkv.len()) {
                *pairs = bits(rounded([0, 1].map(|i| vector(key, 2 * step + i))));
            }
            for (line, pairs) in lines.iter_mut().zip(turned(pairs)) {
                *line = line_of(_mm512_mask_mov_epi32(bits(*line), written, pairs));
            }
        }
        for row in 0..qkv.len() {
            let (token, value) = (first + row, qkv.value(row, head));
            for (panel, lines) in values.chunks_exact_mut(PAGE_LINES).enumerate() {
                for (half, line) in lines[token / 2 * 2..][..2].iter_mut().enumerate() {
                    set_half(line, token % 2, vector(value, 2 * panel + half));
                }
            }
        }
    }
}

/// Rows as columns.
#[target_feature(enable = "avx512f")]
#[inline]
fn turned(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // Words of two rows in turns, then pairs of four rows, then quarters of eight and of all.
    let mut words = rows;
    for i in (0..SIDE).step_by(2) {
        words[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        words[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut pairs = words;
    for i in (0..SIDE).step_by(4) {
        for j in 0..2 {
            pairs[i + 2 * j] = _mm512_unpacklo_epi64(words[i + j], words[i + j + 2]);
            pairs[i + 2 * j + 1] = _mm512_unpackhi_epi64(words[i + j], words[i + j + 2]);
        }
    }
    // Row i of four: words i, i + 4, i + 8 and i + 12 of four rows, a quarter each.
    let mut out = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|four| pairs[four + i]);
        let [ab_even, ab_odd] = [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
        ];
        let [cd_even, cd_odd] = [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d),
        ];
        out[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, cd_even);
        out[i + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, cd_even);
        out[i + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, cd_odd);
        out[i + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, cd_odd);
    }
    out
}

/// Sets the lower half (0) of each word, or the upper one (1), to the nearest bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn set_half(line: &mut Line, half: usize, numbers: __m512) {
    let numbers = _mm512_cvtepu16_epi32(nearest(numbers));
    let others = _mm512_set1_epi32(if half == 0 { !0xffff } else { 0xffff });
    let numbers = if half == 0 { numbers } else { _mm512_slli_epi32::<16>(numbers) };
    *line = line_of(_mm512_or_si512(_mm512_and_si512(bits(*line), others), numbers));
}

#[target_feature(enable = "avx512f")]
#[inline]
fn bits(line: Line) -> __m512i {
    // SAFETY: both are 64 bytes of plain bits.
    unsafe { std::mem::transmute::<Line, __m512i>(line) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn line_of(bits: __m512i) -> Line {
    // SAFETY: both are 64 bytes of plain bits.
    unsafe { std::mem::transmute::<__m512i, Line>(bits) }
}
