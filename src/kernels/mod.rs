//! What a decoder computes, one function an operation, each for the device that its rows are on.
//! Fused code runs on the CPU, own kernels on a GPU; any other device is served from candle's own
//! operations, which are also what both are tested against.
//!
//! All CPU code runs on the current rayon pool, which is the guard's own, and a row of a result
//! depends on that row's inputs alone: never on the batch, the row's place or the thread count.
//! candle's element-wise operations would not: from 65,536 elements on they run on a pool of its
//! own, one a process, whose threads spin and do not survive a fork.

mod arena;
mod at_once;
mod attention;
mod backend;
mod blocks;
mod composed;
mod cuda;
mod elementwise;
mod inputs;
mod joined;
mod kv;
mod linear;
mod math;
mod packed;
mod rows;
#[cfg(target_arch = "x86_64")]
mod strips;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::ops::Range;

use candle_core::Tensor;
use cuda::Shape;

use crate::error::{Error, Result};

pub(crate) use arena::Arena;
pub(crate) use at_once::AtOnce;
pub(crate) use backend::Backend;
pub(crate) use blocks::BlockType;
#[cfg(test)]
pub(crate) use cuda::Emulation;
#[cfg(not(feature = "cuda"))]
pub(crate) use cuda::without_cuda;
pub(crate) use cuda::{Columns, Desk, Gpu, Memory, Pages as GpuPages, Read, Reading};
pub(crate) use inputs::{Form, Inputs};
pub(crate) use joined::Joined;
pub(crate) use kv::{Charge, Kv, KvShape, Meter, PAGE_TOKENS, zeros};
pub(crate) use linear::{Linear, LinearLoader, Precision};
pub(crate) use packed::{LAYOUT, Piece, Pieces, kernels as packed_for};
pub(crate) use rows::{Rows, Vector};

/// Where reading the weights from memory takes as long as the products of a hundred rows: how many
/// floating-point operations a thread does in a few dozen milliseconds. None on other CPUs, and where
/// wider chunks gain nothing.
pub(crate) fn chunk_flops_per_thread(precision: Precision) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return if tiles::Unit::Amx.available() {
        Some(20_000_000_000)
    } else {
        // The codes of so many int8 rows would leave the cache.
        (precision != Precision::Int8 && is_x86_feature_detected!("avx512f"))
            .then_some(9_000_000_000)
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = precision;
        None
    }
}

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
    pub(crate) query: Vector,
    pub(crate) key: Vector,
    pub(crate) eps: f64,
}

/// `x / sqrt(mean(x^2) + eps) * weight` over each row: `[tokens, n]`, `[n]`.
pub(crate) fn rms_norm(x: &Rows, weight: &Vector, eps: f64, form: Form) -> Result<Inputs> {
    if let Some(memory) = x.gpu() {
        return norm_on_gpu(memory, None, x.shape(), weight, eps);
    }
    if let Some(x) = x.device() {
        return Ok(Rows::on_device(composed::rms_norm(x, weight.device()?, eps)?)?.into());
    }
    let weight = columns(x, weight)?;
    let mut out = Inputs::lend(x.arena()?, x.rows(), x.width(), form)?;
    elementwise::rms_norm(x.cpu()?, weight, eps as f32, &mut out)?;
    Ok(out)
}

/// Adds `y` to `x`, and then is [`rms_norm`] of `x`.
pub(crate) fn add_and_norm(
    x: &mut Rows,
    y: &Rows,
    weight: &Vector,
    eps: f64,
    form: Form,
) -> Result<Inputs> {
    if x.device().is_some() {
        add(x, y)?;
        return rms_norm(x, weight, eps, form);
    }
    same_shape(x, y)?;
    if let (Some(memory), Some(y)) = (x.gpu(), y.gpu()) {
        return norm_on_gpu(memory, Some(y), x.shape(), weight, eps);
    }
    let weight = columns(x, weight)?;
    let mut out = Inputs::lend(x.arena()?, x.rows(), x.width(), form)?;
    elementwise::add_and_norm(x.cpu_mut()?, y.cpu()?, weight, eps as f32, &mut out)?;
    Ok(out)
}

/// Adds `y`, where there is one, to `x`, and then is [`rms_norm`] of `x`.
fn norm_on_gpu(
    x: &Memory,
    y: Option<&Memory>,
    shape: Shape,
    weight: &Vector,
    eps: f64,
) -> Result<Inputs> {
    let normed = x.gpu().norm(x, y, weight.gpu()?, shape, eps as f32)?;
    Ok(Rows::on_gpu(normed, shape).into())
}

/// SwiGLU: `[tokens, 2n]`, the gate and then the up projection, to `silu(gate) * up`.
pub(crate) fn silu_mul(gate_up: &Rows, form: Form) -> Result<Inputs> {
    if let Some(memory) = gate_up.gpu() {
        let shape = Shape { width: gate_up.width() / 2, ..gate_up.shape() };
        return Ok(Rows::on_gpu(memory.gpu().gate(memory, shape)?, shape).into());
    }
    if let Some(gate_up) = gate_up.device() {
        return Ok(Rows::on_device(composed::silu_mul(gate_up)?)?.into());
    }
    let mut out = Inputs::lend(gate_up.arena()?, gate_up.rows(), gate_up.width() / 2, form)?;
    elementwise::silu_mul(gate_up.cpu()?, &mut out)?;
    Ok(out)
}

/// `x + y`, in the place of `x`.
pub(crate) fn add(x: &mut Rows, y: &Rows) -> Result<()> {
    same_shape(x, y)?;
    if let (Some(a), Some(b)) = (x.gpu(), y.gpu()) {
        return a.gpu().add(a, b, x.shape(), y.rows());
    }
    if let (Some(a), Some(b)) = (x.device(), y.device()) {
        *x = Rows::on_device((a + b)?)?;
    } else {
        elementwise::add(x.cpu_mut()?, y.cpu()?);
    }
    Ok(())
}

/// `max(x, 0)`, in its place.
pub(crate) fn relu(x: &mut Rows) -> Result<()> {
    if let Some(values) = x.device() {
        *x = Rows::on_device(values.relu()?)?;
    } else {
        elementwise::relu(x.cpu_mut()?);
    }
    Ok(())
}

/// What the rows of a chunk are, the same at every layer.
pub(crate) enum Places {
    /// Cosines and sines of their positions, `[rows, dim / 2]` each.
    Rotations(Rows, Rows),
    /// A GPU's: rotations, tokens, and the pages of keys and values.
    Cuda(cuda::Places),
}

/// Rows of a chunk that are consecutive tokens of one text.
pub(crate) struct TextRows<'a> {
    pub(crate) rows: Range<usize>,
    /// Where in its text the first row stands.
    pub(crate) position: usize,
    /// Number of the text in its pass.
    pub(crate) text: usize,
    /// With room for all of them.
    pub(crate) kv: &'a Kv,
}

impl Places {
    /// Of rows of `texts`, which come in the order of their rows, and together are all of them, with
    /// `tokens` below `vocabulary` and cosines and sines `[rows, dim / 2]`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails; `Unsupported` for heads that no kernel serves.
    pub(crate) fn new<'a>(
        backend: &Backend,
        arena: &Arena,
        texts: impl Iterator<Item = TextRows<'a>>,
        (tokens, vocabulary): (&[u32], usize),
        (cos, sin): (Vec<f32>, Vec<f32>),
        heads: Heads,
    ) -> Result<Self> {
        let half = heads.dim / 2;
        match backend {
            Backend::Cpu => Ok(Self::Rotations(
                Rows::copied(arena, &cos, half)?,
                Rows::copied(arena, &sin, half)?,
            )),
            Backend::Cuda(gpu) => {
                let (parts, rotations) = (&parts(texts)?, (&*cos, &*sin));
                let chunk = cuda::Chunk { parts, tokens, vocabulary, rotations, heads };
                Ok(Self::Cuda(cuda::Places::new(gpu, &chunk)?))
            }
            Backend::Candle { device, dtype } => {
                let place = |values: Vec<f32>| -> Result<Rows> {
                    let values = Tensor::from_vec(values, (tokens.len(), half), device)?;
                    Rows::on_device(values.to_dtype(*dtype)?)
                };
                Ok(Self::Rotations(place(cos)?, place(sin)?))
            }
        }
    }
}

/// Of a GPU's texts.
fn parts<'a>(texts: impl Iterator<Item = TextRows<'a>>) -> Result<Vec<cuda::Part<'a>>> {
    let part = |text: TextRows<'a>| {
        let TextRows { rows, position, text: segment, kv: Kv::Cuda(pages) } = text else {
            return Err(Error::internal("keys that lie elsewhere for a GPU's rows"));
        };
        Ok(cuda::Part { rows, position, segment, pages })
    };
    texts.map(part).collect()
}

/// Rows of an embedding table that lies on a GPU.
///
/// # Errors
/// `OutOfMemory`; `Internal` when the device fails, or for rows of another one.
pub(crate) fn embed_on_gpu(table: &Memory, shape: [usize; 2], places: &Places) -> Result<Rows> {
    let Places::Cuda(places) = places else {
        return Err(Error::internal("rows of the CPU for a GPU's embeddings"));
    };
    let shape = Shape { rows: shape[0], width: shape[1] };
    let (rows, shape) = places.gpu().embed(table, shape, places)?;
    Ok(Rows::on_gpu(rows, shape))
}

/// What [`Joined`], storing and [`attention`] are elsewhere, at layer `layer` of all: the keys
/// go into their pages as they are rotated.
///
/// # Errors
/// `OutOfMemory`; `Internal` when the device fails, or for rows of another one.
pub(crate) fn attention_on_gpu(
    qkv: &Rows,
    places: &Places,
    norms: Option<&HeadNorms>,
    layer: usize,
) -> Result<Inputs> {
    let (Some(qkv), Places::Cuda(places)) = (qkv.gpu(), places) else {
        return Err(Error::internal("rows that lie elsewhere for a GPU's attention"));
    };
    let norms = match norms {
        Some(n) => {
            Some(cuda::Norms { query: n.query.gpu()?, key: n.key.gpu()?, eps: n.eps as f32 })
        }
        None => None,
    };
    let gpu = qkv.gpu();
    gpu.rotate(qkv, places, layer, norms)?;
    let (attended, shape) = gpu.attention(qkv, places, layer)?;
    Ok(Rows::on_gpu(attended, shape).into())
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
/// `[tokens, query * dim]`. Spans come in the order of their rows, and together are all of them.
///
/// On the CPU, queries and weights are rounded to bf16 where keys and values are kept in it.
pub(crate) fn attention(qkv: &Joined<'_>, spans: &[Span<'_>], form: Form) -> Result<Inputs> {
    let (rows, heads) = (qkv.rows(), qkv.heads());
    if let Some(qkv) = rows.device() {
        return Ok(Rows::on_device(composed::attention(qkv, spans, heads)?)?.into());
    }
    // A head is written as whole tiles or as numbers.
    let form = if heads.dim.is_multiple_of(inputs::TILE) { form } else { Form::Rows };
    let mut out = Inputs::lend(rows.arena()?, rows.rows(), heads.query * heads.dim, form)?;
    attention::attention(qkv.view()?, spans, rows.arena()?, &mut out)?;
    Ok(out)
}

fn same_shape(x: &Rows, y: &Rows) -> Result<()> {
    let (x, y) = ([x.rows(), x.width()], [y.rows(), y.width()]);
    if x == y { Ok(()) } else { Err(Error::internal(format!("{y:?} values for {x:?}"))) }
}

/// The weights of the columns of `x`, on the CPU.
fn columns<'w>(x: &Rows, weight: &'w Vector) -> Result<&'w [f32]> {
    let weight = weight.cpu()?;
    if weight.len() == x.width() {
        return Ok(weight);
    }
    Err(Error::internal(format!("{} weights for {} columns", weight.len(), x.width())))
}
