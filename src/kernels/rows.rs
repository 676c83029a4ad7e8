//! Activations, and the vectors that scale them, each where it is computed with.

use std::ops::Range;

use candle_core::Tensor;

use super::Backend;
use super::arena::{Arena, Buffer};
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

    /// `tensor`, `[rows, width]`, of a device that is not the CPU (or, in tests, stands for one).
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

    /// The tensor, where it is not on the CPU.
    pub(crate) fn device(&self) -> Option<&Tensor> {
        match &self.place {
            Place::Cpu(_) => None,
            Place::Device(tensor) => Some(tensor),
        }
    }

    /// The numbers.
    ///
    /// # Errors
    /// `Internal` where they are not on the CPU.
    pub(crate) fn cpu(&self) -> Result<&[f32]> {
        match &self.place {
            Place::Cpu(values) => Ok(values),
            Place::Device(_) => Err(elsewhere()),
        }
    }

    /// As [`Self::cpu`], to change.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn cpu_mut(&mut self) -> Result<&mut [f32]> {
        match &mut self.place {
            Place::Cpu(values) => Ok(values),
            Place::Device(_) => Err(elsewhere()),
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
            Place::Device(_) => Err(elsewhere()),
        }
    }

    /// Some of the rows, on the CPU.
    ///
    /// # Errors
    /// `Internal` where they are not on the CPU.
    pub(crate) fn range(&self, rows: Range<usize>) -> Result<&[f32]> {
        Ok(&self.cpu()?[rows.start * self.width..rows.end * self.width])
    }
}

fn elsewhere() -> Error {
    Error::internal("values of another device were to be used on the CPU")
}

/// The weights of a norm, one a column.
#[derive(Clone, Debug)]
pub(crate) enum Vector {
    /// On the CPU.
    Cpu(Vec<f32>),
    /// On another device, in the dtype that runs.
    Device(Tensor),
}

impl Vector {
    /// # Errors
    /// `Internal` when the device fails.
    pub(crate) fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        match backend {
            Backend::Cpu => Ok(Self::Cpu(values)),
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
            Self::Device(_) => Err(elsewhere()),
        }
    }

    /// # Errors
    /// `Internal` where it is on the CPU.
    pub(super) fn device(&self) -> Result<&Tensor> {
        match self {
            Self::Cpu(_) => Err(Error::internal("values of the CPU were to be used elsewhere")),
            Self::Device(tensor) => Ok(tensor),
        }
    }
}
