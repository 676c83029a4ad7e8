//! One directory that holds a whole guard: the artifact and, under `backbone/`, its backbone.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::files::{self, Dir};
use super::{HubOptions, Source, is_gguf};
use crate::artifact::{self, CONFIG_FILE, WEIGHTS_FILE};
use crate::error::{Error, Result, Status};
use crate::locate::{self, BACKBONE_DIR};

/// What marks a directory as the work of a pull, which the next one may replace.
const MARKER: &str = ".siren-pull.json";

/// Makes `to` a directory that holds everything a guard needs, so that it opens anywhere and
/// without a network: the artifact's files at its top, the backbone's under `backbone/`, where a
/// guard looks first. `siren_config.json` stays as it is. Returns `to`.
///
/// Without a `backbone`, it is the artifact's own: the directory `backbone/` beside it if there is
/// one, else what it names (`base_model`), a directory or a repository. Files are copied, or shared where the file system
/// can (reflinks); links into the cache do not stay.
///
/// The directory appears whole: it is made beside `to` and renamed. A `to` that exists has to be
/// empty, or an earlier pull with nothing added to it; that is replaced when the new one is ready.
///
/// # Errors
///
/// Those of [`fetch_artifact`](super::fetch_artifact),
/// [`fetch_backbone`](super::fetch_backbone) and [`fetch_gguf`](super::fetch_gguf); [`Status::InvalidArgument`] when `to` holds
/// anything else; [`Status::InvalidModel`] when the artifact names no backbone.
pub fn pull(
    model: &Source,
    backbone: Option<&Source>,
    to: &Path,
    options: &HubOptions,
) -> Result<PathBuf> {
    check_target(to)?;
    let artifact_dir = model.artifact(options)?;
    let artifact_files = files::artifact(&mut Dir(&artifact_dir))?;
    let backbone = match backbone {
        Some(backbone) => backbone.clone(),
        None => locate::own_backbone(&artifact_dir, &artifact::base_model(&artifact_dir)?)?,
    };
    let backbone_path = locate::weights(&backbone.backbone(options)?)?;
    let backbone_files = match (backbone_path.parent(), backbone_path.file_name()) {
        (Some(dir), Some(name)) if is_gguf(&backbone_path) => {
            files::gguf(&mut Dir(dir), &name.to_string_lossy())?
        }
        _ => files::backbone(&mut Dir(&backbone_path))?,
    };

    let staged = Staged::beside(to)?;
    copy_all(&artifact_files, &staged.0)?;
    copy_all(&backbone_files, &staged.0.join(BACKBONE_DIR))?;
    let origin = json!({ "artifact": model.to_string(), "backbone": backbone.to_string() });
    let marker = staged.0.join(MARKER);
    fs::write(&marker, format!("{origin:#}\n")).map_err(|e| Error::io(marker.display(), &e))?;
    staged.become_target(to)?;
    Ok(to.to_path_buf())
}

/// Refuses to replace what no pull has made.
fn check_target(to: &Path) -> Result<()> {
    let entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let message = format!("{}: exists and is not a directory", to.display());
            return Err(Error::argument(message));
        }
        Err(error) => return Err(Error::io(to.display(), &error)),
    };
    let pulled = to.join(MARKER).is_file();
    for entry in entries {
        let name = entry.map_err(|error| Error::io(to.display(), &error))?.file_name();
        let own = [MARKER, BACKBONE_DIR, CONFIG_FILE, WEIGHTS_FILE];
        if !pulled || !own.iter().any(|own| name == *own) {
            let why =
                if pulled { "was pulled, but also holds" } else { "is no earlier pull: holds" };
            return Err(Error::argument(format!(
                "{}: {why} {name:?}; give an empty or a new directory",
                to.display()
            )));
        }
    }
    Ok(())
}

fn copy_all(files: &[PathBuf], to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|error| Error::io(to.display(), &error))?;
    for file in files {
        let name = file.file_name().ok_or_else(|| Error::internal("a file without a name"))?;
        fs::copy(file, to.join(name)).map_err(|error| Error::io(file.display(), &error))?;
    }
    Ok(())
}

/// A directory in the making; what of it has not become the target goes when it is dropped.
struct Staged(PathBuf);

impl Staged {
    fn beside(to: &Path) -> Result<Self> {
        let dir = sibling(to, "new")?;
        let parent = dir.parent().map_or(Ok(()), fs::create_dir_all);
        let made = parent.and_then(|()| fs::create_dir(&dir));
        made.map_err(|error| Error::io(dir.display(), &error))?;
        Ok(Self(dir))
    }

    fn become_target(self, to: &Path) -> Result<()> {
        let old = sibling(to, "old")?;
        let had_old = fs::rename(to, &old).is_ok();
        if let Err(error) = fs::rename(&self.0, to) {
            if had_old {
                let _ = fs::rename(&old, to);
            }
            return Err(Error::io(to.display(), &error));
        }
        if had_old && let Err(error) = fs::remove_dir_all(&old) {
            log::warn!("{}: what was replaced could not be removed: {error}", old.display());
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A hidden name beside `to`, of this process.
fn sibling(to: &Path, role: &str) -> Result<PathBuf> {
    let name = to.file_name().ok_or_else(|| {
        let message = format!("{}: not a directory that can be made", to.display());
        Error::new(Status::InvalidArgument, message)
    })?;
    let name = format!(".{}.{role}-{}", name.to_string_lossy(), std::process::id());
    Ok(to.with_file_name(name))
}
