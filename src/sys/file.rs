//! A weights file as bytes: mapped, so that processes share its pages, or read into memory.
#![allow(unsafe_code)] // Memory maps are unsafe by nature; this file is the only place for them.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result, Status};

/// The whole contents of a file.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Read(Vec<u8>),
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
        if map && length > 0 {
            // SAFETY: the map is private and read-only; that nobody shrinks or rewrites the file
            // is the documented condition of mapped weights, which callers can switch off.
            return Ok(Self::Mapped(unsafe { Mmap::map(&file) }.map_err(io)?));
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
        Ok(Self::Read(bytes))
    }

    /// Lets the system take the mapped pages back; the next access loads them again.
    pub(crate) fn release_pages(&self) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
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
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}
