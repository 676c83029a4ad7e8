//! Attention in f32: the online softmax, and its products in vectors of whatever width the CPU has.

use pulp::{Simd, WithSimd};

use super::super::kv::PAGE_TOKENS;
use super::super::math::{self, LANES};
use super::Task;

/// Keys in a block. Blocks start at multiples of it, counted from the text's first token, so that
/// a query's result does not depend on how the queries were shared out.
pub(super) const KEYS: usize = 64;
/// Queries that share a block's loads.
pub(super) const TILE: usize = 4;
/// The most that any [`Products`] take.
pub(super) const MOST_ROWS: usize = 6;

const _: () = assert!(KEYS.is_multiple_of(PAGE_TOKENS));

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
pub(super) struct Block<'p> {
    /// The first key's place in its text.
    start: usize,
    /// How many there are, at most [`KEYS`].
    pub(super) count: usize,
    /// Of each page, keys `[dim, PAGE_TOKENS]` and values `[PAGE_TOKENS, dim]`.
    pub(super) keys: [&'p [f32]; KEYS / PAGE_TOKENS],
    pub(super) values: [&'p [f32]; KEYS / PAGE_TOKENS],
}

/// The two products of attention.
pub(super) trait Products: Copy {
    /// Queries that share a block's loads where there are as many.
    const TILE: usize;

    /// Queries times the keys of a block; what stands past its last key is for the caller to mask.
    fn scores<const ROWS: usize>(
        self,
        queries: [&[f32]; ROWS],
        block: &Block<'_>,
        scores: &mut [[f32; KEYS]; ROWS],
    );

    /// Adds weights times the values of a block to `sums`, `[ROWS, dim]`.
    fn weigh<const ROWS: usize>(
        self,
        weights: &[[f32; KEYS]; ROWS],
        block: &Block<'_>,
        dim: usize,
        sums: &mut [f32],
    );
}

/// Computes a task's result.
#[inline(always)]
pub(super) fn attend<P: Products>(products: P, mut task: Task<'_>) {
    let (dim, group, queries) = (task.heads().dim, task.group(), task.queries());
    let mut scratch = Scratch {
        group,
        dim,
        queries: vec![0.0; queries * dim],
        sums: vec![0.0; queries * dim],
        maxima: vec![f32::NEG_INFINITY; queries],
        totals: vec![0.0; queries],
    };
    let scale = task.scale();
    for (at, target) in scratch.queries.chunks_exact_mut(dim).enumerate() {
        task.query(at, target);
        target.iter_mut().for_each(|x| *x *= scale);
    }
    let mut pages = task.pages.head(task.layer, task.head);
    for start in (0..task.positions.end).step_by(KEYS) {
        let mut block = Block {
            start,
            count: KEYS.min(task.positions.end - start),
            keys: [&[]; KEYS / PAGE_TOKENS],
            values: [&[]; KEYS / PAGE_TOKENS],
        };
        for i in 0..KEYS / PAGE_TOKENS {
            // Past the last page another stands in: its scores are masked.
            let page = if i * PAGE_TOKENS < block.count { pages.next() } else { None };
            let page = page
                .map(|(keys, values)| (bytemuck::cast_slice(keys), bytemuck::cast_slice(values)));
            (block.keys[i], block.values[i]) = page.unwrap_or((block.keys[0], block.values[0]));
        }
        let first = task.positions.start.max(start) - task.positions.start;
        let mut at = first * group;
        let first_row = task.positions.start;
        while at < queries {
            at += match (queries - at).min(P::TILE) {
                MOST_ROWS => {
                    attend_block::<P, MOST_ROWS>(products, &mut scratch, at, first_row, &block)
                }
                4 | 5 => attend_block::<P, 4>(products, &mut scratch, at, first_row, &block),
                2 | 3 => attend_block::<P, 2>(products, &mut scratch, at, first_row, &block),
                _ => attend_block::<P, 1>(products, &mut scratch, at, first_row, &block),
            };
        }
    }
    for (at, (sums, total)) in scratch.sums.chunks_exact_mut(dim).zip(&scratch.totals).enumerate() {
        sums.iter_mut().for_each(|sum| *sum /= total);
        task.put(at, sums);
    }
}

/// Adds one block of keys to `ROWS` queries from index `at`, and tells how many those are.
#[inline(always)]
fn attend_block<P: Products, const ROWS: usize>(
    products: P,
    scratch: &mut Scratch,
    at: usize,
    first_row: usize,
    block: &Block<'_>,
) -> usize {
    let Scratch { group, dim, .. } = *scratch;
    let mut scores = [[0f32; KEYS]; ROWS];
    let queries = std::array::from_fn(|r| &scratch.queries[(at + r) * dim..][..dim]);
    products.scores(queries, block, &mut scores);
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
        if shrink != 1.0 {
            for value in &mut scratch.sums[(at + r) * dim..][..dim] {
                *value *= shrink;
            }
        }
    }
    products.weigh(&scores, block, dim, &mut scratch.sums[at * dim..][..ROWS * dim]);
    ROWS
}

/// Vectors of whatever width the CPU has.
#[derive(Clone, Copy)]
struct Vectors<S>(S);

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        attend(Vectors(simd), self);
    }
}

impl<S: Simd> Products for Vectors<S> {
    const TILE: usize = TILE;

    #[inline(always)]
    fn scores<const ROWS: usize>(
        self,
        queries: [&[f32]; ROWS],
        block: &Block<'_>,
        scores: &mut [[f32; KEYS]; ROWS],
    ) {
        for keys in (0..block.count).step_by(2 * S::F32_LANES) {
            let product = query_keys(self.0, queries, block, keys);
            for (row, [low, high]) in scores.iter_mut().zip(product) {
                store(self.0, &mut row[keys..], low, high);
            }
        }
    }

    #[inline(always)]
    fn weigh<const ROWS: usize>(
        self,
        weights: &[[f32; KEYS]; ROWS],
        block: &Block<'_>,
        dim: usize,
        sums: &mut [f32],
    ) {
        let simd = self.0;
        for strip in (0..dim).step_by(2 * S::F32_LANES) {
            let product = weigh_values(simd, weights, block, dim, strip);
            let width = (dim - strip).min(2 * S::F32_LANES);
            for (r, [low, high]) in product.into_iter().enumerate() {
                let target = &mut sums[r * dim + strip..][..width];
                let (old_low, old_high) = load(simd, target);
                let (low, high) = (simd.add_f32s(old_low, low), simd.add_f32s(old_high, high));
                store(simd, target, low, high);
            }
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
    lanes(row, f32::NEG_INFINITY, |most, x| if x > most { x } else { most })
}

#[inline(always)]
fn sum(row: &[f32; KEYS]) -> f32 {
    lanes(row, 0.0, |sum, x| sum + x)
}

#[inline(always)]
fn lanes(row: &[f32; KEYS], first: f32, operation: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [first; LANES];
    for chunk in row.as_chunks().0 {
        for (lane, x) in lanes.iter_mut().zip::<&[f32; LANES]>(chunk) {
            *lane = operation(*lane, *x);
        }
    }
    math::join(lanes, operation)
}
