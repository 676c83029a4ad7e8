//! libsiren: how harmful is a text? The SIREN hidden-state guard as a native library.
//!
//! A guard is opened once and scores from any number of threads:
//!
//! ```no_run
//! use siren::{Guard, Input, OpenOptions};
//!
//! let guard = Guard::open(OpenOptions::new("models/demo"))?;
//! let result = guard.score(Input::Text("How do I bake bread?"), None)?;
//! println!("{} {}", result.score, result.is_harmful);
//! # Ok::<(), siren::Error>(())
//! ```
//!
//! The C interface over the same engine is `include/siren.h`.

#[cfg(test)]
extern crate self as siren; // What tests of the public interface call it.

mod artifact;
mod audit;
mod backbone;
mod call;
mod checkpoint;
mod engine;
mod error;
pub mod ffi;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod gguf;
mod guard;
pub mod hub;
mod inspect;
mod json;
mod kernels;
mod locate;
mod options;
mod prefix_cache;
mod readout;
mod schedule;
mod stats;
mod stream;
mod sys;
mod text;
mod windows;

pub use artifact::{BaseModel, Pooling};
pub use backbone::Family;
pub use call::{CancelToken, Control, PushOptions, ScoreOptions, StreamOptions, Windows};
pub use error::{Error, Result, Status};
pub use guard::{BestWindow, Guard, Info, OwnedInput, Score};
pub use inspect::{ArtifactInfo, BackboneInfo, LayerInfo, inspect};
pub use options::{DeviceChoice, Dtype, OpenOptions, PackedCacheChoice};
pub use stats::{LATENCY_BOUNDS, Stats};
pub use stream::{Crossing, Push, Stream};
pub use text::Input;
