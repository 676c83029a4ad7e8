//! The seam behind which a linear layer's weights may be packed, dense or (one day) quantised.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::packed::{PackError, PackedLinear, Weights};
use super::values;
use crate::checkpoint::Values;
use crate::error::{Error, Status};

/// What a linear layer computes in, whatever its weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Weights as stored, widened; activations and sums in f32.
    F32,
    /// Weights and activations rounded to bf16; sums in f32.
    Bf16,
}

/// `x W^T + b`: `[tokens, in]` to `[tokens, out]`.
pub(crate) struct Linear {
    weight: Weight,
    /// `[out]`, on the CPU as plain numbers.
    bias: Option<Bias>,
}

enum Weight {
    /// The CPU's form.
    Packed(PackedLinear),
    /// `[in, out]` on another device, in the dtype that runs.
    Dense(Tensor),
}

enum Bias {
    Plain(Vec<f32>),
    OnDevice(Tensor),
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Weight::Packed(weight), bias) => {
                let bias = match bias {
                    Some(Bias::Plain(bias)) => Some(bias.as_slice()),
                    _ => None,
                };
                x.apply_op1_no_bwd(&PackedMatmul { weight, bias })
            }
            (Weight::Dense(weight), Some(Bias::OnDevice(bias))) => {
                x.matmul(weight)?.broadcast_add(bias)
            }
            (Weight::Dense(weight), _) => x.matmul(weight),
        }
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) => weight.bytes(),
            Weight::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }
}

struct PackedMatmul<'a> {
    weight: &'a PackedLinear,
    bias: Option<&'a [f32]>,
}

impl CustomOp1 for PackedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (tokens, inputs) = layout.shape().dims2()?;
        if inputs != self.weight.in_features() {
            candle_core::bail!("{inputs} inputs for a layer of {}", self.weight.in_features());
        }
        let outputs = self.weight.out_features();
        let mut out = vec![0f32; tokens * outputs];
        self.weight.matmul(x, &mut out);
        if let Some(bias) = self.bias {
            out.par_chunks_exact_mut(outputs).for_each(|row| {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            });
        }
        Ok((CpuStorage::F32(out), Shape::from((tokens, outputs))))
    }
}

/// Joins the weights of layers that read the same input, side by side.
pub(crate) struct LinearLoader<'a> {
    inputs: usize,
    precision: Precision,
    parts: Vec<(Values<'a>, usize)>,
    bias: Vec<f32>,
}

impl<'a> LinearLoader<'a> {
    pub(crate) fn new(inputs: usize, precision: Precision) -> Self {
        Self { inputs, precision, parts: vec![], bias: vec![] }
    }

    /// Adds a weight, `[outputs, inputs]`.
    pub(crate) fn add(&mut self, values: Values<'a>, outputs: usize) {
        self.parts.push((values, outputs));
    }

    /// Adds the bias of the last weight, if it has one; then all of them have one.
    pub(crate) fn add_bias(&mut self, bias: &[f32]) {
        self.bias.extend_from_slice(bias);
    }

    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn finish(self, device: &Device) -> crate::error::Result<Linear> {
        if device.is_cpu() { self.packed() } else { Ok(self.dense(device)?) }
    }

    fn packed(self) -> crate::error::Result<Linear> {
        let parts: Vec<_> = self.parts.iter().map(|(v, n)| (weights(v), *n)).collect();
        let packed = PackedLinear::pack(&parts, self.inputs, self.precision).map_err(|e| {
            let status = match e {
                PackError::OutOfMemory { .. } => Status::OutOfMemory,
                PackError::Shape { .. } => Status::Internal,
            };
            Error::new(status, e.to_string())
        })?;
        let bias = (!self.bias.is_empty()).then_some(Bias::Plain(self.bias));
        Ok(Linear { weight: Weight::Packed(packed), bias })
    }

    fn dense(self, device: &Device) -> Result<Linear> {
        let dtype = match self.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let parts = self
            .parts
            .iter()
            .map(|(values, outputs)| {
                values.to_tensor((*outputs, self.inputs).into(), dtype, device)
            })
            .collect::<Result<Vec<_>>>()?;
        let weight = Tensor::cat(&parts, 0)?.t()?;
        let bias = if self.bias.is_empty() {
            None
        } else {
            Some(Bias::OnDevice(Tensor::new(self.bias, device)?.to_dtype(dtype)?))
        };
        Ok(Linear { weight: Weight::Dense(weight), bias })
    }
}

fn weights<'a>(values: &'a Values<'a>) -> Weights<'a> {
    match values {
        Values::F32(v) => Weights::F32(v),
        Values::F16(v) => Weights::F16(v),
        Values::Bf16(v) => Weights::Bf16(v),
        Values::Blocks(of, bytes) => Weights::Blocks(*of, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of other devices, on the CPU, is what the packed form is held against.
    #[test]
    fn packed_layers_equal_dense_ones() {
        let (inputs, outputs) = (37, [20, 5]);
        let random = |rows: usize, columns: usize| -> Vec<f32> {
            let values = Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
            values.flatten_all().unwrap().to_vec1().unwrap()
        };
        let weights = outputs.map(|n| random(n, inputs));
        let biases = outputs.map(|n| random(1, n));
        let x = Tensor::randn(0f32, 1.0, (11, inputs), &Device::Cpu).unwrap();
        for with_bias in [false, true] {
            let loader = || {
                let mut loader = LinearLoader::new(inputs, Precision::F32);
                for ((weight, bias), n) in weights.iter().zip(&biases).zip(outputs) {
                    loader.add(Values::F32(weight.into()), n);
                    if with_bias {
                        loader.add_bias(bias);
                    }
                }
                loader
            };
            let packed = loader().packed().unwrap().forward(&x).unwrap();
            let dense = loader().dense(&Device::Cpu).unwrap().forward(&x).unwrap();
            assert_eq!(packed.dims(), [11, 25]);
            let difference = (packed - dense).unwrap().abs().unwrap();
            let worst: f32 = difference.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(worst < 1e-5, "{worst}");
        }
    }
}
