//! Means of the selected neurons over the tokens of each text.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::taps::Taps;
use crate::artifact::SelectedLayer;
use crate::error::{Error, Result};
use crate::kernels::{Meter, Rows};

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

    /// Bytes that the neurons of one token take where they are kept.
    pub(crate) fn token_bytes(&self) -> usize {
        Taps::token_bytes(self.features)
    }

    /// Adds the means of `sums` over `tokens` tokens, times the layers' weights, to `features`.
    ///
    /// Sums are kept in f64 and a mean is rounded to f32 once: it is exact whatever the length.
    fn add_means(&self, sums: &[f64], tokens: usize, features: &mut Vec<f32>) {
        for (layer, start) in &self.layers {
            let sums = &sums[*start..][..layer.neurons.len()];
            features.extend(sums.iter().map(|sum| (sum / tokens as f64) as f32 * layer.weight));
        }
    }

    /// Takes in one layer's states, `[rows, hidden_size]`; each part is a text's reading, its rows
    /// and where in the text the first of them stands.
    ///
    /// # Errors
    /// `Internal` for a layer that is not selected, or when the device fails.
    pub(crate) fn observe<'r>(
        &self,
        layer: usize,
        states: &Rows,
        parts: impl Iterator<Item = (&'r mut Reading, Range<usize>, usize)>,
    ) -> Result<()> {
        let (selected, start) = self
            .layers
            .iter()
            .find(|(selected, _)| selected.index == layer)
            .ok_or_else(|| Error::internal(format!("layer {layer} is not selected")))?;
        if selected.neurons.is_empty() {
            return Ok(());
        }
        let gathered;
        let ascending;
        let (values, width, columns): (&[f32], usize, &[usize]) = match states.device() {
            None => (states.cpu()?, states.width(), &selected.neurons),
            Some(states) => {
                gathered = selected_columns(states, selected)?;
                ascending = (0..selected.neurons.len()).collect::<Vec<_>>();
                (&gathered, ascending.len(), &ascending)
            }
        };
        let features = *start..start + selected.neurons.len();
        for (reading, rows, position) in parts {
            let rows = values[rows.start * width..rows.end * width].chunks_exact(width);
            match reading {
                Reading::Sums(sums) => {
                    for row in rows {
                        for (sum, &column) in sums[features.clone()].iter_mut().zip(columns) {
                            *sum += f64::from(row[column]);
                        }
                    }
                }
                Reading::Taps(taps) => {
                    for (i, row) in rows.enumerate() {
                        let targets = &mut taps.row_mut(position + i)?[features.clone()];
                        for (target, &column) in targets.iter_mut().zip(columns) {
                            *target = row[column];
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is read of one text while it runs.
pub(crate) enum Reading {
    /// Sums alone, `[features]`: enough for the whole text's score.
    Sums(Vec<f64>),
    /// Every token's neurons.
    Taps(Taps),
}

impl Reading {
    /// For a text that runs from its beginning and is read at its end alone.
    pub(crate) fn sums(selection: &Selection) -> Self {
        Self::Sums(vec![0.0; selection.features])
    }

    /// For a text of `tokens` tokens that goes on from `known`, or from its beginning.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn taps(
        selection: &Selection,
        known: Option<Taps>,
        tokens: usize,
        meter: &Meter,
    ) -> Result<Self> {
        let mut taps = known.unwrap_or_else(|| Taps::new(selection.features, meter));
        taps.reserve(tokens)?;
        Ok(Self::Taps(taps))
    }

    /// Says that `tokens` tokens have run at every layer.
    ///
    /// # Errors
    /// `Internal`.
    pub(crate) fn complete(&mut self, tokens: usize) -> Result<()> {
        match self {
            Self::Sums(_) => Ok(()),
            Self::Taps(taps) => taps.complete(tokens),
        }
    }

    /// Adds the head's features of the text's beginnings that end with each token of `lasts`, one
    /// row after the other. Of sums, only the last token's can be had.
    ///
    /// # Errors
    /// `Internal` for a token that has not run.
    pub(crate) fn add_features(
        &self,
        selection: &Selection,
        lasts: Range<usize>,
        features: &mut Vec<f32>,
    ) -> Result<()> {
        match self {
            Self::Sums(sums) => {
                selection.add_means(sums, lasts.end, features);
                Ok(())
            }
            Self::Taps(taps) => taps.running_sums(lasts, |token, sums| {
                selection.add_means(sums, token + 1, features);
                Ok(())
            }),
        }
    }
}

/// The selected columns of another device's states, row by row.
fn selected_columns(states: &Tensor, selected: &SelectedLayer) -> Result<Vec<f32>> {
    let ids: Vec<u32> = selected.neurons.iter().map(|&n| n as u32).collect();
    let ids = Tensor::new(ids, states.device())?;
    let columns = states.index_select(&ids, 1)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    Ok(columns.flatten_all()?.to_vec1()?)
}
