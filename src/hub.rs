//! `REPO@REV` -> a local directory: what a guard opens when it is not given a directory.
//!
//! The cache is the one of the Python tools (`models--owner--name/{refs,blobs,snapshots}`), so a
//! file that either of them downloaded is found by the other. All work is done on the caller's
//! thread (a proxy's name alone is looked up on another), and no socket outlives the call that
//! opened it; the process environment is read and never written.
//!
//! Unset [`HubOptions`] fall back to the variables that the Python tools read; an empty variable
//! counts as unset:
//!
//! | variable | what it says |
//! |---|---|
//! | `HF_HUB_CACHE` (`HUGGINGFACE_HUB_CACHE`), else `HF_HOME`/hub, else `XDG_CACHE_HOME`/huggingface/hub, else `~/.cache/huggingface/hub` | where the cache is |
//! | `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else the file `HF_HOME`/token | the access token (no file is read with `HF_HUB_DISABLE_IMPLICIT_TOKEN`) |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`, `true`, `yes` or `on`: never touch the network |
//! | `HF_ENDPOINT` | the hub, or a mirror of it |
//! | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` (or in lower case, which wins) | proxies; loopback addresses never go through one |
//! | `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE` | PEM files of the certificate authorities to trust, all of them, instead of the system's |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result, Status};
use crate::gguf::EXTENSION;

#[cfg(feature = "hub")]
mod cache;
mod files;
#[cfg(feature = "hub")]
mod http;
mod pull;
#[cfg(feature = "hub")]
mod session;
#[cfg(feature = "hub")]
mod settings;

pub use pull::pull;

/// A model repository of a hub, and the revision of it that is meant.
///
/// Parsed from `name`, `owner/name` or `owner/name@revision`, and printed in the same form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repo {
    id: String,
    revision: Option<String>,
}

impl Repo {
    /// A repository `id` (`owner/name` or `name`) at `revision`: a branch, a tag or a 40-digit
    /// commit; `None` or `""` is the default branch.
    ///
    /// # Errors
    ///
    /// [`Status::InvalidArgument`] for what no hub would accept, and for everything that could
    /// leave the cache directory.
    pub fn new(id: &str, revision: Option<&str>) -> Result<Self> {
        check_id(id)?;
        let revision = revision.filter(|revision| !revision.is_empty());
        revision.map(check_revision).transpose()?;
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// `owner/name` or `name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The branch, tag or commit that was named, if one was.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }
}

impl FromStr for Repo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('@') {
            Some((_, "")) => Err(Error::argument(format!("{text:?}: no revision after the @"))),
            Some((id, revision)) => Self::new(id, Some(revision)),
            None => Self::new(text, None),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// The rules of the hub for a repository's name; they also keep it a plain directory name.
fn check_id(id: &str) -> Result<()> {
    const LONGEST: usize = 96;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(plain)
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
    };
    let parts = id.split('/').count();
    if parts <= 2
        && id.len() <= LONGEST
        && id.split('/').all(part)
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
    {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{id:?} is neither an existing directory nor a repository: expected owner/name or name of \
         at most {LONGEST} letters, digits, '.', '_' and '-', without '..' or '--', and no '.' or \
         '-' at an end"
    )))
}

/// A revision is a path below `refs/`: no part of it may be empty or climb.
fn check_revision(revision: &str) -> Result<()> {
    const LONGEST: usize = 200;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(plain)
            && !part.starts_with('.')
            && !part.contains("..")
    };
    if revision.len() <= LONGEST && revision.split('/').all(part) {
        return Ok(());
    }
    Err(Error::argument(format!(
        "revision {revision:?}: expected a branch, a tag or a commit of at most {LONGEST} letters, \
         digits, '.', '_', '-', '+' and single '/'"
    )))
}

/// Where a model lies: in a directory, or in a repository of a hub. A backbone may also be one GGUF
/// file, on this machine or in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A local directory.
    Dir(PathBuf),
    /// A local GGUF file.
    Gguf(PathBuf),
    /// A repository, fetched into the cache.
    Repo(Repo),
    /// The GGUF file of this name in a repository, fetched into the cache.
    RepoGguf(Repo, String),
}

impl Source {
    /// Reads `text` as a directory if there is one of that name, as a file if it ends in `.gguf` and
    /// there is one, as `owner/name/file.gguf[@revision]`, and else as a [`Repo`].
    ///
    /// # Errors
    ///
    /// [`Status::InvalidArgument`] when it is none of them; [`Status::NotFound`] when it looks like a
    /// path (it starts with `/`, `./`, `../` or `~`) and there is no such directory or file.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Dir(text.into()));
        }
        if path.is_file() {
            return match is_gguf(path) {
                true => Ok(Self::Gguf(text.into())),
                false => Err(Error::argument(format!(
                    "{text}: expected a directory, a .gguf file or a repository"
                ))),
            };
        }
        if ["/", "./", "../", "~"].iter().any(|start| text.starts_with(start)) {
            return Err(Error::new(Status::NotFound, format!("{text}: no such directory or file")));
        }
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        match name.rsplit_once('/') {
            Some((id, file)) if id.contains('/') && is_gguf(Path::new(file)) => {
                files::check_gguf_name(file)?;
                let repo = match revision {
                    Some(revision) => format!("{id}@{revision}").parse()?,
                    None => id.parse()?,
                };
                Ok(Self::RepoGguf(repo, file.into()))
            }
            _ => text.parse().map(Self::Repo),
        }
    }

    /// Where an artifact lies on this machine, fetched if need be.
    pub(crate) fn artifact(&self, options: &HubOptions) -> Result<PathBuf> {
        match self {
            Self::Dir(dir) => Ok(dir.clone()),
            Self::Repo(repo) => fetch_artifact(repo, options),
            Self::Gguf(_) | Self::RepoGguf(..) => Err(Error::argument(format!(
                "{self} is a backbone's weights, expected an artifact's directory or repository"
            ))),
        }
    }

    /// Where a backbone lies on this machine, fetched if need be: a directory or a GGUF file.
    pub(crate) fn backbone(&self, options: &HubOptions) -> Result<PathBuf> {
        match self {
            Self::Dir(path) | Self::Gguf(path) => Ok(path.clone()),
            Self::Repo(repo) => fetch_backbone(repo, options),
            Self::RepoGguf(repo, file) => fetch_gguf(repo, file, options),
        }
    }
}

/// Whether a path ends in `.gguf`.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::Repo(repo) => repo.fmt(f),
            Self::RepoGguf(repo, file) => {
                write!(f, "{}/{file}", repo.id)?;
                repo.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
            }
        }
    }
}

/// How much of a file has been downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file's name in its repository.
    pub file: String,
    /// Bytes that are there; never less than in an earlier report on this file.
    pub done: u64,
    /// Bytes that the hub announced, if it did. The last report has `done` equal to it.
    pub total: Option<u64>,
}

/// What hears of [`Progress`], on the thread that downloads. Files that are in the cache already
/// are not reported.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to reach a hub. What is unset comes from the environment (see [the module](self)).
#[derive(Clone, Default)]
pub struct HubOptions {
    /// The cache directory (the one that holds `models--*`).
    pub cache_dir: Option<PathBuf>,
    /// Never touch the network. `false` leaves it to `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// The hub's address, such as that of a mirror.
    pub endpoint: Option<String>,
    /// The access token. It is sent to the endpoint alone, never to where that redirects.
    pub token: Option<String>,
    /// Called while files are downloaded.
    pub progress: Option<ProgressFn>,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("progress", &self.progress.as_ref().map(|_| "(set)"))
            .finish()
    }
}

/// Fetches the two files of an artifact, `siren_config.json` and `siren.safetensors`, unless they
/// are in the cache, and returns the snapshot directory that holds them.
///
/// A 40-digit commit whose files are in the cache needs no network. A branch or tag is looked up
/// on the hub; when the hub cannot be reached, the cached files of that name are used, with a
/// warning in the log. With `offline` set the network is not touched at all.
///
/// Failed requests that may succeed later (429, 5xx, a lost connection) are tried again a few
/// times, after the time that `Retry-After` asks for if that is short. A broken download goes on
/// where it stopped, in this call or in a later one. A file becomes visible when it has the
/// announced size and, where the hub announces it, the announced SHA-256.
///
/// # Errors
///
/// [`Status::NotFound`] (repository, revision or file, by name), [`Status::Unauthorized`],
/// [`Status::Network`], [`Status::Offline`], [`Status::Io`], [`Status::InvalidArgument`] (an
/// endpoint, token, proxy or certificate file that cannot be used), and [`Status::Unsupported`]
/// in a build without the `hub` feature.
pub fn fetch_artifact(repo: &Repo, options: &HubOptions) -> Result<PathBuf> {
    parent(&fetch(repo, options, &files::artifact)?)
}

/// Fetches the files of a backbone, as [`fetch_artifact`] does: `config.json`, `tokenizer.json`,
/// `tokenizer_config.json` and `chat_template.jinja` where they exist, and `model.safetensors`, or
/// else `model.safetensors.index.json` with the shards that it names.
///
/// # Errors
///
/// Those of [`fetch_artifact`], and [`Status::InvalidModel`] for an index that is damaged or names
/// a shard that is not a plain file name.
pub fn fetch_backbone(repo: &Repo, options: &HubOptions) -> Result<PathBuf> {
    parent(&fetch(repo, options, &files::backbone)?)
}

/// Fetches the GGUF file `file` of a repository, as [`fetch_artifact`] does, and
/// `tokenizer.json` and `tokenizer_config.json` if they are beside it; returns the path of the
/// file.
///
/// # Errors
///
/// Those of [`fetch_artifact`], and [`Status::InvalidArgument`] for what is not the plain name of a
/// GGUF file.
pub fn fetch_gguf(repo: &Repo, file: &str, options: &HubOptions) -> Result<PathBuf> {
    files::check_gguf_name(file)?;
    fetch(repo, options, &|place| files::gguf(place, file)).map(|mut files| files.swap_remove(0))
}

/// The directory of a model's files.
fn parent(files: &[PathBuf]) -> Result<PathBuf> {
    let parent = files.first().and_then(|file| file.parent());
    parent.map(Path::to_path_buf).ok_or_else(|| Error::internal("a model without files"))
}

#[cfg(feature = "hub")]
fn fetch(repo: &Repo, options: &HubOptions, list: &files::List<'_>) -> Result<Vec<PathBuf>> {
    let settings = settings::Settings::new(options)?;
    let http = match settings.offline {
        Some(_) => None,
        None => Some(http::Http::new(&settings)?),
    };
    let progress = options.progress.clone();
    let mut session = session::Session::new(repo, &settings, http.as_ref(), progress);
    list(&mut session)
}

#[cfg(not(feature = "hub"))]
fn fetch(repo: &Repo, _options: &HubOptions, _list: &files::List<'_>) -> Result<Vec<PathBuf>> {
    Err(Error::new(
        Status::Unsupported,
        format!(
            "{repo}: this build of libsiren opens local directories alone (cargo feature `hub` is \
             off)"
        ),
    ))
}
