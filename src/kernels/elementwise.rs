//! RMSNorm, SwiGLU, the head norm with rotation, sums and ReLU, on the CPU.

use rayon::prelude::*;

use super::Heads;
use super::inputs::{Inputs, Sink};
use super::math::{self, Widest};
use crate::error::Result;

/// Elements a task works on where rows do not matter.
const ELEMENTS_PER_TASK: usize = 16 << 10;
/// Partial sums of a row, added up in a fixed order.
const LANES: usize = 16;

/// See [`super::rms_norm`].
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut Inputs) -> Result<()> {
    let widest = Widest::detect();
    out.sinks()?.zip(x.par_chunks(Sink::ROWS * weight.len())).for_each(|(mut out, x)| {
        widest.run(
            #[inline(always)]
            || rms_norm_rows(x, weight, eps, &mut out),
        );
    });
    Ok(())
}

/// See [`super::add_and_norm`].
pub(super) fn add_and_norm(
    x: &mut [f32],
    y: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut Inputs,
) -> Result<()> {
    let task = Sink::ROWS * weight.len();
    let widest = Widest::detect();
    let tasks = out.sinks()?.zip(x.par_chunks_mut(task)).zip(y.par_chunks(task));
    tasks.for_each(|((mut out, x), y)| {
        widest.run(
            #[inline(always)]
            || {
                add_rows(x, y);
                rms_norm_rows(x, weight, eps, &mut out);
            },
        );
    });
    Ok(())
}

#[inline(always)]
fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut Sink<'_>) {
    for (r, x) in x.chunks_exact(weight.len()).enumerate() {
        let scale = rms_scale(x, eps);
        out.write(
            r,
            #[inline(always)]
            |out| {
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            },
        );
    }
}

/// `1 / sqrt(mean(x^2) + eps)`
#[inline(always)]
fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x * x;
    }
    1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + eps).sqrt()
}

/// See [`super::silu_mul`].
pub(super) fn silu_mul(x: &[f32], out: &mut Inputs) -> Result<()> {
    let half = out.width();
    let widest = Widest::detect();
    out.sinks()?.zip(x.par_chunks(Sink::ROWS * 2 * half)).for_each(|(mut out, x)| {
        widest.run(
            #[inline(always)]
            || silu_mul_rows(x, half, &mut out),
        );
    });
    Ok(())
}

#[inline(always)]
fn silu_mul_rows(x: &[f32], half: usize, out: &mut Sink<'_>) {
    for (r, x) in x.chunks_exact(2 * half).enumerate() {
        let (gate, up) = x.split_at(half);
        out.write(
            r,
            #[inline(always)]
            |out| math::swiglu(gate, up, out),
        );
    }
}

/// See [`super::add`].
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    let widest = Widest::detect();
    x.par_chunks_mut(ELEMENTS_PER_TASK).zip(y.par_chunks(ELEMENTS_PER_TASK)).for_each(|(x, y)| {
        widest.run(
            #[inline(always)]
            || add_rows(x, y),
        );
    });
}

#[inline(always)]
fn add_rows(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// See [`super::relu`].
pub(super) fn relu(x: &mut [f32]) {
    // A value that is not a number stays one, as in torch.
    x.par_chunks_mut(ELEMENTS_PER_TASK)
        .for_each(|x| x.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }));
}

/// The norms of query and key heads: their weights, and epsilon.
#[derive(Clone, Copy)]
pub(super) struct PlainHeadNorms<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) eps: f32,
}

/// See [`super::norm_and_rotate`].
pub(super) fn norm_and_rotate(
    qkv: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    norms: Option<PlainHeadNorms<'_>>,
    heads: Heads,
) {
    let (row, half) = (heads.qkv(), heads.dim / 2);
    let widest = Widest::detect();
    qkv.par_chunks_mut(Sink::ROWS * row)
        .zip(cos.par_chunks(Sink::ROWS * half))
        .zip(sin.par_chunks(Sink::ROWS * half))
        .for_each(|((qkv, cos), sin)| {
            widest.run(
                #[inline(always)]
                || norm_and_rotate_rows(qkv, cos, sin, norms, heads),
            );
        });
}

#[inline(always)]
fn norm_and_rotate_rows(
    qkv: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    norms: Option<PlainHeadNorms<'_>>,
    heads: Heads,
) {
    let half = heads.dim / 2;
    let rows = qkv.chunks_exact_mut(heads.qkv());
    for ((row, cos), sin) in rows.zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
        let rotated = (heads.query + heads.key_value) * heads.dim;
        for (i, head) in row[..rotated].chunks_exact_mut(heads.dim).enumerate() {
            if let Some(norms) = norms {
                let weight = if i < heads.query { norms.query } else { norms.key };
                let scale = rms_scale(head, norms.eps);
                for (x, weight) in head.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
