//! The operating system's corners: memory maps, where this library lies, and what a fork
//! breaks.

pub(crate) mod file;
pub(crate) mod module;
pub(crate) mod process;
