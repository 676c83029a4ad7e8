//! A guard in a directory of its own, to be damaged and opened.

use std::path::{Path, PathBuf};

use serde_json::Value;
use siren::hub::HubOptions;
use siren::{DeviceChoice, Guard, OpenOptions, Result};
use tempfile::TempDir;

use crate::rule;

pub const CONFIG: &str = "siren_config.json";
pub const HEAD: &str = "siren.safetensors";
pub const BACKBONE_CONFIG: &str = "backbone/config.json";
pub const BACKBONE: &str = "backbone/model.safetensors";
pub const INDEX: &str = "backbone/model.safetensors.index.json";
pub const GGUF: &str = "backbone/backbone.gguf";
pub const TOKENIZER: &str = "backbone/tokenizer.json";
pub const TOKENIZER_CONFIG: &str = "backbone/tokenizer_config.json";

/// A copy of a guard that lies in the repository.
pub struct GuardFiles(TempDir);

impl GuardFiles {
    /// A copy of a parity fixture.
    pub fn fixture(name: &str) -> Self {
        Self::copy_of(&repository("tests/parity/fixtures").join(name))
    }

    /// A copy of a GGUF fixture; its backbone is [`GGUF`].
    pub fn gguf(name: &str) -> Self {
        let files = Self::copy_of(&repository("tests/parity/gguf").join(name));
        std::fs::rename(files.path("backbone.gguf"), files.path(GGUF)).unwrap();
        files
    }

    /// A small guard behind the real Qwen3 tokenizer.
    pub fn qwen3_real() -> Self {
        let files = Self::fixture("qwen3-real");
        let packed = std::fs::File::open(files.path("backbone/tokenizer.json.gz")).unwrap();
        let mut unpacked = std::fs::File::create(files.path(TOKENIZER)).unwrap();
        std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut unpacked).unwrap();
        files.with_backbone_by_rule("qwen3-real")
    }

    /// A small guard behind the real Llama tokenizer, which is not ours to commit: `None` when
    /// `SIREN_LLAMA_TOKENIZER` does not say where it lies.
    pub fn llama_real() -> Option<Self> {
        let tokenizer = std::env::var_os("SIREN_LLAMA_TOKENIZER").filter(|v| !v.is_empty())?;
        let files = Self::fixture("llama32-real");
        for file in [TOKENIZER, TOKENIZER_CONFIG] {
            let source = Path::new(&tokenizer).join(Path::new(file).file_name().unwrap());
            std::fs::copy(source, files.path(file)).unwrap();
        }
        Some(files.with_backbone_by_rule("llama32-real"))
    }

    fn with_backbone_by_rule(self, name: &str) -> Self {
        let source = repository("tests/parity/fixtures").join(name).join("backbone");
        rule::write_backbone(&source, &self.path("backbone"));
        self
    }

    /// A copy of the guard in `source`, its backbone included.
    pub fn copy_of(source: &Path) -> Self {
        let target = tempfile::tempdir().unwrap();
        std::fs::create_dir(target.path().join("backbone")).unwrap();
        for dir in ["", "backbone"] {
            for entry in std::fs::read_dir(source.join(dir)).into_iter().flatten() {
                let from = entry.unwrap().path();
                if from.is_file() {
                    let to = target.path().join(dir).join(from.file_name().unwrap());
                    std::fs::copy(&from, to).unwrap();
                }
            }
        }
        Self(target)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
    }

    /// Changes a JSON file as a value.
    pub fn json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(file)).unwrap();
        edit(&mut value);
        self.write(file, serde_json::to_vec(&value).unwrap());
    }

    /// Sets the member at a JSON pointer, or takes it out.
    pub fn set(&self, file: &str, pointer: &str, value: Option<Value>) {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.json(file, |root| {
            let parent = root.pointer_mut(parent).unwrap();
            match (parent, value) {
                (Value::Object(map), Some(value)) => drop(map.insert(key.into(), value)),
                (Value::Object(map), None) => drop(map.shift_remove(key).unwrap()),
                (Value::Array(items), Some(value)) => {
                    items[key.parse::<usize>().unwrap()] = value;
                }
                _ => panic!("{pointer} is in no object or array"),
            }
        });
    }

    /// Changes a safetensors file tensor by tensor.
    pub fn tensors(&self, file: &str, edit: impl FnOnce(&mut Vec<RawTensor>)) {
        let mut tensors = RawTensor::read_all(&self.read(file));
        edit(&mut tensors);
        self.write(file, RawTensor::write_all(&tensors));
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            device: DeviceChoice::Cpu,
            threads: Some(1),
            hub: HubOptions { offline: true, ..HubOptions::default() },
            ..OpenOptions::new(self.0.path().display().to_string())
        }
    }

    pub fn open(&self) -> Result<Guard> {
        Guard::open(self.options())
    }
}

/// A file or directory of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One tensor of a safetensors file, whatever it says of itself.
#[derive(Clone)]
pub struct RawTensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl RawTensor {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self {
            name: name.into(),
            dtype: "F32".into(),
            shape: shape.iter().map(|&n| n as u64).collect(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    pub fn read_all(file: &[u8]) -> Vec<Self> {
        let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
        let mut all: Vec<_> = tensors
            .iter()
            .map(|(name, view)| Self {
                name: name.into(),
                dtype: view.dtype().to_string(),
                shape: view.shape().iter().map(|&n| n as u64).collect(),
                bytes: view.data().into(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub fn write_all(tensors: &[Self]) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut at = 0;
        for tensor in tensors {
            let end = at + tensor.bytes.len();
            entries.push(entry(
                &tensor.name,
                &tensor.dtype,
                &tensor.shape,
                [at as u64, end as u64],
            ));
            at = end;
        }
        let data: Vec<u8> = tensors.iter().flat_map(|t| t.bytes.iter().copied()).collect();
        safetensors_file(&format!("{{{}}}", entries.join(",")), &data)
    }
}

/// One member of a safetensors header.
pub fn entry(name: &str, dtype: &str, shape: &[u64], offsets: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#)
}

/// A file with this header, valid or not.
pub fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}
