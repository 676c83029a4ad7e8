//! libsiren: how harmful is a text? The SIREN hidden-state guard as a native library.

mod error;
pub mod hub;

pub use error::{Error, Result, Status};
