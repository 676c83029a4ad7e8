//! Opening a guard: files to engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use candle_core::Device;

use super::core::Core;
use super::{Guard, Info, check};
use crate::artifact::{self, Content, Pooling};
use crate::backbone::{Decoder, Files, Observed, PackedCache, Plan, Site};
use crate::engine::Engine;
use crate::error::{Error, Result, Status};
use crate::inspect::LayerInfo;
use crate::kernels::{Backend, Meter, Precision};
use crate::options::{DeviceChoice, Dtype, OpenOptions, PackedCacheChoice};
use crate::prefix_cache::PrefixCache;
use crate::readout::{Head, Selection};
use crate::schedule::{Callbacks, Limits, Scheduler};
use crate::stream::Live;
use crate::sys::process::{Home, Opening};
use crate::text::Tokenizer;

/// Tokens of a pass of several texts: past this, a CPU computes no faster for more of them. A GPU takes as
/// many as it has in a chunk, if that is more. A longer text runs in turns with short ones on both.
pub(super) const BATCH_TOKENS: usize = 1024;
/// What shows int8 layers which of their inputs are far larger than the others, in whatever text: some
/// prose, a list, code, slang and other languages.
const CALIBRATION: &str = include_str!("calibration.txt");
/// Tokens of it that run, at the most.
const CALIBRATION_TOKENS: usize = 256;
/// Where `auto` keeps packed weights, beside the backbone's own.
const PACKED_DIR: &str = "packed";
/// Stack of a pool thread; tokenising recurses, and callers' own stacks may be small.
const POOL_STACK_BYTES: usize = 4 << 20;

impl Guard {
    pub(super) fn open_unlogged(options: OpenOptions) -> Result<Self> {
        let _opening = Opening::begin()?;
        options.check()?;
        let runs_on = backend(options.device, options.dtype)?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("siren-pool-{i}"))
            .stack_size(POOL_STACK_BYTES)
            .build()
            .map_err(|e| Error::new(Status::OutOfMemory, format!("no thread pool: {e}")))?;
        let pool = Arc::new(pool);
        pool.install(|| Self::load(&options, runs_on, &pool)).and_then(
            |(engine, tokenizer, info)| {
                let batch_tokens = BATCH_TOKENS.max(engine.decoder.chunk_rows());
                let queue = options.max_queue;
                let limits = Limits { queue, batch_tokens, short_tokens: BATCH_TOKENS };
                let (meter, cache) = (engine.meter.clone(), engine.cache.clone());
                let counters = engine.counters.clone();
                let home = Home::here();
                let live = Live::new(
                    options.max_streams,
                    options.kv_bytes,
                    meter.clone(),
                    cache.clone(),
                    home,
                );
                let scheduler = Scheduler::start(Arc::new(engine), limits, counters.clone())?;
                let core = Core {
                    scheduler,
                    callbacks: Callbacks::default(),
                    pool: pool.clone(),
                    tokenizer,
                    options,
                    info,
                    counters,
                    live: Arc::new(live),
                    cache,
                    meter,
                    unanswered: AtomicUsize::new(0),
                    home,
                };
                Ok(Self { core: Arc::new(core) })
            },
        )
    }

    fn load(
        options: &OpenOptions,
        (backend, precision): (Backend, Precision),
        pool: &Arc<rayon::ThreadPool>,
    ) -> Result<(Engine, Tokenizer, Info)> {
        let model_dir = crate::locate::model(options)?;
        let content = artifact::open(&model_dir, options.map)?;
        let backbone_path = crate::locate::backbone(options, &model_dir, &content.base_model)?;
        log::debug!("artifact {}, backbone {}", model_dir.display(), backbone_path.display());
        let files = Files::open(&backbone_path, options.map)?;
        let config = files.config()?;
        content.check_backbone(config.num_hidden_layers, config.hidden_size)?;
        let tokenizer = match &files {
            Files::Dir(dir) => Tokenizer::open(dir, config.vocab_size)?,
            Files::Gguf(gguf) => Tokenizer::beside(&backbone_path, gguf, config.vocab_size)?,
        };
        let max_length = max_length(options, &content, &tokenizer)?;

        let checkpoint = Arc::new(files.checkpoint(&config, options.map)?);
        let cpus = match (options.device, &backend) {
            (DeviceChoice::Auto, Backend::Cpu) => None,
            (DeviceChoice::Auto, _) if checkpoint.has_blocks() => Some("quantised weights".into()),
            (DeviceChoice::Auto, backend) => {
                backend.check_heads(config.heads()).err().map(|error| error.to_string())
            }
            _ => None,
        };
        let (backend, precision) = match cpus {
            Some(why) => {
                log::info!("device auto is the CPU: {why}");
                self::backend(DeviceChoice::Cpu, options.dtype)?
            }
            None => (backend, precision),
        };
        let backend = &backend;
        let selection = Selection::new(content.layers.clone(), backend)?;
        let site = match content.pooling {
            Pooling::ResidualMean => Site::Residual,
            Pooling::MlpMean => Site::Mlp,
        };
        let observed = Observed { site, layers: selection.layers() };
        let calibration = match precision {
            Precision::Int8 => tokenizer.encode(CALIBRATION, CALIBRATION_TOKENS)?.ids,
            _ => vec![],
        };
        let plan = Plan {
            checkpoint: &checkpoint,
            config: &config,
            observed: &observed,
            backend,
            precision,
            calibration: &calibration,
        };
        let cache =
            packed_dir(options, backend, &backbone_path).map(|dir| PackedCache::new(&dir, &plan));
        let (decoder, packed_file) = match &cache {
            Some(cache) => cache.load(&plan)?,
            None => (Decoder::load(&plan, None)?, None),
        };
        if let Backend::Cuda(_) = backend {
            let tokens = tokenizer.encode(CALIBRATION, check::TOKENS)?.ids;
            check::first_block(&decoder, &plan, &tokens)?;
        }
        let packed_file = packed_file.map(Path::to_owned);
        let head_dims = content.head.iter().map(|layer| layer.outputs).collect();
        let head = Head::new(content.head, decoder.arena().clone())?;
        // What stays in use is read again when it is needed.
        checkpoint.release_pages();

        let token_bytes = decoder.kv_shape().token_bytes(backend) + selection.token_bytes();
        let info = Info {
            model_dir,
            backbone_path,
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
            device: options.device.resolved(backend),
            dtype: precision.name(),
            threads: pool.current_num_threads(),
            packed_file,
            weight_bytes: decoder.bytes() + head.bytes(),
            kv_token_bytes: token_bytes,
            artifact_sha256: content.sha256,
        };
        let engine = Engine {
            decoder,
            selection,
            head,
            pool: pool.clone(),
            meter: Meter::default(),
            counters: Arc::default(),
            cache: Arc::new(PrefixCache::new(
                options.prefix_cache_bytes.min(options.kv_bytes),
                token_bytes,
            )),
            #[cfg(feature = "planted-panics")]
            fatal: tokenizer.encode(super::planted::IN_THE_WORKER, max_length)?.ids,
        };
        Ok((engine, tokenizer, info))
    }
}

/// Where packed weights are kept, if they are.
fn packed_dir(options: &OpenOptions, backend: &Backend, backbone: &Path) -> Option<PathBuf> {
    let beside = || match backbone.is_dir() {
        true => backbone,
        false => backbone.parent().unwrap_or(Path::new("")),
    };
    match &options.packed_cache {
        // Nothing is packed for another device.
        _ if !matches!(backend, Backend::Cpu) => None,
        PackedCacheChoice::Off => None,
        PackedCacheChoice::Auto => Some(beside().join(PACKED_DIR)),
        PackedCacheChoice::Dir(dir) => Some(dir.clone()),
    }
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

/// What the backbone runs on, and in what; refused before anything is read.
fn backend(choice: DeviceChoice, dtype: Dtype) -> Result<(Backend, Precision)> {
    let on_gpu = match dtype {
        Dtype::Auto | Dtype::Bf16 => Precision::Bf16,
        Dtype::F32 => Precision::F32,
        Dtype::Int8 => Precision::Int8,
    };
    let on_cpu = match dtype {
        Dtype::Auto => Precision::F32,
        _ => on_gpu,
    };
    let backend = match choice {
        DeviceChoice::Cpu => None,
        // Runs on the CPU alone.
        DeviceChoice::Auto if dtype == Dtype::Int8 => None,
        DeviceChoice::Auto => Backend::cuda(0, on_gpu)
            .inspect_err(|error| log::info!("device auto is the CPU: {error}"))
            .ok(),
        DeviceChoice::Cuda(ordinal) => Some(Backend::cuda(ordinal, on_gpu)?),
        DeviceChoice::CandleCuda(ordinal) => Some(Backend::candle(candle(ordinal)?, on_gpu)?),
        DeviceChoice::CpuAsGpu => Some(Backend::candle(Device::Cpu, on_gpu)?),
        #[cfg(test)]
        DeviceChoice::Emulated(emulation) => Some(Backend::emulated(emulation, on_gpu)?),
    };
    Ok(match backend {
        None => (Backend::Cpu, on_cpu),
        Some(backend) => (backend, on_gpu),
    })
}

#[cfg(feature = "cuda")]
fn candle(ordinal: usize) -> Result<Device> {
    crate::sys::cuda::device(ordinal)
}

#[cfg(not(feature = "cuda"))]
fn candle(ordinal: usize) -> Result<Device> {
    Err(crate::kernels::without_cuda(ordinal))
}
