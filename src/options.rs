//! How a guard is opened. The one place that knows the defaults.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result, Status};
use crate::kernels::Backend;

/// Longest text in bytes, before cleaning: one unbroken word takes about 130 times its size to
/// tokenise.
pub(crate) const DEFAULT_MAX_TEXT_BYTES: usize = 4 << 20;
/// Most inputs of one batch.
pub(crate) const DEFAULT_MAX_BATCH: usize = 16_384;
/// Most texts that wait, over all callers.
pub(crate) const DEFAULT_MAX_QUEUE: usize = 65_536;
/// Most streams that are open at once.
pub(crate) const DEFAULT_MAX_STREAMS: usize = 16_384;
/// Most bytes of keys and values that streams and the prefix cache hold.
pub(crate) const DEFAULT_KV_BYTES: usize = 1 << 30;
/// Of these, most bytes of the prefix cache.
pub(crate) const DEFAULT_PREFIX_CACHE_BYTES: usize = 256 << 20;
const MAX_THREADS: usize = 1024;

/// Where the backbone runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if this build and machine have one that can serve, else the CPU; with
    /// [`Dtype::Int8`] the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this index.
    Cuda(usize),
    /// The same, with candle's operations instead of this library's kernels: what these are compared
    /// with.
    CandleCuda(usize),
    /// The CPU in the place of [`Self::CandleCuda`]. Far slower than `Cpu`; there so that a machine
    /// without a GPU can test that code.
    CpuAsGpu,
    /// The kernels on a GPU that is emulated.
    #[cfg(test)]
    Emulated(crate::kernels::Emulation),
}

impl DeviceChoice {
    /// `cpu`, `cuda:N`, `candle-cuda:N` or `cpu-as-gpu`.
    pub(crate) fn resolved(self, backend: &Backend) -> String {
        match (self, backend) {
            (_, Backend::Cpu) => "cpu".into(),
            (Self::CpuAsGpu, _) => "cpu-as-gpu".into(),
            (Self::Cuda(ordinal), _) => format!("cuda:{ordinal}"),
            (Self::CandleCuda(ordinal), _) => format!("candle-cuda:{ordinal}"),
            #[cfg(test)]
            (Self::Emulated(_), _) => "emulated".into(),
            _ => "cuda:0".into(),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "cpu-as-gpu" => Ok(Self::CpuAsGpu),
            "candle-cuda" => Ok(Self::CandleCuda(0)),
            _ => {
                let ordinal = |prefix| s.strip_prefix(prefix).and_then(|n| n.parse().ok());
                let cuda = ordinal("cuda:").map(Self::Cuda);
                cuda.or_else(|| ordinal("candle-cuda:").map(Self::CandleCuda)).ok_or_else(|| {
                    Error::argument(format!(
                        "the device is {s:?}, expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""
                    ))
                })
            }
        }
    }
}

/// What the linear layers compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// f32 on a CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// Exact: weights as stored, widened; activations and sums in f32.
    F32,
    /// Weights and activations rounded to bf16 before they are multiplied, summed in f32.
    Bf16,
    /// Weights and activations rounded to 8-bit integers before they are multiplied, with scales
    /// and outlier columns apart, summed exactly: on a CPU alone. Opening runs a short text once in
    /// f32, which shows the outliers.
    Int8,
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::argument(format!(
                "the dtype is {s:?}, expected \"auto\", \"f32\", \"bf16\" or \"int8\""
            ))),
        }
    }
}

/// Where packed weights are kept, so that the next open maps them instead of packing them again, and
/// processes share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PackedCacheChoice {
    /// In the process's own memory alone.
    #[default]
    Off,
    /// In the directory `packed` beside the backbone's weights.
    Auto,
    /// In this directory.
    Dir(PathBuf),
}

impl FromStr for PackedCacheChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "" => {
                Err(Error::argument("the packed cache is \"\", expected \"auto\" or a directory"))
            }
            "auto" => Ok(Self::Auto),
            dir => Ok(Self::Dir(dir.into())),
        }
    }
}

/// How to open a guard. `OpenOptions::default()` opens the demo guard on the CPU.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A directory, or a hub repository `OWNER/NAME[@REVISION]`; a directory wins. `None` is the
    /// demo guard that ships with the project.
    pub model: Option<String>,
    /// The backbone, instead of the one that the artifact names: a directory, a repository
    /// `OWNER/NAME[@REVISION]`, a `.gguf` file, or `OWNER/NAME/FILE.gguf[@REVISION]`.
    pub backbone: Option<String>,
    /// Where the backbone runs.
    pub device: DeviceChoice,
    /// What its linear layers compute in.
    pub dtype: Dtype,
    /// Threads of the guard's own pool; `None` is what affinity and the cgroup's quota allow.
    pub threads: Option<usize>,
    /// Longest text in tokens, instead of the artifact's.
    pub max_length: Option<usize>,
    /// Map the weights (so that processes share them) instead of reading them. A mapped file that
    /// shrinks, or a network disk that fails, kills the process.
    pub map: bool,
    /// Keep packed weights in a file, on a CPU. Files there are made when they are missing, and are
    /// never taken away: a directory with old ones can be emptied at any time. Where one cannot be
    /// made, or not be trusted, the guard opens all the same, and the log says why. They are mapped:
    /// with `map` off this is refused.
    pub packed_cache: PackedCacheChoice,
    /// Longest text in bytes, before cleaning.
    pub max_text_bytes: usize,
    /// Most inputs of one batch.
    pub max_batch: usize,
    /// Most texts that wait, over all callers.
    pub max_queue: usize,
    /// Most streams that are open at once.
    pub max_streams: usize,
    /// Most bytes of keys, values and running sums that live streams and the prefix cache hold
    /// together. Over it, streams that were pushed longest ago are parked: their next push runs
    /// their text again.
    pub kv_bytes: usize,
    /// Of these, most bytes of the prefix cache, which lets a call skip the tokens at a text's
    /// beginning that an earlier call ran; 0 switches it off.
    pub prefix_cache_bytes: usize,
    /// How hub repositories are fetched.
    pub hub: crate::hub::HubOptions,
    /// The installation's `share/libsiren` directory, where the demo guard is looked for first.
    pub data_dir: Option<PathBuf>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            model: None,
            backbone: None,
            device: DeviceChoice::default(),
            dtype: Dtype::default(),
            threads: None,
            max_length: None,
            map: true,
            packed_cache: PackedCacheChoice::default(),
            max_text_bytes: DEFAULT_MAX_TEXT_BYTES,
            max_batch: DEFAULT_MAX_BATCH,
            max_queue: DEFAULT_MAX_QUEUE,
            max_streams: DEFAULT_MAX_STREAMS,
            kv_bytes: DEFAULT_KV_BYTES,
            prefix_cache_bytes: DEFAULT_PREFIX_CACHE_BYTES,
            hub: crate::hub::HubOptions::default(),
            data_dir: None,
        }
    }
}

impl OpenOptions {
    /// Options for the artifact `model`.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: Some(model.into()), ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let positive = [
            ("threads", self.threads),
            ("max_length", self.max_length),
            ("max_text_bytes", Some(self.max_text_bytes)),
            ("max_batch", Some(self.max_batch)),
            ("max_queue", Some(self.max_queue)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::argument(format!("{name} is 0, expected at least 1")));
        }
        if let Some(threads) = self.threads.filter(|&t| t > MAX_THREADS) {
            return Err(Error::argument(format!(
                "threads is {threads}, expected at most {MAX_THREADS}"
            )));
        }
        let is_kept = self.packed_cache != PackedCacheChoice::Off;
        if cfg!(not(unix)) && is_kept {
            let message = "a packed cache needs a system that tells who owns a file (Unix)";
            return Err(Error::new(Status::Unsupported, message));
        }
        if !self.map && is_kept {
            return Err(Error::argument(
                "a packed cache is mapped, and the weights are not to be (map, read_weights): \
                 leave one of the two",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_as_it_is_asked_for() {
        let on_gpu =
            Backend::emulated(crate::kernels::Emulation::default(), crate::kernels::Precision::F32);
        let on_gpu = on_gpu.unwrap();
        for (asked, device, called) in [
            ("auto", DeviceChoice::Auto, "cuda:0"),
            ("cuda", DeviceChoice::Cuda(0), "cuda:0"),
            ("cuda:3", DeviceChoice::Cuda(3), "cuda:3"),
            ("candle-cuda", DeviceChoice::CandleCuda(0), "candle-cuda:0"),
            ("candle-cuda:2", DeviceChoice::CandleCuda(2), "candle-cuda:2"),
            ("cpu-as-gpu", DeviceChoice::CpuAsGpu, "cpu-as-gpu"),
        ] {
            assert_eq!(asked.parse::<DeviceChoice>().unwrap(), device);
            assert_eq!(device.resolved(&on_gpu), called);
        }
        assert_eq!(DeviceChoice::Auto.resolved(&Backend::Cpu), "cpu");
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "candle-cuda:x", "candle-cpu"] {
            assert_eq!(
                wrong.parse::<DeviceChoice>().unwrap_err().status(),
                Status::InvalidArgument
            );
        }
    }
}
