//! A backbone's or a head's weights: named tensors whose extents, shapes and types have been
//! checked, from safetensors files or from a GGUF file.

mod gguf;
mod safetensors;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use ::safetensors::Dtype;
use bytemuck::Pod;
use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};

pub(crate) use self::gguf::stored_name as gguf_name;
pub(crate) use self::safetensors::{INDEX_FILE, SINGLE_FILE};
use crate::error::{Error, Result, Status};
use crate::gguf::TensorType;
use crate::kernels::BlockType;
use crate::sys::file::Bytes;

/// The tensors of one or several files, asked for by their names in the transformers library.
pub(crate) struct Checkpoint {
    shards: Vec<Shard>,
    /// By their names in the files.
    tensors: HashMap<String, Entry>,
    names: Names,
}

/// How a file calls its tensors.
#[derive(Clone, Copy)]
enum Names {
    AsAsked,
    Gguf,
}

struct Shard {
    file: String,
    bytes: Bytes,
}

struct Entry {
    shard: usize,
    stored: Stored,
    shape: Vec<usize>,
    range: Range<usize>,
    /// The length of heads whose rows lie in pairs: row i of the first half, row i of the second.
    interleaved: Option<usize>,
}

/// What a tensor's bytes are.
#[derive(Clone, Copy)]
enum Stored {
    As(TensorType),
    /// A type of safetensors that is no float, or that nothing here reads.
    Unread(Dtype),
}

/// One tensor as it lies in its file.
pub(crate) struct TensorRef<'a> {
    pub(crate) file: &'a str,
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) values: Values<'a>,
}

/// Values in the file's own type; owned where they do not lie in the file as they are needed.
#[derive(Clone, Debug)]
pub(crate) enum Values<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
    /// Whole rows of quantised blocks.
    Blocks(BlockType, Cow<'a, [u8]>),
}

impl Checkpoint {
    /// The whole bytes of every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Bytes> {
        self.shards.iter().map(|shard| &shard.bytes)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&*self.names.stored(name))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether some tensor is quantised blocks.
    pub(crate) fn has_blocks(&self) -> bool {
        let is_block = |e: &Entry| matches!(e.stored, Stored::As(TensorType::Blocks(_)));
        self.tensors.values().any(is_block)
    }

    /// Every tensor's name and shape.
    #[cfg(fuzzing)]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// The first file's name, for errors about the whole.
    pub(crate) fn file(&self) -> &str {
        self.shards.first().map_or("checkpoint", |shard| &shard.file)
    }

    /// The tensor `name`, which must be there, have `shape` and hold floats or blocks of them.
    ///
    /// # Errors
    /// `InvalidModel` naming the file, the tensor, what was found and what was expected.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorRef<'_>> {
        let name = self.names.stored(name);
        let field = || format!("tensor {name:?}");
        let Some((name, entry)) = self.tensors.get_key_value(&*name) else {
            return Err(Error::model(self.file(), field(), "nothing", format!("shape {shape:?}")));
        };
        let shard = &self.shards[entry.shard];
        let wrong = |found: String, expected: String| {
            Err(Error::model(&shard.file, field(), found, expected))
        };
        if entry.shape != shape {
            return wrong(format!("shape {:?}", entry.shape), format!("shape {shape:?}"));
        }
        let Stored::As(kind) = entry.stored else {
            let Stored::Unread(dtype) = entry.stored else { unreachable!() };
            return wrong(format!("dtype {dtype:?}"), "dtype F32, F16 or BF16".into());
        };
        let bytes = Cow::Borrowed(&shard.bytes[entry.range.clone()]);
        let bytes = match entry.interleaved {
            Some(head) => Cow::Owned(gguf::halves_apart(&bytes, shape[0], head)),
            None => bytes,
        };
        let values = match kind {
            TensorType::F32 => Values::F32(numbers(bytes)),
            TensorType::F16 => Values::F16(numbers(bytes)),
            TensorType::Bf16 => Values::Bf16(numbers(bytes)),
            TensorType::Blocks(of) => Values::Blocks(of, bytes),
        };
        Ok(TensorRef { file: &shard.file, name, shape: &entry.shape, values })
    }

    /// Lets the system take back the pages that loading has touched.
    pub(crate) fn release_pages(&self) {
        for shard in &self.shards {
            shard.bytes.release_pages();
        }
    }
}

impl Names {
    fn stored(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::AsAsked => Cow::Borrowed(name),
            // What has no name there is not there.
            Self::Gguf => gguf::stored_name(name).map_or(Cow::Borrowed(name), Cow::Owned),
        }
    }
}

/// The bytes as numbers: copied where they do not lie on their natural boundary.
fn numbers<T: Pod>(bytes: Cow<'_, [u8]>) -> Cow<'_, [T]> {
    if let Cow::Borrowed(bytes) = bytes
        && let Ok(numbers) = bytemuck::try_cast_slice(bytes)
    {
        return Cow::Borrowed(numbers);
    }
    let mut numbers = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(&bytes);
    Cow::Owned(numbers)
}

impl TensorRef<'_> {
    /// The values widened to f32.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>> {
        let count = self.shape.iter().product();
        let mut out = Vec::new();
        out.try_reserve_exact(count).map_err(|_| {
            Error::new(
                Status::OutOfMemory,
                format!("{}: no memory for tensor {:?}", self.file, self.name),
            )
        })?;
        self.values.widen_into(0..count, &mut out);
        Ok(out)
    }
}

impl Values<'_> {
    /// Appends the values of `range`, of whole blocks, widened to f32.
    pub(crate) fn widen_into(&self, range: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::F32(v) => out.extend_from_slice(&v[range]),
            Self::F16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
            Self::Bf16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
            Self::Blocks(of, bytes) => {
                let (elements, size) = (of.elements(), of.bytes());
                let blocks = range.start / elements * size..range.end / elements * size;
                of.widen_into(&bytes[blocks], out);
            }
        }
    }

    /// A copy on `device`, in `dtype`.
    pub(crate) fn to_tensor(
        &self,
        shape: Shape,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = match self {
            Values::F32(v) => Tensor::from_slice(v, shape, &Device::Cpu),
            Values::F16(v) => Tensor::from_slice(v, shape, &Device::Cpu),
            Values::Bf16(v) => Tensor::from_slice(v, shape, &Device::Cpu),
            Values::Blocks(..) => {
                let mut values = Vec::new();
                self.widen_into(0..shape.elem_count(), &mut values);
                Tensor::from_vec(values, shape, &Device::Cpu)
            }
        }?;
        values.to_dtype(dtype)?.to_device(device)
    }
}

/// Lets candle's `VarBuilder` read a checkpoint by its names.
impl candle_nn::var_builder::SimpleBackend for &Checkpoint {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(name, shape.dims()).map_err(candle_core::Error::wrap)?;
        tensor.values.to_tensor(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("tensor {name:?} was asked for without its shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}
