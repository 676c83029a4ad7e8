//! Causal attention over packed texts on the CPU: an online softmax over blocks of keys, so that
//! no `[heads, n, n]` scores exist, and blocks that no query may see are never computed.

#![allow(unsafe_code)] // Tasks write disjoint columns of the result, which slices cannot express.

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
        let mut covered = 0;
        for span in self.spans {
            let Kv::Pages(pages) = span.kv else {
                candle_core::bail!("keys of another device for attention on the CPU")
            };
            // The tasks' safety rests on this: rows of one span each, inside the result.
            if span.rows.start < covered || span.rows.end > tokens {
                candle_core::bail!("spans that overlap, or reach over {tokens} tokens")
            }
            covered = span.rows.end;
            if pages.room() < span.position + span.rows.len() {
                candle_core::bail!("pages for {} tokens, fewer than are attended", pages.room())
            }
            for start in span.rows.clone().step_by(per_task) {
                let rows = start..span.rows.end.min(start + per_task);
                strips.push((pages, span.layer, rows, span.position + start - span.rows.start));
            }
        }
        let mut out = vec![0f32; tokens * width];
        let start = Output(out.as_mut_ptr());
        let mut tasks = Vec::new();
        for (pages, layer, rows, position) in &strips {
            for head in 0..key_value {
                tasks.push(Task {
                    qkv: &qkv[rows.start * self.heads.qkv()..rows.end * self.heads.qkv()],
                    pages,
                    layer: *layer,
                    head,
                    positions: *position..position + rows.len(),
                    heads: self.heads,
                    // SAFETY: the first element of the rows, which are inside `out`.
                    out: Output(unsafe { start.0.add(rows.start * width) }),
                });
            }
        }
        // The last queries of a text see the most keys: start with them.
        tasks.sort_by_key(|task| std::cmp::Reverse(task.positions.end));
        let arch = Arch::new();
        tasks.into_par_iter().for_each(|task| arch.dispatch(task));
        Ok((CpuStorage::F32(out), Shape::from((tokens, width))))
    }
}

/// The result's rows, of which each task writes its own columns.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: the spans' rows are disjoint, as was checked, and so are the columns of a row's heads.
unsafe impl Send for Output {}

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
    /// Of the first of the rows, `[query * dim]`, the first element.
    out: Output,
}

/// What a task works with for one key head: the queries of every row that share it, row by row.
struct Scratch {
    group: usize,
    dim: usize,
    /// `[rows * group, dim]`, scaled.
    queries: Vec<f32>,
    /// `[rows * group, dim]`: the sum of values so far, for the maximum so far.
    sums: Vec<f32>,
    /// `[rows * group]`: largest score, and the sum of exponentials below it.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

/// Consecutive keys and values of one head, where they lie.
struct Block<'p> {
    /// The first key's place in its text.
    start: usize,
    /// How many there are, at most [`KEYS`].
    count: usize,
    /// Of each page, keys `[dim, PAGE_TOKENS]` and values `[PAGE_TOKENS, dim]`.
    keys: [&'p [f32]; KEYS / PAGE_TOKENS],
    values: [&'p [f32]; KEYS / PAGE_TOKENS],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Heads { query, key_value, dim } = self.heads;
        let group = query / key_value;
        let queries = self.positions.len() * group;
        let mut scratch = Scratch {
            group,
            dim,
            queries: vec![0.0; queries * dim],
            sums: vec![0.0; queries * dim],
            maxima: vec![f32::NEG_INFINITY; queries],
            totals: vec![0.0; queries],
        };
        self.load_queries(&mut scratch);
        let mut pages = self.pages.head(self.layer, self.head);
        for start in (0..self.positions.end).step_by(KEYS) {
            let mut block = Block {
                start,
                count: KEYS.min(self.positions.end - start),
                keys: [&[]; KEYS / PAGE_TOKENS],
                values: [&[]; KEYS / PAGE_TOKENS],
            };
            for i in 0..KEYS / PAGE_TOKENS {
                // Past the last page another stands in: its scores are masked.
                let page = if i * PAGE_TOKENS < block.count { pages.next() } else { None };
                let page = page.unwrap_or((block.keys[0], block.values[0]));
                (block.keys[i], block.values[i]) = page;
            }
            let first = self.positions.start.max(start) - self.positions.start;
            let mut at = first * group;
            while at + TILE <= queries {
                attend_block::<S, TILE>(simd, &mut scratch, at, self.positions.start, &block);
                at += TILE;
            }
            while at < queries {
                attend_block::<S, 1>(simd, &mut scratch, at, self.positions.start, &block);
                at += 1;
            }
        }
        let sums = scratch.sums.chunks_exact(dim).zip(&scratch.totals);
        for (at, (sums, total)) in sums.enumerate() {
            let (row, member) = (at / group, at % group);
            let column = (self.head * group + member) * dim;
            // SAFETY: `dim` columns of one of this task's rows, which nobody else has.
            let out = unsafe {
                std::slice::from_raw_parts_mut(self.out.0.add(row * query * dim + column), dim)
            };
            for (out, sum) in out.iter_mut().zip(sums) {
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

/// Adds one block of keys to `ROWS` queries from index `at`.
#[inline(always)]
fn attend_block<S: Simd, const ROWS: usize>(
    simd: S,
    scratch: &mut Scratch,
    at: usize,
    first_row: usize,
    block: &Block<'_>,
) {
    let Scratch { group, dim, .. } = *scratch;
    let mut scores = [[0f32; KEYS]; ROWS];
    let queries: [&[f32]; ROWS] =
        std::array::from_fn(|r| &scratch.queries[(at + r) * dim..][..dim]);
    for keys in (0..KEYS).step_by(2 * S::F32_LANES) {
        if keys >= block.count {
            break;
        }
        let product = query_keys(simd, queries, block, keys);
        for (row, [low, high]) in scores.iter_mut().zip(product) {
            store(simd, &mut row[keys..], low, high);
        }
    }
    for (r, row) in scores.iter_mut().enumerate() {
        let position = first_row + (at + r) / group;
        let seen = (position + 1).saturating_sub(block.start).min(KEYS);
        row[seen..].fill(f32::NEG_INFINITY);
        let maximum = max(row).max(scratch.maxima[at + r]);
        let shrink = math::exp(scratch.maxima[at + r] - maximum);
        for score in row.iter_mut() {
            *score = math::exp(*score - maximum);
        }
        scratch.maxima[at + r] = maximum;
        scratch.totals[at + r] = scratch.totals[at + r] * shrink + sum(row);
        for value in &mut scratch.sums[(at + r) * dim..][..dim] {
            *value *= shrink;
        }
    }
    for strip in (0..dim).step_by(2 * S::F32_LANES) {
        let product = weigh_values(simd, &scores, block, dim, strip);
        let width = (dim - strip).min(2 * S::F32_LANES);
        for (r, [low, high]) in product.into_iter().enumerate() {
            let target = &mut scratch.sums[(at + r) * dim + strip..][..width];
            let (old_low, old_high) = load(simd, target);
            let (low, high) = (simd.add_f32s(old_low, low), simd.add_f32s(old_high, high));
            store(simd, target, low, high);
        }
    }
}

/// `ROWS` queries times the keys `first..first + 2 lanes` of a block.
#[inline(always)]
fn query_keys<S: Simd, const ROWS: usize>(
    simd: S,
    queries: [&[f32]; ROWS],
    block: &Block<'_>,
    first: usize,
) -> [[S::f32s; 2]; ROWS] {
    const { assert!(PAGE_TOKENS.is_multiple_of(S::F32_LANES)) };
    // Each vector of keys lies in one page.
    let [low, high] = [first, first + S::F32_LANES].map(|key| {
        let lines = block.keys[key / PAGE_TOKENS].as_chunks::<PAGE_TOKENS>().0;
        (lines, key % PAGE_TOKENS)
    });
    let dim = queries[0].len();
    let queries = queries.map(|row| &row[..dim]);
    let (low_lines, high_lines) = (&low.0[..dim], &high.0[..dim]);
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for d in 0..dim {
        let low = S::as_simd_f32s(&low_lines[d][low.1..]).0[0];
        let high = S::as_simd_f32s(&high_lines[d][high.1..]).0[0];
        for (sums, row) in sums.iter_mut().zip(queries) {
            let x = simd.splat_f32s(row[d]);
            sums[0] = simd.mul_add_e_f32s(x, low, sums[0]);
            sums[1] = simd.mul_add_e_f32s(x, high, sums[1]);
        }
    }
    sums
}

/// `ROWS` rows of weights times the columns `strip..strip + 2 lanes` of a block's values.
#[inline(always)]
fn weigh_values<S: Simd, const ROWS: usize>(
    simd: S,
    weights: &[[f32; KEYS]; ROWS],
    block: &Block<'_>,
    dim: usize,
    strip: usize,
) -> [[S::f32s; 2]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    let width = (dim - strip).min(2 * S::F32_LANES);
    for (page, values) in block.values.iter().enumerate() {
        let first = page * PAGE_TOKENS;
        // What a page holds past the last key is from before.
        let count = block.count.saturating_sub(first).min(PAGE_TOKENS);
        for (value, key) in values.chunks_exact(dim).zip(first..first + count) {
            let (low, high) = load(simd, &value[strip..][..width]);
            for (sums, row) in sums.iter_mut().zip(weights) {
                let x = simd.splat_f32s(row[key]);
                sums[0] = simd.mul_add_e_f32s(x, low, sums[0]);
                sums[1] = simd.mul_add_e_f32s(x, high, sums[1]);
            }
        }
    }
    sums
}

/// Up to two vectors; zeros past the end.
#[inline(always)]
fn load<S: Simd>(simd: S, slice: &[f32]) -> (S::f32s, S::f32s) {
    if slice.len() == 2 * S::F32_LANES {
        let (vectors, _) = S::as_simd_f32s(slice);
        (vectors[0], vectors[1])
    } else {
        let (low, high) = slice.split_at(slice.len().min(S::F32_LANES));
        (simd.partial_load_f32s(low), simd.partial_load_f32s(high))
    }
}

#[inline(always)]
fn store<S: Simd>(simd: S, slice: &mut [f32], low: S::f32s, high: S::f32s) {
    if slice.len() >= 2 * S::F32_LANES {
        let (vectors, _) = S::as_mut_simd_f32s(slice);
        (vectors[0], vectors[1]) = (low, high);
    } else {
        let (first, second) = slice.split_at_mut(slice.len().min(S::F32_LANES));
        simd.partial_store_f32s(first, low);
        simd.partial_store_f32s(second, high);
    }
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
