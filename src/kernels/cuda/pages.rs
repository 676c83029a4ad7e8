//! Keys and values of a text on a GPU, in pages that copies of its beginning share, as on the CPU.

use std::sync::Arc;

use super::gpu::{Gpu, PageMemory};
use crate::error::Result;
use crate::kernels::kv::{Charge, KvShape, Meter, PAGE_TOKENS};

/// A page is `[layers, 2, key_value, PAGE_TOKENS, dim]`: keys, then values, in the numbers that the
/// GPU computes with.
#[derive(Clone)]
pub(crate) struct Pages {
    gpu: Gpu,
    shape: KvShape,
    pages: Vec<Arc<Page>>,
    meter: Meter,
}

pub(super) struct Page {
    pub(super) memory: PageMemory,
    _charge: Charge,
}

impl Pages {
    pub(crate) fn new(gpu: &Gpu, shape: KvShape, meter: &Meter) -> Self {
        Self { gpu: gpu.clone(), shape, pages: vec![], meter: meter.clone() }
    }

    fn page_bytes(&self) -> usize {
        self.shape.width() * self.shape.layers * PAGE_TOKENS * self.gpu.element().bytes()
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
        if self.shape.layers == 1 { 0 } else { self.shape.width() * PAGE_TOKENS }
    }

    pub(super) fn shape(&self) -> KvShape {
        self.shape
    }

    /// The pages, in order.
    pub(super) fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }
}
