//! The decoder's operations on a GPU: each checks its sizes, lends its result and launches a kernel.

use super::gpu::{Element, Gpu, Grid, Memory, Product};
use super::names;
use super::params;
use super::places::Places;
use crate::error::{Error, Result};
use crate::kernels::Heads;
use crate::kernels::kv::PAGE_TOKENS;

const WARP: usize = 32;
/// Threads of a block that takes a row.
const ROW_THREADS: u32 = 256;
/// Warps of a block that rotates, each with a head of its own.
const ROTATE_WARPS: usize = 8;
/// As in `attention.cu`.
const ATTENTION_THREADS: u32 = 128;
const TILE_KEYS: usize = 64;
const MERGE_BLOCKS: usize = 8;

/// Rows of numbers.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

impl Shape {
    fn count(self) -> usize {
        self.rows * self.width
    }
}

/// The weights of the norms of query and key heads, f32.
pub(crate) struct Norms<'a> {
    pub(crate) query: &'a Memory,
    pub(crate) key: &'a Memory,
    pub(crate) eps: f32,
}

impl Gpu {
    pub(super) fn at(&self, memory: &Memory, shape: Shape) -> Result<u64> {
        memory.at(shape.count(), self.element().bytes())
    }

    fn room(&self, shape: Shape) -> Result<Memory> {
        self.lend(shape.count() * self.element().bytes())
    }

    /// A row a block.
    fn by_row(rows: usize) -> Grid {
        Grid { blocks: [rows, 1, 1], threads: ROW_THREADS, shared: 0 }
    }

    /// The rows of `table` for the tokens of `places`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for another vocabulary, or when the device fails.
    pub(crate) fn embed(
        &self,
        table: &Memory,
        shape: Shape,
        places: &Places,
    ) -> Result<(Memory, Shape)> {
        if shape.rows < places.vocabulary() {
            let (rows, vocabulary) = (shape.rows, places.vocabulary());
            return Err(Error::internal(format!("{rows} embeddings for {vocabulary} tokens")));
        }
        let result = Shape { rows: places.rows(), width: shape.width };
        let out = self.room(result)?;
        let params = params::Embed {
            table: self.at(table, shape)?,
            tokens: places.tokens(),
            out: self.at(&out, result)?,
            width: shape.width as i32,
        };
        // SAFETY: `at` has held every size against what is read and written; the tokens have rows.
        unsafe {
            self.launch(names::EMBED.of(self.element()), Self::by_row(result.rows), &params)?
        };
        Ok((out, result))
    }

    /// Adds `y`, where there is one, to `x`, and returns `x`'s RMSNorm. `weight` is f32.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for other sizes, or when the device fails.
    pub(crate) fn norm(
        &self,
        x: &Memory,
        y: Option<&Memory>,
        weight: &Memory,
        shape: Shape,
        eps: f32,
    ) -> Result<Memory> {
        let out = self.room(shape)?;
        let params = params::Norm {
            x: self.at(x, shape)?,
            y: y.map_or(Ok(0), |y| self.at(y, shape))?,
            weight: weight.at(shape.width, 4)?,
            out: self.at(&out, shape)?,
            width: shape.width as i32,
            eps,
        };
        // A sum a warp.
        let grid = Grid {
            shared: ROW_THREADS as usize / WARP * size_of::<f32>(),
            ..Self::by_row(shape.rows)
        };
        // SAFETY: `at` has held every size against what is read and written.
        unsafe { self.launch(names::NORM.of(self.element()), grid, &params)? };
        Ok(out)
    }

    /// Adds `y` to `x`: as many rows, or one that is added to each.
    ///
    /// # Errors
    /// `Internal` for other sizes, or when the device fails.
    pub(crate) fn add(&self, x: &Memory, y: &Memory, shape: Shape, y_rows: usize) -> Result<()> {
        let params = params::Add {
            x: self.at(x, shape)?,
            y: self.at(y, Shape { rows: y_rows, ..shape })?,
            y_rows: y_rows as i32,
            rows: shape.rows as i32,
            width: shape.width as i32,
        };
        // SAFETY: `at` has held every size against what is read and written.
        unsafe { self.launch(names::ADD.of(self.element()), Self::by_row(shape.rows), &params) }
    }

    /// `silu(gate) * up` of joined rows of twice `shape.width`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for other sizes, or when the device fails.
    pub(crate) fn gate(&self, gate_up: &Memory, shape: Shape) -> Result<Memory> {
        let out = self.room(shape)?;
        let params = params::Gate {
            gate_up: self.at(gate_up, Shape { width: 2 * shape.width, ..shape })?,
            out: self.at(&out, shape)?,
            rows: shape.rows as i32,
            width: shape.width as i32,
        };
        // SAFETY: `at` has held every size against what is read and written.
        unsafe { self.launch(names::GATE.of(self.element()), Self::by_row(shape.rows), &params)? };
        Ok(out)
    }

    /// Norms and rotates queries in their place, and keys into their pages, with the values.
    ///
    /// # Errors
    /// `Internal` for other sizes, or when the device fails.
    pub(crate) fn rotate(
        &self,
        qkv: &Memory,
        places: &Places,
        layer: usize,
        norms: Option<Norms<'_>>,
    ) -> Result<()> {
        let (rows, heads) = (places.rows(), places.heads());
        let (cos, sin) = places.rotations();
        let weight = |weight: &Memory| weight.at(heads.dim, 4);
        let params = params::Rotate {
            qkv: self.at(qkv, Shape { rows, width: heads.qkv() })?,
            cos,
            sin,
            query_norm: norms.as_ref().map_or(Ok(0), |norms| weight(norms.query))?,
            key_norm: norms.as_ref().map_or(Ok(0), |norms| weight(norms.key))?,
            places: places.params(),
            heads: heads.into(),
            rows: rows as i32,
            layer: known(places, layer)?,
            eps: norms.map_or(0.0, |norms| norms.eps),
        };
        let all = rows * (heads.query + 2 * heads.key_value);
        let grid = Grid {
            blocks: [all.div_ceil(ROTATE_WARPS), 1, 1],
            threads: (ROTATE_WARPS * WARP) as u32,
            shared: 0,
        };
        // SAFETY: `at` has held every size against what is read and written; `places` has a page
        // for each token, and pages hold `layer`.
        unsafe { self.launch(names::ROTATE.of(self.element()), grid, &params) }
    }

    /// Causal attention of the queries of `qkv` over their texts' pages, whose last keys and values
    /// [`Self::rotate`] has written.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for other sizes, or when the device fails.
    pub(crate) fn attention(
        &self,
        qkv: &Memory,
        places: &Places,
        layer: usize,
    ) -> Result<(Memory, Shape)> {
        let (rows, heads) = (places.rows(), places.heads());
        let Heads { query, key_value, dim } = heads;
        let result = Shape { rows, width: query * dim };
        let out = self.room(result)?;
        let part_rows = places.slots() * key_value * places.tile_rows;
        let parts = self.lend(part_rows * dim * size_of::<f32>())?;
        let extents = self.lend(part_rows * 2 * size_of::<f32>())?;
        let params = params::Attention {
            qkv: self.at(qkv, Shape { rows, width: heads.qkv() })?,
            out: self.at(&out, result)?,
            work: places.work(),
            parts: parts.at(part_rows * dim, 4)?,
            extents: extents.at(part_rows * 2, 4)?,
            places: places.params(),
            heads: heads.into(),
            layer: known(places, layer)?,
            scale: std::f32::consts::LOG2_E / (dim as f32).sqrt(),
        };
        let (kernel, shared) = match places.tiled_attention {
            Some(kernel) => (kernel, 2 * TILE_KEYS * dim * Element::Bf16.bytes()),
            None => {
                let floats = places.tile_rows * dim + PAGE_TOKENS * (dim + 1) + PAGE_TOKENS * dim;
                (names::ATTENTION.of(self.element()), floats * size_of::<f32>())
            }
        };
        let grid =
            Grid { blocks: [places.works(), key_value, 1], threads: ATTENTION_THREADS, shared };
        // SAFETY: `at` has held every size against what is read and written; `places` has a page
        // for each key, and pages hold `layer`.
        unsafe { self.launch(kernel, grid, &params)? };
        if places.merge_count() > 0 {
            let params = params::MergeParts {
                parts: params.parts,
                extents: params.extents,
                out: params.out,
                merges: places.merges(),
                spans: params.places.spans,
                heads: heads.into(),
                tile_rows: places.tile_rows as i32,
            };
            let blocks = [places.merge_count(), key_value, MERGE_BLOCKS];
            let grid = Grid { blocks, threads: ATTENTION_THREADS, shared: 0 };
            // SAFETY: as above; every slot has been written.
            unsafe { self.launch(names::MERGE.of(self.element()), grid, &params)? };
        }
        Ok((out, result))
    }

    /// `x W^T` for weights `[outputs, inputs]`; `shape` is that of `x`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for other sizes, or when the device fails.
    pub(crate) fn linear(
        &self,
        x: &Memory,
        weight: &Memory,
        shape: Shape,
        outputs: usize,
    ) -> Result<Memory> {
        let result = Shape { rows: shape.rows, width: outputs };
        let y = self.room(result)?;
        let product = Product {
            x: self.at(x, shape)?,
            weight: self.at(weight, Shape { rows: outputs, width: shape.width })?,
            y: self.at(&y, result)?,
            rows: shape.rows,
            inputs: shape.width,
            outputs,
            element: self.element(),
        };
        // SAFETY: `at` has held every size against what is read and written.
        unsafe { self.multiply(product)? };
        Ok(y)
    }
}

/// `layer`, where pages hold it.
fn known(places: &Places, layer: usize) -> Result<i32> {
    match places.layers {
        Some(layers) if layer >= layers => {
            Err(Error::internal(format!("layer {layer} in pages of {layers}")))
        }
        _ => Ok(layer as i32),
    }
}
