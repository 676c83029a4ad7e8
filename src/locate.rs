//! A model's name -> the directories that hold its artifact and its backbone.

use std::path::{Path, PathBuf};

use crate::artifact::{self, BaseModel};
use crate::error::{Error, Result, Status};
use crate::hub::{self, Repo, Source};
use crate::options::OpenOptions;
use crate::sys;

/// Where a pulled or shipped model keeps its backbone.
const BACKBONE_DIR: &str = "backbone";
/// Names the directory that holds `models/demo`, over every other place.
const DATA_DIR_VARIABLE: &str = "SIREN_DATA_DIR";
const DEMO: &str = "models/demo";
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
        Some(name) => directory_or(name, |repo| hub::fetch_artifact(repo, &options.hub)),
    }
}

/// The backbone's directory: the one that was asked for, else the one beside the artifact, else
/// the one that the artifact names, at its pinned revision.
///
/// # Errors
/// `NotFound`, and the hub's.
pub(crate) fn backbone(
    options: &OpenOptions,
    model_dir: &Path,
    base_model: &BaseModel,
) -> Result<PathBuf> {
    if let Some(dir) = local_backbone(options, model_dir, base_model) {
        return Ok(dir);
    }
    if let Some(name) = options.backbone.as_deref() {
        return directory_or(name, |repo| hub::fetch_backbone(repo, &options.hub));
    }
    let repo = Repo::new(&base_model.model_id, base_model.revision.as_deref()).map_err(|e| {
        Error::model(
            model_dir.join(artifact::CONFIG_FILE).display(),
            "base_model",
            format!("{:?} ({e})", base_model.model_id),
            "a directory that exists, or a repository",
        )
    })?;
    hub::fetch_backbone(&repo, &options.hub)
}

/// The backbone's directory if it needs no hub.
pub(crate) fn local_backbone(
    options: &OpenOptions,
    model_dir: &Path,
    base_model: &BaseModel,
) -> Option<PathBuf> {
    if let Some(name) = options.backbone.as_deref() {
        return Some(PathBuf::from(name)).filter(|dir| dir.is_dir());
    }
    let places = [model_dir.join(BACKBONE_DIR), PathBuf::from(&base_model.model_id)];
    places.into_iter().find(|dir| dir.is_dir())
}

fn directory_or(name: &str, fetch: impl FnOnce(&Repo) -> Result<PathBuf>) -> Result<PathBuf> {
    match Source::parse(name)? {
        Source::Dir(dir) => Ok(dir),
        Source::Repo(repo) => fetch(&repo),
    }
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
        places.extend(directories.skip(1).map(Path::to_owned));
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
