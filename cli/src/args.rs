//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use siren::{DeviceChoice, Dtype, OpenOptions, PackedCacheChoice, Windows};

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
    Watch(WatchArgs),
    /// Show what an artifact holds: layers, neurons, weights, head, backbone
    Inspect(InspectArgs),
    /// Fetch an artifact and its backbone into one directory that opens without a network
    Pull(PullArgs),
    Bench(BenchArgs),
    Compare(CompareArgs),
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
    /// Backbone, instead of the one that the artifact names: a directory, a hub repository, or a GGUF
    /// file on this machine or in a repository (OWNER/NAME/FILE.gguf[@REVISION])
    #[arg(short, long, value_name = "DIR|FILE.gguf|REPO[/FILE.gguf][@REV]")]
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
    /// Keep packed weights in a file in this directory, for the next open and other processes to map;
    /// auto: in packed/ beside the backbone's weights
    #[arg(long, value_name = "DIR|auto", value_parser = packed_cache, conflicts_with = "no_mmap")]
    pub packed_cache: Option<PackedCacheChoice>,
}

fn packed_cache(text: &str) -> siren::Result<PackedCacheChoice> {
    text.parse()
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
            packed_cache: self.packed_cache.clone().unwrap_or_default(),
            ..OpenOptions::default()
        };
        options.hub.cache_dir = self.cache_dir.clone();
        options.hub.offline = self.offline;
        options.hub.progress = progress::downloads();
        options
    }
}

/// How a text is read that is longer than the guard's longest.
#[derive(Args, Clone, Copy)]
pub struct WindowArgs {
    /// Read a long text to its end, in windows that overlap, instead of cutting it; its score is
    /// the highest of theirs
    #[arg(long)]
    pub windows: bool,
    /// Tokens of a window [default: the longest text]
    #[arg(long, value_name = "N", requires = "windows",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub window_tokens: Option<u32>,
    /// Tokens from one window's start to the next one's [default: half a window]
    #[arg(long, value_name = "N", requires = "windows",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub stride: Option<u32>,
}

impl WindowArgs {
    pub fn windows(&self) -> Option<Windows> {
        self.windows.then(|| Windows {
            tokens: self.window_tokens.unwrap_or(0) as usize,
            stride: self.stride.unwrap_or(0) as usize,
        })
    }
}

#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Harmful from this score on, 0 to 1 [default: the artifact's]
    #[arg(long, value_name = "T", value_parser = threshold)]
    pub threshold: Option<f64>,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// Give up on a text (of --jsonl: on the texts that wait together, or on a push of a stream)
    /// that has no score after this time; that is its error
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Read one JSON object a line on standard input, and write one a line, in the same order
    ///
    /// {"id","text"} or {"id","prompt","response"} gives
    /// {"id","score","is_harmful","threshold","tokens","truncated"}.
    ///
    /// {"id","prompt"?,"stream":[chunk,...]} is a response that comes in chunks: it gives
    /// {"id","scores","is_harmful","threshold","first_crossing","tokens","truncated"}, where
    /// scores, tokens and truncated have one value a chunk, is_harmful is of the whole, and
    /// first_crossing is {"token","byte"} or null. Without any chunk is_harmful is of the prompt
    /// alone, or of an empty text.
    ///
    /// With --windows, "window":{"count","index","start","end"} is added: how many there were, which
    /// one scored highest, and its bytes in the text (of a stream, in the chunks; of a prompt and a
    /// response, in the two joined with a newline).
    ///
    /// A line that fails gives {"id","error":{"status","message"}}, and the others go on.
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

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|n| Duration::try_from_secs_f64(n).ok());
    seconds.filter(|s| !s.is_zero()).ok_or_else(|| "expected seconds above 0".to_owned())
}

/// Follow a text while it is written: `model | siren watch`
///
/// Reads standard input as it comes, and scores all of it so far at the cost of what is new. On a
/// terminal one line shows the score while it changes; at the end one line says what the whole
/// scored, and where the running score first reached the threshold. Of a text longer than the
/// guard's longest only the beginning is read, unless --windows is given.
///
/// Exit code: 3 when it reached the threshold, 0 when it did not, 1 when something failed (nothing
/// is known then), 2 for bad usage.
#[derive(Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Crosses from this score on, 0 to 1 [default: the artifact's]
    #[arg(long, value_name = "T", value_parser = threshold)]
    pub threshold: Option<f64>,
    /// What the text answers; it is scored with it
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens in a row that must reach the threshold before that counts
    #[arg(long, value_name = "K", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub hysteresis: u32,
    #[command(flatten)]
    pub windows: WindowArgs,
    /// End at the crossing, also while more could come
    #[arg(long)]
    pub stop_at_crossing: bool,
    /// Be a filter: write the text to standard output as far as it is cleared, never past a
    /// crossing; what is said about it goes to standard error
    ///
    /// Text is held back while it may still change how it reads: half a character, white space at
    /// the end. A text longer than the guard's longest is a failure: read it with --windows.
    #[arg(long)]
    pub pass: bool,
    /// Print one JSON object for every push, and one when the text has ended
    ///
    /// {"score","is_harmful","threshold","tokens","truncated","first_crossing","bytes","cleared",
    /// "finished"}: bytes were read so far, of which the first cleared ones may be shown. With
    /// --windows, "window" is added as by siren score.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct InspectArgs {
    /// Artifact: a directory, or a hub repository [default: the demo guard]
    #[arg(value_name = "DIR|REPO[@REV]")]
    pub model: Option<String>,
    /// Backbone, instead of the one that the artifact names
    #[arg(short, long, value_name = "DIR|FILE.gguf")]
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
    #[arg(short, long, value_name = "REPO[/FILE.gguf][@REV]|DIR|FILE.gguf")]
    pub backbone: Option<String>,
    /// Pack the weights for these dtypes as well, where `--packed-cache auto` looks for them
    #[arg(long, value_name = "DTYPE[,DTYPE...]", value_delimiter = ',', value_parser = dtype)]
    pub pack: Vec<Dtype>,
    /// Cache of hub repositories
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

/// Measure how fast a guard is on this machine
///
/// Latency by tokens, throughput by batch, what a push onto a stream costs, time to open, memory.
/// With any of --tokens, --batch and --stream only what they name is measured; otherwise all three,
/// as far as the guard's longest text goes. The prefix cache is off: every call runs all of its
/// tokens, although the texts repeat. A time is a whole call, with the tokenizer and the head.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Latency: one text a call, of N tokens [default: 16,32,64,128,256,512]
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub tokens: Vec<u32>,
    /// Throughput: B texts a call [default: 1,4,8,16]
    #[arg(long, value_name = "B[,B...]", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub batch: Vec<u32>,
    /// Tokens of a batch's texts; several are taken in turn
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_value = "128",
          value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub batch_tokens: Vec<u32>,
    /// Streams: a push onto N tokens that have run, and beside it scoring all of them again
    /// [default: 100,500,1000]
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub stream: Vec<u32>,
    /// Tokens of a push
    #[arg(long, value_name = "N", default_value = "16",
          value_parser = clap::value_parser!(u32).range(1..=MOST))]
    pub push: u32,
    /// Timed calls of each, after one that warms up [default: 7, or as many as 3 seconds take, but
    /// at least 3]; scoring all of a stream again takes at most 3
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: Option<u32>,
    /// Measure another program beside, in turns, on the same texts: the Python package llm-siren, in
    /// the same dtype (beside int8 in bf16)
    #[arg(long, value_name = "PEER")]
    pub against: Option<Peer>,
    /// Python interpreter that has the package of --against
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: String,
    /// Write a chart
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print one JSON object
    ///
    /// {"model","backbone","device","dtype","threads","load_ms","weight_mb","open_rss_mb",
    /// "open_peak_rss_mb","rss_mb","peak_rss_mb","latency":[],"throughput":[],"stream":[]}. Each
    /// measurement has {"median_ms","min_ms","max_ms","first_ms","repeat","tokens","scores"}; of
    /// texts also {"batch","texts_per_s","tokens_per_s"}, of pushes {"prefix_tokens","whole_ms",
    /// "ratio"}, and with --against "against":{"median_ms",...,"ratio","apart"}.
    #[arg(long)]
    pub json: bool,
}

/// Show what another dtype, backbone or device does to a guard's scores
///
/// Scores the same texts twice, and tells by how much the scores differ and which decisions change:
/// siren compare --model M --dtype f32 --against-dtype int8 texts.txt
#[derive(Args)]
#[command(group = clap::ArgGroup::new("against").required(true).multiple(true)
          .args(["against_dtype", "against_backbone", "against_device"]))]
pub struct CompareArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What the other side computes in
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub against_dtype: Option<Dtype>,
    /// The other side's backbone
    #[arg(long, value_name = "DIR|REPO[@REV]")]
    pub against_backbone: Option<String>,
    /// Where the other side runs
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub against_device: Option<DeviceChoice>,
    /// Harmful from this score on, 0 to 1 [default: the artifact's]
    #[arg(long, value_name = "T", value_parser = threshold)]
    pub threshold: Option<f64>,
    /// Each line is one JSON object, as siren score reads it: {"text"} or {"prompt","response"}
    #[arg(long)]
    pub jsonl: bool,
    /// How many of the texts that differ most are listed
    #[arg(long, value_name = "N", default_value = "5")]
    pub worst: u32,
    /// Print one JSON object
    ///
    /// {"texts","failed","guard","against","difference":{"median","p99","worst"},"changed",
    /// "changed_share","worst":[{"line","score","against","changed"}]}
    #[arg(long)]
    pub json: bool,
    /// Texts, one a line; blank lines are left out [default: standard input]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Tokens of a text, or texts of a call, that can be asked for.
const MOST: i64 = 1_000_000;

/// What `siren bench` can measure beside.
#[derive(Clone, Copy, ValueEnum)]
pub enum Peer {
    /// The reference package, on torch
    LlmSiren,
}
