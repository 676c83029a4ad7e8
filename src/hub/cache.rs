//! The cache on disk, as the Python tools lay it out: blobs under the name of their entity tag,
//! snapshots (one directory a commit) of links to them, and refs from branch names to commits. The
//! paths are those of hf-hub; what it does not have (locks, absent files, writing by rename) is here.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    layout: hf_hub::CacheRepo,
    repo: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// Of the repository `id`, which was checked to be a plain name or two.
    pub(super) fn new(cache_dir: &Path, id: &str) -> Self {
        let repo = hf_hub::Repo::model(id.to_owned());
        let folder = repo.folder_name();
        Self {
            layout: hf_hub::Cache::new(cache_dir.to_owned()).repo(repo),
            locks: cache_dir.join(".locks").join(&folder),
            repo: cache_dir.join(folder),
        }
    }

    /// The repository's own directory.
    pub(super) fn path(&self) -> &Path {
        &self.repo
    }

    /// The file `name` of a commit, if it is there.
    pub(super) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        Some(self.snapshot_path(commit, name)).filter(|path| path.is_file())
    }

    fn snapshot_path(&self, commit: &str, name: &str) -> PathBuf {
        self.layout.pointer_path(commit).join(name)
    }

    /// The commit that `revision` named when it was last looked up.
    pub(super) fn read_ref(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.repo.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit `revision` names.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.place(&self.repo.join("refs").join(revision), |path| fs::write(path, commit))
    }

    /// Whether the hub has said that the commit has no file `name`.
    pub(super) fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.absent_path(commit, name).is_file()
    }

    /// Remembers that the commit has no file `name`.
    pub(super) fn mark_absent(&self, commit: &str, name: &str) -> Result<()> {
        self.place(&self.absent_path(commit, name), |path| fs::write(path, ""))
    }

    fn absent_path(&self, commit: &str, name: &str) -> PathBuf {
        self.repo.join(".no_exist").join(commit).join(name)
    }

    /// Where the content with this entity tag lies.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo.join("blobs").join(etag)
    }

    /// Waits until no other process (of ours or of the Python tools) downloads this content. The
    /// lock ends with the value, or with the process. `None` on a file system without locks.
    pub(super) fn lock(&self, etag: &str) -> Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        let open = || {
            fs::create_dir_all(&self.locks)?;
            fs::create_dir_all(self.repo.join("blobs"))?;
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
                locked => locked.map(|()| Some(file)),
            }
        };
        open().map_err(|error: io::Error| Error::io(path.display(), &error))
    }

    /// Where a blob grows. The name is the one of the Python tools, so that whoever has the lock
    /// goes on with it; without a lock every process has its own.
    pub(super) fn partial_blob(&self, etag: &str, locked: bool) -> PathBuf {
        let process = if locked { String::new() } else { format!(".{}", std::process::id()) };
        self.blob(&format!("{etag}{process}.incomplete"))
    }

    /// Makes a blob visible as the file `name` of a commit.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<PathBuf> {
        let pointer = self.snapshot_path(commit, name);
        let relative = Path::new("../../blobs").join(etag);
        self.place(&pointer, |path| {
            // A file system without symbolic links gets a copy.
            symlink(&relative, path).or_else(|_| fs::copy(self.blob(etag), path).map(|_| ()))
        })?;
        Ok(pointer)
    }

    /// Makes `path` appear whole: `make` writes elsewhere in the repository, and it is renamed.
    fn place(&self, path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = self.repo.join(format!(".siren-{}-{count}.tmp", std::process::id()));
        let placed = fs::create_dir_all(&self.repo)
            .and_then(|()| path.parent().map_or(Ok(()), fs::create_dir_all))
            .and_then(|()| make(&new))
            .and_then(|()| fs::rename(&new, path));
        placed.map_err(|error| {
            let _ = fs::remove_file(&new);
            Error::io(path.display(), &error)
        })
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a revision is a full commit, which never changes its meaning.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
