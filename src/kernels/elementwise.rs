//! RMSNorm, SwiGLU, the head norm with rotation, sums and ReLU, on the CPU.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, InplaceOp1, InplaceOp2, Layout, Result, Shape,
};
use pulp::Arch;
use rayon::prelude::*;

use super::{Heads, math, values, values_mut};

/// Rows a task works on: enough to be worth the hand-over, few enough to share out.
const ROWS_PER_TASK: usize = 16;
/// Elements a task works on where rows do not matter.
const ELEMENTS_PER_TASK: usize = 16 << 10;
/// Partial sums of a row, added up in a fixed order.
const LANES: usize = 16;

pub(super) struct RmsNorm {
    pub(super) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_layout)?, values(weight, weight_layout)?);
        let task = ROWS_PER_TASK * weight.len();
        let arch = Arch::new();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            arch.dispatch(
                #[inline(always)]
                || rms_norm_rows(x, weight, self.eps, out),
            );
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

#[inline(always)]
fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = rms_scale(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
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

pub(super) struct SiluMul;

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (tokens, width) = layout.shape().dims2()?;
        let half = width / 2;
        let arch = Arch::new();
        let mut out = vec![0f32; tokens * half];
        out.par_chunks_mut(ROWS_PER_TASK * half).zip(x.par_chunks(ROWS_PER_TASK * width)).for_each(
            |(out, x)| {
                arch.dispatch(
                    #[inline(always)]
                    || silu_mul_rows(x, half, out),
                );
            },
        );
        Ok((CpuStorage::F32(out), Shape::from((tokens, half))))
    }
}

#[inline(always)]
fn silu_mul_rows(x: &[f32], half: usize, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(half)) {
        let (gate, up) = x.split_at(half);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + math::exp(-gate)) * up;
        }
    }
}

pub(super) struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let (x, y) = (values_mut(x, x_layout)?, values(y, y_layout)?);
        if x.len() != y.len() {
            candle_core::bail!("{} values were to be added to {}", y.len(), x.len());
        }
        let arch = Arch::new();
        x.par_chunks_mut(ELEMENTS_PER_TASK).zip(y.par_chunks(ELEMENTS_PER_TASK)).for_each(
            |(x, y)| {
                arch.dispatch(
                    #[inline(always)]
                    || x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
                );
            },
        );
        Ok(())
    }
}

pub(super) struct Relu;

impl InplaceOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        // A value that is not a number stays one, as in torch.
        values_mut(x, layout)?
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .for_each(|x| x.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }));
        Ok(())
    }
}

pub(super) struct PlainHeadNorms {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) eps: f32,
}

/// See [`super::norm_and_rotate`].
pub(super) struct NormAndRotate {
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    pub(super) norms: Option<PlainHeadNorms>,
    pub(super) heads: Heads,
}

impl InplaceOp1 for NormAndRotate {
    fn name(&self) -> &'static str {
        "norm-and-rotate"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let qkv = values_mut(qkv, layout)?;
        let (row, half) = (self.heads.qkv(), self.heads.dim / 2);
        let arch = Arch::new();
        qkv.par_chunks_mut(ROWS_PER_TASK * row)
            .zip(self.cos.par_chunks(ROWS_PER_TASK * half))
            .zip(self.sin.par_chunks(ROWS_PER_TASK * half))
            .for_each(|((qkv, cos), sin)| {
                arch.dispatch(
                    #[inline(always)]
                    || norm_and_rotate_rows(qkv, cos, sin, self.norms.as_ref(), self.heads),
                );
            });
        Ok(())
    }
}

#[inline(always)]
fn norm_and_rotate_rows(
    qkv: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    norms: Option<&PlainHeadNorms>,
    heads: Heads,
) {
    let half = heads.dim / 2;
    let rows = qkv.chunks_exact_mut(heads.qkv());
    for ((row, cos), sin) in rows.zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
        let rotated = (heads.query + heads.key_value) * heads.dim;
        for (i, head) in row[..rotated].chunks_exact_mut(heads.dim).enumerate() {
            if let Some(norms) = norms {
                let weight = if i < heads.query { &norms.query } else { &norms.key };
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
