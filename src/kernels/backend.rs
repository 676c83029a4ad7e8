//! Where a decoder computes.

use candle_core::{DType, Device};

use super::{Heads, Precision, cuda};
use crate::error::Result;

/// What its operations run on.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    /// The CPU, with this library's own code. Activations are f32, whatever the layers' precision is.
    Cpu,
    /// A GPU, with this library's own kernels.
    Cuda(cuda::Gpu),
    /// A device of candle's, with everything in `dtype`: a GPU, or the CPU in its place.
    Candle { device: Device, dtype: DType },
}

impl Backend {
    /// A device of candle's for layers of `precision`.
    ///
    /// # Errors
    /// `Unsupported` for what runs on the CPU alone.
    pub(crate) fn candle(device: Device, precision: Precision) -> Result<Self> {
        Ok(Self::Candle { device, dtype: precision.device_dtype()? })
    }

    /// The GPU of this index for layers of `precision`.
    ///
    /// # Errors
    /// `Unsupported` for what runs on the CPU alone, or with what the machine or build lacks;
    /// `OutOfMemory`.
    pub(crate) fn cuda(ordinal: usize, precision: Precision) -> Result<Self> {
        cuda::open(ordinal, precision.element()?).map(Self::Cuda)
    }

    /// As [`Self::cuda`], of a GPU that is emulated.
    #[cfg(test)]
    pub(crate) fn emulated(emulation: cuda::Emulation, precision: Precision) -> Result<Self> {
        Ok(Self::Cuda(emulation.gpu(precision.element()?)))
    }

    /// Whether it serves attention of these heads.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(crate) fn check_heads(&self, heads: Heads) -> Result<()> {
        match self {
            Self::Cpu | Self::Candle { .. } => Ok(()),
            Self::Cuda(_) => cuda::check_heads(heads),
        }
    }
}
