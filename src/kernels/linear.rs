//! The seam behind which a linear layer's weights may be packed, dense or (one day) quantised.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::packed::{Int8Linear, PackError, PackedLinear, Weights};
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
    /// Weights and activations rounded to 8-bit integers; exact sums. On the CPU alone, and only
    /// once a calibration text has run: see [`Linear::calibrated`].
    Int8,
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
    /// Computes in f32, and remembers how large each input was: what is to become `Int8`.
    Calibrating(PackedLinear, Largest),
    Int8(Int8Linear),
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
            (Weight::Dense(weight), Some(Bias::OnDevice(bias))) => {
                x.matmul(weight)?.broadcast_add(bias)
            }
            (Weight::Dense(weight), _) => x.matmul(weight),
            (weight, bias) => {
                let bias = match bias {
                    Some(Bias::Plain(bias)) => Some(bias.as_slice()),
                    _ => None,
                };
                x.apply_op1_no_bwd(&PackedMatmul { weight, bias })
            }
        }
    }

    /// The layer as its precision asks for it, after the calibration text has run through it: with
    /// [`Precision::Int8`] it has computed in f32 until then.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn calibrated(self) -> crate::error::Result<Self> {
        let weight = match self.weight {
            Weight::Calibrating(layer, largest) => {
                let largest = largest.0.into_inner().unwrap_or_else(PoisonError::into_inner);
                Weight::Int8(Int8Linear::quantise(&layer, &largest).map_err(pack_error)?)
            }
            weight => weight,
        };
        Ok(Self { weight, bias: self.bias })
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) | Weight::Calibrating(weight, _) => weight.bytes(),
            Weight::Int8(weight) => weight.bytes(),
            Weight::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }
}

/// The largest magnitude of each input that a layer has seen.
struct Largest(Mutex<Vec<f32>>);

impl Largest {
    fn see(&self, x: &[f32]) {
        let mut largest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for row in x.chunks_exact(largest.len().max(1)) {
            for (largest, v) in largest.iter_mut().zip(row) {
                *largest = largest.max(v.abs());
            }
        }
    }
}

impl Weight {
    /// Inputs and outputs of a form of the CPU.
    fn features(&self) -> Option<(usize, usize)> {
        match self {
            Weight::Packed(w) | Weight::Calibrating(w, _) => {
                Some((w.in_features(), w.out_features()))
            }
            Weight::Int8(w) => Some((w.in_features(), w.out_features())),
            Weight::Dense(_) => None,
        }
    }
}

struct PackedMatmul<'a> {
    weight: &'a Weight,
    bias: Option<&'a [f32]>,
}

impl CustomOp1 for PackedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (tokens, inputs) = layout.shape().dims2()?;
        let Some((expected, outputs)) = self.weight.features() else {
            candle_core::bail!("the layer's weights are on another device")
        };
        if inputs != expected {
            candle_core::bail!("{inputs} inputs for a layer of {expected}");
        }
        let mut out = vec![0f32; tokens * outputs];
        match self.weight {
            Weight::Packed(weight) => weight.matmul(x, &mut out),
            Weight::Calibrating(weight, largest) => {
                largest.see(x);
                weight.matmul(x, &mut out);
            }
            Weight::Int8(weight) => weight.matmul(x, &mut out),
            Weight::Dense(_) => {}
        }
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
        let pack = |precision| PackedLinear::pack(&parts, self.inputs, precision);
        let weight = match self.precision {
            Precision::Int8 => pack(Precision::F32)
                .map(|layer| Weight::Calibrating(layer, Largest(vec![0.0; self.inputs].into()))),
            precision => pack(precision).map(Weight::Packed),
        };
        let bias = (!self.bias.is_empty()).then_some(Bias::Plain(self.bias));
        Ok(Linear { weight: weight.map_err(pack_error)?, bias })
    }

    fn dense(self, device: &Device) -> Result<Linear> {
        let dtype = match self.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Int8 => candle_core::bail!("int8 runs on the CPU alone"),
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

fn pack_error(error: PackError) -> Error {
    let status = match error {
        PackError::OutOfMemory { .. } => Status::OutOfMemory,
        PackError::Shape { .. } => Status::Internal,
    };
    Error::new(status, error.to_string())
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
