//! What an open guard is made of.

use std::path::PathBuf;

use crate::artifact::{BaseModel, Pooling};
use crate::backbone::Family;
use crate::inspect::LayerInfo;

/// What an open guard is made of.
#[derive(Clone, Debug)]
pub struct Info {
    /// Where the artifact was read.
    pub model_dir: PathBuf,
    /// Where the backbone was read: a directory or a GGUF file.
    pub backbone_path: PathBuf,
    /// The backbone that the artifact names.
    pub base_model: BaseModel,
    /// The backbone's family.
    pub family: Family,
    /// Which states are averaged.
    pub pooling: Pooling,
    /// Selected layers, ascending: number, weight, neurons.
    pub layers: Vec<LayerInfo>,
    /// Outputs of the head's linear layers; the last is the number of classes.
    pub head_dims: Vec<usize>,
    /// Longest text in tokens, special ones included.
    pub max_length: usize,
    /// The threshold of calls that give none.
    pub default_threshold: f64,
    /// Blocks that the backbone has, and how many of them run.
    pub backbone_layers: usize,
    /// See `backbone_layers`.
    pub layers_run: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What the linear layers compute in: `f32`, `bf16` or `int8`.
    pub dtype: &'static str,
    /// Threads of the guard's own pool.
    pub threads: usize,
    /// The file of packed weights that this guard shares with the other processes that map it;
    /// `None` where they are in memory of its own.
    pub packed_file: Option<PathBuf>,
    /// Bytes of the linear layers' weights in memory, backbone and head.
    pub weight_bytes: usize,
    /// Bytes that one token takes where it is kept for streams and in the prefix cache: keys and
    /// values of every block that runs in f32, and the selected neurons.
    pub kv_token_bytes: usize,
    /// SHA-256 over `siren_config.json` and then `siren.safetensors`, in hexadecimal.
    pub artifact_sha256: String,
}

impl Info {
    /// Everything, as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        let layers: Vec<_> = self.layers.iter().map(LayerInfo::to_json).collect();
        serde_json::json!({
            "model_dir": self.model_dir.display().to_string(),
            "backbone_path": self.backbone_path.display().to_string(),
            "base_model": self.base_model.model_id,
            "revision": self.base_model.revision,
            "family": self.family.model_type(),
            "pooling_type": self.pooling.name(),
            "selected_layers": layers,
            "head_dims": self.head_dims,
            "max_length": self.max_length,
            "default_threshold": self.default_threshold,
            "backbone_layers": self.backbone_layers,
            "layers_run": self.layers_run,
            "hidden_size": self.hidden_size,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "packed_file": self.packed_file.as_ref().map(|path| path.display().to_string()),
            "weight_bytes": self.weight_bytes,
            "kv_token_bytes": self.kv_token_bytes,
            "artifact_sha256": self.artifact_sha256,
        })
    }
}
