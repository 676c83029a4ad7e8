//! The products of attention in f32 vectors of 512 bits: more queries to a load than the vectors of
//! any width have, with the same bits.

use std::arch::x86_64::*;

use super::Task;
use super::simd::{self, Block, KEYS, Products};
use crate::kernels::kv::PAGE_TOKENS;

/// Numbers in a vector, which are a page's keys.
const LANES: usize = PAGE_TOKENS;
/// Vectors of keys, or of a value's elements, that a tile takes.
const VECTORS: usize = KEYS / LANES;

const _: () = assert!(LANES == 16 && VECTORS == 4);

/// Whether the CPU has the instructions, and heads of `dim` are whole vectors.
pub(super) fn available(dim: usize) -> bool {
    dim.is_multiple_of(LANES) && is_x86_feature_detected!("avx512f")
}

/// # Safety
/// The heads are [`available`].
#[target_feature(enable = "avx512f")]
pub(super) fn attend(task: Task<'_>) {
    simd::attend(Wide(()), task);
}

/// Exists in [`attend`] alone, so that the CPU has the instructions.
#[derive(Clone, Copy)]
struct Wide(());

impl Products for Wide {
    const TILE: usize = simd::MOST_ROWS;

    #[inline(always)]
    fn scores<const ROWS: usize>(
        self,
        queries: [&[f32]; ROWS],
        block: &Block<'_>,
        scores: &mut [[f32; KEYS]; ROWS],
    ) {
        // SAFETY: the CPU has the instructions, by `Wide`.
        unsafe {
            match block.count.div_ceil(LANES) {
                1 => query_keys::<ROWS, 1>(queries, block, scores),
                2 => query_keys::<ROWS, 2>(queries, block, scores),
                _ => query_keys::<ROWS, VECTORS>(queries, block, scores),
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
        let mut column = 0;
        while column < dim {
            // SAFETY: the CPU has the instructions, by `Wide`.
            column += LANES
                * unsafe {
                    match (dim - column) / LANES {
                        1 => weigh_values::<ROWS, 1>(weights, block, dim, column, sums),
                        2 | 3 => weigh_values::<ROWS, 2>(weights, block, dim, column, sums),
                        _ => weigh_values::<ROWS, VECTORS>(weights, block, dim, column, sums),
                    }
                };
        }
    }
}

/// `ROWS` queries times the first `V` vectors of a block's keys.
#[target_feature(enable = "avx512f")]
fn query_keys<const ROWS: usize, const V: usize>(
    queries: [&[f32]; ROWS],
    block: &Block<'_>,
    scores: &mut [[f32; KEYS]; ROWS],
) {
    let dim = queries[0].len();
    let queries = queries.map(|query| &query[..dim]);
    let keys: [&[[f32; LANES]]; V] = std::array::from_fn(|v| &block.keys[v].as_chunks().0[..dim]);
    let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
    for d in 0..dim {
        let mut lines = [_mm512_setzero_ps(); V];
        for (line, keys) in lines.iter_mut().zip(&keys) {
            // SAFETY: the reference is to as many numbers.
            *line = unsafe { _mm512_loadu_ps(keys[d].as_ptr()) };
        }
        for (sums, query) in sums.iter_mut().zip(&queries) {
            let x = _mm512_set1_ps(query[d]);
            for (sum, line) in sums.iter_mut().zip(&lines) {
                *sum = _mm512_fmadd_ps(x, *line, *sum);
            }
        }
    }
    for (scores, sums) in scores.iter_mut().zip(&sums) {
        for (scores, sum) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            // SAFETY: the reference is to as many numbers.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), *sum) };
        }
    }
}

/// Adds `ROWS` rows of weights times `V` vectors of a block's values, from `column` on, to `sums`, and
/// tells how many vectors those are.
#[target_feature(enable = "avx512f")]
fn weigh_values<const ROWS: usize, const V: usize>(
    weights: &[[f32; KEYS]; ROWS],
    block: &Block<'_>,
    dim: usize,
    column: usize,
    sums: &mut [f32],
) -> usize {
    assert!(column + V * LANES <= dim && sums.len() == ROWS * dim);
    let mut products = [[_mm512_setzero_ps(); V]; ROWS];
    for (page, values) in block.values.iter().enumerate() {
        let first = page * PAGE_TOKENS;
        // What a page holds past the last key is from before.
        let count = block.count.saturating_sub(first).min(PAGE_TOKENS);
        for (value, key) in values.chunks_exact(dim).zip(first..first + count) {
            let mut lines = [_mm512_setzero_ps(); V];
            for (v, line) in lines.iter_mut().enumerate() {
                // SAFETY: a value has `dim` elements, and these are among them, as was checked.
                *line = unsafe { _mm512_loadu_ps(value.as_ptr().add(column + v * LANES)) };
            }
            for (products, weights) in products.iter_mut().zip(weights) {
                let x = _mm512_set1_ps(weights[key]);
                for (product, line) in products.iter_mut().zip(&lines) {
                    *product = _mm512_fmadd_ps(x, *line, *product);
                }
            }
        }
    }
    for (sums, products) in sums.chunks_exact_mut(dim).zip(&products) {
        for (v, product) in products.iter().enumerate() {
            // SAFETY: as above, of a row of sums.
            unsafe {
                let at = sums.as_mut_ptr().add(column + v * LANES);
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), *product));
            }
        }
    }
    V
}
