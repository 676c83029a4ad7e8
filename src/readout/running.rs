//! Sums of neurons over tokens, and those over the beginnings of a text whose neurons came back from
//! another device.

use std::ops::Range;

use crate::error::Result;

/// Adds a token's neurons to sums over tokens.
pub(super) fn add(sums: &mut [f64], neurons: impl Iterator<Item = f32>) {
    for (sum, value) in sums.iter_mut().zip(neurons) {
        *sum += f64::from(value);
    }
}

/// Sums over some of a text's first tokens, and the neurons of the tokens after them.
#[derive(Default)]
pub(super) struct Running {
    /// `[features]`
    pub(super) sums: Vec<f64>,
    pub(super) summed: usize,
    /// `[tokens, features]`
    pub(super) rows: Vec<f32>,
}

impl Running {
    pub(super) fn new(features: usize) -> Self {
        Self { sums: vec![0.0; features], ..Self::default() }
    }

    /// Shows, for each of `lasts`, the sums over the tokens up to it and with it, `[features]`.
    /// Those of earlier tokens cannot be had again.
    pub(super) fn show(
        &mut self,
        lasts: Range<usize>,
        mut show: impl FnMut(usize, &[f64]) -> Result<()>,
    ) -> Result<()> {
        let features = self.sums.len();
        for token in lasts {
            let rows =
                self.rows.chunks_exact(features).take((token + 1).saturating_sub(self.summed));
            let read = rows.len();
            for row in rows {
                add(&mut self.sums, row.iter().copied());
            }
            self.rows.drain(..read * features);
            self.summed += read;
            show(token, &self.sums)?;
        }
        Ok(())
    }
}
