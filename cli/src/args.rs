//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use siren::{DeviceChoice, Dtype, OpenOptions};

use crate::progress;

/// How harmful is a text? Scores it with a SIREN guard, in one pass of a frozen language model and
/// a small trained head.
#[derive(Parser)]
#[command(name = "siren", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Score texts: from the command line, from standard input, or as JSON lines
    Score(ScoreArgs),
    /// Show what an artifact holds: layers, neurons, weights, head, backbone
    Inspect(InspectArgs),
    /// Fetch an artifact and its backbone into one directory that opens without a network
    Pull(PullArgs),
    /// Measure how fast a guard is on this machine
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which guard, and how it runs.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// Artifact: a directory, or a hub repository OWNER/NAME[@REVISION] (a directory wins)
    /// [default: the demo guard that ships with siren]
    #[arg(short, long, value_name = "DIR|REPO[@REV]")]
    pub model: Option<String>,
    /// Backbone, instead of the one that the artifact names
    #[arg(short, long, value_name = "DIR|REPO[@REV]")]
    pub backbone: Option<String>,
    /// Where it runs: cpu, cuda, cuda:N or auto
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device)]
    pub device: DeviceChoice,
    /// What it computes in: f32, bf16, int8 or auto (f32 on a CPU, bf16 on a GPU)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = dtype)]
    pub dtype: Dtype,
    /// Threads [default: what affinity and the cgroup's quota allow]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Longest text in tokens [default: the artifact's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
    /// Cache of hub repositories [default: HF_HUB_CACHE, HF_HOME, or the user's cache]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    /// Read the weights into memory instead of mapping their files
    #[arg(long)]
    pub no_mmap: bool,
}

fn device(text: &str) -> siren::Result<DeviceChoice> {
    text.parse()
}

fn dtype(text: &str) -> siren::Result<Dtype> {
    text.parse()
}

impl ModelArgs {
    /// The library's options; downloads draw progress bars on a terminal.
    pub fn options(&self) -> OpenOptions {
        let mut options = OpenOptions {
            model: self.model.clone(),
            backbone: self.backbone.clone(),
            device: self.device,
            dtype: self.dtype,
            threads: self.threads.map(|n| n as usize),
            max_length: self.max_length.map(|n| n as usize),
            map: !self.no_mmap,
            ..OpenOptions::default()
        };
        options.hub.cache_dir = self.cache_dir.clone();
        options.hub.offline = self.offline;
        options.hub.progress = progress::downloads();
        options
    }
}

#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Harmful from this score on, 0 to 1 [default: the artifact's]
    #[arg(long, value_name = "T", value_parser = threshold)]
    pub threshold: Option<f64>,
    /// Read one JSON object a line on standard input, and write one a line:
    /// {"id","text"} or {"id","prompt","response"} gives
    /// {"id","score","is_harmful","threshold","tokens","truncated"}, or {"id","error"}
    #[arg(long, conflicts_with = "texts")]
    pub jsonl: bool,
    /// With --jsonl: exit with 1 when any line failed
    #[arg(long, requires = "jsonl", conflicts_with = "texts")]
    pub strict: bool,
    /// Texts to score; none: one text, from standard input
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
}

fn threshold(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("expected 0 to 1".into()) }
}

#[derive(Args)]
pub struct InspectArgs {
    /// Artifact: a directory, or a hub repository [default: the demo guard]
    #[arg(value_name = "DIR|REPO[@REV]")]
    pub model: Option<String>,
    /// Backbone, instead of the one that the artifact names
    #[arg(short, long, value_name = "DIR")]
    pub backbone: Option<String>,
    /// Cache of hub repositories
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct PullArgs {
    /// Artifact: a hub repository or a directory
    #[arg(value_name = "REPO[@REV]|DIR")]
    pub model: String,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Backbone, instead of the one that the artifact names
    #[arg(short, long, value_name = "REPO[@REV]|DIR")]
    pub backbone: Option<String>,
    /// Cache of hub repositories
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of each text; several, separated by commas, are taken in turn
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_value = "128",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Vec<u32>,
    /// Texts scored in one call
    #[arg(long, value_name = "B", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Timed calls, after one that warms up
    #[arg(long, value_name = "R", default_value = "7",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
