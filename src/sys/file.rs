//! A weights file as bytes: mapped, so that processes share its pages, or read into memory.
#![allow(unsafe_code)] // Memory maps are unsafe by nature; this file is the only place for them.

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use serde::Serialize;

use crate::error::{Error, Result, Status};

/// The whole contents of a file.
pub(crate) struct Bytes {
    contents: Contents,
    stamp: Stamp,
}

enum Contents {
    Mapped(Mmap),
    Read(Vec<u8>),
}

/// What the file system tells of a file: one that was replaced or written to has another stamp.
/// The device is not in it, since its number is another one after each mount of some file systems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stamp {
    length: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last write.
    modified: [i64; 2],
    /// Of the last write, or change of name, owner or mode: no program can set it back.
    changed: [i64; 2],
}

impl Stamp {
    #[cfg(unix)]
    fn of(file: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            length: file.len(),
            inode: file.ino(),
            modified: [file.mtime(), file.mtime_nsec()],
            changed: [file.ctime(), file.ctime_nsec()],
        }
    }

    /// What there is; packed weights are not kept on such a system.
    #[cfg(not(unix))]
    fn of(file: &Metadata) -> Self {
        Self { length: file.len(), inode: 0, modified: [0; 2], changed: [0; 2] }
    }
}

impl Bytes {
    /// Maps `path`, or reads it when `map` is false.
    ///
    /// A mapped file must not shrink while it is open, and its disk must not fail: touching a page
    /// that is gone kills the process. Reading everything is the way round that.
    ///
    /// # Errors
    /// `NotFound`, `Io` and `OutOfMemory`.
    pub(crate) fn open(path: &Path, map: bool) -> Result<Self> {
        let io = |e: std::io::Error| Error::io(path.display(), &e);
        let (mut file, length) = open_regular(path)?;
        let stamp = Stamp::of(&file.metadata().map_err(io)?);
        if map && length > 0 {
            // SAFETY: the map is read-only; that nobody shrinks or rewrites the file is the
            // documented condition of mapped weights, which callers can switch off.
            let contents = Contents::Mapped(unsafe { Mmap::map(&file) }.map_err(io)?);
            return Ok(Self { contents, stamp });
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| {
            Error::new(
                Status::OutOfMemory,
                format!("{}: no memory for its {length} bytes", path.display()),
            )
        })?;
        std::io::Read::read_to_end(&mut file, &mut bytes).map_err(io)?;
        Ok(Self { contents: Contents::Read(bytes), stamp })
    }

    /// The file's, from when it was opened.
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Lets the system take the mapped pages back; the next access loads them again.
    pub(crate) fn release_pages(&self) {
        #[cfg(unix)]
        if let Contents::Mapped(map) = &self.contents {
            // SAFETY: on a read-only file map DontNeed only drops clean pages; their contents
            // come from the file again.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

/// Opens `path` if it is a regular file, and tells its length. The kind is looked at first:
/// opening a pipe would wait for a writer, and a device has no end.
///
/// # Errors
/// `NotFound`, `Io`; `InvalidModel` for a directory, a pipe or a device.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |e: std::io::Error| Error::io(path.display(), &e);
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a directory" } else { "a pipe, socket or device" };
        return Err(Error::model(path.display(), "kind", found, "a regular file"));
    }
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    Ok((file, length))
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.contents {
            Contents::Mapped(map) => map,
            Contents::Read(bytes) => bytes,
        }
    }
}

/// A part of a mapped file, which stays mapped while any of its parts lives.
#[derive(Clone)]
pub(crate) struct Mapped {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Mapped {
    /// All of a file that this library wrote, and that nobody else can write: a link is not
    /// followed, and its owner is this process's user or root. It must not shrink while it is
    /// mapped, as [`Bytes`] says.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `InvalidModel` for what others may have written; `Unsupported` where the
    /// system does not tell.
    #[cfg(unix)]
    pub(crate) fn open_own(path: &Path) -> Result<Self> {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        let io = |e: std::io::Error| Error::io(path.display(), &e);
        // A pipe would be waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        // SAFETY: asks for a number, and cannot fail.
        let user = unsafe { libc::geteuid() };
        let refused = |field, found: String, expected: &str| {
            Err(Error::model(path.display(), field, found, expected))
        };
        if !metadata.is_file() {
            return refused("kind", "a directory, pipe or device".into(), "a regular file");
        }
        if ![user, 0].contains(&metadata.uid()) {
            let expected = format!("this process's user, {user}, or root");
            return refused("owner", format!("user {}", metadata.uid()), &expected);
        }
        if metadata.mode() & 0o022 != 0 {
            let found = format!("{:o}", metadata.mode() & 0o777);
            return refused("mode", found, "a file that its owner alone can write");
        }
        // SAFETY: the map is read-only; this library replaces such files and never rewrites them,
        // and others cannot, by what was just checked.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let range = 0..map.len();
        Ok(Self { map: Arc::new(map), range })
    }

    /// See the other one.
    #[cfg(not(unix))]
    pub(crate) fn open_own(path: &Path) -> Result<Self> {
        let message = format!("{}: no file's owner is known on this system", path.display());
        Err(Error::new(Status::Unsupported, message))
    }

    /// The bytes `range` of this part, if it has them.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        let inside = range.start <= range.end && range.end <= self.len();
        let at = |offset: usize| self.range.start + offset;
        inside.then(|| Self { map: self.map.clone(), range: at(range.start)..at(range.end) })
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}
