//! Keys and values of a text's tokens, kept from layer to layer, push to push and call to call.
//!
//! On the CPU and on a GPU they lie in pages of [`PAGE_TOKENS`] tokens that copies of a text's beginning share:
//! a copy costs a pointer a page, and a page is copied when one that is shared is written to.
//! The CPU's pages hold what its attention reads: f32, or bf16 where that is what it multiplies.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::PageForm;
use super::joined::View;
use super::packed::{LINE_FLOATS, Line};
use super::{Backend, Heads, Joined, Precision, cuda};
use crate::error::{Error, Result, Status};

/// Tokens of a page.
pub(crate) const PAGE_TOKENS: usize = 16;

/// Counts the bytes that a guard's keys, values and running sums take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// Bytes that are charged now.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts `bytes` until the charge is dropped.
    pub(crate) fn charge(&self, bytes: usize) -> Charge {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Charge { meter: self.clone(), bytes }
    }
}

/// Bytes that a [`Meter`] counts.
#[derive(Debug)]
pub(crate) struct Charge {
    meter: Meter,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// `length` zeros.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn zeros<T: Clone + Default>(length: usize) -> Result<Vec<T>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(length).map_err(|_| {
        let bytes = length * size_of::<T>();
        Error::new(Status::OutOfMemory, format!("no memory for {bytes} bytes of states"))
    })?;
    zeros.resize(length, T::default());
    Ok(zeros)
}

/// What keys and values of one guard look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvShape {
    /// Layers that are kept.
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    /// What reads them computes in it.
    pub(crate) precision: Precision,
}

impl KvShape {
    /// Values of one token at one layer, keys and values together.
    pub(super) fn width(self) -> usize {
        2 * self.heads.key_value * self.heads.dim
    }

    /// Bytes of one token.
    pub(crate) fn token_bytes(self, backend: &Backend) -> usize {
        let number_bytes = match backend {
            Backend::Cpu => PageForm::new(self.heads, self.precision).number_bytes(),
            Backend::Cuda(gpu) => gpu.element().bytes(),
            Backend::Candle { dtype, .. } => dtype.size_in_bytes(),
        };
        self.layers * self.width() * number_bytes
    }
}

/// Keys and values of the first tokens of a text, at each of some layers.
#[derive(Clone)]
pub(crate) enum Kv {
    /// The CPU's form.
    Pages(Pages),
    /// A GPU's.
    Cuda(cuda::Pages),
    /// That of a device of candle's, in the dtype that runs.
    Tensors(Tensors),
}

impl Kv {
    pub(crate) fn new(shape: KvShape, backend: &Backend, meter: &Meter) -> Self {
        match backend {
            Backend::Cpu => Self::Pages(Pages::new(shape, meter)),
            Backend::Cuda(gpu) => Self::Cuda(cuda::Pages::of_keys(gpu, shape, meter)),
            Backend::Candle { .. } => {
                Self::Tensors(Tensors::new(shape, shape.token_bytes(backend), meter))
            }
        }
    }

    /// Makes room for `tokens` tokens; those from `written` on may be written then, and nobody
    /// else sees it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn reserve(&mut self, written: usize, tokens: usize) -> Result<()> {
        match self {
            Self::Pages(pages) => pages.reserve(written, tokens),
            Self::Cuda(pages) => pages.reserve(written, tokens),
            Self::Tensors(tensors) => {
                tensors.reserve(written, tokens);
                Ok(())
            }
        }
    }

    /// Takes the keys and values of some rows, those of the tokens from `position` on, at `layer`. A
    /// GPU's are stored by [`super::attention_on_gpu`].
    ///
    /// # Errors
    /// `Internal` when the device fails, or for keys of another one.
    pub(crate) fn store(
        &mut self,
        layer: usize,
        position: usize,
        qkv: &Joined<'_>,
        rows: Range<usize>,
    ) -> Result<()> {
        match (self, qkv.rows().device()) {
            (Self::Pages(pages), _) => pages.store(layer, position, qkv.view()?.range(rows)),
            (Self::Tensors(tensors), Some(qkv)) => {
                let qkv = qkv.narrow(0, rows.start, rows.len())?;
                Ok(tensors.store(layer, position, &qkv)?)
            }
            (Self::Tensors(_), None) | (Self::Cuda(_), _) => {
                Err(Error::internal("keys that are stored elsewhere"))
            }
        }
    }

    /// Forgets all but the first `tokens`.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        match self {
            Self::Pages(pages) => pages.pages.truncate(tokens.div_ceil(PAGE_TOKENS)),
            Self::Cuda(pages) => pages.truncate(tokens),
            // Nothing reads past the tokens that ran, and what is stored next takes their place.
            Self::Tensors(_) => {}
        }
    }
}

/// Keys and values in pages that clones share.
#[derive(Clone)]
pub(crate) struct Pages {
    shape: KvShape,
    form: PageForm,
    pages: Vec<Arc<Page>>,
    meter: Meter,
}

/// Per layer the keys of each key head, and then the values of each, in the pages' form.
pub(super) struct Page {
    /// Lines, with what stands before the first one: memory that is asked for at a line's alignment
    /// is given back in pieces that do not serve the next page (glibc before 2.38).
    data: Vec<f32>,
    lines: Range<usize>,
    _charge: Charge,
}

impl Page {
    /// # Errors
    /// `OutOfMemory`.
    fn zeros(lines: usize, meter: &Meter) -> Result<Self> {
        let floats = lines * LINE_FLOATS;
        let data = zeros::<f32>(floats + LINE_FLOATS - 1)?;
        let first = data.as_ptr().align_offset(align_of::<Line>());
        let charge = meter.charge(floats * size_of::<f32>());
        Ok(Self { data, lines: first..first + floats, _charge: charge })
    }

    fn lines(&self) -> &[Line] {
        bytemuck::cast_slice(&self.data[self.lines.clone()])
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(&mut self.data[self.lines.clone()])
    }
}

impl Pages {
    fn new(shape: KvShape, meter: &Meter) -> Self {
        let form = PageForm::new(shape.heads, shape.precision);
        Self { shape, form, pages: vec![], meter: meter.clone() }
    }

    pub(super) fn form(&self) -> PageForm {
        self.form
    }

    /// Tokens that there are pages for.
    pub(super) fn room(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }

    fn reserve(&mut self, written: usize, tokens: usize) -> Result<()> {
        let lines = self.shape.layers * self.layer_lines();
        for page in self.pages.iter_mut().skip(written / PAGE_TOKENS) {
            if Arc::get_mut(page).is_none() {
                let mut copy = Page::zeros(lines, &self.meter)?;
                copy.lines_mut().copy_from_slice(page.lines());
                *page = Arc::new(copy);
            }
        }
        while self.room() < tokens {
            self.pages.push(Arc::new(Page::zeros(lines, &self.meter)?));
        }
        Ok(())
    }

    fn store(&mut self, layer: usize, position: usize, qkv: View<'_>) -> Result<()> {
        let form = self.form;
        let end = position + qkv.len();
        let first = position / PAGE_TOKENS;
        let range = self.layer_range(layer);
        let pages = self.pages.get_mut(first..end.div_ceil(PAGE_TOKENS));
        let pages = pages.ok_or_else(|| Error::internal("no page for a token"))?;
        pages.par_iter_mut().enumerate().try_for_each(|(i, page)| {
            let page = Arc::get_mut(page).ok_or_else(|| Error::internal("a page is shared"))?;
            let start = (first + i) * PAGE_TOKENS;
            let tokens = start.max(position)..end.min(start + PAGE_TOKENS);
            let rows = qkv.range(tokens.start - position..tokens.end - position);
            form.write(&mut page.lines_mut()[range.clone()], tokens.start - start, rows);
            Ok(())
        })
    }

    /// Lines of a page's layer: of each of its tokens' numbers.
    fn layer_lines(&self) -> usize {
        self.shape.width() * self.form.number_bytes() * PAGE_TOKENS / size_of::<Line>()
    }

    fn layer_range(&self, layer: usize) -> Range<usize> {
        layer * self.layer_lines()..(layer + 1) * self.layer_lines()
    }

    /// The pages' parts of one layer and key head, in order: keys and values in the pages' form.
    pub(super) fn head(
        &self,
        layer: usize,
        head: usize,
    ) -> impl Iterator<Item = (&[Line], &[Line])> + '_ {
        let length = self.layer_lines() / (2 * self.shape.heads.key_value);
        let range = self.layer_range(layer);
        let values = self.layer_lines() / 2;
        self.pages.iter().map(move |page| {
            let layer = &page.lines()[range.clone()];
            (&layer[head * length..][..length], &layer[values + head * length..][..length])
        })
    }
}

/// Keys and values as one tensor a layer, each `[tokens, key_value * dim]`.
#[derive(Clone)]
pub(crate) struct Tensors {
    shape: KvShape,
    layers: Vec<Option<(Tensor, Tensor)>>,
    token_bytes: usize,
    meter: Meter,
    /// Shared by clones, as the tensors are.
    charge: Arc<Charge>,
}

impl Tensors {
    pub(super) fn new(shape: KvShape, token_bytes: usize, meter: &Meter) -> Self {
        let charge = Arc::new(meter.charge(0));
        Self { shape, layers: vec![None; shape.layers], token_bytes, meter: meter.clone(), charge }
    }

    /// What is written makes tensors of its own, the first `written` tokens' among them; without
    /// it the old ones stay.
    fn reserve(&mut self, written: usize, tokens: usize) {
        if written < tokens {
            self.charge = Arc::new(self.meter.charge(tokens * self.token_bytes));
        }
    }

    pub(super) fn store(
        &mut self,
        layer: usize,
        position: usize,
        qkv: &Tensor,
    ) -> candle_core::Result<()> {
        let Heads { query, key_value, dim } = self.shape.heads;
        let part = |start: usize| qkv.narrow(1, start * dim, key_value * dim)?.contiguous();
        let (key, value) = (part(query)?, part(query + key_value)?);
        let slot = &mut self.layers[layer];
        *slot = Some(match slot.as_ref().filter(|_| position > 0) {
            Some((keys, values)) => (
                Tensor::cat(&[&keys.narrow(0, 0, position)?, &key], 0)?,
                Tensor::cat(&[&values.narrow(0, 0, position)?, &value], 0)?,
            ),
            None => (key, value),
        });
        Ok(())
    }

    /// Keys and values at `layer`.
    pub(super) fn layer(&self, layer: usize) -> candle_core::Result<&(Tensor, Tensor)> {
        self.layers[layer].as_ref().ok_or_else(|| candle_core::Error::msg("no keys were stored"))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::kernels::Rows;

    #[test]
    fn a_copy_on_another_device_goes_on_from_its_beginning_and_counts_its_own_bytes() {
        let heads = Heads { query: 2, key_value: 1, dim: 4 };
        let shape = KvShape { layers: 1, heads, precision: Precision::Bf16 };
        let backend = Backend::Candle { device: Device::Cpu, dtype: DType::BF16 };
        let token_bytes = 2 * 4 * 2;
        let meter = Meter::default();
        let rows = |count: usize, value: f32| {
            let rows = Tensor::full(value, (count, heads.qkv()), &Device::Cpu).unwrap();
            let rows = Rows::on_device(rows.to_dtype(DType::BF16).unwrap()).unwrap();
            Joined::rotated(rows, heads)
        };
        let keys = |kv: &Kv| -> Vec<f32> {
            let Kv::Tensors(tensors) = kv else { panic!("pages") };
            let (keys, values) = tensors.layer(0).unwrap();
            assert_eq!(keys.dims(), values.dims());
            keys.to_dtype(DType::F32).unwrap().mean(1).unwrap().to_vec1().unwrap()
        };
        let mut kv = Kv::new(shape, &backend, &meter);
        kv.reserve(0, 40).unwrap();
        kv.store(0, 0, &rows(40, 1.0), 0..40).unwrap();
        assert_eq!(meter.bytes(), 40 * token_bytes);

        let mut copy = kv.clone();
        copy.truncate(20);
        // Nothing is written: what is held is the original's.
        copy.reserve(20, 20).unwrap();
        assert_eq!(meter.bytes(), 40 * token_bytes);
        copy.reserve(20, 30).unwrap();
        copy.store(0, 20, &rows(12, 2.0), 1..11).unwrap();
        assert_eq!(meter.bytes(), 70 * token_bytes);
        assert_eq!(keys(&copy), [[1.0; 20].to_vec(), [2.0; 10].to_vec()].concat());
        assert_eq!(keys(&kv), [1.0; 40]);
        drop(kv);
        assert_eq!(meter.bytes(), 30 * token_bytes);
    }
}
