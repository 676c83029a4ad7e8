//! Which files make an artifact and which a backbone, whether they lie in a directory or on a hub.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::artifact::{CONFIG_FILE, WEIGHTS_FILE};
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};
use crate::error::{Error, Result, Status};
use crate::json::Document;
use crate::text::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};

/// More would be an attack: each is a request.
const MOST_SHARDS: usize = 10_000;

/// A place that has files by name.
pub(super) trait Files {
    /// A local path to the file `name`, or `None` when the place has no such file.
    fn find(&mut self, name: &str) -> Result<Option<PathBuf>>;

    /// The error for a file that must be there and is not.
    fn missing(&self, name: &str) -> Error;

    /// A local path to the file `name`, which must be there.
    fn need(&mut self, name: &str) -> Result<PathBuf> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }
}

/// Lists, and has fetched, all files of one kind of model.
pub(super) type List<'a> = dyn Fn(&mut dyn Files) -> Result<Vec<PathBuf>> + 'a;

/// The files of an artifact.
pub(super) fn artifact(place: &mut dyn Files) -> Result<Vec<PathBuf>> {
    [CONFIG_FILE, WEIGHTS_FILE].into_iter().map(|name| place.need(name)).collect()
}

/// The files of a backbone.
pub(super) fn backbone(place: &mut dyn Files) -> Result<Vec<PathBuf>> {
    let mut files = vec![place.need("config.json")?, place.need(TOKENIZER_FILE)?];
    for optional in [TOKENIZER_CONFIG_FILE, "chat_template.jinja"] {
        files.extend(place.find(optional)?);
    }
    match place.find(SINGLE_FILE)? {
        Some(weights) => files.push(weights),
        None => {
            let index = place.find(INDEX_FILE)?.ok_or_else(|| place.missing(SINGLE_FILE))?;
            let shards = shards(&index)?;
            files.push(index);
            for shard in shards {
                files.push(place.need(&shard)?);
            }
        }
    }
    Ok(files)
}

/// The files of a backbone whose weights are the GGUF file `name`, which comes first.
pub(super) fn gguf(place: &mut dyn Files, name: &str) -> Result<Vec<PathBuf>> {
    let mut files = vec![place.need(name)?];
    for optional in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
        files.extend(place.find(optional)?);
    }
    Ok(files)
}

/// Refuses what is no plain name of a GGUF file.
pub(super) fn check_gguf_name(name: &str) -> Result<()> {
    if is_plain(name, ".gguf") {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{name:?}: expected a file name of letters, digits, '.', '_' and '-' that ends in .gguf"
    )))
}

/// The names of the shards that an index lists, each once.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let document = Document::read(index)?;
    let map = document.root()?.require("weight_map")?;
    let mut names = BTreeSet::new();
    for (_, node) in map.members()? {
        let name = node.string()?;
        if !is_plain(name, ".safetensors") {
            return Err(node.unexpected("a plain file name inside the directory, .safetensors"));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() || names.len() > MOST_SHARDS {
        let found = format!("{} files", names.len());
        return Err(map.invalid(found, format!("1 to {MOST_SHARDS}")));
    }
    Ok(names)
}

/// A file name that stays in its directory, with this end.
fn is_plain(name: &str, end: &str) -> bool {
    name.len() <= 200
        && name.ends_with(end)
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// A local directory.
pub(super) struct Dir<'a>(pub(super) &'a Path);

impl Files for Dir<'_> {
    fn find(&mut self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.0.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(Some(path)),
            Ok(_) => Err(Error::new(Status::Io, format!("{}: not a file", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path.display(), &error)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::new(Status::NotFound, format!("{}: no such file", self.0.join(name).display()))
    }
}
