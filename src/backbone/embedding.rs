//! Token embeddings: rows read where they lie in the checkpoint, widened as they are used.

use std::sync::Arc;

use candle_core::Tensor;

use super::config::Config;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::{self, Arena, Memory, Places, Rows};

/// The embedding table of a decoder. Clones share it.
#[derive(Clone)]
pub(super) enum Embedding {
    /// On the CPU the table stays in the (mapped) file: a text touches few of its rows.
    InFile { checkpoint: Arc<Checkpoint>, name: String, shape: [usize; 2] },
    /// On a GPU it is held there, `[vocab_size, hidden_size]`.
    OnGpu { table: Arc<Memory>, shape: [usize; 2] },
    /// On a device of candle's it is held there, in the dtype that runs.
    OnDevice(Tensor),
}

impl Embedding {
    /// Hidden states of `tokens`, which are those of `places`, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for an id outside the vocabulary, which opening a guard rules out.
    pub(super) fn rows(&self, tokens: &[u32], places: &Places, arena: &Arena) -> Result<Rows> {
        match self {
            Self::InFile { checkpoint, name, shape: [vocabulary, hidden] } => {
                let table = checkpoint.tensor(name, &[*vocabulary, *hidden])?;
                let mut rows = Rows::lend(arena, tokens.len(), *hidden)?;
                let mut widened = Vec::with_capacity(*hidden);
                for (&token, row) in tokens.iter().zip(rows.cpu_mut()?.chunks_exact_mut(*hidden)) {
                    let token = token as usize;
                    if token >= *vocabulary {
                        return Err(Error::internal(format!(
                            "token id {token} in a vocabulary of {vocabulary}"
                        )));
                    }
                    widened.clear();
                    table.values.widen_into(token * hidden..(token + 1) * hidden, &mut widened);
                    row.copy_from_slice(&widened);
                }
                Ok(rows)
            }
            Self::OnGpu { table, shape } => kernels::embed_on_gpu(table, *shape, places),
            Self::OnDevice(table) => {
                let ids = Tensor::new(tokens, table.device())?;
                Rows::on_device(table.index_select(&ids, 0)?)
            }
        }
    }

    /// The table's shape, `[vocab_size, hidden_size]`.
    pub(super) fn shape(config: &Config) -> [usize; 2] {
        [config.vocab_size, config.hidden_size]
    }
}
