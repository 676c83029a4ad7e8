//! Safetensors files -> named tensors whose extents, shapes and dtypes have been checked.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result, Status};
use crate::json::Document;
use crate::sys::file::Bytes;

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 1024;

/// The tensors of one or several safetensors files.
pub(crate) struct Checkpoint {
    shards: Vec<Shard>,
    tensors: HashMap<String, Entry>,
}

struct Shard {
    file: String,
    bytes: Bytes,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor as it lies in its file.
pub(crate) struct TensorRef<'a> {
    pub(crate) file: &'a str,
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) values: Values<'a>,
}

/// Values in the file's own float type.
#[derive(Clone, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// Values that do not lie on their natural boundary in the file, widened.
    Widened(Vec<f32>),
}

impl Checkpoint {
    /// Opens the file or the shards of a backbone directory.
    ///
    /// # Errors
    /// `NotFound` when neither `model.safetensors` nor its index is there; `InvalidModel` for
    /// anything that is not a complete, consistent safetensors file.
    pub(crate) fn open_dir(dir: &Path, map: bool) -> Result<Self> {
        if dir.join(SINGLE_FILE).is_file() {
            return Self::open_files(&[dir.join(SINGLE_FILE)], map);
        }
        let index = dir.join(INDEX_FILE);
        if !index.is_file() {
            return Err(Error::new(
                Status::NotFound,
                format!("{}: holds neither {SINGLE_FILE} nor {INDEX_FILE}", dir.display()),
            ));
        }
        let document = Document::read(&index)?;
        let weight_map = document.root()?.require("weight_map")?;
        let mut files: Vec<PathBuf> = Vec::new();
        let mut home: Vec<(&str, usize)> = Vec::new();
        for (tensor, node) in weight_map.members()? {
            let name = node.string()?;
            if !is_plain_file_name(name) {
                return Err(node.unexpected("a plain file name inside the directory"));
            }
            let path = dir.join(name);
            let at = files.iter().position(|f| *f == path).unwrap_or_else(|| {
                files.push(path);
                files.len() - 1
            });
            if files.len() > MAX_SHARDS {
                return Err(weight_map.invalid("more shards", format!("at most {MAX_SHARDS}")));
            }
            home.push((tensor, at));
        }
        let checkpoint = Self::open_files(&files, map)?;
        for (tensor, at) in home {
            if checkpoint.tensors.get(tensor).is_none_or(|entry| entry.shard != at) {
                return Err(weight_map.invalid(
                    format!("tensor {tensor:?} not in {}", files[at].display()),
                    "every tensor to be in the shard that is named for it",
                ));
            }
        }
        Ok(checkpoint)
    }

    /// Opens one safetensors file.
    pub(crate) fn open_file(path: &Path, map: bool) -> Result<Self> {
        Self::open_files(&[path.to_owned()], map)
    }

    fn open_files(paths: &[PathBuf], map: bool) -> Result<Self> {
        let mut checkpoint = Self { shards: Vec::new(), tensors: HashMap::new() };
        for path in paths {
            let shard = Shard { file: path.display().to_string(), bytes: Bytes::open(path, map)? };
            checkpoint.add(shard)?;
        }
        Ok(checkpoint)
    }

    /// Checks a shard's header against the real length of its file and takes its tensors in.
    fn add(&mut self, shard: Shard) -> Result<()> {
        let broken = |e: &dyn std::fmt::Display| {
            let expected =
                format!("a complete safetensors file ({} bytes are there)", shard.bytes.len());
            Error::model(&shard.file, "safetensors header", e, expected)
        };
        check_header(&shard, &broken)?;
        let (header_length, metadata) =
            SafeTensors::read_metadata(&shard.bytes).map_err(|e| broken(&e))?;
        let data = 8 + header_length;
        for (name, info) in metadata.tensors() {
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                return Err(Error::model(
                    &shard.file,
                    format!("tensor {name:?}"),
                    format!("the same name in {}", self.shards[other.shard].file),
                    "every tensor once",
                ));
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    /// The whole bytes of every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.shards.iter().map(|shard| &*shard.bytes)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
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

    /// The tensor `name`, which must be there, have `shape` and hold floats.
    ///
    /// # Errors
    /// `InvalidModel` naming the file, the tensor, what was found and what was expected.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorRef<'_>> {
        let field = || format!("tensor {name:?}");
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(Error::model(self.file(), field(), "nothing", format!("shape {shape:?}")));
        };
        let shard = &self.shards[entry.shard];
        if entry.shape != shape {
            return Err(Error::model(
                &shard.file,
                field(),
                format!("shape {:?}", entry.shape),
                format!("shape {shape:?}"),
            ));
        }
        let bytes = &shard.bytes[entry.range.clone()];
        let values = match entry.dtype {
            Dtype::F32 => bytemuck::try_cast_slice(bytes)
                .map(Values::F32)
                .unwrap_or_else(|_| widen(bytes, |b: [u8; 4]| f32::from_le_bytes(b))),
            Dtype::F16 => bytemuck::try_cast_slice(bytes)
                .map(Values::F16)
                .unwrap_or_else(|_| widen(bytes, |b: [u8; 2]| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => bytemuck::try_cast_slice(bytes)
                .map(Values::Bf16)
                .unwrap_or_else(|_| widen(bytes, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32())),
            other => {
                return Err(Error::model(
                    &shard.file,
                    field(),
                    format!("dtype {other:?}"),
                    "dtype F32, F16 or BF16",
                ));
            }
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

/// Checks what the safetensors crate lets pass: it keeps the last of two equal keys without a
/// word, and adds up offsets that it has not yet held against the file's length.
fn check_header(shard: &Shard, broken: &dyn Fn(&dyn std::fmt::Display) -> Error) -> Result<()> {
    let Some((length, rest)) = shard.bytes.split_first_chunk::<8>() else { return Ok(()) };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some((header, data)) = rest.split_at_checked(length) else { return Ok(()) };
    let document = Document::parse(shard.file.clone(), header)?;
    for (name, tensor) in document.root()?.object()? {
        let offsets = tensor["data_offsets"].as_array().into_iter().flatten();
        let end = offsets.filter_map(serde_json::Value::as_u64).max().unwrap_or(0);
        if end > data.len() as u64 {
            return Err(broken(&format_args!("tensor {name:?} up to byte {end} of the data")));
        }
    }
    Ok(())
}

fn widen<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Values<'static> {
    Values::Widened(bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect())
}

/// A name that cannot lead out of its directory.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
        && !name.starts_with('.')
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
    /// Appends the values of `range`, widened to f32.
    pub(crate) fn widen_into(&self, range: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::F32(v) => out.extend_from_slice(&v[range]),
            Self::F16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
            Self::Bf16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
            Self::Widened(v) => out.extend_from_slice(&v[range]),
        }
    }
}

impl Values<'_> {
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
            Values::Widened(v) => Tensor::from_slice(v, shape, &Device::Cpu),
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
