//! The decoder's operations on an NVIDIA GPU, by own kernels; `docs/architecture.md` has the map.
#![allow(unsafe_code)] // Launches, and copies from and to the GPU's memory.

#[cfg(feature = "cuda")]
pub(crate) mod driver;
#[cfg(test)]
mod emulated;
// Without a driver nothing makes one.
#[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
mod gpu;
mod graphs;
mod names;
mod ops;
mod pages;
mod params;
mod places;
mod reading;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;
mod weights;

use crate::error::Result;
#[cfg(not(feature = "cuda"))]
use crate::error::{Error, Status};

#[cfg(test)]
pub(crate) use emulated::Emulation;
pub(crate) use gpu::{Element, Gpu, Memory};
pub(crate) use graphs::Graphs;
pub(crate) use ops::{Norms, Shape};
pub(crate) use pages::Pages;
pub(crate) use places::{
    AT_ONCE_ROWS, AT_ONCE_TABLES, AT_ONCE_TEXTS, Chunk, Part, Places, check_heads,
};
pub(crate) use reading::{Columns, Desk, Read, Reading};

/// The GPU of this index, for numbers of one kind.
///
/// # Errors
/// `Unsupported`, with what is missing; `OutOfMemory`.
#[cfg(feature = "cuda")]
pub(crate) fn open(ordinal: usize, element: Element) -> Result<Gpu> {
    driver::open(ordinal, element)
}

/// What a build without the feature `cuda` answers.
#[cfg(not(feature = "cuda"))]
pub(crate) fn without_cuda(ordinal: usize) -> Error {
    Error::new(
        Status::Unsupported,
        format!("CUDA device {ordinal}: this library was built without the feature cuda"),
    )
}

/// As with the feature `cuda`: nothing can be had without it.
///
/// # Errors
/// `Unsupported`.
#[cfg(not(feature = "cuda"))]
pub(crate) fn open(ordinal: usize, _: Element) -> Result<Gpu> {
    Err(without_cuda(ordinal))
}
