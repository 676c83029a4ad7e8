//! The decoder's operations on an NVIDIA GPU, by own kernels. They have run on an emulated GPU alone,
//! so only tests use them so far; `docs/architecture.md` has the map.
#![allow(unsafe_code)] // Launches, and copies from and to the GPU's memory.

#[cfg(feature = "cuda")]
pub(crate) mod driver;
mod emulated;
mod gpu;
mod names;
mod ops;
mod pages;
mod params;
mod places;
mod tests;
mod twin;

pub(crate) use gpu::{Element, Gpu, Memory};
pub(crate) use ops::{Norms, Reading, Shape};
pub(crate) use pages::Pages;
pub(crate) use params::NO_ROWS;
pub(crate) use places::{Part, Places};
