//! The operating system's corners: memory maps, where this library lies, what a fork breaks, and
//! registers that must be asked for, and the CUDA driver.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
/// cbindgen:ignore
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod module;
pub(crate) mod process;
