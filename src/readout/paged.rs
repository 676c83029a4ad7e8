//! Reading on a GPU: the selected neurons go into pages there, or are summed there, and a pass copies
//! back once, at its end.

use super::running::Running;
use crate::artifact::SelectedLayer;
use crate::error::Result;
use crate::kernels::{self, Columns, Desk, Gpu, GpuPages, Meter};

/// The selected neurons of each layer, on the GPU.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) gpu: Gpu,
    /// For passes that run at once.
    pub(super) desk: Desk,
    /// None for a layer without any.
    pub(super) columns: Vec<Option<Columns>>,
}

impl Selected {
    /// `layers` with where each one's features begin.
    pub(super) fn new(layers: &[(SelectedLayer, usize)], gpu: &Gpu) -> Result<Self> {
        let columns = layers.iter().map(|(layer, start)| {
            let numbers: Vec<u32> = layer.neurons.iter().map(|&n| n as u32).collect();
            (!numbers.is_empty()).then(|| Columns::new(gpu, &numbers, *start)).transpose()
        });
        let columns = columns.collect::<Result<_>>()?;
        Ok(Self { gpu: gpu.clone(), desk: Desk::new(gpu)?, columns })
    }
}

/// The neurons of a text's first tokens. Clones share their pages until one is written.
#[derive(Clone)]
pub(crate) struct Pages {
    pages: GpuPages,
    tokens: usize,
}

impl Pages {
    pub(super) fn new(gpu: &Gpu, features: usize, meter: &Meter) -> Self {
        Self { pages: GpuPages::of_neurons(gpu, features, meter), tokens: 0 }
    }

    pub(super) fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        self.pages.truncate(tokens);
    }
}

/// What is read of one text.
pub(crate) struct Paged {
    /// None for a text whose sums alone are wanted.
    pages: Option<Pages>,
    /// The first token whose sums are wanted beside the last one's.
    running_from: Option<usize>,
    /// At the end.
    pub(super) running: Running,
}

impl Paged {
    pub(super) fn new(features: usize, pages: Option<Pages>, running_from: Option<usize>) -> Self {
        Self { pages, running_from, running: Running::new(features) }
    }

    /// As [`super::taps::Taps::reserve`].
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        match &mut self.pages {
            Some(known) => known.pages.reserve(known.tokens, tokens),
            None => Ok(()),
        }
    }

    /// How it is read when it has `tokens` tokens.
    pub(super) fn read(&self, tokens: usize) -> kernels::Read<'_> {
        let pages = self.pages.as_ref().map(|known| &known.pages);
        let from = self.running_from.map_or(tokens, |from| from.min(tokens.saturating_sub(1)));
        kernels::Read { pages, summed: from, rows: from..tokens }
    }

    /// Takes what was read of its `tokens` tokens; returns the rows that are others'.
    pub(super) fn complete<'r>(
        &mut self,
        tokens: usize,
        sums: &[f64],
        rows: &'r [f32],
    ) -> &'r [f32] {
        let read = self.read(tokens);
        let (summed, count) = match read.pages {
            Some(_) => (read.summed, read.rows.len()),
            None => (tokens, 0),
        };
        let (own, others) = rows.split_at(count * sums.len());
        self.running = Running { sums: sums.to_vec(), summed, rows: own.to_vec() };
        if let Some(known) = &mut self.pages {
            known.tokens = tokens;
        }
        others
    }

    /// Its pages, as far as they are written.
    pub(super) fn into_pages(self) -> Option<Pages> {
        self.pages
    }
}
