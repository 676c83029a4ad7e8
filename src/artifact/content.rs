//! The content task: selected neurons of internal layers, pooled over the tokens, and an MLP.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::head::{self, Layer};
use super::{BaseModel, named_base_model};
use crate::audit::hex;
use crate::error::{Error, Result};
use crate::json::Node;

const MAX_LAYER: usize = 1023;
const MAX_NEURON: usize = (1 << 24) - 1;
const MAX_LENGTH: usize = 1 << 24;

/// Which states are averaged (`pooling_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// `residual_mean`: the residual stream after the layer.
    ResidualMean,
    /// `mlp_mean`: the layer's MLP output.
    MlpMean,
}

impl Pooling {
    /// The value in `siren_config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::ResidualMean => "residual_mean",
            Pooling::MlpMean => "mlp_mean",
        }
    }
}

/// A layer that is read, with its safety neurons.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SelectedLayer {
    pub(crate) index: usize,
    /// Weight of the layer's neurons (`layer_weights`; 1 where none is given).
    pub(crate) weight: f32,
    /// Neuron numbers in the file's order, repeats kept.
    pub(crate) neurons: Vec<usize>,
}

/// A checked content artifact.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) file: String,
    pub(crate) base_model: BaseModel,
    pub(crate) pooling: Pooling,
    /// Ascending.
    pub(crate) layers: Vec<SelectedLayer>,
    pub(crate) head: Vec<Layer>,
    pub(crate) max_length: usize,
    pub(crate) default_threshold: f64,
    /// SHA-256 of the configuration's bytes and then the head's, in hexadecimal.
    pub(crate) sha256: String,
}

/// `digest` has taken the configuration in.
pub(super) fn read(
    root: &Node<'_>,
    weights: &Path,
    map: bool,
    mut digest: Sha256,
) -> Result<Content> {
    let base_model = named_base_model(root)?;
    let module = root.require("siren_module")?;
    let pooling_type = module.require("pooling_type")?;
    let pooling = match pooling_type.string()? {
        "residual_mean" => Pooling::ResidualMean,
        "mlp_mean" => Pooling::MlpMean,
        _ => return Err(pooling_type.unexpected(r#""residual_mean" or "mlp_mean""#)),
    };
    let layers = selected_layers(&module, pooling)?;
    let mlp = root.require("mlp")?;
    let neurons: usize = layers.iter().map(|layer| layer.neurons.len()).sum();
    let input_dim = mlp.require("input_dim")?;
    if input_dim.integer(1, head::MAX_INPUTS)? != neurons {
        return Err(input_dim
            .unexpected(format_args!("{neurons}, the number of neurons of the selected layers")));
    }
    let inference = root.require("inference")?;
    let max_length = inference.require("max_length")?.integer(1, MAX_LENGTH)?;
    let default_threshold = inference.require("default_threshold")?.number(0.0, 1.0)?;
    let head = head::read(&mlp, weights, map, &mut digest)?;
    let sha256 = hex(&digest.finalize());
    let file = weights.with_file_name(super::CONFIG_FILE).display().to_string();
    Ok(Content { file, base_model, pooling, layers, head, max_length, default_threshold, sha256 })
}

fn selected_layers(module: &Node<'_>, pooling: Pooling) -> Result<Vec<SelectedLayer>> {
    let weights = layer_weights(&module.require("layer_weights")?)?;
    let mut neurons = neurons_by_layer(&module.require("selected_neurons_dict")?, pooling)?;
    let selected = module.require("selected_layers")?;
    let mut layers = Vec::new();
    for item in selected.items()? {
        let index = item.integer(0, MAX_LAYER)?;
        // A layer that was taken before is gone from the map: look for the repeat first.
        if layers.iter().any(|layer: &SelectedLayer| layer.index == index) {
            return Err(item.invalid(format_args!("{index} again"), "every layer once"));
        }
        let Some(node) = neurons.remove(&index) else {
            return Err(module.require("selected_neurons_dict")?.invalid(
                format_args!("nothing for layer {index}"),
                format_args!("the key \"layer{index}_{}\"", pooling.name()),
            ));
        };
        let list = node
            .items()?
            .iter()
            .map(|neuron| neuron.integer(0, MAX_NEURON))
            .collect::<Result<Vec<_>>>()?;
        let weight = weights.get(&index).copied().unwrap_or(1.0);
        layers.push(SelectedLayer { index, weight, neurons: list });
    }
    if layers.is_empty() {
        return Err(selected.unexpected("at least one layer"));
    }
    layers.sort_by_key(|layer| layer.index);
    Ok(layers)
}

fn layer_weights(node: &Node<'_>) -> Result<BTreeMap<usize, f32>> {
    let mut weights = BTreeMap::new();
    for (key, weight) in node.members()? {
        let layer = layer_number(key).ok_or_else(|| {
            node.invalid(format_args!("key {key:?}"), "a layer's number, such as \"7\"")
        })?;
        let limit = f64::from(f32::MAX);
        weights.insert(layer, weight.number(-limit, limit)? as f32);
    }
    Ok(weights)
}

/// Every list by its layer. The suffix must be the pooling type: another one would mean neurons
/// that were selected on other states.
fn neurons_by_layer<'a>(node: &Node<'a>, pooling: Pooling) -> Result<BTreeMap<usize, Node<'a>>> {
    let mut lists = BTreeMap::new();
    for (key, list) in node.members()? {
        let layer = key
            .strip_prefix("layer")
            .and_then(|rest| rest.strip_suffix(pooling.name()))
            .and_then(|rest| rest.strip_suffix('_'))
            .and_then(layer_number)
            .ok_or_else(|| {
                node.invalid(
                    format_args!("key {key:?}"),
                    format_args!("\"layer{{N}}_{}\"", pooling.name()),
                )
            })?;
        lists.insert(layer, list);
    }
    Ok(lists)
}

/// A layer number in its shortest form, so that two keys cannot mean the same layer.
fn layer_number(key: &str) -> Option<usize> {
    let number: usize = key.parse().ok()?;
    (number <= MAX_LAYER && number.to_string() == key).then_some(number)
}

impl Content {
    /// Checks what only the backbone can tell: that its layers and neurons are there.
    ///
    /// # Errors
    /// `InvalidModel`.
    pub(crate) fn check_backbone(&self, layers: usize, hidden_size: usize) -> Result<()> {
        for layer in &self.layers {
            if layer.index >= layers {
                return Err(Error::model(
                    &self.file,
                    "siren_module.selected_layers",
                    format!("layer {}", layer.index),
                    format!("less than {layers}, the backbone's num_hidden_layers"),
                ));
            }
            if let Some(neuron) = layer.neurons.iter().find(|&&n| n >= hidden_size) {
                return Err(Error::model(
                    &self.file,
                    format!(
                        "siren_module.selected_neurons_dict.layer{}_{}",
                        layer.index,
                        self.pooling.name()
                    ),
                    format!("neuron {neuron}"),
                    format!("less than {hidden_size}, the backbone's hidden_size"),
                ));
            }
        }
        Ok(())
    }
}
