//! Where a decoder computes.

use candle_core::{DType, Device};

use super::Precision;
use crate::error::Result;

/// What its operations run on.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    /// The CPU, with this library's own code. Activations are f32, whatever the layers' precision is.
    Cpu,
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

    /// Bytes of a number that is kept.
    pub(crate) fn number_bytes(&self) -> usize {
        match self {
            Self::Cpu => size_of::<f32>(),
            Self::Candle { dtype, .. } => dtype.size_in_bytes(),
        }
    }
}
