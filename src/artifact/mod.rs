//! `siren_config.json` + `siren.safetensors` -> a checked artifact, one file a task.

mod content;
mod head;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use content::Pooling;
pub(crate) use content::{Content, SelectedLayer};
pub(crate) use head::Layer;

use crate::error::{Error, Result, Status};
use crate::json::{self, Document, Node};

/// The artifact's configuration.
pub(crate) const CONFIG_FILE: &str = "siren_config.json";
/// The artifact's trained head.
pub(crate) const WEIGHTS_FILE: &str = "siren.safetensors";

/// The backbone that an artifact was trained on (`base_model`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseModel {
    /// A repository, or a directory (`model_id`).
    pub model_id: String,
    /// The pinned revision; `None` is the default branch (`revision` absent, null or empty).
    pub revision: Option<String>,
}

/// Reads and checks the artifact in `dir`.
///
/// # Errors
/// `NotFound` for a missing file; `Unsupported` for a trajectory artifact; `InvalidModel` naming
/// the file, the field, what was found and what was expected.
pub(crate) fn open(dir: &Path, map: bool) -> Result<Content> {
    let path: PathBuf = dir.join(CONFIG_FILE);
    let bytes = json::read_bytes(&path)?;
    let digest = Sha256::new_with_prefix(&bytes);
    let document = Document::parse(path.display().to_string(), &bytes)?;
    let root = document.root()?;
    match root.get("task")? {
        None => {}
        Some(task) => match task.string()? {
            "content" => {}
            "trajectory" => {
                return Err(Error::new(
                    Status::Unsupported,
                    format!("{}: task: trajectory artifacts cannot be opened yet", path.display()),
                ));
            }
            _ => return Err(task.unexpected(r#""content" or "trajectory""#)),
        },
    }
    content::read(&root, &dir.join(WEIGHTS_FILE), map, digest)
}

/// Reads only which backbone the artifact in `dir` names.
///
/// # Errors
/// As [`open`], as far as `base_model` goes.
pub(crate) fn base_model(dir: &Path) -> Result<BaseModel> {
    named_base_model(&Document::read(&dir.join(CONFIG_FILE))?.root()?)
}

fn named_base_model(root: &Node<'_>) -> Result<BaseModel> {
    let node = root.require("base_model")?;
    let model_id = node.require("model_id")?;
    if model_id.string()?.is_empty() {
        return Err(model_id.unexpected("a repository or a directory"));
    }
    let revision = match node.get_non_null("revision")? {
        Some(revision) => Some(revision.string()?.to_owned()).filter(|r| !r.is_empty()),
        None => None,
    };
    Ok(BaseModel { model_id: model_id.string()?.to_owned(), revision })
}
