//! Reading on a device of candle's: the selected neurons are gathered and summed there, and a pass
//! copies back once, at its end.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::pool::Part;
use super::running::{self, Running};
use crate::artifact::SelectedLayer;
use crate::kernels::{Charge, Meter};

/// Rows that are widened to f32 at once.
const BLOCK: usize = 1024;

/// Where the selected neurons of each layer stand, on the device.
#[derive(Clone, Debug)]
pub(super) struct Gather {
    /// None for a layer without any.
    ids: Vec<Option<Tensor>>,
    device: Device,
    dtype: DType,
}

impl Gather {
    pub(super) fn new<'l>(
        layers: impl Iterator<Item = &'l SelectedLayer>,
        device: &Device,
        dtype: DType,
    ) -> candle_core::Result<Self> {
        let ids = layers
            .map(|layer| {
                let ids: Vec<u32> = layer.neurons.iter().map(|&n| n as u32).collect();
                (!ids.is_empty()).then(|| Tensor::new(ids, device)).transpose()
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { ids, device: device.clone(), dtype })
    }

    /// Bytes of a number that is kept.
    pub(super) fn number_bytes(&self) -> usize {
        self.dtype.size_in_bytes()
    }

    /// Layers that are read.
    fn layers(&self) -> usize {
        self.ids.iter().flatten().count()
    }
}

/// The selected neurons of a text's tokens, where they were computed. Clones share them.
#[derive(Clone)]
pub(crate) struct Kept {
    /// `[tokens or more, features]`, in the dtype that runs.
    values: Tensor,
    tokens: usize,
    _charge: Arc<Charge>,
}

impl Kept {
    pub(super) fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    fn values(&self) -> candle_core::Result<Tensor> {
        self.values.narrow(0, 0, self.tokens)
    }
}

/// What is read of one text.
pub(crate) struct Gathered {
    known: Option<Kept>,
    /// Whether its tokens' neurons are kept afterwards.
    keeps: bool,
    /// The first token whose sums are wanted beside the last one's.
    running_from: Option<usize>,
    meter: Meter,
    /// At the end.
    pub(super) running: Running,
    kept: Option<Kept>,
}

impl Gathered {
    pub(super) fn new(
        features: usize,
        known: Option<Kept>,
        keeps: bool,
        running_from: Option<usize>,
        meter: &Meter,
    ) -> Self {
        let (meter, running) = (meter.clone(), Running::new(features));
        Self { known, keeps, running_from, meter, running, kept: None }
    }

    /// Whether its tokens' neurons are wanted one by one.
    pub(super) fn wants_rows(&self) -> bool {
        self.keeps || self.running_from.is_some()
    }

    /// What was known before the pass, which was given up.
    pub(super) fn into_known(self) -> Option<Kept> {
        self.known
    }

    pub(super) fn into_kept(self) -> Option<Kept> {
        self.kept
    }
}

/// What has been gathered of a pass's rows.
#[derive(Default)]
pub(super) struct Chunks(Vec<Chunk>);

/// Rows that run side by side.
struct Chunk {
    parts: Vec<Part>,
    /// `[parts, rows]`: 1 where a row belongs to a part.
    members: Tensor,
    /// Of each layer so far, the sums of each part, `[parts, neurons]`, in f32.
    sums: Vec<Tensor>,
    /// Of each layer so far, `[rows, neurons]`, where some part's rows are wanted.
    values: Vec<Tensor>,
}

impl Chunks {
    /// Takes in the states of the selected layer at `index`, `[rows, hidden_size]`.
    pub(super) fn observe(
        &mut self,
        gather: &Gather,
        index: usize,
        states: &Tensor,
        parts: Vec<Part>,
        wants_rows: bool,
    ) -> candle_core::Result<()> {
        let (Some(ids), Some(first)) = (&gather.ids[index], parts.first()) else { return Ok(()) };
        let key = (first.text, first.position);
        let known = self.0.iter().position(|chunk| {
            chunk.parts.first().is_some_and(|first| (first.text, first.position) == key)
        });
        let known = match known {
            Some(known) => known,
            None => {
                let members = members(&parts, states.dim(0)?, &gather.device)?;
                self.0.push(Chunk { parts, members, sums: vec![], values: vec![] });
                self.0.len() - 1
            }
        };
        let chunk = &mut self.0[known];
        let values = states.index_select(ids, 1)?;
        chunk.sums.push(chunk.members.matmul(&values.to_dtype(DType::F32)?)?);
        if wants_rows {
            chunk.values.push(values);
        }
        Ok(())
    }

    /// Gives each text what was read of it, at the end of the pass; `lengths` are the texts'
    /// tokens. Texts that did not run whole get nothing.
    pub(super) fn complete(
        self,
        gather: &Gather,
        mut texts: Vec<(&mut Gathered, usize)>,
    ) -> candle_core::Result<()> {
        // f32 each, `[rows, features]`, and whose rows they are.
        let mut wanted: Vec<(Tensor, Vec<Target>)> = vec![];
        let mut values: Vec<Vec<Tensor>> = texts.iter().map(|_| vec![]).collect();
        for chunk in self.0.iter().filter(|chunk| chunk.sums.len() == gather.layers()) {
            let target = |part: &Part| match texts[part.text].0.running_from {
                Some(_) => Target::Nobody,
                None => Target::Sums(part.text),
            };
            let targets = chunk.parts.iter().map(target).collect();
            wanted.push((Tensor::cat(&chunk.sums, 1)?, targets));
            if chunk.values.is_empty() {
                continue;
            }
            let rows = Tensor::cat(&chunk.values, 1)?;
            for part in &chunk.parts {
                if texts[part.text].0.wants_rows() {
                    values[part.text].push(rows.narrow(0, part.rows.start, part.rows.len())?);
                }
            }
        }
        for (i, ((text, tokens), new)) in texts.iter_mut().zip(values).enumerate() {
            let known = text.known.as_ref().map(Kept::values).transpose()?;
            let base = |to: Tensor| -> candle_core::Result<Vec<(Tensor, Vec<Target>)>> {
                Ok(block_sums(&to)?.into_iter().map(|sum| (sum, vec![Target::Sums(i)])).collect())
            };
            if !text.wants_rows() {
                if let Some(known) = known {
                    wanted.extend(base(known)?);
                }
                text.running.summed = *tokens;
                continue;
            }
            let ran = !new.is_empty();
            let all: Vec<_> = known.iter().cloned().chain(new).collect();
            if all.iter().map(|part| part.dims()[0]).sum::<usize>() != *tokens {
                continue;
            }
            let all = match &all[..] {
                // A copy, lest a part of a chunk keep the whole of it.
                [all] if ran => all.force_contiguous()?,
                all => Tensor::cat(all, 0)?,
            };
            let from = text.running_from.map_or(*tokens, |from| from.min(*tokens - 1));
            if text.running_from.is_some() {
                wanted.extend(base(all.narrow(0, 0, from)?)?);
                let rows = all.narrow(0, from, *tokens - from)?.to_dtype(DType::F32)?;
                wanted.push((rows, vec![Target::Row(i); *tokens - from]));
            } else if let Some(known) = known {
                wanted.extend(base(known)?);
            }
            text.running.summed = from;
            text.kept = match &text.known {
                _ if !text.keeps => None,
                Some(known) if !ran => Some(known.clone()),
                _ => {
                    let bytes = all.elem_count() * gather.number_bytes();
                    let charge = Arc::new(text.meter.charge(bytes));
                    Some(Kept { values: all, tokens: *tokens, _charge: charge })
                }
            };
        }
        let (tensors, targets): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        if tensors.is_empty() {
            return Ok(());
        }
        let copied: Vec<f32> = Tensor::cat(&tensors, 0)?.flatten_all()?.to_vec1()?;
        let features = copied.len() / targets.iter().map(Vec::len).sum::<usize>();
        for (row, target) in copied.chunks_exact(features).zip(targets.into_iter().flatten()) {
            match target {
                Target::Nobody => {}
                Target::Sums(text) => {
                    running::add(&mut texts[text].0.running.sums, row.iter().copied());
                }
                Target::Row(text) => texts[text].0.running.rows.extend_from_slice(row),
            }
        }
        Ok(())
    }
}

/// Where a row that is copied back goes: to a text's sums, or its rows.
#[derive(Clone)]
enum Target {
    Nobody,
    Sums(usize),
    Row(usize),
}

fn members(parts: &[Part], rows: usize, device: &Device) -> candle_core::Result<Tensor> {
    let mut members = vec![0f32; parts.len() * rows];
    for (part, line) in parts.iter().zip(members.chunks_exact_mut(rows)) {
        line[part.rows.clone()].fill(1.0);
    }
    Tensor::from_vec(members, (parts.len(), rows), device)
}

/// Sums over the rows of `values`, block by block: `[1, features]` each, in f32.
fn block_sums(values: &Tensor) -> candle_core::Result<Vec<Tensor>> {
    let rows = values.dim(0)?;
    (0..rows)
        .step_by(BLOCK)
        .map(|start| {
            let count = BLOCK.min(rows - start);
            let block = values.narrow(0, start, count)?.to_dtype(DType::F32)?.contiguous()?;
            Tensor::ones((1, count), DType::F32, values.device())?.matmul(&block)
        })
        .collect()
}
