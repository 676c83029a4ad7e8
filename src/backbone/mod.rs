//! One decoder for Qwen3 and Llama 3: config, weights, rotary embedding, blocks, passes.
//!
//! It reads token ids and shows hidden states to an observer. It has no language-model head, and
//! holds no block past the last one that is observed.

mod config;
mod decoder;
mod embedding;
mod files;
mod gguf;
mod packed_cache;
mod pass;
mod rope;

#[cfg(fuzzing)]
pub(crate) use config::Config;
pub use config::Family;
pub(crate) use decoder::{Decoder, Observed, Plan, Site};
pub(crate) use files::{CONFIG_FILE, Files};
pub(crate) use packed_cache::PackedCache;
pub(crate) use pass::{Part, Pass, Segment};
