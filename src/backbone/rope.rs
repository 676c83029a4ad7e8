//! Rotary position embedding, with the same f32 arithmetic as the transformers library: at
//! thousands of positions its rounding shows in the scores.

use std::f64::consts::PI;

use super::config::{Config, RopeScaling};

/// The inverse frequency of each pair of dimensions, `[head_dim / 2]`.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &Config) -> Self {
        let dim = config.head_dim;
        let inverse_frequencies = (0..dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / dim as f32;
                let plain = 1.0 / (config.rope_theta as f32).powf(exponent);
                match &config.rope_scaling {
                    RopeScaling::Factors(factors) => plain / factors[i],
                    scaling => scaled(plain, scaling),
                }
            })
            .collect();
        Self { inverse_frequencies }
    }

    /// The cosines and sines of `positions`, each `[positions, head_dim / 2]`.
    pub(crate) fn rows(&self, positions: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
        positions
            .flat_map(|p| self.inverse_frequencies.iter().map(move |f| p as f32 * f))
            .map(|angle| (angle.cos(), angle.sin()))
            .unzip()
    }
}

/// `llama3` scaling (transformers, `_compute_llama3_parameters`).
fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_length } =
        *scaling
    else {
        return frequency;
    };
    let original_length = original_length as f64;
    let wavelength = 2.0 * PI / f64::from(frequency);
    if wavelength > original_length / low_freq_factor {
        (f64::from(frequency) / factor) as f32
    } else if wavelength < original_length / high_freq_factor {
        frequency
    } else {
        let smooth =
            (original_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let frequency = f64::from(frequency);
        ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
    }
}
