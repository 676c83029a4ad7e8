//! The trained head in `siren.safetensors`: an MLP over the selected neurons.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::json::Node;

const MAX_HIDDEN_LAYERS: usize = 64;
const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_INPUTS: usize = 1 << 24;

/// One linear layer; between two of them stands a ReLU.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[outputs, inputs]`
    pub(crate) weight: Vec<f32>,
    /// `[outputs]`
    pub(crate) bias: Vec<f32>,
}

/// Reads the layers that `mlp` of the configuration describes, all of the file's tensors, and puts
/// the file's bytes into `digest`.
pub(super) fn read(
    mlp: &Node<'_>,
    weights: &Path,
    map: bool,
    digest: &mut Sha256,
) -> Result<Vec<Layer>> {
    let mut inputs = mlp.require("input_dim")?.integer(1, MAX_INPUTS)?;
    let dims = mlp.require("layer_dims")?;
    let dims =
        dims.items()?.iter().map(|dim| dim.integer(1, MAX_WIDTH)).collect::<Result<Vec<_>>>()?;
    if dims.len() > MAX_HIDDEN_LAYERS {
        return Err(mlp
            .require("layer_dims")?
            .unexpected(format_args!("at most {MAX_HIDDEN_LAYERS} hidden layers")));
    }
    let rates = mlp.require("dropout_rates")?;
    let drops = rates
        .items()?
        .iter()
        .map(|rate| Ok(rate.number(0.0, 1.0)? > 0.0))
        .collect::<Result<Vec<_>>>()?;
    if drops.len() != dims.len() {
        return Err(
            rates.unexpected(format_args!("as many items as layer_dims has ({})", dims.len()))
        );
    }
    let classes = match mlp.get("num_classes")? {
        Some(node) => node.integer(2, 2)?,
        None => 2,
    };

    let checkpoint = Checkpoint::open_file(weights, map)?;
    checkpoint.files().for_each(|bytes| digest.update(&**bytes));
    let mut layers = Vec::new();
    let mut expected = Vec::new();
    // The index counts every module: Linear, ReLU and, where its rate is above 0, Dropout.
    let mut index = 0;
    for (i, outputs) in dims.iter().copied().chain([classes]).enumerate() {
        let names = [format!("network.{index}.weight"), format!("network.{index}.bias")];
        layers.push(layer(&checkpoint, &names, inputs, outputs)?);
        expected.extend(names);
        index += if drops.get(i) == Some(&true) { 3 } else { 2 };
        inputs = outputs;
    }
    if let Some(extra) = checkpoint.names().find(|name| !expected.iter().any(|e| e == name)) {
        return Err(Error::model(
            checkpoint.file(),
            format!("tensor {extra:?}"),
            "a tensor that the configuration has no place for",
            format!("only {}", expected.join(", ")),
        ));
    }
    Ok(layers)
}

fn layer(
    checkpoint: &Checkpoint,
    [weight, bias]: &[String; 2],
    inputs: usize,
    outputs: usize,
) -> Result<Layer> {
    let values = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let tensor = checkpoint.tensor(name, shape)?;
        let values = tensor.to_f32()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::model(
                tensor.file,
                format!("tensor {name:?}"),
                format!("{} at index {at}", values[at]),
                "finite numbers",
            ));
        }
        Ok(values)
    };
    let layer = Layer {
        inputs,
        outputs,
        weight: values(weight, &[outputs, inputs])?,
        bias: values(bias, &[outputs])?,
    };
    if layer.weight.iter().all(|&v| v == 0.0) {
        return Err(Error::model(
            checkpoint.file(),
            format!("tensor {weight:?}"),
            "zeros only",
            "trained weights",
        ));
    }
    Ok(layer)
}
