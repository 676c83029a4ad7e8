//! What an artifact holds, without opening its backbone's weights.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::artifact::{self, BaseModel, Pooling, SelectedLayer};
use crate::backbone::Files;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::locate;
use crate::options::OpenOptions;

/// One selected layer of an artifact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerInfo {
    /// Number of the block, from 0.
    pub index: usize,
    /// What the layer's neurons are multiplied with.
    pub weight: f32,
    /// Neurons that are read.
    pub neurons: usize,
}

impl LayerInfo {
    pub(crate) fn of(layer: &SelectedLayer) -> Self {
        Self { index: layer.index, weight: layer.weight, neurons: layer.neurons.len() }
    }

    /// The layer as a JSON object.
    pub fn to_json(&self) -> Value {
        json!({ "layer": self.index, "weight": self.weight, "neurons": self.neurons })
    }
}

/// What `siren_config.json` and `siren.safetensors` hold, and the shape of the backbone if it is
/// on this machine.
#[derive(Clone, Debug)]
pub struct ArtifactInfo {
    /// Where the artifact was read.
    pub model_dir: PathBuf,
    /// The backbone that the artifact names.
    pub base_model: BaseModel,
    /// Which states are averaged.
    pub pooling: Pooling,
    /// Selected layers, ascending.
    pub layers: Vec<LayerInfo>,
    /// Outputs of the head's linear layers.
    pub head_dims: Vec<usize>,
    /// Numbers in the head.
    pub head_parameters: usize,
    /// Longest text in tokens.
    pub max_length: usize,
    /// The threshold of calls that give none.
    pub default_threshold: f64,
    /// Bytes of the artifact's two files.
    pub bytes: u64,
    /// The backbone, if it is on this machine.
    pub backbone: Option<BackboneInfo>,
}

/// The shape of a backbone.
#[derive(Clone, Debug)]
pub struct BackboneInfo {
    /// Where it lies: a directory or a GGUF file.
    pub path: PathBuf,
    /// Its family, as `model_type` of a `config.json` names it.
    pub model_type: &'static str,
    /// Its blocks.
    pub layers: usize,
    /// Blocks that this artifact runs.
    pub layers_run: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Bytes of its safetensors files, or of the GGUF file.
    pub bytes: u64,
    /// Of a GGUF file, how many tensors it has of each type, the most first; else nothing.
    pub tensor_types: Vec<(&'static str, usize)>,
}

/// Reads the artifact that `options` name. A hub repository is fetched (its two files only); its
/// backbone is described when it is in a directory of this machine, and never fetched.
///
/// # Errors
/// As [`Guard::open`](crate::Guard::open), as far as the artifact goes.
pub fn inspect(options: &OpenOptions) -> Result<ArtifactInfo> {
    let model_dir = locate::model(options)?;
    let content = artifact::open(&model_dir, options.map)?;
    let last = content.layers.last().map_or(0, |layer| layer.index);
    let backbone = locate::local_backbone(options, &model_dir, &content.base_model)?
        .map(|path| backbone(path, last + 1))
        .transpose()?;
    let files = [artifact::CONFIG_FILE, artifact::WEIGHTS_FILE];
    let sizes = files.iter().map(|file| size(&model_dir.join(file)));
    Ok(ArtifactInfo {
        bytes: sizes.sum::<Result<u64>>()?,
        base_model: content.base_model,
        pooling: content.pooling,
        layers: content.layers.iter().map(LayerInfo::of).collect(),
        head_dims: content.head.iter().map(|layer| layer.outputs).collect(),
        head_parameters: content.head.iter().map(|l| l.weight.len() + l.bias.len()).sum(),
        max_length: content.max_length,
        default_threshold: content.default_threshold,
        backbone,
        model_dir,
    })
}

fn backbone(path: PathBuf, layers_run: usize) -> Result<BackboneInfo> {
    let files = Files::open(&path, true)?;
    let config = files.config()?;
    let (bytes, tensor_types) = match &files {
        Files::Dir(dir) => (safetensors_bytes(dir)?, vec![]),
        Files::Gguf(gguf) => (gguf.len() as u64, tensor_types(gguf)),
    };
    Ok(BackboneInfo {
        path,
        model_type: config.family.model_type(),
        layers: config.num_hidden_layers,
        layers_run,
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        bytes,
        tensor_types,
    })
}

fn safetensors_bytes(dir: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir.display(), &e))?;
    let mut bytes = 0;
    for entry in entries.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += size(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn tensor_types(gguf: &Gguf) -> Vec<(&'static str, usize)> {
    let mut counts = BTreeMap::new();
    for (_, info) in gguf.tensors() {
        *counts.entry(info.kind.name()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    counts
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(|e| Error::io(path.display(), &e))?.len())
}

impl ArtifactInfo {
    /// Everything, as one JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "model_dir": self.model_dir.display().to_string(),
            "base_model": self.base_model.model_id,
            "revision": self.base_model.revision,
            "pooling_type": self.pooling.name(),
            "selected_layers": self.layers.iter().map(LayerInfo::to_json).collect::<Vec<_>>(),
            "neurons": self.layers.iter().map(|layer| layer.neurons).sum::<usize>(),
            "head_dims": self.head_dims,
            "head_parameters": self.head_parameters,
            "max_length": self.max_length,
            "default_threshold": self.default_threshold,
            "bytes": self.bytes,
            "backbone": self.backbone.as_ref().map(BackboneInfo::to_json),
        })
    }
}

impl BackboneInfo {
    fn to_json(&self) -> Value {
        json!({
            "path": self.path.display().to_string(),
            "model_type": self.model_type,
            "layers": self.layers,
            "layers_run": self.layers_run,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "bytes": self.bytes,
            "tensor_types": self.tensor_types.iter().copied().collect::<BTreeMap<_, _>>(),
        })
    }
}
