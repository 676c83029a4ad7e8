//! Means of the selected neurons over the tokens of each text.

use std::ops::Range;

use super::gather::{Chunks, Gather, Gathered, Kept};
use super::paged::{self, Paged, Selected};
use super::running;
use super::taps::Taps;
use crate::artifact::SelectedLayer;
use crate::error::{Error, Result};
use crate::kernels::{self, Backend, Meter, Places, Rows};

/// Which neurons of which layers are read, and where each layer's begin in the features.
#[derive(Debug)]
pub(crate) struct Selection {
    layers: Vec<(SelectedLayer, usize)>,
    features: usize,
    place: Place,
}

/// Where the states are that are read.
#[derive(Debug)]
enum Place {
    Cpu,
    Gpu(Selected),
    /// A device of candle's.
    Device(Gather),
}

impl Selection {
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn new(layers: Vec<SelectedLayer>, backend: &Backend) -> Result<Self> {
        let mut features = 0;
        let layers: Vec<_> = layers
            .into_iter()
            .map(|layer| {
                let start = features;
                features += layer.neurons.len();
                (layer, start)
            })
            .collect();
        let place = match backend {
            Backend::Cpu => Place::Cpu,
            Backend::Cuda(gpu) => Place::Gpu(Selected::new(&layers, gpu)?),
            Backend::Candle { device, dtype } => {
                let layers = layers.iter().map(|(layer, _)| layer);
                Place::Device(Gather::new(layers, device, *dtype)?)
            }
        };
        Ok(Self { layers, features, place })
    }

    /// Ascending numbers of the layers that are read.
    pub(crate) fn layers(&self) -> Vec<usize> {
        self.layers.iter().map(|(layer, _)| layer.index).collect()
    }

    /// Bytes that the neurons of one token take where they are kept.
    pub(crate) fn token_bytes(&self) -> usize {
        match &self.place {
            Place::Cpu => Taps::token_bytes(self.features),
            Place::Gpu(selected) => self.features * selected.gpu.element().bytes(),
            Place::Device(gather) => self.features * gather.number_bytes(),
        }
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
}

/// Rows of a pass that are consecutive tokens of one text.
pub(crate) struct Part {
    /// Which of the pass's texts.
    pub(crate) text: usize,
    pub(crate) rows: Range<usize>,
    /// Where in the text the first of them stands.
    pub(crate) position: usize,
}

/// What is read of the texts of a pass.
pub(crate) struct Readings {
    texts: Vec<Reading>,
    /// Of a device of candle's.
    chunks: Chunks,
    /// Of a GPU.
    on_gpu: Option<kernels::Reading>,
}

impl Readings {
    pub(crate) fn new(texts: Vec<Reading>) -> Self {
        Self { texts, chunks: Chunks::default(), on_gpu: None }
    }

    /// Makes room for texts of these lengths; `at_once` where the pass is one step
    /// of recorded launches, which find what they read where the last such pass's was.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn reserve(
        &mut self,
        selection: &Selection,
        lengths: impl Iterator<Item = usize>,
        at_once: bool,
    ) -> Result<()> {
        let mut read = Vec::new();
        for (text, tokens) in self.texts.iter_mut().zip(lengths) {
            match text {
                Reading::Taps(taps) => taps.reserve(tokens)?,
                Reading::Paged(text) => {
                    text.reserve(tokens)?;
                    read.push(text.read(tokens));
                }
                Reading::Sums(_) | Reading::Gathered(_) => {}
            }
        }
        if let Place::Gpu(Selected { gpu, desk, .. }) = &selection.place {
            let desk = at_once.then_some(desk);
            self.on_gpu = Some(kernels::Reading::new(gpu, &read, selection.features, desk)?);
        }
        Ok(())
    }

    /// Takes in one layer's states, `[rows, hidden_size]`, and whose they are.
    ///
    /// # Errors
    /// `Internal` for a layer that is not selected, or when the device fails; `OutOfMemory`.
    pub(crate) fn observe(
        &mut self,
        selection: &Selection,
        layer: usize,
        states: &Rows,
        parts: impl Iterator<Item = Part>,
        places: &Places,
    ) -> Result<()> {
        let index = selection.layers.iter().position(|(selected, _)| selected.index == layer);
        let index =
            index.ok_or_else(|| Error::internal(format!("layer {layer} is not selected")))?;
        if let (Place::Gpu(selected), Places::Cuda(places)) = (&selection.place, places) {
            let (Some(reading), Some(memory)) = (&self.on_gpu, states.gpu()) else {
                return Err(Error::internal("states that lie elsewhere for a GPU's texts"));
            };
            return match &selected.columns[index] {
                Some(columns) => reading.observe(memory, states.width(), places, columns),
                None => Ok(()),
            };
        }
        if let (Place::Device(gather), Some(states)) = (&selection.place, states.device()) {
            let parts: Vec<_> = parts.collect();
            let wants_rows = parts.iter().any(|part| self.texts[part.text].wants_rows());
            return Ok(self.chunks.observe(gather, index, states, parts, wants_rows)?);
        }
        let (selected, start) = &selection.layers[index];
        let features = *start..start + selected.neurons.len();
        let (values, width) = (states.cpu()?, states.width());
        for Part { text, rows, position } in parts {
            let rows = values[rows.start * width..rows.end * width].chunks_exact(width);
            match &mut self.texts[text] {
                Reading::Sums(sums) => {
                    for row in rows {
                        let neurons = selected.neurons.iter().map(|&column| row[column]);
                        running::add(&mut sums[features.clone()], neurons);
                    }
                }
                Reading::Taps(taps) => {
                    for (i, row) in rows.enumerate() {
                        let targets = &mut taps.row_mut(position + i)?[features.clone()];
                        for (target, &column) in targets.iter_mut().zip(&selected.neurons) {
                            *target = row[column];
                        }
                    }
                }
                Reading::Gathered(_) | Reading::Paged(_) => {
                    return Err(Error::internal("states of the CPU for another device's text"));
                }
            }
        }
        Ok(())
    }

    /// Says that the texts, of these lengths, have run at every layer.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn complete(
        &mut self,
        selection: &Selection,
        lengths: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let (mut gathered, mut paged) = (vec![], vec![]);
        for (text, tokens) in self.texts.iter_mut().zip(lengths) {
            match text {
                Reading::Sums(_) => {}
                Reading::Taps(taps) => taps.complete(tokens)?,
                Reading::Gathered(text) => gathered.push((text, tokens)),
                Reading::Paged(text) => paged.push((text, tokens)),
            }
        }
        match &selection.place {
            Place::Cpu => {}
            Place::Gpu(_) => {
                let Some(reading) = self.on_gpu.take() else { return Ok(()) };
                let results = reading.finish()?;
                let mut rows = &results.rows[..];
                let sums = results.sums.chunks_exact(selection.features.max(1));
                for ((text, tokens), sums) in paged.into_iter().zip(sums) {
                    rows = text.complete(tokens, sums, rows);
                }
            }
            Place::Device(gather) => {
                std::mem::take(&mut self.chunks).complete(gather, gathered)?;
            }
        }
        Ok(())
    }

    /// What was read, text by text.
    pub(crate) fn into_texts(self) -> Vec<Reading> {
        self.texts
    }
}

/// What is read of one text while it runs.
pub(crate) enum Reading {
    /// Sums alone, `[features]`: enough for the whole text's score.
    Sums(Vec<f64>),
    /// Every token's neurons.
    Taps(Taps),
    /// What is read on a GPU.
    Paged(Paged),
    /// What is gathered on a device of candle's.
    Gathered(Gathered),
}

/// The selected neurons of a text's beginning that has run. Clones share them.
#[derive(Clone)]
pub(crate) enum Known {
    Taps(Taps),
    Pages(paged::Pages),
    Kept(Kept),
}

impl Known {
    /// Forgets all but the first `tokens`.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        match self {
            Self::Taps(taps) => taps.truncate(tokens),
            Self::Pages(pages) => pages.truncate(tokens),
            Self::Kept(kept) => kept.truncate(tokens),
        }
    }
}

impl Reading {
    /// For a text that goes on from `known`, or runs from its beginning; with `keeps`, what is read
    /// of its tokens can be had afterwards. Its score is asked for at its end and, if at all, at
    /// every token from `running_from` on.
    pub(crate) fn new(
        selection: &Selection,
        known: Option<Known>,
        keeps: bool,
        running_from: Option<usize>,
        meter: &Meter,
    ) -> Self {
        let features = selection.features;
        let wants_rows = keeps || running_from.is_some();
        let gathered =
            |known| Self::Gathered(Gathered::new(features, known, keeps, running_from, meter));
        let paged = |pages| Self::Paged(Paged::new(features, pages, running_from));
        match (known, &selection.place) {
            (Some(Known::Taps(taps)), _) => Self::Taps(taps),
            (Some(Known::Pages(pages)), _) => paged(Some(pages)),
            (Some(Known::Kept(kept)), _) => gathered(Some(kept)),
            (None, Place::Cpu) if wants_rows => Self::Taps(Taps::new(features, meter)),
            (None, Place::Cpu) => Self::Sums(vec![0.0; features]),
            (None, Place::Gpu(selected)) => {
                paged(wants_rows.then(|| paged::Pages::new(&selected.gpu, features, meter)))
            }
            (None, Place::Device(_)) => gathered(None),
        }
    }

    fn wants_rows(&self) -> bool {
        match self {
            Self::Sums(_) => false,
            Self::Taps(_) | Self::Paged(_) => true,
            Self::Gathered(text) => text.wants_rows(),
        }
    }

    /// What was known before a pass that was given up.
    pub(crate) fn into_known(self, tokens: usize) -> Option<Known> {
        let mut known = match self {
            Self::Sums(_) => return None,
            Self::Taps(taps) => Known::Taps(taps),
            Self::Paged(text) => Known::Pages(text.into_pages()?),
            Self::Gathered(text) => Known::Kept(text.into_known()?),
        };
        known.truncate(tokens);
        Some(known)
    }

    /// What was read of every token, where that was kept.
    pub(crate) fn into_kept(self) -> Option<Known> {
        match self {
            Self::Sums(_) => None,
            Self::Taps(taps) => Some(Known::Taps(taps)),
            Self::Paged(text) => text.into_pages().map(Known::Pages),
            Self::Gathered(text) => text.into_kept().map(Known::Kept),
        }
    }

    /// Adds the head's features of the text's beginnings that end with each token of `lasts`, one
    /// row after the other. Of sums, only the last token's can be had; tokens are asked for in
    /// their order.
    ///
    /// # Errors
    /// `Internal` for a token that has not run.
    pub(crate) fn add_features(
        &mut self,
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
            Self::Paged(Paged { running, .. }) | Self::Gathered(Gathered { running, .. }) => {
                running.show(lasts, |token, sums| {
                    selection.add_means(sums, token + 1, features);
                    Ok(())
                })
            }
        }
    }
}
