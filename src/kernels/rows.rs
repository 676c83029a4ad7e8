//! Activations, and the vectors that scale them, each where it is computed with.

use std::sync::Arc;

use candle_core::Tensor;

use super::Backend;
use super::arena::{Arena, Buffer};
use super::cuda::{Memory, Shape};
use crate::error::{Error, Result};

/// A row for each token of a chunk, `[rows, width]`.
pub(crate) struct Rows {
    place: Place,
    rows: usize,
    width: usize,
}

enum Place {
    /// f32, row-major.
    Cpu(Buffer),
    /// In the numbers that the GPU computes with, row-major.
    Cuda(Memory),
    /// In the dtype that runs.
    Device(Tensor),
}

impl Rows {
    /// Rows on the CPU that hold any values.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn lend(arena: &Arena, rows: usize, width: usize) -> Result<Self> {
        let length = rows.saturating_mul(width);
        Ok(Self { place: Place::Cpu(arena.lend(length)?), rows, width })
    }

    /// A copy of `values`, whole rows of `width`, on the CPU.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn copied(arena: &Arena, values: &[f32], width: usize) -> Result<Self> {
        let mut rows = Self::lend(arena, values.len() / width.max(1), width)?;
        rows.cpu_mut()?.copy_from_slice(values);
        Ok(rows)
    }

    /// What lies on a GPU in this shape.
    pub(super) fn on_gpu(memory: Memory, shape: Shape) -> Self {
        Self { place: Place::Cuda(memory), rows: shape.rows, width: shape.width }
    }

    /// `tensor`, `[rows, width]`, of a device of candle's that is not the CPU (or, in tests, stands for one).
    ///
    /// # Errors
    /// `Internal` for another number of dimensions.
    pub(crate) fn on_device(tensor: Tensor) -> Result<Self> {
        let (rows, width) = tensor.dims2()?;
        Ok(Self { place: Place::Device(tensor), rows, width })
    }

    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn shape(&self) -> Shape {
        Shape { rows: self.rows, width: self.width }
    }

    /// The memory, where it is a GPU's with own kernels.
    pub(crate) fn gpu(&self) -> Option<&Memory> {
        match &self.place {
            Place::Cuda(memory) => Some(memory),
            Place::Cpu(_) | Place::Device(_) => None,
        }
    }

    /// The tensor, where it is on a device of candle's.
    pub(crate) fn device(&self) -> Option<&Tensor> {
        match &self.place {
            Place::Device(tensor) => Some(tensor),
            Place::Cpu(_) | Place::Cuda(_) => None,
        }
    }

    /// The numbers.
    ///
    /// # Errors
    /// `Internal` where they are not on the CPU.
    pub(crate) fn cpu(&self) -> Result<&[f32]> {
        match &self.place {
            Place::Cpu(values) => Ok(values),
            Place::Cuda(_) | Place::Device(_) => Err(elsewhere()),
        }
    }

    /// As [`Self::cpu`], to change.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn cpu_mut(&mut self) -> Result<&mut [f32]> {
        match &mut self.place {
            Place::Cpu(values) => Ok(values),
            Place::Cuda(_) | Place::Device(_) => Err(elsewhere()),
        }
    }

    /// As many rows of another width on the CPU, that hold any values.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` where these are not on the CPU.
    pub(super) fn beside(&self, width: usize) -> Result<Self> {
        Self::lend(self.arena()?, self.rows, width)
    }

    /// Where there is room for more.
    ///
    /// # Errors
    /// `Internal` where they are not on the CPU.
    pub(super) fn arena(&self) -> Result<&Arena> {
        match &self.place {
            Place::Cpu(values) => Ok(values.arena()),
            Place::Cuda(_) | Place::Device(_) => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> Error {
    Error::internal("values of one device were to be used on another")
}

/// The weights of a norm, one a column.
#[derive(Clone, Debug)]
pub(crate) enum Vector {
    /// On the CPU.
    Cpu(Vec<f32>),
    /// On a GPU, f32.
    Cuda(Arc<Memory>),
    /// On a device of candle's, in the dtype that runs.
    Device(Tensor),
}

impl Vector {
    /// # Errors
    /// `Internal` when the device fails.
    pub(crate) fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        match backend {
            Backend::Cpu => Ok(Self::Cpu(values)),
            Backend::Cuda(gpu) => Ok(Self::Cuda(Arc::new(gpu.vector(&values)?))),
            Backend::Candle { device, dtype } => {
                Ok(Self::Device(Tensor::new(values, device)?.to_dtype(*dtype)?))
            }
        }
    }

    /// # Errors
    /// `Internal` where it is not on the CPU.
    pub(super) fn cpu(&self) -> Result<&[f32]> {
        match self {
            Self::Cpu(values) => Ok(values),
            Self::Cuda(_) | Self::Device(_) => Err(elsewhere()),
        }
    }

    /// # Errors
    /// `Internal` where it is not on a GPU.
    pub(super) fn gpu(&self) -> Result<&Memory> {
        match self {
            Self::Cuda(memory) => Ok(memory),
            Self::Cpu(_) | Self::Device(_) => Err(elsewhere()),
        }
    }

    /// # Errors
    /// `Internal` where it is not on a device of candle's.
    pub(super) fn device(&self) -> Result<&Tensor> {
        match self {
            Self::Device(tensor) => Ok(tensor),
            Self::Cpu(_) | Self::Cuda(_) => Err(elsewhere()),
        }
    }
}
