//! The trained MLP: features to a score.

use crate::artifact::Layer;
use crate::checkpoint::Values;
use crate::error::{Error, Result, Status};
use crate::kernels::{self, Arena, Backend, Linear, LinearLoader, Precision, Rows};

/// Linear, ReLU, ..., Linear, softmax; in f32 on the CPU whatever the backbone runs in.
pub(crate) struct Head {
    layers: Vec<Linear>,
    inputs: usize,
    arena: Arena,
}

impl Head {
    /// Packs the layers on the current rayon pool.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(crate) fn new(layers: Vec<Layer>, arena: Arena) -> Result<Self> {
        let inputs = layers.first().map_or(0, |layer| layer.inputs);
        let layers = layers
            .into_iter()
            .map(|layer| {
                let mut loader = LinearLoader::new(layer.inputs, Precision::F32);
                loader.add(Values::F32((&layer.weight).into()), layer.outputs);
                loader.add_bias(&layer.bias);
                loader.finish(&Backend::Cpu)
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, inputs, arena })
    }

    /// Bytes of the weights in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(Linear::bytes).sum()
    }

    /// Scores of `features`, `[texts, features]`: the probability of class 1.
    ///
    /// # Errors
    /// Of the whole: `Internal`. Of one text: `NonFinite` when its score is not a number.
    pub(crate) fn scores(&self, features: &[f32]) -> Result<Vec<Result<f32>>> {
        let mut x = Rows::copied(&self.arena, features, self.inputs)?;
        let mut finite = finite_rows(&x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                kernels::relu(&mut x)?;
            }
            x = layer.forward(&x.into())?;
            // Looked at before the ReLU, which makes zeros of what is not a number.
            for (all, row) in finite.iter_mut().zip(finite_rows(&x)?) {
                *all &= row;
            }
        }
        let logits = x.cpu()?.chunks_exact(x.width());
        Ok(logits.zip(finite).map(|(l, finite)| score(l[0], l[1], finite)).collect())
    }
}

/// Which rows hold finite numbers only.
fn finite_rows(x: &Rows) -> Result<Vec<bool>> {
    Ok(x.cpu()?.chunks_exact(x.width()).map(|row| row.iter().all(|v| v.is_finite())).collect())
}

/// Softmax of two logits, class 1; `finite` tells of everything that they were computed from.
fn score(benign: f32, harmful: f32, finite: bool) -> Result<f32> {
    let largest = benign.max(harmful);
    let (benign, harmful) = ((benign - largest).exp(), (harmful - largest).exp());
    let score = harmful / (benign + harmful);
    if finite && score.is_finite() && (0.0..=1.0).contains(&score) {
        return Ok(score);
    }
    Err(Error::new(
        Status::NonFinite,
        "the model computed values that are not finite where a score from 0 to 1 was expected",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_not_a_number_is_an_error() {
        for logits in [(f32::NAN, 0.0), (0.0, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
            assert_eq!(score(logits.0, logits.1, true).unwrap_err().status(), Status::NonFinite);
        }
        assert_eq!(score(0.0, 0.0, false).unwrap_err().status(), Status::NonFinite);
        assert_eq!(score(0.0, 0.0, true).unwrap(), 0.5);
        assert_eq!(score(-1e30, 1e30, true).unwrap(), 1.0);
    }

    #[test]
    fn the_relu_hides_no_nan_and_one_text_spoils_no_other() {
        let layer = |inputs, outputs, weight| Layer {
            inputs,
            outputs,
            weight: vec![weight; inputs * outputs],
            bias: vec![0.0; outputs],
        };
        let head = Head::new(vec![layer(1, 4, 3.0), layer(4, 2, 1.0)], Arena::new(0)).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
            let scores = head.scores(&[1.0, bad, 1.0]).unwrap();
            assert_eq!((&scores[0], &scores[2]), (&Ok(0.5), &Ok(0.5)));
            assert_eq!(scores[1].as_ref().unwrap_err().status(), Status::NonFinite, "{bad}");
        }
    }
}
