//! RMSNorm, SwiGLU, sums and ReLU, on the CPU.

use rayon::prelude::*;

use super::inputs::{Inputs, Sink};
use super::math::{self, LANES, Widest};
use crate::error::Result;

/// Elements a task works on where rows do not matter.
const ELEMENTS_PER_TASK: usize = 16 << 10;

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
pub(super) fn rms_scale(x: &[f32], eps: f32) -> f32 {
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
    let sum = math::join(sums, |a, b| a + b);
    1.0 / (sum / x.len() as f32 + eps).sqrt()
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
