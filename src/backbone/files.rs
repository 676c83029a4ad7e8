//! Where a backbone's numbers and weights are: in a directory as the transformers library writes it,
//! or in one GGUF file.

use std::path::{Path, PathBuf};

use super::config::{Config, Family};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::gguf::Gguf;

pub(crate) const CONFIG_FILE: &str = "config.json";

/// The files of a backbone, its tokenizer aside.
pub(crate) enum Files {
    /// `config.json` and safetensors.
    Dir(PathBuf),
    Gguf(Gguf),
}

impl Files {
    /// The directory or the GGUF file `path`; of the latter the header is read.
    ///
    /// # Errors
    /// Those of [`Gguf::open`].
    pub(crate) fn open(path: &Path, map: bool) -> Result<Self> {
        if path.is_dir() {
            Ok(Self::Dir(path.to_owned()))
        } else {
            Gguf::open(path, map).map(Self::Gguf)
        }
    }

    /// The shape of the backbone.
    ///
    /// # Errors
    /// `InvalidModel` naming the field, what was found and what is accepted.
    pub(crate) fn config(&self) -> Result<Config> {
        match self {
            Self::Dir(dir) => Config::read(&dir.join(CONFIG_FILE)),
            Self::Gguf(gguf) => Config::of_gguf(gguf),
        }
    }

    /// The weights of the backbone of this shape.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open_dir`].
    pub(crate) fn checkpoint(self, config: &Config, map: bool) -> Result<Checkpoint> {
        match self {
            Self::Dir(dir) => Checkpoint::open_dir(&dir, map),
            Self::Gguf(gguf) => {
                let interleaved = (config.family == Family::Llama).then_some(config.head_dim);
                Ok(Checkpoint::of_gguf(gguf, interleaved))
            }
        }
    }
}
