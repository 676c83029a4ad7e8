//! What a decoder computes, one function an operation, each for the device that its tensors are
//! on. Fused code runs on the CPU; every other device is served from candle's own operations,
//! which are also what the fused code is tested against.
//!
//! All CPU code runs on the current rayon pool, which is the guard's own, and a row of a result
//! depends on that row's inputs alone: never on the batch, the row's place or the thread count.
//! candle's element-wise operations would not: from 65,536 elements on they run on a pool of its
//! own, one a process, whose threads spin and do not survive a fork.

mod attention;
mod blocks;
mod composed;
mod elementwise;
mod kv;
mod linear;
mod math;
mod packed;

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Tensor};

pub(crate) use blocks::BlockType;
pub(crate) use kv::{Charge, Kv, KvShape, Meter, PAGE_TOKENS, zeros};
pub(crate) use linear::{Linear, LinearLoader, Precision};

/// The heads of an attention block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Columns of a joined query, key and value row.
    pub(crate) fn qkv(self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }
}

/// Weights of the RMSNorm on each query and key head (Qwen3), each `[head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) eps: f64,
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension: `[tokens, n]`, `[n]`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2_no_bwd(weight, &elementwise::RmsNorm { eps: eps as f32 })
    } else {
        composed::rms_norm(x, weight, eps)
    }
}

/// SwiGLU: `[tokens, 2n]`, the gate and then the up projection, to `silu(gate) * up`.
pub(crate) fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    if gate_up.device().is_cpu() {
        gate_up.apply_op1_no_bwd(&elementwise::SiluMul)
    } else {
        composed::silu_mul(gate_up)
    }
}

/// `x + y`, in the place of `x`.
pub(crate) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.inplace_op2(y, &elementwise::Add)?;
        Ok(x)
    } else {
        x + y
    }
}

/// `max(x, 0)`, in its place.
pub(crate) fn relu(x: Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.inplace_op1(&elementwise::Relu)?;
        Ok(x)
    } else {
        x.relu()
    }
}

/// Norms (where the family has them) and rotates the query and key heads of `qkv`,
/// `[tokens, (query + 2 key_value) * dim]`; `cos` and `sin` are `[tokens, dim / 2]`.
pub(crate) fn norm_and_rotate(
    qkv: Tensor,
    cos: &Tensor,
    sin: &Tensor,
    norms: Option<&HeadNorms>,
    heads: Heads,
) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        let norms = norms
            .map(|n| {
                Ok::<_, candle_core::Error>(elementwise::PlainHeadNorms {
                    query: n.query.to_vec1()?,
                    key: n.key.to_vec1()?,
                    eps: n.eps as f32,
                })
            })
            .transpose()?;
        let op = elementwise::NormAndRotate {
            cos: cos.flatten_all()?.to_vec1()?,
            sin: sin.flatten_all()?.to_vec1()?,
            norms,
            heads,
        };
        qkv.inplace_op1(&op)?;
        Ok(qkv)
    } else {
        composed::norm_and_rotate(&qkv, cos, sin, norms, heads)
    }
}

/// Rows of a packed tensor that are consecutive tokens of one text.
pub(crate) struct Span<'a> {
    pub(crate) rows: Range<usize>,
    /// Where in its text the first row stands.
    pub(crate) position: usize,
    /// The text's keys and values, of these rows and of all before them.
    pub(crate) kv: &'a Kv,
    /// At which of the layers that `kv` holds.
    pub(crate) layer: usize,
}

/// Causal attention of the queries in `qkv` over the keys and values of their own texts. Returns
/// `[tokens, query * dim]`; rows outside every span are zero. Spans come in the order of their rows.
pub(crate) fn attention(qkv: &Tensor, spans: &[Span<'_>], heads: Heads) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        qkv.apply_op1_no_bwd(&attention::Attention { spans, heads })
    } else {
        composed::attention(qkv, spans, heads)
    }
}

/// As [`values`], to change in place.
fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else {
        candle_core::bail!("a kernel was given values that are not f32")
    };
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("a kernel was given strided values"))?;
    Ok(&mut values[start..end])
}

/// The contiguous f32 values of a CPU tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("a kernel was given strided values"))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}
