//! Open a guard, score with it: the whole engine in safe Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use rayon::prelude::*;

use crate::artifact::{self, BaseModel, Content, Pooling};
use crate::backbone::{Config, Decoder, Family, Observed, Packed, Site};
use crate::call::{ScoreOptions, StreamOptions};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, Status, panic_message};
use crate::inspect::LayerInfo;
use crate::kernels::Precision;
use crate::options::{DeviceChoice, Dtype, OpenOptions};
use crate::readout::{Head, Pool, Selection};
use crate::schedule::{Engine, Limits, Scheduler};
use crate::stats::Stats;
use crate::stream::Stream;
use crate::sys::process::Home;
use crate::text::{self, Input, Tokenizer};

/// Tokens of one pass: past this, a CPU computes no faster for more of them.
const BATCH_TOKENS: usize = 1024;
/// Stack of a pool thread; tokenising recurses, and callers' own stacks may be small.
const POOL_STACK_BYTES: usize = 4 << 20;

/// What a text scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Probability that the text is harmful, from 0 to 1: an f32, widened.
    pub score: f64,
    /// `score >= threshold`
    pub is_harmful: bool,
    /// The threshold that was compared with, as given.
    pub threshold: f64,
    /// Tokens that ran, special ones included.
    pub tokens: usize,
    /// The text had more tokens than the guard's `max_length`; the rest was not read.
    pub truncated: bool,
    /// With windows: which one scored highest.
    pub window: Option<BestWindow>,
}

/// The window of a text that scored highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestWindow {
    /// Windows that the text was read in.
    pub count: usize,
    /// This one's 0-based index.
    pub index: usize,
    /// Its first byte in the text: of a stream in the pushed bytes, of a prompt and a response in
    /// the two joined with one newline.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

/// An [`Input`] that owns its text, for calls that outlive their caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedInput {
    /// See [`Input::Text`].
    Text(String),
    /// See [`Input::Exchange`].
    Exchange {
        /// What the model was asked.
        prompt: Option<String>,
        /// What it answered.
        response: Option<String>,
    },
}

impl OwnedInput {
    /// The borrowed form.
    pub fn as_input(&self) -> Input<'_> {
        match self {
            Self::Text(text) => Input::Text(text),
            Self::Exchange { prompt, response } => {
                Input::Exchange { prompt: prompt.as_deref(), response: response.as_deref() }
            }
        }
    }
}

/// What an open guard is made of.
#[derive(Clone, Debug)]
pub struct Info {
    /// Where the artifact was read.
    pub model_dir: PathBuf,
    /// Where the backbone was read.
    pub backbone_dir: PathBuf,
    /// The backbone that the artifact names.
    pub base_model: BaseModel,
    /// The backbone's family.
    pub family: Family,
    /// Which states are averaged.
    pub pooling: Pooling,
    /// Selected layers, ascending: number, weight, neurons.
    pub layers: Vec<LayerInfo>,
    /// Outputs of the head's linear layers; the last is the number of classes.
    pub head_dims: Vec<usize>,
    /// Longest text in tokens, special ones included.
    pub max_length: usize,
    /// The threshold of calls that give none.
    pub default_threshold: f64,
    /// Blocks that the backbone has, and how many of them run.
    pub backbone_layers: usize,
    /// See `backbone_layers`.
    pub layers_run: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What the linear layers compute in: `f32` or `bf16`.
    pub dtype: &'static str,
    /// Threads of the guard's own pool.
    pub threads: usize,
    /// Bytes of the linear layers' weights in memory, backbone and head.
    pub weight_bytes: usize,
    /// SHA-256 over `siren_config.json` and then `siren.safetensors`, in hexadecimal.
    pub artifact_sha256: String,
}

impl Info {
    /// Everything, as one JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        let layers: Vec<_> = self.layers.iter().map(LayerInfo::to_json).collect();
        serde_json::json!({
            "model_dir": self.model_dir.display().to_string(),
            "backbone_dir": self.backbone_dir.display().to_string(),
            "base_model": self.base_model.model_id,
            "revision": self.base_model.revision,
            "family": self.family.model_type(),
            "pooling_type": self.pooling.name(),
            "selected_layers": layers,
            "head_dims": self.head_dims,
            "max_length": self.max_length,
            "default_threshold": self.default_threshold,
            "backbone_layers": self.backbone_layers,
            "layers_run": self.layers_run,
            "hidden_size": self.hidden_size,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "weight_bytes": self.weight_bytes,
            "artifact_sha256": self.artifact_sha256,
        })
    }
}

/// An open guard: immutable, shared by any number of threads.
pub struct Guard {
    // Dropped in this order: the scheduler ends its worker while the pool still stands.
    scheduler: Scheduler,
    pool: Arc<rayon::ThreadPool>,
    tokenizer: Tokenizer,
    options: OpenOptions,
    info: Info,
    home: Home,
}

impl Guard {
    /// Opens the guard that `options` name. Blocks while files are read (and fetched, when the
    /// model is a hub repository).
    ///
    /// # Errors
    /// `NotFound`, `Io`, `InvalidModel`, `Unsupported`, `InvalidArgument`, `OutOfMemory`, and the
    /// hub's `Network`, `Unauthorized` and `Offline`.
    pub fn open(options: OpenOptions) -> Result<Self> {
        let start = Instant::now();
        let opened = Self::open_unlogged(options);
        let took = start.elapsed();
        match &opened {
            Ok(guard) => {
                let info = &guard.info;
                log::info!(
                    "opened {} in {took:.1?}: {}, {} of {} layers, {} on {}, {} threads",
                    info.model_dir.display(),
                    info.family.model_type(),
                    info.layers_run,
                    info.backbone_layers,
                    info.dtype,
                    info.device,
                    info.threads
                );
            }
            Err(error) => log::info!("not opened: {error} ({})", error.status().name()),
        }
        opened
    }

    fn open_unlogged(options: OpenOptions) -> Result<Self> {
        options.check()?;
        let device = device(&options.device)?;
        let precision = precision(options.dtype, &device)?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("siren-pool-{i}"))
            .stack_size(POOL_STACK_BYTES)
            .build()
            .map_err(|e| Error::new(Status::OutOfMemory, format!("no thread pool: {e}")))?;
        let pool = Arc::new(pool);
        pool.install(|| Self::load(&options, &device, precision, &pool)).and_then(
            |(engine, tokenizer, info)| {
                let limits = Limits { queue: options.max_queue, batch_tokens: BATCH_TOKENS };
                let scheduler = Scheduler::start(Arc::new(engine), limits)?;
                Ok(Self {
                    scheduler,
                    pool: pool.clone(),
                    tokenizer,
                    options,
                    info,
                    home: Home::here(),
                })
            },
        )
    }

    fn load(
        options: &OpenOptions,
        device: &Device,
        precision: Precision,
        pool: &Arc<rayon::ThreadPool>,
    ) -> Result<(Forward, Tokenizer, Info)> {
        let model_dir = crate::locate::model(options)?;
        let content = artifact::open(&model_dir, options.map)?;
        let backbone_dir = crate::locate::backbone(options, &model_dir, &content.base_model)?;
        log::debug!("artifact {}, backbone {}", model_dir.display(), backbone_dir.display());
        let config = Config::read(&backbone_dir.join("config.json"))?;
        content.check_backbone(config.num_hidden_layers, config.hidden_size)?;
        let tokenizer = Tokenizer::open(&backbone_dir, config.vocab_size)?;
        let max_length = max_length(options, &content, &tokenizer)?;

        let checkpoint = Arc::new(Checkpoint::open_dir(&backbone_dir, options.map)?);
        let selection = Selection::new(content.layers.clone());
        let site = match content.pooling {
            Pooling::ResidualMean => Site::Residual,
            Pooling::MlpMean => Site::Mlp,
        };
        let observed = Observed { site, layers: selection.layers() };
        let decoder = Decoder::load(&checkpoint, config, observed, device, precision)?;
        let head_dims = content.head.iter().map(|layer| layer.outputs).collect();
        let head = Head::new(content.head)?;
        // What stays in use is read again when it is needed.
        checkpoint.release_pages();

        let info = Info {
            model_dir,
            backbone_dir,
            base_model: content.base_model,
            family: decoder.config().family,
            pooling: content.pooling,
            layers: content.layers.iter().map(LayerInfo::of).collect(),
            head_dims,
            max_length,
            default_threshold: content.default_threshold,
            backbone_layers: decoder.config().num_hidden_layers,
            layers_run: decoder.blocks(),
            hidden_size: decoder.config().hidden_size,
            device: options.device.resolved(device),
            dtype: match precision {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            threads: pool.current_num_threads(),
            weight_bytes: decoder.bytes() + head.bytes(),
            artifact_sha256: content.sha256,
        };
        let forward = Forward {
            decoder,
            selection,
            head,
            pool: pool.clone(),
            #[cfg(feature = "planted-panics")]
            fatal: tokenizer.encode(planted::IN_THE_WORKER, max_length)?.ids,
        };
        Ok((forward, tokenizer, info))
    }

    /// What the guard is made of.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Scores one input. `threshold` is from 0 to 1; `None` takes the guard's own.
    ///
    /// # Errors
    /// `InvalidArgument` for a threshold out of range, `LimitExceeded` for a text that is too
    /// long, `Busy`, `Poisoned`, `Forked`, `NonFinite`, `OutOfMemory`, `Internal`.
    pub fn score(&self, input: Input<'_>, options: impl Into<ScoreOptions>) -> Result<Score> {
        let mut scores = self.score_batch(&[input], options)?;
        scores.pop().unwrap_or_else(|| Err(Error::internal("a text without a result")))
    }

    /// Scores `inputs`; each has its own result, in the same order.
    ///
    /// # Errors
    /// Of the call: `InvalidArgument` for a threshold out of range, `LimitExceeded` for too many
    /// inputs, `Busy`, `Poisoned`, `Forked`. Of one input: as [`Guard::score`].
    pub fn score_batch(
        &self,
        inputs: &[Input<'_>],
        options: impl Into<ScoreOptions>,
    ) -> Result<Vec<Result<Score>>> {
        let ScoreOptions { threshold, .. } = options.into();
        self.home.check()?;
        self.scheduler.check()?;
        let threshold = threshold.unwrap_or(self.info.default_threshold);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(Error::argument(format!(
                "the threshold is {threshold}, expected a number from 0 to 1"
            )));
        }
        self.check_batch(inputs.len())?;
        let prepared: Vec<Result<text::Tokens>> =
            self.pool.install(|| inputs.par_iter().map(|input| self.prepare(*input)).collect());
        let mut waiting = Vec::new();
        let mut results: Vec<Result<Score>> = prepared
            .into_iter()
            .map(|tokens| {
                let text::Tokens { ids, truncated } = tokens?;
                let tokens = ids.len();
                waiting.push(Arc::from(ids));
                Ok(Score {
                    score: 0.0,
                    is_harmful: false,
                    threshold,
                    tokens,
                    truncated,
                    window: None,
                })
            })
            .collect();
        let mut scores = self.scheduler.run(waiting)?.into_iter();
        for result in &mut results {
            let Ok(score) = result else { continue };
            match scores.next() {
                Some(Ok(value)) => {
                    score.score = f64::from(value);
                    score.is_harmful = score.score >= threshold;
                }
                Some(Err(error)) => *result = Err(error),
                None => *result = Err(Error::internal("a text without a result")),
            }
        }
        Ok(results)
    }

    /// As [`Guard::score`], without blocking: `done` is called once, on a thread of the guard's
    /// own, and may call into the guard.
    ///
    /// # Errors
    /// `Busy` and bad arguments at once; `done` is then not called.
    pub fn score_async(
        &self,
        input: OwnedInput,
        options: ScoreOptions,
        done: impl FnOnce(Result<Score>) + Send + 'static,
    ) -> Result<()> {
        done(self.score(input.as_input(), options));
        Ok(())
    }

    /// As [`Guard::score_batch`], without blocking; see [`Guard::score_async`].
    ///
    /// # Errors
    /// See [`Guard::score_async`].
    pub fn score_batch_async(
        &self,
        inputs: Vec<OwnedInput>,
        options: ScoreOptions,
        done: impl FnOnce(Result<Vec<Result<Score>>>) + Send + 'static,
    ) -> Result<()> {
        let inputs: Vec<_> = inputs.iter().map(OwnedInput::as_input).collect();
        done(self.score_batch(&inputs, options));
        Ok(())
    }

    /// Opens a stream on this guard.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range, `LimitExceeded` for a prompt that is too long
    /// or too many open streams, `Poisoned`, `Forked`.
    pub fn stream(&self, options: StreamOptions) -> Result<Stream> {
        let _ = options;
        Ok(Stream {})
    }

    /// What this guard has done so far.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Most inputs of one batch.
    pub fn max_batch(&self) -> usize {
        self.options.max_batch
    }

    /// Longest text in bytes, before cleaning.
    pub fn max_text_bytes(&self) -> usize {
        self.options.max_text_bytes
    }

    /// Holds a batch's size against the limit, before anything is read.
    pub(crate) fn check_batch(&self, count: usize) -> Result<()> {
        if count > self.options.max_batch {
            return Err(Error::new(
                Status::LimitExceeded,
                format!(
                    "the batch has {count} inputs, more than the limit of {}",
                    self.options.max_batch
                ),
            ));
        }
        Ok(())
    }

    /// Tokens that `input` would run, special ones included, and whether it would be cut.
    ///
    /// # Errors
    /// As [`Guard::score`], as far as the text goes.
    pub fn count_tokens(&self, input: Input<'_>) -> Result<(usize, bool)> {
        self.home.check()?;
        let tokens = self.pool.install(|| self.prepare(input))?;
        Ok((tokens.ids.len(), tokens.truncated))
    }

    /// Runs one short text, so that the first call is as fast as the second.
    ///
    /// # Errors
    /// As [`Guard::score`].
    pub fn warmup(&self) -> Result<()> {
        self.score(Input::Text("warm up"), None).map(|_| ())
    }

    /// Input to token ids. A panic in here is that text's error.
    fn prepare(&self, input: Input<'_>) -> Result<text::Tokens> {
        if input == (Input::Exchange { prompt: None, response: None }) {
            return Err(Error::argument(
                "text, prompt and response are all absent, expected one of them",
            ));
        }
        let limit = self.options.max_text_bytes;
        if input.len() > limit {
            return Err(Error::new(
                Status::LimitExceeded,
                format!("the text has {} bytes, more than the limit of {limit}", input.len()),
            ));
        }
        let run = || {
            let text = input.join();
            #[cfg(feature = "planted-panics")]
            assert!(text != planted::WHILE_PREPARING, "{text}");
            self.tokenizer.encode(&text::clean(&text), self.info.max_length)
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            Err(Error::internal(format!(
                "a panic while the text was prepared: {}",
                panic_message(&*panic)
            )))
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // In a forked child the threads to wait for do not exist: leak them.
            self.scheduler.forget();
            std::mem::forget(self.pool.clone());
        }
    }
}

/// The forward pass of a batch, on the guard's own pool.
struct Forward {
    decoder: Decoder,
    selection: Selection,
    head: Head,
    pool: Arc<rayon::ThreadPool>,
    /// Tokens of the text that panics.
    #[cfg(feature = "planted-panics")]
    fatal: Vec<u32>,
}

impl Engine for Forward {
    fn run(&self, texts: &[Arc<[u32]>]) -> Result<Vec<Result<f32>>> {
        self.pool.install(|| {
            #[cfg(feature = "planted-panics")]
            assert!(texts.iter().all(|text| **text != *self.fatal), "{}", planted::IN_THE_WORKER);
            let mut batch = Packed::default();
            for text in texts {
                batch.push(text);
            }
            let mut pool = Pool::new(&self.selection, &batch.spans);
            self.decoder.forward(&batch, &mut |layer, states| pool.observe(layer, states))?;
            self.head.scores(pool.finish())
        })
    }
}

/// Texts that panic, so that the ABI's tests can watch what a panic does.
#[cfg(feature = "planted-panics")]
mod planted {
    pub(super) const WHILE_PREPARING: &str = "siren: planted panic while preparing";
    pub(super) const IN_THE_WORKER: &str = "siren: planted panic in the worker";
}

fn max_length(options: &OpenOptions, content: &Content, tokenizer: &Tokenizer) -> Result<usize> {
    let max_length = options.max_length.unwrap_or(content.max_length);
    let special = tokenizer.special_count();
    if max_length < special.max(1) {
        return Err(Error::model(
            &content.file,
            "inference.max_length",
            max_length,
            format!("at least {special}, the special tokens that every text gets"),
        ));
    }
    Ok(max_length)
}

/// What affinity and the cgroup's quota leave to this process.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn device(choice: &DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(ordinal) => cuda(*ordinal),
        DeviceChoice::Auto => Ok(cuda(0).unwrap_or(Device::Cpu)),
    }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device> {
    Device::new_cuda(ordinal)
        .map_err(|e| Error::new(Status::Unsupported, format!("CUDA device {ordinal}: {e}")))
}

#[cfg(not(feature = "cuda"))]
fn cuda(ordinal: usize) -> Result<Device> {
    Err(Error::new(
        Status::Unsupported,
        format!("CUDA device {ordinal}: this library was built without the feature cuda"),
    ))
}

fn precision(dtype: Dtype, device: &Device) -> Result<Precision> {
    match dtype {
        Dtype::Auto if device.is_cpu() => Ok(Precision::F32),
        Dtype::Auto | Dtype::Bf16 => Ok(Precision::Bf16),
        Dtype::F32 => Ok(Precision::F32),
        Dtype::Int8 => {
            Err(Error::new(Status::Unsupported, "dtype int8 is not built yet: use f32 or bf16"))
        }
    }
}
