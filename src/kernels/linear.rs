//! The seam behind which a linear layer's weights may be dense, packed or quantised.

use candle_core::{DType, Device, Result, Tensor};

use crate::checkpoint::Values;

/// What a linear layer computes in, whatever its weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    F32,
    Bf16,
}

/// `x W^T + b`: `[tokens, in]` to `[tokens, out]`.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match self.precision {
            Precision::Bf16 if x.device().is_cpu() => {
                x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?
            }
            _ => x.clone(),
        };
        let y = x.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.elem_count() * self.weight.dtype().size_in_bytes()
    }
}

/// Joins the weights of layers that read the same input.
pub(crate) struct LinearLoader {
    inputs: usize,
    precision: Precision,
    parts: Vec<Tensor>,
    biases: Vec<Tensor>,
}

impl LinearLoader {
    pub(crate) fn new(inputs: usize, precision: Precision) -> Self {
        Self { inputs, precision, parts: vec![], biases: vec![] }
    }

    pub(crate) fn add(&mut self, values: Values<'_>, outputs: usize) {
        let mut wide = Vec::new();
        values.widen_into(0..outputs * self.inputs, &mut wide);
        self.parts.push(Tensor::from_vec(wide, (outputs, self.inputs), &Device::Cpu).unwrap());
    }

    pub(crate) fn add_bias(&mut self, bias: Tensor) {
        self.biases.push(bias);
    }

    pub(crate) fn finish(self, device: &Device) -> Result<Linear> {
        let weight = Tensor::cat(&self.parts, 0)?.to_device(device)?.t()?;
        let bias = (!self.biases.is_empty()).then(|| Tensor::cat(&self.biases, 0)).transpose()?;
        Ok(Linear { weight, bias, precision: self.precision })
    }
}
