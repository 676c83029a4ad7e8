//! Launches that are recorded once and replayed from then on: a text of a few tokens would else wait
//! longer for its launches than for what they do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::gpu::{Gpu, Graph, Memory};
use crate::error::{Result, Status};

/// The recordings of one decoder, each by the number of its rows.
pub(crate) struct Graphs {
    gpu: Gpu,
    /// None where it cannot be recorded.
    recorded: Mutex<HashMap<usize, Option<Recorded>>>,
}

/// A recording: what its launches read that differs from run to run lies in `inputs`.
struct Recorded {
    graph: Graph,
    inputs: Arc<Memory>,
}

impl Graphs {
    pub(crate) fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), recorded: Mutex::default() }
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Does `launches` with memory of `room` bytes that begins with `inputs`; from the second time on
    /// that it is asked for `rows`, what was recorded at the first.
    ///
    /// # Safety
    /// Launches depend on nothing but `rows`, the memory that they are given and what lies in memory
    /// that is never given back.
    ///
    /// # Errors
    /// Those of `launches`; `OutOfMemory`; `Internal` when the device fails.
    pub(super) unsafe fn run(
        &self,
        rows: usize,
        room: usize,
        inputs: &[u8],
        launches: &mut dyn FnMut(&Arc<Memory>) -> Result<()>,
    ) -> Result<()> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if !recorded.contains_key(&rows) {
            let mut made = self.record(room, launches);
            if made.as_ref().is_err_and(|error| error.status() == Status::OutOfMemory) {
                // What the others hold may be enough.
                recorded.clear();
                made = self.record(room, launches);
            }
            let made = made.inspect_err(|error| {
                log::warn!("{rows} rows run without a CUDA graph: {error}");
            });
            recorded.insert(rows, made.ok());
        }
        match recorded.get(&rows).and_then(Option::as_ref) {
            Some(Recorded { graph, inputs: memory }) => {
                memory.write(0, inputs)?;
                // SAFETY: the caller says that its launches find all that they depend on.
                unsafe { memory.gpu().replay(*graph) }
            }
            None => {
                let memory = Arc::new(self.gpu.lend(room)?);
                memory.write(0, inputs)?;
                launches(&memory)
            }
        }
    }

    fn record(
        &self,
        room: usize,
        launches: &mut dyn FnMut(&Arc<Memory>) -> Result<()>,
    ) -> Result<Recorded> {
        let gpu = self.gpu.with_own_memory();
        let inputs = Arc::new(gpu.hold(room)?);
        let graph = gpu.record(&mut || launches(&inputs))?;
        Ok(Recorded { graph, inputs })
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: this GPU recorded it, and it is replayed from here alone.
        unsafe { self.inputs.gpu().free_graph(self.graph) };
    }
}
