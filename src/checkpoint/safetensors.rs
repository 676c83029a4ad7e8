//! Safetensors files, one or several, -> a [`Checkpoint`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::{Checkpoint, Entry, Names, Shard, Stored};
use crate::error::{Error, Result, Status};
use crate::gguf::TensorType;
use crate::json::Document;
use crate::sys::file::Bytes;

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 1024;

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
        let mut checkpoint =
            Self { shards: Vec::new(), tensors: HashMap::new(), names: Names::AsAsked };
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
                stored: match info.dtype {
                    Dtype::F32 => Stored::As(TensorType::F32),
                    Dtype::F16 => Stored::As(TensorType::F16),
                    Dtype::BF16 => Stored::As(TensorType::Bf16),
                    other => Stored::Unread(other),
                },
                shape: info.shape.clone(),
                range,
                interleaved: None,
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

/// A name that cannot lead out of its directory.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
        && !name.starts_with('.')
}
