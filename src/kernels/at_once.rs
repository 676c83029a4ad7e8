//! Passes of a few rows that run at once on a GPU, all layers in one step: their launches are recorded,
//! for each of a few numbers of rows.
#![allow(unsafe_code)] // What recorded launches depend on, nobody checks.

use super::kv::PAGE_TOKENS;
use super::{Backend, Heads, Places, TextRows, cuda};
use crate::error::Result;

/// See the module.
pub(crate) struct AtOnce(cuda::Graphs);

impl AtOnce {
    /// None for other devices.
    pub(crate) fn new(backend: &Backend) -> Option<Self> {
        match backend {
            Backend::Cuda(gpu) => Some(Self(cuda::Graphs::new(gpu))),
            Backend::Cpu | Backend::Candle { .. } => None,
        }
    }

    /// Whether so many rows of texts of these lengths do.
    pub(crate) fn takes(rows: usize, lengths: impl ExactSizeIterator<Item = usize>) -> bool {
        rows <= cuda::AT_ONCE_ROWS
            && lengths.len() <= cuda::AT_ONCE_TEXTS
            && lengths.map(|tokens| tokens.div_ceil(PAGE_TOKENS)).sum::<usize>()
                <= cuda::AT_ONCE_TABLES
    }

    /// Does `layers`, all of a decoder's, for the chunk that [`Places::new`] would be given.
    ///
    /// # Errors
    /// Those of `layers` and of [`Places::new`]; `Internal` for what it does not take.
    pub(crate) fn run<'a>(
        &self,
        texts: impl Iterator<Item = TextRows<'a>>,
        (tokens, vocabulary): (&[u32], usize),
        (cos, sin): (&[f32], &[f32]),
        heads: Heads,
        layers: &mut dyn FnMut(&Places) -> Result<()>,
    ) -> Result<()> {
        let (parts, rotations) = (&super::parts(texts)?, (cos, sin));
        let chunk = cuda::Chunk { parts, tokens, vocabulary, rotations, heads };
        let mut launches = |places| layers(&Places::Cuda(places));
        // SAFETY: a decoder's weights and what it reads of states stay, and so do its layers; what
        // differs from pass to pass they find through places, and on the desk of readings.
        unsafe { cuda::Places::at_once(&self.0, &chunk, &mut launches) }
    }
}
