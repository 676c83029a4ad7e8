//! GGUF files: metadata by key and tensors by name, every length held against the file's own before
//! anything is allocated or read for it.
//!
//! candle's reader is what this one is tested against, and is not used itself: it keeps the last of
//! equal keys and names, divides by whatever alignment the file names, multiplies dimensions
//! unchecked, spends 32 bytes on every byte of an array, and copies tensors instead of mapping them.

mod header;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::kernels::BlockType;
use crate::sys::file::Bytes;

/// The end of a GGUF file's name.
pub(crate) const EXTENSION: &str = "gguf";

/// An open GGUF file. Names are in order, so that of several faults always the same one is told.
pub(crate) struct Gguf {
    file: String,
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    pub(crate) kind: TensorType,
    /// The last dimension is the one whose elements are neighbours.
    pub(crate) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(crate) range: Range<usize>,
}

/// The tensor types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Blocks(BlockType),
}

/// A value of the metadata; what is longer than a number stays where it lies.
#[derive(Clone, Debug)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Strings {
        count: usize,
        range: Range<usize>,
    },
    Integers(Numbers),
    /// An array of floats or truth values, which nothing here reads.
    OtherArray(usize),
}

/// An array of whole numbers as it lies in the file.
#[derive(Clone, Debug)]
struct Numbers {
    width: usize,
    signed: bool,
    range: Range<usize>,
}

impl Gguf {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `OutOfMemory`; `InvalidModel` for anything that is not a complete,
    /// consistent GGUF file of version 2 or 3 with tensors of types that are read.
    pub(crate) fn open(path: &Path, map: bool) -> Result<Self> {
        let bytes = Bytes::open(path, map)?;
        let file = path.display().to_string();
        let header = header::read(&file, &bytes)?;
        Ok(Self { file, bytes, metadata: header.metadata, tensors: header.tensors })
    }

    /// Its name, its bytes and its tensors.
    pub(crate) fn into_parts(self) -> (String, Bytes, BTreeMap<String, TensorInfo>) {
        (self.file, self.bytes, self.tensors)
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// The length of the whole file.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The values of a tensor of one dimension in f32, if it is there.
    ///
    /// # Errors
    /// `InvalidModel` for another shape or type.
    pub(crate) fn f32_vector(&self, name: &str, length: usize) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let field = format!("tensor {name:?}");
        if info.shape != [length] {
            let found = format!("shape {:?}", info.shape);
            return Err(Error::model(&self.file, field, found, format!("shape {:?}", [length])));
        }
        if info.kind != TensorType::F32 {
            return Err(Error::model(&self.file, field, info.kind.name(), "F32"));
        }
        let (values, _) = self.bytes[info.range.clone()].as_chunks();
        Ok(Some(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    pub(crate) fn get<'a>(&'a self, key: &'a str) -> Option<Field<'a>> {
        self.metadata.get(key).map(|value| Field { gguf: self, key, value })
    }

    /// The value of `key`, which must be there.
    pub(crate) fn require<'a>(&'a self, key: &'a str) -> Result<Field<'a>> {
        self.get(key).ok_or_else(|| self.missing(key))
    }

    /// The error for a key that must be there and is not.
    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::model(&self.file, key, "nothing", "the key to be present")
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        self.metadata.iter().map(|(key, value)| Field { gguf: self, key, value })
    }
}

impl TensorType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Blocks(of) => of.name(),
        }
    }

    /// Elements and bytes of the smallest part that a tensor can have.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(of) => (of.elements(), of.bytes()),
        }
    }
}

/// A value of the metadata that knows its key and file.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    gguf: &'a Gguf,
    key: &'a str,
    value: &'a Value,
}

impl<'a> Field<'a> {
    pub(crate) fn key(&self) -> &'a str {
        self.key
    }

    /// An error at this place.
    pub(crate) fn invalid(
        &self,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Error {
        Error::model(&self.gguf.file, self.key, found, expected)
    }

    /// As [`Field::invalid`], with the value as what was found.
    pub(crate) fn unexpected(&self, expected: impl std::fmt::Display) -> Error {
        let found = match self.value {
            Value::Integer(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::String(range) => {
                let text = String::from_utf8_lossy(&self.gguf.bytes[range.clone()]);
                let short: String = text.chars().take(80).collect();
                format!("{short:?}{}", if short.len() < text.len() { "..." } else { "" })
            }
            Value::Strings { count, .. } => format!("an array of {count} strings"),
            Value::Integers(numbers) => format!("an array of {} numbers", numbers.len()),
            Value::OtherArray(count) => format!("an array of {count} values"),
        };
        self.invalid(found, expected)
    }

    /// A whole number in `low..=high`.
    pub(crate) fn integer(&self, low: usize, high: usize) -> Result<usize> {
        match self.value {
            Value::Integer(v) => usize::try_from(*v).ok(),
            _ => None,
        }
        .filter(|v| (low..=high).contains(v))
        .ok_or_else(|| self.unexpected(format_args!("a whole number from {low} to {high}")))
    }

    /// A finite number in `low..=high`.
    pub(crate) fn number(&self, low: f64, high: f64) -> Result<f64> {
        match self.value {
            Value::Float(v) => Some(*v),
            _ => None,
        }
        .filter(|v| v.is_finite() && (low..=high).contains(v))
        .ok_or_else(|| self.unexpected(format_args!("a number from {low} to {high}")))
    }

    pub(crate) fn boolean(&self) -> Result<bool> {
        match self.value {
            Value::Bool(v) => Ok(*v),
            _ => Err(self.unexpected("true or false")),
        }
    }

    pub(crate) fn string(&self) -> Result<&'a str> {
        let Value::String(range) = self.value else { return Err(self.unexpected("a string")) };
        std::str::from_utf8(&self.gguf.bytes[range.clone()])
            .map_err(|e| self.invalid(e, "a string in UTF-8"))
    }

    /// The strings of an array.
    pub(crate) fn strings(&self) -> Result<Vec<&'a str>> {
        let Value::Strings { count, range } = self.value else {
            return Err(self.unexpected("an array of strings"));
        };
        let mut cursor = header::Cursor::new(&self.gguf.file, &self.gguf.bytes, range.start);
        (0..*count)
            .map(|i| {
                let string = &self.gguf.bytes[cursor.string()?];
                std::str::from_utf8(string)
                    .map_err(|e| self.invalid(format_args!("item {i}: {e}"), "strings in UTF-8"))
            })
            .collect()
    }

    /// The whole numbers of an array.
    pub(crate) fn integers(&self) -> Result<impl ExactSizeIterator<Item = i128> + 'a> {
        let Value::Integers(numbers) = self.value else {
            return Err(self.unexpected("an array of whole numbers"));
        };
        let bytes = &self.gguf.bytes[numbers.range.clone()];
        Ok(bytes.chunks_exact(numbers.width).map(|bytes| header::integer(bytes, numbers.signed)))
    }
}

impl Numbers {
    fn len(&self) -> usize {
        self.range.len() / self.width
    }
}

/// Refuses tensors that share bytes.
fn check_overlaps(file: &str, tensors: &BTreeMap<String, TensorInfo>) -> Result<()> {
    let mut seen: Vec<_> = tensors.iter().collect();
    seen.sort_by_key(|(_, info)| info.range.start);
    match seen.array_windows().find(|[(_, a), (_, b)]| a.range.end > b.range.start) {
        Some([(a, _), (b, _)]) => Err(Error::model(
            file,
            format!("tensor {b:?}"),
            format!("bytes that are tensor {a:?}'s too"),
            "tensors that lie behind each other",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Content;

    use super::*;

    /// Files that the `gguf` package wrote, read by candle's reader and by this one.
    #[test]
    fn headers_are_what_candles_reader_reads() {
        for name in ["qwen3-mixed", "llama-k", "llama-half"] {
            let path =
                format!("{}/tests/parity/gguf/{name}/backbone.gguf", env!("CARGO_MANIFEST_DIR"));
            let theirs = Content::read(&mut std::fs::File::open(&path).unwrap()).unwrap();
            let ours = Gguf::open(Path::new(&path), true).unwrap();
            assert_eq!(ours.tensors.len(), theirs.tensor_infos.len());
            for (name, theirs_of) in &theirs.tensor_infos {
                let ours_of = &ours.tensors[name];
                let start = theirs.tensor_data_offset + theirs_of.offset;
                assert_eq!(ours_of.range.start as u64, start, "{name}");
                assert_eq!(ours_of.shape, theirs_of.shape.dims(), "{name}");
                let dtype = &theirs_of.ggml_dtype;
                assert_eq!(ours_of.kind.block(), (dtype.block_size(), dtype.type_size()), "{name}");
                let blocks = ours_of.shape.iter().product::<usize>() / dtype.block_size();
                assert_eq!(ours_of.range.len(), blocks * dtype.type_size(), "{name}");
            }
            assert_eq!(ours.metadata.len(), theirs.metadata.len());
            for (key, value) in &theirs.metadata {
                use candle_core::quantized::gguf_file::Value as Theirs;
                let field = ours.get(key).unwrap();
                match value {
                    Theirs::String(v) => assert_eq!(field.string().unwrap(), v),
                    Theirs::Bool(v) => assert_eq!(field.boolean().unwrap(), *v),
                    Theirs::F32(v) => assert_eq!(field.number(0.0, 1e9).unwrap(), f64::from(*v)),
                    Theirs::U32(v) => assert_eq!(field.integer(0, 1 << 32).unwrap(), *v as usize),
                    Theirs::Array(items) => match &items[0] {
                        Theirs::String(_) => {
                            let items: Vec<_> =
                                items.iter().map(|v| v.to_string().unwrap()).collect();
                            assert_eq!(field.strings().unwrap(), items);
                        }
                        _ => {
                            let items = items.iter().map(|v| i128::from(v.to_i32().unwrap()));
                            assert!(field.integers().unwrap().eq(items));
                        }
                    },
                    other => panic!("{key}: {other:?}"),
                }
            }
        }
    }
}
