//! Attention in tiles of bf16, to which queries, keys, weights and values are rounded; sums in f32.
//!
//! Pages keep keys and values as that bf16; see [`super::tile_pages`].
//!
//! On AMX, f32 split into parts would take six products, and making the parts more time than that:
//! vectors of f32 are as fast.
#![allow(unsafe_code)] // Products of tiles take raw pointers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Task;
use super::tile_pages::{Page, load_keys, load_values};
use crate::error::Result;
use crate::kernels::Arena;
use crate::kernels::kv::PAGE_TOKENS;
use crate::kernels::packed::{LINE_FLOATS, Line};
use crate::kernels::tiles::{
    Multiplier, PANEL, Product, SIDE, STEP_LINES, Sums, TILE_K, Unit, rounded,
};

/// Keys in a block. Blocks start at multiples of it, counted from the text's first token.
const KEYS: usize = 128;
/// Panels of keys in a block.
pub(super) const PANELS: usize = KEYS / PANEL;
/// Queries that share the loads of keys: a pair of strips.
pub(super) const QUERIES: usize = 2 * SIDE;

/// Pages of a block.
pub(super) const PAGES: usize = KEYS / PAGE_TOKENS;

/// By how much, as an exponent of 2, scores may exceed what weights are relative to: most blocks have a
/// score that is larger than all before by little, and leave the sums alone.
const HEADROOM: f32 = 8.0;

// A line of a page is a vector, two pages are a panel, and a panel is a step along the keys.
const _: () = assert!(PAGE_TOKENS == LINE_FLOATS && PANEL == 2 * PAGE_TOKENS && PANEL == TILE_K);

/// What multiplies tiles here, where heads of `dim` are whole ones.
pub(super) fn unit(dim: usize) -> Option<Unit> {
    Unit::best().filter(|_| dim.is_multiple_of(PANEL))
}

/// What a task works with.
struct Scratch<'a> {
    dim: usize,
    /// Left factors, `[queries / 16, dim / 32, 16]`: queries, scaled so that scores are exponents of 2.
    queries: &'a mut [Line],
    /// Right factors of a block, `[PANELS, dim / 32, 16, 2]`.
    keys: &'a mut [Line],
    /// Right factors of a block, `[dim / 32, PANELS, 16, 2]`.
    values: &'a mut [Line],
    /// Left factors of a pair of strips, `[2, PANELS, 16]`.
    weights: &'a mut [Line],
    /// Of a pair of strips, `[QUERIES, KEYS]`.
    scores: &'a mut [f32],
    /// The sums of values so far, `[queries, dim]`, for the maxima, and the sums of weights: see [`weigh`].
    sums: &'a mut [f32],
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

/// The first elements of what is left, which then is less.
fn take<'a>(rest: &mut &'a mut [f32], length: usize) -> &'a mut [f32] {
    let (taken, left) = std::mem::take(rest).split_at_mut(length);
    *rest = left;
    taken
}

/// # Errors
/// `OutOfMemory`.
///
/// # Safety
/// The unit is one of [`unit`] for these heads.
pub(super) unsafe fn attend(unit: Unit, mut task: Task<'_>, arena: &Arena) -> Result<()> {
    let (dim, queries) = (task.heads().dim, task.queries());
    let rows = queries.next_multiple_of(SIDE);
    // Two bf16 are as large as an f32.
    let [of_queries, of_keys, of_weights] =
        [rows * dim, KEYS * dim, QUERIES * KEYS].map(|numbers| numbers / 2);
    let floats = of_queries + 2 * of_keys + of_weights + QUERIES * KEYS + queries * dim;
    let mut room = arena.lend(floats)?;
    let mut rest = &mut *room;
    let mut scratch = Scratch {
        dim,
        queries: bytemuck::cast_slice_mut(take(&mut rest, of_queries)),
        keys: bytemuck::cast_slice_mut(take(&mut rest, of_keys)),
        values: bytemuck::cast_slice_mut(take(&mut rest, of_keys)),
        weights: bytemuck::cast_slice_mut(take(&mut rest, of_weights)),
        scores: take(&mut rest, QUERIES * KEYS),
        sums: take(&mut rest, queries * dim),
        maxima: vec![f32::NEG_INFINITY; queries],
        totals: vec![0.0; queries],
    };
    // SAFETY: the CPU is the caller's promise.
    let mut multiplier = unsafe { Multiplier::new(unit) };
    // SAFETY: as above.
    unsafe { load_queries(&task, &mut scratch) };
    let mut pages = task.pages.head(task.layer, task.head);
    for start in (0..task.positions.end).step_by(KEYS) {
        let count = KEYS.min(task.positions.end - start);
        let mut block: [Page<'_>; PAGES] = [(&[], &[]); PAGES];
        for place in &mut block[..count.div_ceil(PAGE_TOKENS)] {
            *place = pages.next().unwrap_or_default();
        }
        load_keys(&block, count.div_ceil(PANEL), dim, scratch.keys);
        load_values(&block, count, dim, scratch.values);
        for first in (0..queries).step_by(QUERIES) {
            let height = QUERIES.min(queries - first);
            let seen = (task.position(first + height - 1) + 1).saturating_sub(start).min(count);
            if seen == 0 {
                continue;
            }
            // SAFETY: as above; the block has `seen` keys.
            unsafe { scratch.attend(&mut multiplier, &task, first..first + height, start, seen) };
        }
    }
    for (at, (sums, total)) in scratch.sums.chunks_exact_mut(dim).zip(&scratch.totals).enumerate() {
        // SAFETY: as above.
        unsafe { scale(sums, 1.0 / total) };
        task.put(at, sums);
    }
    Ok(())
}

#[target_feature(enable = "avx512f")]
fn scale(sums: &mut [f32], factor: f32) {
    sums.iter_mut().for_each(|sum| *sum *= factor);
}

/// Vector `index` of some numbers; zeros past their end.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn vector(numbers: &[f32], index: usize) -> __m512 {
    match numbers.as_chunks::<LINE_FLOATS>().0.get(index) {
        // SAFETY: the reference is to as many numbers.
        Some(line) => unsafe { _mm512_loadu_ps(line.as_ptr()) },
        None => _mm512_setzero_ps(),
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn load_queries(task: &Task<'_>, scratch: &mut Scratch<'_>) {
    let scale = _mm512_set1_ps(task.scale() * std::f32::consts::LOG2_E);
    let mut query = vec![0.0; scratch.dim];
    let strips = scratch.queries.chunks_exact_mut(scratch.dim / TILE_K * SIDE);
    for (strip, tiles) in strips.enumerate() {
        for r in 0..SIDE.min(task.queries() - strip * SIDE) {
            task.query(strip * SIDE + r, &mut query);
            for (step, line) in tiles[r..].iter_mut().step_by(SIDE).enumerate() {
                *line = rounded(
                    [2 * step, 2 * step + 1].map(|i| _mm512_mul_ps(vector(&query, i), scale)),
                );
            }
        }
    }
}

impl Scratch<'_> {
    /// Adds the first `seen` keys of a block to some queries, at most [`QUERIES`].
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn attend(
        &mut self,
        multiplier: &mut Multiplier,
        task: &Task<'_>,
        queries: Range<usize>,
        start: usize,
        seen: usize,
    ) {
        let (first, height) = (queries.start, queries.len());
        let dim = self.dim;
        let panels = seen.div_ceil(PANEL);
        let strip_lines = dim / TILE_K * SIDE;
        let upper = self.queries[first / SIDE * strip_lines..].as_ptr();
        for panel in 0..panels {
            let keys = &self.keys[panel * (dim / TILE_K) * STEP_LINES..];
            let product = Product {
                upper,
                lower: upper.wrapping_add(strip_lines),
                panel: keys.as_ptr(),
                panels: 1,
                panel_lines: 0,
                panel_sums: 0,
                ahead: keys.as_ptr(),
                fetch: 2,
                tiles: dim / TILE_K,
                from: Sums::ZERO,
                to: Sums { start: self.scores[panel * PANEL..].as_mut_ptr(), stride: KEYS },
            };
            // SAFETY: the strips that `height` asks for and the panel have these steps, and the
            // scores are `[QUERIES, KEYS]`.
            unsafe { multiplier.run::<1>(&product, height) };
        }
        for row in 0..height {
            let at = first + row;
            let seen = (task.position(at) + 1).saturating_sub(start).min(seen);
            let scores = &mut self.scores[row * KEYS..][..panels * PANEL];
            let strip = &mut self.weights[row / SIDE * PANELS * SIDE..];
            let lines = strip[row % SIDE..].iter_mut().step_by(SIDE);
            let (maximum, total) = (&mut self.maxima[at], &mut self.totals[at]);
            let shrink = weigh(scores, seen, maximum, total, lines);
            if start > 0 && shrink != 1.0 {
                scale(&mut self.sums[at * dim..][..dim], shrink);
            }
        }
        let weights = self.weights.as_ptr();
        for panel in 0..dim / PANEL {
            let values = &self.values[panel * PANELS * STEP_LINES..];
            let start_of_sums = self.sums[first * dim + panel * PANEL..].as_mut_ptr();
            let sums = Sums { start: start_of_sums, stride: dim };
            let product = Product {
                upper: weights,
                lower: weights.wrapping_add(PANELS * SIDE),
                panel: values.as_ptr(),
                panels: 1,
                panel_lines: 0,
                panel_sums: 0,
                ahead: values.as_ptr(),
                fetch: 2,
                tiles: panels,
                from: if start == 0 { Sums::ZERO } else { sums },
                to: sums,
            };
            // SAFETY: as above, with the strips of weights and `height` rows of sums.
            unsafe { multiplier.run::<1>(&product, height) };
        }
    }
}

/// Makes weights of a query's scores, whole panels of which `seen` count: powers of 2 of what they
/// are above `maximum`, the largest score so far or a little less, which go to `lines`. Their sum is added
/// to `total`, after that has shrunk by what is returned, as what was summed before has to.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn weigh<'l>(
    scores: &mut [f32],
    seen: usize,
    maximum: &mut f32,
    total: &mut f32,
    lines: impl Iterator<Item = &'l mut Line>,
) -> f32 {
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for i in 0..scores.len() / LINE_FLOATS {
        largest = _mm512_max_ps(largest, vector(scores, i));
    }
    let largest = _mm512_reduce_max_ps(largest);
    let mut shrink = 1.0;
    if largest > *maximum + HEADROOM {
        shrink = _mm512_cvtss_f32(exp2(_mm512_set1_ps(*maximum - largest)));
        *maximum = largest;
    }
    let above = _mm512_set1_ps(*maximum);
    let mut sums = _mm512_setzero_ps();
    for (panel, line) in scores.as_chunks::<PANEL>().0.iter().zip(lines) {
        let weights = [0, 1].map(|i| exp2(_mm512_sub_ps(vector(panel, i), above)));
        sums = _mm512_add_ps(sums, _mm512_add_ps(weights[0], weights[1]));
        *line = rounded(weights);
    }
    *total = *total * shrink + _mm512_reduce_add_ps(sums);
    shrink
}

/// `2^x` within 3e-7 of it; 0 below -150.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    /// Of `(2^r - 1) / r` for r in [-0.5, 0.5], the highest power first.
    const POLYNOMIAL: [f32; 5] =
        [1.338_130_2e-3, 9.666_368e-3, 5.550_381e-2, 0.240_223_5, std::f32::consts::LN_2];
    // What is not a number stays that: it is the second operand.
    let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
    let whole = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(x);
    let rest = _mm512_sub_ps(x, whole);
    let [first, others @ ..] = POLYNOMIAL;
    let mut power = _mm512_set1_ps(first);
    for coefficient in others {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(coefficient));
    }
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(power, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_2_are_close_to_the_exact_ones() {
        if !is_x86_feature_detected!("avx512f") {
            // SKIPPED: without AVX-512 nothing calls it.
            return;
        }
        let power = |x: f32| {
            // SAFETY: the CPU has AVX-512.
            unsafe { _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))) }
        };
        for i in -9_000..126_000 {
            let x = -i as f32 / 1000.0;
            let exact = f64::from(x).exp2();
            let apart = (f64::from(power(x)) - exact).abs() / exact;
            assert!(apart < 3e-7, "{x}: {apart}");
        }
        assert_eq!(power(0.0), 1.0);
        for x in [-150.1, -1e9, f32::NEG_INFINITY] {
            assert_eq!(power(x), 0.0);
        }
        assert!(power(f32::NAN).is_nan());
    }
}
