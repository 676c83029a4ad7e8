//! Means of the selected neurons over the tokens of each text.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::artifact::SelectedLayer;
use crate::error::{Error, Result};

/// Which neurons of which layers are read, and where each layer's begin in the features.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    layers: Vec<(SelectedLayer, usize)>,
    features: usize,
}

impl Selection {
    pub(crate) fn new(layers: Vec<SelectedLayer>) -> Self {
        let mut features = 0;
        let layers = layers
            .into_iter()
            .map(|layer| {
                let start = features;
                features += layer.neurons.len();
                (layer, start)
            })
            .collect();
        Self { layers, features }
    }

    /// Ascending numbers of the layers that are read.
    pub(crate) fn layers(&self) -> Vec<usize> {
        self.layers.iter().map(|(layer, _)| layer.index).collect()
    }

    /// Neurons over all layers: the head's inputs.
    pub(crate) fn features(&self) -> usize {
        self.features
    }
}

/// The features of a batch of texts, filled layer by layer.
pub(crate) struct Pool<'a> {
    selection: &'a Selection,
    spans: &'a [Range<usize>],
    /// `[texts, features]`
    features: Vec<f32>,
}

impl<'a> Pool<'a> {
    pub(crate) fn new(selection: &'a Selection, spans: &'a [Range<usize>]) -> Self {
        let features = vec![0.0; spans.len() * selection.features];
        Self { selection, spans, features }
    }

    /// Takes in one layer's states, `[tokens, hidden_size]`.
    ///
    /// Sums are kept in f64 and rounded to f32 once, so that a mean is exact whatever the length.
    ///
    /// # Errors
    /// `Internal` for a layer that is not selected, or when the device fails.
    pub(crate) fn observe(&mut self, layer: usize, states: &Tensor) -> Result<()> {
        let (selected, start) = self
            .selection
            .layers
            .iter()
            .find(|(selected, _)| selected.index == layer)
            .ok_or_else(|| Error::internal(format!("layer {layer} is not selected")))?;
        if selected.neurons.is_empty() {
            return Ok(());
        }
        let (states, columns) = gathered(states, selected)?;
        let (storage, layout) = states.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            return Err(Error::internal("the states are not on the CPU"));
        };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let width = states.dim(1)?;
        let count = selected.neurons.len();
        let mut sums = vec![0f64; count];
        for (text, span) in self.spans.iter().enumerate() {
            sums.fill(0.0);
            for row in values[span.start * width..span.end * width].chunks_exact(width) {
                for (sum, &column) in sums.iter_mut().zip(columns.iter()) {
                    *sum += f64::from(row[column]);
                }
            }
            let features = &mut self.features[text * self.selection.features + start..][..count];
            for (feature, sum) in features.iter_mut().zip(&sums) {
                *feature = (sum / span.len() as f64) as f32 * selected.weight;
            }
        }
        Ok(())
    }

    /// `[texts, features]`
    pub(crate) fn finish(self) -> Vec<f32> {
        self.features
    }
}

/// The states on the CPU and where each selected neuron stands in them; from another device only
/// the selected columns are copied.
fn gathered<'s>(
    states: &Tensor,
    selected: &'s SelectedLayer,
) -> Result<(Tensor, std::borrow::Cow<'s, [usize]>)> {
    if states.device().is_cpu() {
        return Ok((states.contiguous()?, (&selected.neurons[..]).into()));
    }
    let ids: Vec<u32> = selected.neurons.iter().map(|&n| n as u32).collect();
    let ids = Tensor::new(ids, states.device())?;
    let columns = states.index_select(&ids, 1)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    Ok((columns, (0..selected.neurons.len()).collect::<Vec<_>>().into()))
}
