//! The seam behind which a linear layer's weights may be packed, in int8, or another device's tensor.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::backend::Backend;
use super::cuda::{Element, Gpu, Memory, Shape};
use super::inputs::{Form, Inputs};
use super::packed::{Int8Linear, PackError, PackedLinear, Piece, Pieces, Weights};
use super::rows::Rows;
use crate::checkpoint::Values;
use crate::error::{Error, Result, Status};

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

impl Precision {
    /// As options and results call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// The dtype of everything on a device of candle's.
    ///
    /// # Errors
    /// `Unsupported` for what runs on the CPU alone.
    pub(super) fn device_dtype(self) -> Result<DType> {
        Ok(match self.element()? {
            Element::F32 => DType::F32,
            Element::Bf16 => DType::BF16,
        })
    }

    /// What a GPU computes with.
    ///
    /// # Errors
    /// `Unsupported` for what runs on the CPU alone.
    pub(super) fn element(self) -> Result<Element> {
        match self {
            Self::F32 => Ok(Element::F32),
            Self::Bf16 => Ok(Element::Bf16),
            Self::Int8 => Err(Error::new(
                Status::Unsupported,
                "dtype int8 runs on the CPU alone: use bf16 on a GPU, or the device cpu",
            )),
        }
    }
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
    /// `[out, in]` on a GPU.
    Cuda {
        weight: Memory,
        inputs: usize,
        outputs: usize,
    },
    /// `[in, out]` on a device of candle's, in the dtype that runs.
    Dense(Tensor),
}

enum Bias {
    Plain(Vec<f32>),
    Cuda(Memory),
    OnDevice(Tensor),
}

impl Linear {
    /// How it wants its inputs.
    pub(crate) fn form(&self) -> Form {
        match &self.weight {
            Weight::Packed(weight) => weight.form(),
            Weight::Calibrating(..) | Weight::Int8(_) | Weight::Cuda { .. } | Weight::Dense(_) => {
                Form::Rows
            }
        }
    }

    /// The outputs for `x`, which may be of another form than the layer's own where it is rows.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for inputs of another width or place, or when the device fails.
    pub(crate) fn forward(&self, x: &Inputs) -> Result<Rows> {
        let mut y = match &self.weight {
            Weight::Packed(weight) => weight.matmul(x)?,
            Weight::Calibrating(weight, largest) => {
                largest.see(x.rows()?.cpu()?);
                weight.matmul(x)?
            }
            Weight::Int8(weight) => {
                x.expect_width(weight.in_features())?;
                let x = x.rows()?;
                let mut y = x.beside(weight.out_features())?;
                weight.matmul(x.arena()?, x.cpu()?, y.cpu_mut()?)?;
                y
            }
            Weight::Cuda { weight, inputs, outputs } => {
                x.expect_width(*inputs)?;
                let x = x.rows()?;
                let shape = Shape { rows: x.rows(), width: *outputs };
                let x = x.gpu().ok_or_else(|| elsewhere("a GPU's"))?;
                let y = x.gpu().linear(x, weight, Shape { width: *inputs, ..shape }, *outputs)?;
                if let Some(Bias::Cuda(bias)) = &self.bias {
                    y.gpu().add(&y, bias, shape, 1)?;
                }
                return Ok(Rows::on_gpu(y, shape));
            }
            Weight::Dense(weight) => {
                let Some(x) = x.rows()?.device() else {
                    return Err(elsewhere("another device's"));
                };
                let y = x.matmul(weight)?;
                return Rows::on_device(match &self.bias {
                    Some(Bias::OnDevice(bias)) => y.broadcast_add(bias)?,
                    _ => y,
                });
            }
        };
        if let Some(Bias::Plain(bias)) = &self.bias {
            y.cpu_mut()?.par_chunks_exact_mut(bias.len()).for_each(|row| {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            });
        }
        Ok(y)
    }

    /// [`super::silu_mul`] of the outputs for `x`, for a layer that wants `form`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub(crate) fn forward_swiglu(&self, x: &Inputs, form: Form) -> Result<Inputs> {
        match (&self.weight, &self.bias) {
            (Weight::Packed(weight), None) => {
                if let Some(out) = weight.swiglu(x, form)? {
                    return Ok(out);
                }
            }
            (Weight::Int8(weight), None) if weight.has_swiglu() && form == Form::Rows => {
                x.expect_width(weight.in_features())?;
                let x = x.rows()?;
                let mut out = x.beside(weight.out_features() / 2)?;
                weight.swiglu(x.arena()?, x.cpu()?, out.cpu_mut()?)?;
                return Ok(out.into());
            }
            _ => {}
        }
        super::silu_mul(&self.forward(x)?, form)
    }

    /// The layer as its precision asks for it, after the calibration text has run through it: with
    /// [`Precision::Int8`] it has computed in f32 until then.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn calibrated(self) -> Result<Self> {
        let weight = match self.weight {
            Weight::Calibrating(layer, largest) => {
                let largest = largest.0.into_inner().unwrap_or_else(PoisonError::into_inner);
                Weight::Int8(Int8Linear::quantise(&layer, &largest).map_err(pack_error)?)
            }
            weight => weight,
        };
        Ok(Self { weight, bias: self.bias })
    }

    /// What a file holds of the packed weights; nothing of other ones.
    pub(crate) fn pieces(&self) -> Vec<Piece<Cow<'_, [u8]>>> {
        match &self.weight {
            Weight::Packed(weight) => weight.pieces().collect(),
            Weight::Int8(weight) => weight.pieces().into(),
            Weight::Calibrating(..) | Weight::Cuda { .. } | Weight::Dense(_) => vec![],
        }
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) | Weight::Calibrating(weight, _) => weight.bytes(),
            Weight::Int8(weight) => weight.bytes(),
            Weight::Cuda { weight, .. } => weight.bytes(),
            Weight::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }
}

fn elsewhere(of: &str) -> Error {
    Error::internal(format!("inputs that lie elsewhere for {of} layer"))
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
    pub(crate) fn finish(self, backend: &Backend) -> Result<Linear> {
        match backend {
            Backend::Cpu => self.packed(),
            Backend::Cuda(gpu) => self.on_gpu(gpu),
            Backend::Candle { device, dtype } => self.dense(device, *dtype),
        }
    }

    /// The layer of so many outputs whose weights are next in a file, calibrated where that is
    /// needed; `None` if they are none. Biases are those that were added.
    pub(crate) fn mapped(self, outputs: usize, pieces: &mut Pieces) -> Option<Linear> {
        let weight = match self.precision {
            Precision::Int8 => Weight::Int8(Int8Linear::mapped(outputs, self.inputs, pieces)?),
            precision => {
                Weight::Packed(PackedLinear::mapped(outputs, self.inputs, precision, pieces)?)
            }
        };
        Some(Linear { weight, bias: self.plain_bias() })
    }

    fn plain_bias(self) -> Option<Bias> {
        (!self.bias.is_empty()).then_some(Bias::Plain(self.bias))
    }

    fn packed(self) -> Result<Linear> {
        let parts: Vec<_> = self.parts.iter().map(|(v, n)| (weights(v), *n)).collect();
        let pack = |precision| PackedLinear::pack(&parts, self.inputs, precision);
        let weight = match self.precision {
            Precision::Int8 => pack(Precision::F32)
                .map(|layer| Weight::Calibrating(layer, Largest(vec![0.0; self.inputs].into()))),
            precision => pack(precision).map(Weight::Packed),
        };
        Ok(Linear { weight: weight.map_err(pack_error)?, bias: self.plain_bias() })
    }

    fn on_gpu(self, gpu: &Gpu) -> Result<Linear> {
        let inputs = self.inputs;
        let parts = self.parts.iter().map(|(values, outputs)| (values, outputs * inputs));
        let weight = gpu.weights(parts)?;
        let outputs = self.parts.iter().map(|(_, outputs)| outputs).sum();
        let bias = match self.bias.len() {
            0 => None,
            count => {
                let values = Values::F32(self.bias.into());
                Some(Bias::Cuda(gpu.weights([(&values, count)].into_iter())?))
            }
        };
        Ok(Linear { weight: Weight::Cuda { weight, inputs, outputs }, bias })
    }

    fn dense(self, device: &Device, dtype: DType) -> Result<Linear> {
        let parts = self
            .parts
            .iter()
            .map(|(values, outputs)| {
                values.to_tensor((*outputs, self.inputs).into(), dtype, device)
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
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
    use crate::kernels::Arena;

    /// The form of other devices, on the CPU, is what the packed form is held against.
    #[test]
    fn packed_layers_equal_dense_ones() {
        let (inputs, outputs) = (37, [20, 5]);
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let random = |rows: usize, columns: usize| -> Vec<f32> {
            values(&Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap())
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
            let rows = Rows::copied(&Arena::new(0), &values(&x), inputs).unwrap();
            let packed = loader().packed().unwrap().forward(&rows.into()).unwrap();
            let x = Rows::on_device(x.clone()).unwrap();
            let dense =
                loader().dense(&Device::Cpu, DType::F32).unwrap().forward(&x.into()).unwrap();
            assert_eq!([packed.rows(), packed.width()], [11, 25]);
            let dense = values(dense.device().unwrap());
            let pairs = packed.cpu().unwrap().iter().zip(&dense);
            let worst = pairs.map(|(p, d)| (p - d).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{worst}");
        }
    }
}
