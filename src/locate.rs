//! A model's name -> the directories that hold its artifact and its backbone.

use std::path::{Path, PathBuf};

use crate::artifact::{self, BaseModel};
use crate::backbone::CONFIG_FILE;
use crate::error::{Error, Result, Status};
use crate::hub::{self, Repo, Source};
use crate::options::OpenOptions;
use crate::sys;

/// Where a pulled or shipped model keeps its backbone.
pub(crate) const BACKBONE_DIR: &str = "backbone";
/// Names the directory that holds `models/demo`, over every other place.
const DATA_DIR_VARIABLE: &str = "SIREN_DATA_DIR";
const DEMO: &str = "models/demo";
/// Stands beside `models` in the source tree: a `models/demo` alone may be anybody's.
const MANIFEST: &str = "Cargo.toml";
/// Where an installation keeps its data, below its prefix.
const SHARE_DIR: &str = "share/libsiren";

/// The artifact's directory.
///
/// # Errors
/// `NotFound`, and the hub's.
pub(crate) fn model(options: &OpenOptions) -> Result<PathBuf> {
    match options.model.as_deref() {
        None => demo(options.data_dir.as_deref()),
        Some("") => Err(Error::argument("the model is \"\", expected a directory or REPO[@REV]")),
        Some(name) => Source::parse(name)?.artifact(&options.hub),
    }
}

/// The backbone's directory or GGUF file: the one that was asked for, else the artifact's own.
///
/// # Errors
/// `NotFound`, and the hub's.
pub(crate) fn backbone(
    options: &OpenOptions,
    model_dir: &Path,
    base_model: &BaseModel,
) -> Result<PathBuf> {
    weights(&backbone_source(options, model_dir, base_model)?.backbone(&options.hub)?)
}

/// The backbone's directory or GGUF file if it needs no hub.
pub(crate) fn local_backbone(
    options: &OpenOptions,
    model_dir: &Path,
    base_model: &BaseModel,
) -> Result<Option<PathBuf>> {
    match backbone_source(options, model_dir, base_model) {
        Ok(Source::Dir(path) | Source::Gguf(path)) => weights(&path).map(Some),
        _ => Ok(None),
    }
}

/// The GGUF file of a backbone's directory that holds one and no `config.json`; else `path` itself.
///
/// # Errors
/// `Io`, and `InvalidModel` where there are several.
pub(crate) fn weights(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() || path.join(CONFIG_FILE).exists() {
        return Ok(path.to_owned());
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path.display(), &e))?;
    let found = entries.flatten().map(|entry| entry.path()).filter(|path| hub::is_gguf(path));
    match &found.collect::<Vec<_>>()[..] {
        [] => Ok(path.to_owned()),
        [only] => Ok(only.clone()),
        several => Err(Error::model(
            path.display(),
            "contents",
            format!("{} .gguf files", several.len()),
            "one, or the name of the one that is meant",
        )),
    }
}

fn backbone_source(
    options: &OpenOptions,
    model_dir: &Path,
    base_model: &BaseModel,
) -> Result<Source> {
    match options.backbone.as_deref() {
        Some(name) => Source::parse(name),
        None => own_backbone(model_dir, base_model),
    }
}

/// An artifact's own backbone: the directory beside it, else the one that it names, a directory
/// or a repository at its pinned revision.
///
/// # Errors
/// `InvalidModel` when the name is neither.
pub(crate) fn own_backbone(model_dir: &Path, base_model: &BaseModel) -> Result<Source> {
    let places = [model_dir.join(BACKBONE_DIR), PathBuf::from(&base_model.model_id)];
    if let Some(dir) = places.into_iter().find(|dir| dir.is_dir()) {
        return Ok(Source::Dir(dir));
    }
    let repo = Repo::new(&base_model.model_id, base_model.revision.as_deref());
    repo.map(Source::Repo).map_err(|e| {
        Error::model(
            model_dir.join(artifact::CONFIG_FILE).display(),
            "base_model",
            format!("{:?} ({e})", base_model.model_id),
            "a directory that exists, or a repository",
        )
    })
}

/// The demo guard, from `SIREN_DATA_DIR`, an installation or the source tree.
fn demo(data_dir: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(DATA_DIR_VARIABLE).filter(|v| !v.is_empty());
    let mut places: Vec<PathBuf> =
        [data_dir.map(Path::to_owned), variable.map(PathBuf::from)].into_iter().flatten().collect();
    if let Some(module) = sys::module::path() {
        // PREFIX/lib or PREFIX/bin, and a build directory somewhere inside the source tree.
        let directories = module.ancestors().skip(1);
        places.extend(directories.clone().skip(1).take(2).map(|dir| dir.join(SHARE_DIR)));
        let is_source = |dir: &&Path| dir.join(MANIFEST).is_file();
        places.extend(directories.skip(1).filter(is_source).map(Path::to_owned));
    }
    let places: Vec<PathBuf> = places.into_iter().map(|dir| dir.join(DEMO)).collect();
    places.iter().find(|dir| dir.join(artifact::CONFIG_FILE).is_file()).cloned().ok_or_else(|| {
        let looked: Vec<_> = places.iter().map(|dir| dir.display().to_string()).collect();
        Error::new(
            Status::NotFound,
            format!(
                "no model was named, and the demo guard is in none of {} (set {DATA_DIR_VARIABLE} \
                 to the directory that holds {DEMO})",
                looked.join(", ")
            ),
        )
    })
}
