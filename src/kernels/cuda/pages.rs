//! What is kept of a text's tokens on a GPU, in pages that copies of its beginning share, as on the CPU:
//! keys and values, or selected neurons.

use std::sync::Arc;

use super::gpu::{Gpu, PageMemory};
use crate::error::Result;
use crate::kernels::kv::{Charge, KvShape, Meter, PAGE_TOKENS};

/// Pages of [`PAGE_TOKENS`] tokens, in the numbers that the GPU computes with.
#[derive(Clone)]
pub(crate) struct Pages {
    gpu: Gpu,
    /// Numbers of one layer of a page, and how many layers it has.
    layer: usize,
    layers: usize,
    pages: Vec<Arc<Page>>,
    meter: Meter,
}

pub(super) struct Page {
    pub(super) memory: PageMemory,
    _charge: Charge,
}

impl Pages {
    /// Of keys and values: a page is `[layers, 2, key_value, PAGE_TOKENS, dim]`, keys, then values.
    pub(crate) fn of_keys(gpu: &Gpu, shape: KvShape, meter: &Meter) -> Self {
        Self::new(gpu, shape.width(), shape.layers, meter)
    }

    /// Of neurons: a page is `[PAGE_TOKENS, features]`.
    pub(crate) fn of_neurons(gpu: &Gpu, features: usize, meter: &Meter) -> Self {
        Self::new(gpu, features, 1, meter)
    }

    fn new(gpu: &Gpu, width: usize, layers: usize, meter: &Meter) -> Self {
        let (gpu, meter) = (gpu.clone(), meter.clone());
        Self { gpu, layer: width * PAGE_TOKENS, layers, pages: vec![], meter }
    }

    fn page_bytes(&self) -> usize {
        self.layer * self.layers * self.gpu.element().bytes()
    }

    /// As [`crate::kernels::Kv::reserve`].
    pub(crate) fn reserve(&mut self, written: usize, tokens: usize) -> Result<()> {
        let bytes = self.page_bytes();
        let page = |memory| Arc::new(Page { memory, _charge: self.meter.charge(bytes) });
        for shared in self.pages.iter_mut().skip(written / PAGE_TOKENS) {
            if Arc::get_mut(shared).is_none() {
                *shared = page(shared.memory.copied()?);
            }
        }
        while self.pages.len() * PAGE_TOKENS < tokens {
            self.pages.push(page(self.gpu.page(bytes)?));
        }
        Ok(())
    }

    /// Forgets all but the first `tokens`.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        self.pages.truncate(tokens.div_ceil(PAGE_TOKENS));
    }

    /// Numbers from one layer of a page to the next; 0 where pages hold one layer alone.
    pub(super) fn layer_stride(&self) -> usize {
        if self.layers == 1 { 0 } else { self.layer }
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    /// The pages, in order.
    pub(super) fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }
}
