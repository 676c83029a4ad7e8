//! `siren inspect`: what an artifact holds.

use std::io::Write;
use std::process::ExitCode;

use siren::{ArtifactInfo, OpenOptions};

use crate::args::InspectArgs;
use crate::output::{FAINT, Outcome, STRONG, size};
use crate::progress;

pub fn run(args: &InspectArgs) -> Outcome {
    let mut options = OpenOptions {
        model: args.model.clone(),
        backbone: args.backbone.clone(),
        ..OpenOptions::default()
    };
    options.hub.cache_dir = args.cache_dir.clone();
    options.hub.offline = args.offline;
    options.hub.progress = progress::downloads();
    let info = siren::inspect(&options)?;
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{}", info.to_json())?;
    } else {
        print(&mut out, &info)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, info: &ArtifactInfo) -> std::io::Result<()> {
    let neurons: usize = info.layers.iter().map(|layer| layer.neurons).sum();
    let revision = info.base_model.revision.as_deref().unwrap_or("the default branch");
    let inputs = std::iter::once(neurons).chain(info.head_dims.iter().copied());
    let head: Vec<String> = inputs.map(|n| n.to_string()).collect();
    writeln!(out, "{STRONG}{}{STRONG:#}", info.model_dir.display())?;
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<18} {value}");
    row("task", "content".into())?;
    row("base model", format!("{} at {revision}", info.base_model.model_id))?;
    row("pooling", info.pooling.name().into())?;
    row("head", format!("{} ({} parameters)", head.join(" > "), info.head_parameters))?;
    row("longest text", format!("{} tokens", info.max_length))?;
    row("threshold", info.default_threshold.to_string())?;
    row("files", size(info.bytes))?;
    match &info.backbone {
        Some(backbone) => {
            row(
                "backbone",
                format!(
                    "{} of {} blocks run, hidden {}, vocabulary {}, {} ({})",
                    backbone.layers_run,
                    backbone.layers,
                    backbone.hidden_size,
                    backbone.vocab_size,
                    size(backbone.bytes),
                    backbone.model_type
                ),
            )?;
            row("", backbone.path.display().to_string())?;
            if !backbone.tensor_types.is_empty() {
                let types = backbone.tensor_types.iter().map(|(name, n)| format!("{n} {name}"));
                row("", format!("tensors: {}", types.collect::<Vec<_>>().join(", ")))?;
            }
        }
        None => row("backbone", "not in a directory or file of this machine".into())?,
    }
    row("neurons", format!("{neurons} in {} layers", info.layers.len()))?;
    let most = info.layers.iter().map(|layer| layer.neurons).max().unwrap_or(1).max(1);
    writeln!(out, "  {FAINT}{:>5}  {:>10}  {:>7}{FAINT:#}", "layer", "weight", "neurons")?;
    for layer in &info.layers {
        let bar = "█".repeat((layer.neurons * 30).div_ceil(most));
        writeln!(
            out,
            "  {:>5}  {:>10.6}  {:>7}  {FAINT}{bar}{FAINT:#}",
            layer.index, layer.weight, layer.neurons
        )?;
    }
    Ok(())
}
