//! `siren_open_options`: how a guard is opened.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::Arc;

use super::boundary;
use super::structs::{self, AbiStruct, flag};
use crate::error::{Error, Result, Status};
use crate::options::OpenOptions;

/// Longest name, path or token that options may hold, in bytes.
const MAX_OPTION_BYTES: usize = 1 << 16;

/// Text by pointer and length, UTF-8; no NUL is needed. A NULL `data` with `length` 0 is "absent".
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_text {
    /// `length` bytes, or NULL.
    pub data: *const c_char,
    /// Bytes at `data`.
    pub length: usize,
}

/// Told how a download goes: the file's name (`file_length` bytes, no NUL), bytes done and in all
/// (0 while that is not known). Called on the thread that opens; it must return soon.
pub type siren_progress_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        file: *const c_char,
        file_length: usize,
        done: u64,
        total: u64,
    ),
>;

/// How to open a guard. Zeros and NULLs mean the default of each field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_open_options {
    /// `sizeof(siren_open_options)`
    pub struct_size: u32,
    /// Threads of the guard's own pool. 0: what CPU affinity and the cgroup's quota allow.
    pub threads: u32,
    /// A directory, or a hub repository `OWNER/NAME[@REVISION]`; a directory wins. Absent: the
    /// demo guard that ships with the library.
    pub model: siren_text,
    /// The backbone's directory, repository or GGUF file (also one in a repository, as
    /// OWNER/NAME/FILE.gguf[@REVISION]). Absent: what the artifact names.
    pub backbone: siren_text,
    /// `auto` (absent), `cpu`, `cuda` or `cuda:N`.
    pub device: siren_text,
    /// `auto` (absent: f32 on a CPU, bf16 on a GPU), `f32`, `bf16` or, on a CPU alone, `int8`.
    pub dtype: siren_text,
    /// The hub's cache. Absent: HF_HUB_CACHE, HF_HOME, or the user's cache directory.
    pub cache_dir: siren_text,
    /// The hub's address. Absent: HF_ENDPOINT, or the public hub.
    pub hub_endpoint: siren_text,
    /// The hub's access token. Absent: HF_TOKEN, or the token file.
    pub hub_token: siren_text,
    /// Where `models/demo` lies. Absent: SIREN_DATA_DIR, or beside the library.
    pub data_dir: siren_text,
    /// Longest text in tokens. 0: the artifact's.
    pub max_length: u64,
    /// Longest text in bytes. 0: 4 MiB. A stream as a whole may be longer: there it bounds a push
    /// together with what is not settled of the text before it, which is what the next push cleans
    /// and tokenises again: from the last boundary between words on, the prompt included.
    pub max_text_bytes: u64,
    /// Most texts of one batch. 0: 16,384.
    pub max_batch: u64,
    /// Most texts that wait, over all callers. 0: 65,536.
    pub max_queue: u64,
    /// 1: never touch the network. 0: HF_HUB_OFFLINE decides.
    pub offline: u32,
    /// 1: read the weights into memory instead of mapping them. A mapped file that shrinks, or a
    /// network disk that fails, kills the process.
    pub read_weights: u32,
    /// Told how downloads go, or NULL.
    pub progress: siren_progress_callback,
    /// Handed to `progress`.
    pub progress_user_data: *mut c_void,
    /// Most streams that are open at once. 0: 16,384.
    pub max_streams: u64,
    /// Most bytes of keys, values and running sums that open streams and the prefix cache hold
    /// together. Over it, streams that were pushed longest ago are parked: their next push runs
    /// their text again. 0: 1 GiB.
    pub kv_bytes: u64,
    /// Of these, most bytes of the prefix cache, which lets a call skip the tokens at a text's
    /// beginning that an earlier call ran. 0: 256 MiB.
    pub prefix_cache_bytes: u64,
    /// 1: no prefix cache. Then `prefix_cache_bytes` is 0.
    pub no_prefix_cache: u32,
    /// 0
    pub reserved: u32,
    /// On a CPU, a directory in which packed weights are kept in a file, so that the next open maps
    /// them instead of packing them again, and processes share them; `auto` is the directory `packed`
    /// beside the backbone's weights. A file there is made when it is missing. Where it cannot be
    /// made, or not be trusted, the guard opens all the same, and the log says why. Not together
    /// with `read_weights`. Absent: packed weights are in each process's own memory.
    pub packed_cache: siren_text,
}

// SAFETY: repr(C), size first; integers, pointers and an optional function pointer.
unsafe impl AbiStruct for siren_open_options {
    const NAME: &'static str = "siren_open_options";
    const FIRST_SIZE: usize = 240;
}

const _: () = assert!(size_of::<siren_open_options>() == 240);

/// Fills `options`, a struct of `struct_size` bytes (`sizeof(siren_open_options)`), with defaults.
///
/// Returns `SIREN_OK`, or `SIREN_INVALID_ARGUMENT` when `options` is NULL or `struct_size` is not
/// the size of any version of the struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_open_options_init(
    options: *mut siren_open_options,
    struct_size: u32,
) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes at `options`.
        unsafe { structs::init(options, struct_size) }
    })
}

/// A host's callback and the word that goes with it; the host promises that it may be called from
/// the thread that opens.
struct Callback(siren_progress_callback, *mut c_void);

// SAFETY: the documentation of `progress` makes the host answer for calls from another thread.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self, progress: &crate::hub::Progress) {
        if let Self(Some(callback), user_data) = self {
            let total = progress.total.unwrap_or(0);
            let file = progress.file.as_str();
            // SAFETY: the host's function takes these; `file` lives through the call.
            unsafe { callback(*user_data, file.as_ptr().cast(), file.len(), progress.done, total) };
        }
    }
}

/// The safe form of `options`; NULL is all defaults.
///
/// # Safety
/// `options` is NULL or a siren_open_options whose texts are readable.
pub(super) unsafe fn read(options: *const siren_open_options) -> Result<OpenOptions> {
    let mut open = OpenOptions::default();
    if options.is_null() {
        return Ok(open);
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { structs::read(options)? };
    // SAFETY: the caller's promise.
    let text = |name, text| unsafe { owned(name, text) };
    open.model = text("model", raw.model)?;
    open.backbone = text("backbone", raw.backbone)?;
    if let Some(device) = text("device", raw.device)? {
        open.device = device.parse()?;
    }
    if let Some(dtype) = text("dtype", raw.dtype)? {
        open.dtype = dtype.parse()?;
    }
    open.hub.cache_dir = text("cache_dir", raw.cache_dir)?.map(PathBuf::from);
    open.hub.endpoint = text("hub_endpoint", raw.hub_endpoint)?;
    open.hub.token = text("hub_token", raw.hub_token)?;
    open.hub.offline = flag("offline", raw.offline)?;
    open.data_dir = text("data_dir", raw.data_dir)?.map(PathBuf::from);
    open.map = !flag("read_weights", raw.read_weights)?;
    if let Some(cache) = text("packed_cache", raw.packed_cache)? {
        open.packed_cache = cache.parse()?;
    }
    let size = |value: u64| (value != 0).then(|| usize::try_from(value).unwrap_or(usize::MAX));
    open.threads = size(raw.threads.into());
    open.max_length = size(raw.max_length);
    open.max_text_bytes = size(raw.max_text_bytes).unwrap_or(open.max_text_bytes);
    open.max_batch = size(raw.max_batch).unwrap_or(open.max_batch);
    open.max_queue = size(raw.max_queue).unwrap_or(open.max_queue);
    open.max_streams = size(raw.max_streams).unwrap_or(open.max_streams);
    open.kv_bytes = size(raw.kv_bytes).unwrap_or(open.kv_bytes);
    let no_prefix_cache = flag("no_prefix_cache", raw.no_prefix_cache)?;
    if no_prefix_cache && raw.prefix_cache_bytes != 0 {
        return Err(Error::argument(format!(
            "prefix_cache_bytes is {} with no_prefix_cache, expected 0",
            raw.prefix_cache_bytes
        )));
    }
    open.prefix_cache_bytes = match no_prefix_cache {
        true => 0,
        false => size(raw.prefix_cache_bytes).unwrap_or(open.prefix_cache_bytes),
    };
    structs::reserved("siren_open_options", raw.reserved)?;
    if raw.progress.is_some() {
        let callback = Callback(raw.progress, raw.progress_user_data);
        open.hub.progress = Some(Arc::new(move |progress: crate::hub::Progress| {
            callback.call(&progress);
        }));
    }
    Ok(open)
}

/// # Safety
/// `text.data` is NULL or points to `text.length` readable bytes.
unsafe fn owned(name: &str, text: siren_text) -> Result<Option<String>> {
    // SAFETY: the caller's promise.
    let text = unsafe { borrowed(name, &text, MAX_OPTION_BYTES)? };
    match text {
        Some(text) if text.contains('\0') => {
            Err(Error::argument(format!("{name} holds a NUL byte")))
        }
        Some("") => Err(Error::argument(format!("{name} is empty; use NULL to leave it out"))),
        other => Ok(other.map(str::to_owned)),
    }
}

/// The text at a pointer, after its length was held against `limit`.
///
/// # Errors
/// `InvalidArgument` for NULL with a length, `LimitExceeded`, `InvalidUtf8`.
///
/// # Safety
/// `text.data` is NULL or points to `text.length` readable bytes that outlive `text`.
pub(super) unsafe fn borrowed<'a>(
    name: &str,
    text: &'a siren_text,
    limit: usize,
) -> Result<Option<&'a str>> {
    // SAFETY: the caller's promise.
    let Some(bytes) = (unsafe { bytes(name, text.data, text.length, limit)? }) else {
        return Ok(None);
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => Err(Error::new(
            Status::InvalidUtf8,
            format!("{name} is not valid UTF-8 at byte {}", e.valid_up_to()),
        )),
    }
}

/// The bytes at a pointer, after their length was held against `limit`; `None` for NULL.
///
/// # Errors
/// `InvalidArgument` for NULL with a length, `LimitExceeded`.
///
/// # Safety
/// `data` is NULL or points to `length` bytes that are readable for `'a`.
pub(super) unsafe fn bytes<'a>(
    name: &str,
    data: *const c_char,
    length: usize,
    limit: usize,
) -> Result<Option<&'a [u8]>> {
    if data.is_null() {
        return match length {
            0 => Ok(None),
            n => Err(Error::argument(format!("{name} is NULL with a length of {n}"))),
        };
    }
    if length > limit {
        return Err(Error::new(
            Status::LimitExceeded,
            format!("{name} has {length} bytes, more than the limit of {limit}"),
        ));
    }
    // SAFETY: not NULL, within the limit, and readable by the caller's promise.
    Ok(Some(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) }))
}
