//! Packed weights in a file, so that the next open maps them instead of packing (and, in int8,
//! calibrating and rounding) again, and processes share them.
//!
//! **The file.** `SIRENPKD`, the header's length and its CRC-32 (both u32, little-endian), the
//! header, and the pieces, each from a multiple of 4096 on. The header is JSON: `made_from`, all
//! that the pieces depend on, and of each piece its kind, shape, length and CRC-32.
//!
//! **Trust.** What is read is what was written: the owner, the header's and every piece's checksum,
//! `made_from` and every shape are held against what is expected, and the file's length against
//! theirs, before a layer uses a byte. What differs is made again. A file appears whole, by a rename,
//! and is never written to again: no locks, and one that is mapped stays as it is.

use std::borrow::Cow;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::decoder::{Decoder, Plan};
use crate::audit::hex;
use crate::error::{Error, Result, Status};
use crate::kernels::{self, Piece, Pieces, Precision};
use crate::sys::file::Mapped;

const MAGIC: &[u8; 8] = b"SIRENPKD";
/// Bytes before the header.
const START: usize = MAGIC.len() + 2 * size_of::<u32>();
const MAX_HEADER: usize = 64 << 20;
/// What pieces begin at multiples of.
const PAGE: usize = 4096;
/// Bytes at both ends of a weights file that are looked at.
const ENDS: usize = 64 << 10;
/// What the process that makes a file dies with stays behind; older ones are taken away.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The file that keeps the packed weights of one decoder.
pub(crate) struct PackedCache {
    path: PathBuf,
    made_from: Value,
}

#[derive(Serialize, Deserialize)]
struct Header {
    made_from: Value,
    pieces: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    kind: String,
    n: usize,
    k: usize,
    length: usize,
    crc32: u32,
}

impl PackedCache {
    /// The file in `dir` for the decoder of `plan`.
    pub(crate) fn new(dir: &Path, plan: &Plan<'_>) -> Self {
        let calibration: &[u8] = match plan.precision {
            Precision::Int8 => bytemuck::cast_slice(plan.calibration),
            Precision::F32 | Precision::Bf16 => &[],
        };
        let sources = plan.checkpoint.files().map(|file| {
            let ends = [&file[..file.len().min(ENDS)], &file[file.len().saturating_sub(ENDS)..]];
            json!({ "stamp": file.stamp(), "ends": sha256(&ends) })
        });
        let made_from = json!({
            "layout": kernels::LAYOUT,
            "library": env!("CARGO_PKG_VERSION"),
            "machine": std::env::consts::ARCH,
            "kernels": kernels::packed_for(),
            "dtype": plan.precision.name(),
            "backbone": format!("{:?}", plan.config),
            "last_block": plan.observed.layers.last(),
            "calibration": sha256(&[calibration]),
            "sources": sources.collect::<Vec<_>>(),
        });
        let key = sha256(&[made_from.to_string().as_bytes()]);
        let name = format!("{}-{}.packed", plan.precision.name(), &key[..16]);
        Self { path: dir.join(name), made_from }
    }

    /// The decoder of `plan` on the file's weights, which are made first if they are not there.
    /// Where that cannot be, the decoder's weights are in memory of its own, and the log says why.
    ///
    /// # Errors
    /// Those of [`Decoder::load`].
    pub(crate) fn load(&self, plan: &Plan<'_>) -> Result<(Decoder, Option<&Path>)> {
        let map = || self.read().and_then(|pieces| Decoder::load(plan, Some(pieces)));
        match map() {
            Ok(decoder) => return Ok((decoder, Some(&self.path))),
            Err(e) if e.status() == Status::NotFound => log::debug!("{e}; it will be made"),
            Err(e) => log::warn!("packed weights that are not used, and made again: {e}"),
        }
        let own = Decoder::load(plan, None)?;
        // Another process may have made it meanwhile.
        let mapped = map().or_else(|_| self.write(&own.pieces()).and_then(|()| map()));
        match mapped {
            Ok(decoder) => Ok((decoder, Some(&self.path))),
            Err(e) => {
                log::warn!("packed weights are kept in memory, and not for the next open: {e}");
                Ok((own, None))
            }
        }
    }

    /// # Errors
    /// `NotFound`, `Io`, and `InvalidModel` for anything but the whole file that is expected.
    fn read(&self) -> Result<Pieces> {
        let map = Mapped::open_own(&self.path)?;
        let (header, header_bytes) =
            header(&map).map_err(|found| self.refused("header", found, "a whole one"))?;
        if header.made_from != self.made_from {
            let found = "what was made from other files, or by another version";
            return Err(self.refused("made_from", found, "the file of these weights"));
        }
        let mut end = first_piece(header_bytes);
        let mut pieces = Vec::with_capacity(header.pieces.len());
        for (i, entry) in header.pieces.into_iter().enumerate() {
            let start = end.next_multiple_of(PAGE);
            let part = start.checked_add(entry.length).and_then(|end| map.part(start..end));
            let Some(bytes) = part else {
                let expected = format!("{} bytes from byte {start} on", entry.length);
                let found = format!("a file of {}", map.len());
                return Err(self.refused(&format!("piece {i}"), &found, &expected));
            };
            end = start + bytes.len();
            pieces.push((entry.crc32, Piece { kind: entry.kind, n: entry.n, k: entry.k, bytes }));
        }
        if end != map.len() {
            let found = format!("{} bytes", map.len());
            return Err(self.refused("length", &found, &format!("{end}")));
        }
        let is_damaged = |(crc32, piece): &(u32, Piece<Mapped>)| *crc32 != crc(&piece.bytes);
        if let Some(i) = pieces.par_iter().position_any(is_damaged) {
            return Err(self.refused(&format!("piece {i}"), "other bytes", "those of its CRC-32"));
        }
        Ok(pieces.into_iter().map(|(_, piece)| piece).collect::<Vec<_>>().into_iter())
    }

    fn refused(&self, field: &str, found: &str, expected: &str) -> Error {
        Error::model(self.path.display(), field, found, expected)
    }

    /// Makes the file, or replaces it.
    ///
    /// # Errors
    /// `Io`, when the directory cannot be written, or is full.
    fn write(&self, pieces: &[Piece<Cow<'_, [u8]>>]) -> Result<()> {
        let entry = |piece: &Piece<Cow<'_, [u8]>>| Entry {
            kind: piece.kind.clone(),
            n: piece.n,
            k: piece.k,
            length: piece.bytes.len(),
            crc32: crc(&piece.bytes),
        };
        let header = Header {
            made_from: self.made_from.clone(),
            pieces: pieces.par_iter().map(entry).collect(),
        };
        let header = serde_json::to_vec(&header).map_err(|e| Error::internal(e.to_string()))?;
        let length = u32::try_from(header.len()).ok().filter(|n| *n as usize <= MAX_HEADER);
        let length = length.ok_or_else(|| Error::internal("a header of too many layers"))?;

        let dir = self.path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(dir).map_err(|e| Error::io(dir.display(), &e))?;
        remove_abandoned(dir);
        let staged = Staged::beside(&self.path)?;
        let put = || {
            let mut file = BufWriter::new(&staged.file);
            file.write_all(MAGIC)?;
            file.write_all(&length.to_le_bytes())?;
            file.write_all(&crc(&header).to_le_bytes())?;
            file.write_all(&header)?;
            let mut end = first_piece(header.len());
            let mut at = START + header.len();
            for piece in pieces {
                end = end.next_multiple_of(PAGE);
                file.write_all(&[0; PAGE][..end - at])?;
                file.write_all(&piece.bytes)?;
                end += piece.bytes.len();
                at = end;
            }
            file.flush()?;
            drop(file);
            // Some file systems tell only now that they are full.
            staged.file.sync_data()
        };
        put().map_err(|e| Error::io(staged.path.display(), &e))?;
        staged.become_target(&self.path)
    }
}

/// The header at the beginning of a file and how many bytes it takes, or what is there instead.
fn header(file: &[u8]) -> Result<(Header, usize), &'static str> {
    let (start, rest) = file.split_at_checked(START).ok_or("fewer bytes than a header has")?;
    let (magic, numbers) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("another kind of file");
    }
    let (numbers, _) = numbers.as_chunks();
    let [length, crc32] = [0, 1].map(|i| u32::from_le_bytes(numbers[i]));
    let bytes = Some(length as usize).filter(|n| *n <= MAX_HEADER).and_then(|n| rest.get(..n));
    let bytes = bytes.ok_or("a length beyond the file's end")?;
    if crc(bytes) != crc32 {
        return Err("other bytes than those of its CRC-32");
    }
    let header = serde_json::from_slice(bytes).map_err(|_| "other fields")?;
    Ok((header, bytes.len()))
}

/// Where the first piece begins behind a header of so many bytes.
fn first_piece(header: usize) -> usize {
    (START + header).next_multiple_of(PAGE)
}

fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// SHA-256, in hexadecimal.
fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hex(&hash.finalize())
}

/// A file in the making; it goes when it is dropped and has not become the target.
struct Staged {
    path: PathBuf,
    file: fs::File,
}

const STAGED: &str = ".packing-";

impl Staged {
    fn beside(target: &Path) -> Result<Self> {
        // Processes of other containers have the same numbers.
        let random = RandomState::new().build_hasher().finish();
        let path = target.with_file_name(format!("{STAGED}{random:016x}"));
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let file = options.open(&path).map_err(|e| Error::io(path.display(), &e))?;
        Ok(Self { path, file })
    }

    fn become_target(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| Error::io(target.display(), &e))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already, if it became the target.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes away what processes left in `dir` that died while they wrote.
fn remove_abandoned(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).map(|time| time.elapsed());
        if entry.file_name().to_string_lossy().starts_with(STAGED)
            && matches!(age, Ok(Ok(age)) if age > ABANDONED)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
