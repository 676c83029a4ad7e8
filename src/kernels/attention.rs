//! Causal attention over packed texts on the CPU: an online softmax over blocks of keys, so that
//! no `[heads, n, n]` scores exist, and blocks that no query may see are never computed.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::kv::{Kv, PAGE_TOKENS, Pages};
use super::{Heads, Span, math, values};

/// Keys in a block. Blocks start at multiples of it, counted from the text's first token, so that
/// a query's result does not depend on how the queries were shared out.
const KEYS: usize = 64;
/// Query rows a task takes at the most.
const MAX_ROWS_PER_TASK: usize = 32;
/// Query rows that share a block's loads.
const TILE: usize = 4;

const _: () = assert!(KEYS.is_multiple_of(PAGE_TOKENS));

/// See [`super::attention`].
pub(super) struct Attention<'a> {
    pub(super) spans: &'a [Span<'a>],
    pub(super) heads: Heads,
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = values(qkv, layout)?;
        let (tokens, _) = layout.shape().dims2()?;
        let Heads { query, key_value, dim } = self.heads;
        let width = query * dim;
        let per_task = (tokens * key_value).div_ceil(4 * rayon::current_num_threads());
        let per_task = per_task.clamp(TILE, MAX_ROWS_PER_TASK);
        let mut strips = Vec::new();
        for span in self.spans {
            let Kv::Pages(pages) = span.kv else {
                candle_core::bail!("keys of another device for attention on the CPU")
            };
            for start in span.rows.clone().step_by(per_task) {
                let rows = start..span.rows.end.min(start + per_task);
                strips.push((pages, span.layer, rows, span.position + start - span.rows.start));
            }
        }
        // By strip and key head, so that each task writes a slice of its own.
        let mut by_head = vec![0f32; tokens * width];
        let mut tasks = Vec::new();
        let mut rest = by_head.as_mut_slice();
        for (pages, layer, rows, position) in &strips {
            for head in 0..key_value {
                let (out, others) = rest.split_at_mut(rows.len() * width / key_value);
                rest = others;
                tasks.push(Task {
                    qkv: &qkv[rows.start * self.heads.qkv()..rows.end * self.heads.qkv()],
                    pages,
                    layer: *layer,
                    head,
                    positions: *position..position + rows.len(),
                    heads: self.heads,
                    out,
                });
            }
        }
        // The last queries of a text see the most keys: start with them.
        tasks.sort_by_key(|task| std::cmp::Reverse(task.positions.end));
        let arch = Arch::new();
        tasks.into_par_iter().for_each(|task| arch.dispatch(task));

        let mut out = vec![0f32; tokens * width];
        let mut from = by_head.as_slice();
        for (_, _, rows, _) in strips {
            let (strip, others) = from.split_at(rows.len() * width);
            from = others;
            let group = width / key_value;
            for (head, part) in strip.chunks_exact(rows.len() * group).enumerate() {
                for (row, part) in rows.clone().zip(part.chunks_exact(group)) {
                    out[row * width + head * group..][..group].copy_from_slice(part);
                }
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((tokens, width))))
    }
}

/// The attention of some query rows of one text, for one key head.
struct Task<'a> {
    /// The rows' queries, keys and values.
    qkv: &'a [f32],
    pages: &'a Pages,
    layer: usize,
    head: usize,
    /// Where in their text the rows stand.
    positions: Range<usize>,
    heads: Heads,
    /// `[rows, group * dim]`
    out: &'a mut [f32],
}

/// What a task works with for one key head: the queries of every row that share it, row by row.
struct Scratch {
    group: usize,
    dim: usize,
    /// `dim` rounded up to whole strips.
    padded: usize,
    /// `[rows * group, dim]`, scaled.
    queries: Vec<f32>,
    /// `[dim, KEYS]`
    keys: Vec<f32>,
    /// `[KEYS, padded]`
    values: Vec<f32>,
    /// `[rows * group, padded]`: the sum of values so far, for the maximum so far.
    sums: Vec<f32>,
    /// `[rows * group]`: largest score, and the sum of exponentials below it.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Heads { query, key_value, dim } = self.heads;
        let group = query / key_value;
        let padded = dim.next_multiple_of(2 * S::F32_LANES);
        let queries = self.positions.len() * group;
        let mut scratch = Scratch {
            group,
            dim,
            padded,
            queries: vec![0.0; queries * dim],
            keys: vec![0.0; dim * KEYS],
            values: vec![0.0; KEYS * padded],
            sums: vec![0.0; queries * padded],
            maxima: vec![f32::NEG_INFINITY; queries],
            totals: vec![0.0; queries],
        };
        self.load_queries(&mut scratch);
        let mut pages = self.pages.head(self.layer, self.head);
        for start in (0..self.positions.end).step_by(KEYS) {
            let count = KEYS.min(self.positions.end - start);
            load_block(&mut scratch, &mut pages, count);
            let first = self.positions.start.max(start) - self.positions.start;
            let mut at = first * group;
            while at + TILE <= queries {
                attend_block::<S, TILE>(simd, &mut scratch, at, self.positions.start, start);
                at += TILE;
            }
            while at < queries {
                attend_block::<S, 1>(simd, &mut scratch, at, self.positions.start, start);
                at += 1;
            }
        }
        for (at, out) in self.out.chunks_exact_mut(dim).enumerate() {
            let total = scratch.totals[at];
            for (out, sum) in out.iter_mut().zip(&scratch.sums[at * padded..][..dim]) {
                *out = sum / total;
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn load_queries(&self, scratch: &mut Scratch) {
        let Scratch { group, dim, .. } = *scratch;
        let scale = 1.0 / (dim as f32).sqrt();
        let targets = scratch.queries.chunks_exact_mut(group * dim);
        for (row, target) in self.qkv.chunks_exact(self.heads.qkv()).zip(targets) {
            let source = &row[self.head * group * dim..][..group * dim];
            for (target, source) in target.iter_mut().zip(source) {
                *target = source * scale;
            }
        }
    }
}

/// Takes the next block's pages. Past `count` its keys and values are zero, whatever a page holds
/// there from before.
#[inline(always)]
fn load_block<'p>(
    scratch: &mut Scratch,
    pages: &mut impl Iterator<Item = (&'p [f32], &'p [f32])>,
    count: usize,
) {
    let Scratch { dim, padded, .. } = *scratch;
    for first in (0..KEYS).step_by(PAGE_TOKENS) {
        let present = count.saturating_sub(first).min(PAGE_TOKENS);
        let page = if present > 0 { pages.next() } else { None };
        if let Some((keys, values)) = page {
            let lines = scratch.keys.chunks_exact_mut(KEYS);
            for (line, key) in lines.zip(keys.chunks_exact(PAGE_TOKENS)) {
                line[first..first + PAGE_TOKENS].copy_from_slice(key);
            }
            let rows = scratch.values[first * padded..].chunks_exact_mut(padded);
            for (row, value) in rows.zip(values.chunks_exact(dim)) {
                row[..dim].copy_from_slice(value);
            }
        }
        if present < PAGE_TOKENS {
            for line in scratch.keys.chunks_exact_mut(KEYS) {
                line[first + present..first + PAGE_TOKENS].fill(0.0);
            }
            scratch.values[(first + present) * padded..(first + PAGE_TOKENS) * padded].fill(0.0);
        }
    }
}

/// Adds one block of keys, the first of which is `start`, to `ROWS` queries from index `at`.
#[inline(always)]
fn attend_block<S: Simd, const ROWS: usize>(
    simd: S,
    scratch: &mut Scratch,
    at: usize,
    first_row: usize,
    start: usize,
) {
    let Scratch { group, dim, padded, .. } = *scratch;
    let mut scores = [[0f32; KEYS]; ROWS];
    let queries: [&[f32]; ROWS] =
        std::array::from_fn(|r| &scratch.queries[(at + r) * dim..][..dim]);
    for strip in (0..KEYS).step_by(2 * S::F32_LANES) {
        let product = multiply(simd, queries, &scratch.keys, KEYS, strip);
        for (row, [low, high]) in scores.iter_mut().zip(product) {
            store(simd, &mut row[strip..], low, high);
        }
    }
    for (r, row) in scores.iter_mut().enumerate() {
        let position = first_row + (at + r) / group;
        let seen = (position + 1).saturating_sub(start).min(KEYS);
        row[seen..].fill(f32::NEG_INFINITY);
        let maximum = max(row).max(scratch.maxima[at + r]);
        let shrink = math::exp(scratch.maxima[at + r] - maximum);
        for score in row.iter_mut() {
            *score = math::exp(*score - maximum);
        }
        scratch.maxima[at + r] = maximum;
        scratch.totals[at + r] = scratch.totals[at + r] * shrink + sum(row);
        for value in &mut scratch.sums[(at + r) * padded..][..padded] {
            *value *= shrink;
        }
    }
    let weights: [&[f32]; ROWS] = std::array::from_fn(|r| scores[r].as_slice());
    for strip in (0..padded).step_by(2 * S::F32_LANES) {
        let product = multiply(simd, weights, &scratch.values, padded, strip);
        for (r, [low, high]) in product.into_iter().enumerate() {
            let target = &mut scratch.sums[(at + r) * padded + strip..];
            let (old_low, old_high) = load(simd, target);
            let (low, high) = (simd.add_f32s(old_low, low), simd.add_f32s(old_high, high));
            store(simd, target, low, high);
        }
    }
}

/// `ROWS` rows times the columns `strip..strip + 2 lanes` of a matrix of `width` columns.
#[inline(always)]
fn multiply<S: Simd, const ROWS: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    matrix: &[f32],
    width: usize,
    strip: usize,
) -> [[S::f32s; 2]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    let length = rows[0].len();
    let rows = rows.map(|row| &row[..length]);
    for (k, line) in matrix.chunks_exact(width).take(length).enumerate() {
        let (low, high) = load(simd, &line[strip..]);
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = simd.splat_f32s(row[k]);
            sums[0] = simd.mul_add_e_f32s(x, low, sums[0]);
            sums[1] = simd.mul_add_e_f32s(x, high, sums[1]);
        }
    }
    sums
}

#[inline(always)]
fn load<S: Simd>(_: S, slice: &[f32]) -> (S::f32s, S::f32s) {
    let (vectors, _) = S::as_simd_f32s(&slice[..2 * S::F32_LANES]);
    (vectors[0], vectors[1])
}

#[inline(always)]
fn store<S: Simd>(_: S, slice: &mut [f32], low: S::f32s, high: S::f32s) {
    let (vectors, _) = S::as_mut_simd_f32s(&mut slice[..2 * S::F32_LANES]);
    vectors[0] = low;
    vectors[1] = high;
}

#[inline(always)]
fn max(row: &[f32; KEYS]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in row.as_chunks::<16>().0 {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn sum(row: &[f32; KEYS]) -> f32 {
    let mut lanes = [0f32; 16];
    for chunk in row.as_chunks::<16>().0 {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    lanes.iter().sum()
}
