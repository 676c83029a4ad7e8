//! The header's bytes -> metadata and tensors.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Numbers, TensorInfo, TensorType, Value, check_overlaps};
use crate::error::{Error, Result};
use crate::kernels::BlockType;

/// A model has a few dozen keys and a dozen tensors a layer.
const MAX_ENTRIES: u64 = 1 << 16;
/// Longer ones would fill error messages.
const MAX_NAME_BYTES: usize = 256;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 16;

pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// Reads the header of a file's `bytes`.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor::new(file, bytes, 0);
    let magic = cursor.take(4)?;
    if bytes[magic.clone()] != *b"GGUF" {
        let found = format!("{:?}", bytes[magic].escape_ascii().to_string());
        return Err(Error::model(file, "magic", found, r#""GGUF""#));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Error::model(file, "version", version, "2 or 3, little-endian"));
    }
    let tensor_count = cursor.count("tensor_count")?;
    let metadata_count = cursor.count("metadata_kv_count")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..metadata_count {
        let key = cursor.name("a key")?;
        let value = cursor.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::model(file, key, "the key twice", "every key once"));
        }
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = cursor.name("a tensor's name")?;
        let info = cursor.tensor(&name)?;
        if tensors.insert(name.clone(), info).is_some() {
            let field = format!("tensor {name:?}");
            return Err(Error::model(file, field, "the name twice", "every tensor once"));
        }
    }
    let alignment = alignment(file, &metadata)?;
    place(file, &mut tensors, cursor.at.next_multiple_of(alignment), alignment, bytes.len())?;
    check_overlaps(file, &tensors)?;
    Ok(Header { metadata, tensors })
}

fn alignment(file: &str, metadata: &BTreeMap<String, Value>) -> Result<usize> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Integer(v)) => usize::try_from(*v)
            .ok()
            .filter(|v| v.is_power_of_two() && *v <= MAX_ALIGNMENT)
            .ok_or_else(|| {
                let expected = format!("a power of two up to {MAX_ALIGNMENT}");
                Error::model(file, KEY, v, expected)
            }),
        Some(_) => Err(Error::model(file, KEY, "no whole number", "a power of two")),
    }
}

/// Moves the tensors' extents, which count from the start of the data, to where they lie in the
/// file.
fn place(
    file: &str,
    tensors: &mut BTreeMap<String, TensorInfo>,
    data: usize,
    alignment: usize,
    length: usize,
) -> Result<()> {
    for (name, info) in tensors {
        let field = || format!("tensor {name:?}");
        let Range { start, end } = info.range;
        if !start.is_multiple_of(alignment) {
            let expected = format!("a multiple of the alignment, {alignment}");
            return Err(Error::model(file, field(), format!("offset {start}"), expected));
        }
        match (data.checked_add(start), data.checked_add(end)) {
            (Some(start), Some(end)) if end <= length => info.range = start..end,
            _ => {
                let found = format!("{} bytes from byte {start} of the data", info.range.len());
                let expected = format!(
                    "a tensor inside the file's {} bytes of data",
                    length.saturating_sub(data)
                );
                return Err(Error::model(file, field(), found, expected));
            }
        }
    }
    Ok(())
}

/// A place in a file, from which values are read.
pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8], at: usize) -> Self {
        Self { file, bytes, at }
    }

    /// Where the next `length` bytes lie.
    fn take(&mut self, length: u64) -> Result<Range<usize>> {
        let start = self.at;
        match usize::try_from(length).ok().and_then(|length| start.checked_add(length)) {
            Some(end) if end <= self.bytes.len() => {
                self.at = end;
                Ok(start..end)
            }
            _ => Err(Error::model(
                self.file,
                "GGUF header",
                format!("{length} bytes at byte {start}"),
                format!("a complete GGUF file ({} bytes are there)", self.bytes.len()),
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        Ok(std::array::from_fn(|i| self.bytes[range.start + i]))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, field: &str) -> Result<u64> {
        match self.u64()? {
            count @ 0..=MAX_ENTRIES => Ok(count),
            count => Err(Error::model(self.file, field, count, format!("at most {MAX_ENTRIES}"))),
        }
    }

    /// A string's extent.
    pub(super) fn string(&mut self) -> Result<Range<usize>> {
        let length = self.u64()?;
        self.take(length)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let range = self.string()?;
        let length = range.len();
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) if (1..=MAX_NAME_BYTES).contains(&length) => Ok(name.to_owned()),
            _ => Err(Error::model(
                self.file,
                "GGUF header",
                format!("{what} of {length} bytes at byte {at}"),
                format!("1 to {MAX_NAME_BYTES} bytes of UTF-8"),
            )),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        match self.u32()? {
            6 => Ok(Value::Float(f32::from_le_bytes(self.array()?).into())),
            12 => Ok(Value::Float(f64::from_le_bytes(self.array()?))),
            7 => match self.array()? {
                [value @ 0..=1] => Ok(Value::Bool(value == 1)),
                [other] => Err(Error::model(self.file, key, other, "a truth value, 0 or 1")),
            },
            STRING => self.string().map(Value::String),
            ARRAY => {
                let kind = self.u32()?;
                let count = self.u64()?;
                if kind == STRING {
                    return self.strings(count);
                }
                let Some((width, number)) = scalar(kind) else {
                    return Err(self.unknown_type(key, "items of type", kind));
                };
                let range = self.take(count.saturating_mul(width as u64))?;
                Ok(match number {
                    Some(signed) => Value::Integers(Numbers { width, signed, range }),
                    None => Value::OtherArray(range.len() / width),
                })
            }
            kind => match scalar(kind) {
                Some((width, Some(signed))) => {
                    let range = self.take(width as u64)?;
                    Ok(Value::Integer(integer(&self.bytes[range], signed)))
                }
                _ => Err(self.unknown_type(key, "type", kind)),
            },
        }
    }

    fn strings(&mut self, count: u64) -> Result<Value> {
        let start = self.at;
        for _ in 0..count {
            self.string()?;
        }
        // Each took at least the bytes of its length.
        let count = usize::try_from(count).expect("as many as the file has room for");
        Ok(Value::Strings { count, range: start..self.at })
    }

    fn unknown_type(&self, key: &str, what: &str, kind: u32) -> Error {
        Error::model(
            self.file,
            key,
            format!("{what} {kind}"),
            "a number, a truth value, a string, or an array of one of these",
        )
    }

    /// A tensor whose range counts from the start of the data.
    fn tensor(&mut self, name: &str) -> Result<TensorInfo> {
        let field = || format!("tensor {name:?}");
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let found = format!("{dimensions} dimensions");
            return Err(Error::model(self.file, field(), found, format!("1 to {MAX_DIMENSIONS}")));
        }
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
        // In the file the first one is of neighbours.
        shape.reverse();
        let number = self.u32()?;
        let kind = tensor_type(number).map_err(|name| {
            Error::model(
                self.file,
                field(),
                format!("type {name}"),
                "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K",
            )
        })?;
        let offset = self.u64()?;
        let (elements, bytes) = kind.block();
        let bad_shape = |expected: String| {
            Error::model(self.file, field(), format!("shape {shape:?}"), expected)
        };
        if !shape.last().is_some_and(|row| row.is_multiple_of(elements as u64)) {
            return Err(bad_shape(format!(
                "rows of whole blocks of {elements}, since its type is {}",
                kind.name()
            )));
        }
        let end = shape
            .iter()
            .try_fold(1u64, |product, n| product.checked_mul(*n))
            .filter(|product| *product > 0)
            .and_then(|product| (product / elements as u64).checked_mul(bytes as u64))
            .and_then(|size| size.checked_add(offset))
            .and_then(|end| usize::try_from(end).ok())
            .ok_or_else(|| bad_shape("dimensions above 0 whose product can be counted".into()))?;
        let offset = usize::try_from(offset).expect("less than its end");
        let shape = shape.into_iter().map(|n| usize::try_from(n).expect("less than its end"));
        Ok(TensorInfo { kind, shape: shape.collect(), range: offset..end })
    }
}

/// Bytes of a number or truth value of type `kind`; and for whole numbers, whether they are signed.
fn scalar(kind: u32) -> Option<(usize, Option<bool>)> {
    Some(match kind {
        0 => (1, Some(false)),
        1 => (1, Some(true)),
        2 => (2, Some(false)),
        3 => (2, Some(true)),
        4 => (4, Some(false)),
        5 => (4, Some(true)),
        10 => (8, Some(false)),
        11 => (8, Some(true)),
        6 => (4, None),
        7 => (1, None),
        12 => (8, None),
        _ => return None,
    })
}

/// The whole number in up to 8 little-endian bytes.
pub(super) fn integer(bytes: &[u8], signed: bool) -> i128 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(wide);
    if signed {
        let unused = 64 - 8 * bytes.len();
        ((value << unused) as i64 >> unused).into()
    } else {
        value.into()
    }
}

/// The type of ggml's number, or the name of one that is not read.
fn tensor_type(number: u32) -> Result<TensorType, String> {
    let name = match number {
        0 => return Ok(TensorType::F32),
        1 => return Ok(TensorType::F16),
        2 => return Ok(TensorType::Blocks(BlockType::Q4_0)),
        3 => return Ok(TensorType::Blocks(BlockType::Q4_1)),
        6 => return Ok(TensorType::Blocks(BlockType::Q5_0)),
        7 => return Ok(TensorType::Blocks(BlockType::Q5_1)),
        8 => return Ok(TensorType::Blocks(BlockType::Q8_0)),
        12 => return Ok(TensorType::Blocks(BlockType::Q4K)),
        13 => return Ok(TensorType::Blocks(BlockType::Q5K)),
        14 => return Ok(TensorType::Blocks(BlockType::Q6K)),
        30 => return Ok(TensorType::Bf16),
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(number.to_string()),
    };
    Err(name.into())
}
