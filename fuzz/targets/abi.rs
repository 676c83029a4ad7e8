//! A script of calls into the C ABI, read from bytes: structs of odd sizes, at odd addresses, in
//! memory that ends where `struct_size` says; handles that are live, freed, of another kind,
//! foreign or NULL; text that is no UTF-8; calls that are cancelled, too late, or complete later.
//! Every status is a known one and none tells of a bug, a dead handle never works, outputs are
//! whole on success and untouched on failure, and a completion comes once or not at all.
#![no_main]

use std::ffi::{CStr, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{Script, fixture, is_score};
use siren::Status;
use siren::ffi::*;

/// Guards that a script may hold open at once.
const MAX_GUARDS: usize = 3;
/// Streams and cancel tokens, too.
const MAX_HANDLES: usize = 8;
/// The largest `struct_size` that the library reads up to (`ffi/structs.rs`).
const MAX_STRUCT_SIZE: usize = 1 << 16;

static MODEL: LazyLock<String> = LazyLock::new(|| fixture("qwen3-short").display().to_string());

/// A guard that is open all the time, so that most scripts need not open one.
static COMMON: LazyLock<u64> = LazyLock::new(|| {
    let mut options = zeroed::<siren_open_options>();
    options.struct_size = size_of::<siren_open_options>() as u32;
    options.model = text_of(MODEL.as_bytes());
    options.threads = 1;
    let mut guard = null_mut();
    // SAFETY: a whole struct whose texts live on, and a place for the handle.
    let status = unsafe { siren_open(&options, &mut guard, null_mut()) };
    assert_eq!(status, 0);
    // The library's first call has set a hook that hushes panics: here they are to be seen.
    drop(std::panic::take_hook());
    guard.addr() as u64
});

/// A text of a call: absent, from the script, or with a length that no buffer has but that the
/// library must refuse before it reads.
fn text(script: &mut Script<'_>, holder: &mut Vec<Box<[u8]>>) -> siren_text {
    match script.byte() {
        0..=63 => siren_text { data: std::ptr::null(), length: 0 },
        64..=71 => siren_text { data: std::ptr::null(), length: script.number() as usize },
        72..=79 => {
            let text = own(b"x", holder);
            siren_text { length: usize::MAX >> (script.byte() & 31), ..text }
        }
        80..=87 => own(&[], holder),
        _ => own(script.bytes(), holder),
    }
}

/// A text in memory of exactly its size.
fn own(bytes: &[u8], holder: &mut Vec<Box<[u8]>>) -> siren_text {
    holder.push(bytes.into());
    text_of(&holder[holder.len() - 1])
}

fn text_of(bytes: &[u8]) -> siren_text {
    siren_text { data: bytes.as_ptr().cast(), length: bytes.len() }
}

fn zeroed<T: Copy>() -> T {
    // SAFETY: used with structs of the ABI alone, which are valid when all bytes are 0.
    unsafe { std::mem::zeroed() }
}

/// Memory for `count` structs side by side, which ends where the last one's `struct_size` ends.
struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    stride: usize,
}

impl Memory {
    /// `values` as a caller of some version of the library would lay them out.
    fn new<T: Copy>(script: &mut Script<'_>, values: &[T]) -> Self {
        let known = size_of::<T>();
        let choice = script.byte();
        let size = match choice & 7 {
            0..=3 => known,
            4 | 5 => known + 8,
            6 => script.byte().into(),
            _ => script.number() as u32 as usize,
        };
        // A larger size must be refused at sight: of the struct only the size is there.
        let stride = if size > MAX_STRUCT_SIZE { 4 } else { size.max(4) };
        let start = usize::from(choice >> 7);
        let mut bytes = vec![0; start + stride * values.len()].into_boxed_slice();
        for (i, value) in values.iter().enumerate() {
            let place = &mut bytes[start + i * stride..][..stride];
            // SAFETY: structs of the ABI are plain bytes without padding.
            let value = unsafe {
                std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), known)
            };
            let shared = known.min(stride);
            place[..shared].copy_from_slice(&value[..shared]);
            if choice & 7 == 5 {
                place[stride - 1] = script.byte();
            }
            let odd = i > 0 && script.byte() == 255;
            place[..4].copy_from_slice(&(size as u32).wrapping_add(odd.into()).to_le_bytes());
        }
        Self { bytes, start, stride }
    }

    /// As a pointer for a call; now and then NULL.
    fn pointer<T>(&mut self, script: &mut Script<'_>) -> *mut T {
        if script.byte() == 255 { null_mut() } else { self.at(0) }
    }

    fn at<T>(&mut self, index: usize) -> *mut T {
        self.bytes[self.start + index * self.stride..].as_mut_ptr().cast()
    }

    /// The field at `offset` of element `index`.
    fn field<const N: usize>(&self, index: usize, offset: usize) -> [u8; N] {
        let at = self.start + index * self.stride + offset;
        self.bytes[at..at + N].try_into().expect("N bytes")
    }

    fn status(&self, index: usize) -> i32 {
        i32::from_le_bytes(self.field(index, offset_of!(siren_result, status)))
    }
}

/// The handles of one kind that a script has made.
#[derive(Default)]
struct Handles {
    live: Vec<u64>,
    freed: Vec<u64>,
    /// A callback frees them, now or later.
    doubtful: Vec<u64>,
}

impl Handles {
    fn add(&mut self, handle: u64) {
        let is_known = |known: &Vec<u64>| known.contains(&handle);
        assert!(
            handle != 0 && ![&self.live, &self.freed, &self.doubtful].into_iter().any(is_known)
        );
        self.live.push(handle);
    }

    /// What came of freeing `handle`.
    fn free(&mut self, handle: u64, status: i32) {
        if !self.doubtful.contains(&handle) {
            let is_live = self.live.contains(&handle);
            assert_eq!(status == 0, is_live || handle == 0, "status {status}");
        }
        if self.live.contains(&handle) {
            self.live.retain(|&live| live != handle);
            self.freed.push(handle);
        }
    }

    /// Whether a call on `handle` may succeed.
    fn may_work(&self, handle: u64) -> bool {
        self.live.contains(&handle) || self.doubtful.contains(&handle)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Guard,
    Stream,
    Token,
}

/// A handle, and whether calls on it may succeed.
struct Handle {
    value: u64,
    may_work: bool,
}

impl Handle {
    fn pointer<T>(&self) -> *mut T {
        std::ptr::without_provenance_mut(self.value as usize)
    }
}

/// What a script has made.
#[derive(Default)]
struct Objects {
    guards: Handles,
    streams: Handles,
    tokens: Handles,
    pending: Vec<Arc<Pending>>,
}

impl Objects {
    fn of(&mut self, kind: Kind) -> &mut Handles {
        match kind {
            Kind::Guard => &mut self.guards,
            Kind::Stream => &mut self.streams,
            Kind::Token => &mut self.tokens,
        }
    }

    fn pick(&mut self, script: &mut Script<'_>, kind: Kind) -> Handle {
        let others = [&self.guards, &self.streams, &self.tokens].map(|h| h.live.last().copied());
        let handles = self.of(kind);
        let common = match kind {
            Kind::Guard => *COMMON,
            _ => handles.live.last().copied().unwrap_or_default(),
        };
        let one_of = |handles: &[u64], n: u8| {
            handles.get(usize::from(n) % handles.len().max(1)).copied().unwrap_or(common)
        };
        let value = match script.byte() {
            0..=127 => common,
            128..=191 => one_of(&handles.live, script.byte()),
            192..=215 => one_of(&handles.freed, script.byte()),
            216..=223 => one_of(&handles.doubtful, script.byte()),
            224..=239 => one_of(&handles.live, script.byte()) ^ (1 << (script.byte() & 63)),
            240..=247 => others[usize::from(script.byte() % 3)].unwrap_or(*COMMON),
            248 => 0,
            _ => script.number(),
        };
        let may_work = handles.may_work(value) || (value == *COMMON && matches!(kind, Kind::Guard));
        Handle { value, may_work }
    }
}

/// A call that completes later.
struct Pending {
    completions: AtomicU32,
    expected: AtomicU32,
    /// What the callback does with `handle`.
    action: u8,
    handle: u64,
    /// Where a push writes its scores, until it completes.
    _scores: Option<Scores>,
}

impl Pending {
    /// The callback's side of a call.
    unsafe fn complete(user_data: *mut c_void) {
        // SAFETY: the script holds it until all that it expects has come.
        let pending = unsafe { &*user_data.cast::<Self>() };
        let handle = pending.handle as usize;
        let mut stats = zeroed::<siren_guard_stats>();
        stats.struct_size = size_of::<siren_guard_stats>() as u32;
        // SAFETY: checked handles, and whole structs.
        let status = unsafe {
            match pending.action {
                0..=2 => 0,
                3 => siren_stats(std::ptr::without_provenance_mut(handle), &mut stats, null_mut()),
                4 => siren_stream_reset(std::ptr::without_provenance_mut(handle), null_mut()),
                5 => siren_cancel(std::ptr::without_provenance_mut(handle), null_mut()),
                6 => siren_stream_free(std::ptr::without_provenance_mut(handle)),
                _ => siren_free(std::ptr::without_provenance_mut(handle)),
            }
        };
        check_status(status);
        pending.completions.fetch_add(1, Ordering::Release);
    }
}

/// Room for the scores of tokens, at any address.
struct Scores {
    bytes: Box<[u8]>,
    start: usize,
}

impl Scores {
    fn new(script: &mut Script<'_>) -> Option<Self> {
        let choice = script.byte();
        let (capacity, start) = (usize::from(choice >> 2), usize::from(choice >> 1 & 1));
        (choice & 1 != 0).then(|| Self { bytes: vec![0xA5; start + 8 * capacity].into(), start })
    }

    fn capacity(&self) -> usize {
        self.bytes.len() / 8
    }

    fn check(&self, first: usize) {
        for (i, score) in self.bytes[self.start..].chunks_exact(8).enumerate() {
            let score: [u8; 8] = score.try_into().expect("eight bytes");
            assert!(if i < first {
                is_score(f64::from_le_bytes(score))
            } else {
                score == [0xA5; 8]
            });
        }
    }
}

/// Checks that a status is one that a caller may see.
fn check_status(status: i32) {
    // SAFETY: a static C string.
    let name = unsafe { CStr::from_ptr(siren_status_name(status)) };
    assert_ne!(name, c"unknown", "status {status}");
    for bug in [Status::Internal, Status::Poisoned, Status::NonFinite] {
        assert_ne!(status, bug as i32);
    }
}

/// Checks what every call promises about its status and its error struct.
fn check(status: i32, error: &Memory, was_given: bool) {
    check_status(status);
    if status == 0 || !was_given || error.stride < size_of::<siren_error>() {
        return;
    }
    assert_eq!(error.status(0), status);
    let at = offset_of!(siren_error, message);
    let message: [u8; SIREN_ERROR_MESSAGE] = error.field(0, at);
    let message = CStr::from_bytes_until_nul(&message).expect("a NUL");
    let length = u64::from_le_bytes(error.field(0, offset_of!(siren_error, message_length)));
    let shown = message.to_str().expect("UTF-8").len() as u64;
    assert!(shown == length || (shown < length && length >= SIREN_ERROR_MESSAGE as u64));
}

const SIREN_ERROR_MESSAGE: usize = size_of::<siren_error>() - offset_of!(siren_error, message);

fn check_result(results: &Memory, index: usize) {
    let score = f64::from_le_bytes(results.field(index, offset_of!(siren_result, score)));
    let threshold = f64::from_le_bytes(results.field(index, offset_of!(siren_result, threshold)));
    let flag = |offset| u32::from_le_bytes(results.field(index, offset));
    assert!(is_score(score) && (0.0..=1.0).contains(&threshold));
    assert_eq!(flag(offset_of!(siren_result, is_harmful)), u32::from(score >= threshold));
    assert!(flag(offset_of!(siren_result, truncated)) <= 1);
}

fn open(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    if objects.guards.live.len() == MAX_GUARDS {
        return;
    }
    let mut holder = Vec::new();
    let mut options = zeroed::<siren_open_options>();
    options.model = match script.byte() {
        0..=191 => own(MODEL.as_bytes(), &mut holder),
        192..=199 => own(b"/nowhere/at/all", &mut holder),
        _ => text(script, &mut holder),
    };
    if options.model.data.is_null() {
        // All defaults: the demo guard. It is large, and has tests of its own.
        options.model = own(b"absent", &mut holder);
    }
    if script.byte() > 127 {
        options.backbone = text(script, &mut holder);
        options.device = match script.byte() {
            0..=127 => own(b"cpu", &mut holder),
            _ => text(script, &mut holder),
        };
        options.dtype = match script.byte() {
            0..=63 => own(b"bf16", &mut holder),
            64..=127 => own(b"f32", &mut holder),
            _ => text(script, &mut holder),
        };
        options.cache_dir = text(script, &mut holder);
        options.hub_endpoint = text(script, &mut holder);
        options.hub_token = text(script, &mut holder);
        options.data_dir = text(script, &mut holder);
        options.max_length = u64::from(script.byte());
        options.max_text_bytes = u64::from(script.byte()) << (script.byte() & 15);
        options.max_batch = u64::from(script.byte() & 7);
        options.max_queue = u64::from(script.byte() & 7);
        options.offline = u32::from(script.byte() & 3);
        options.read_weights = u32::from(script.byte() & 3);
        options.max_streams = u64::from(script.byte() & 7);
        options.kv_bytes = u64::from(script.byte()) << (script.byte() & 15);
        options.prefix_cache_bytes = u64::from(script.byte()) << (script.byte() & 15);
        options.no_prefix_cache = u32::from(script.byte() & 3);
    }
    // More threads would only be slow; a number that is refused is tried too.
    options.threads = match script.byte() {
        0..=247 => 1,
        _ => u32::MAX - u32::from(script.byte()),
    };
    let mut memory = Memory::new(script, &[options]);
    let options: *mut siren_open_options = memory.pointer(script);
    let error = errors.pointer(script);
    let untouched: *mut siren_guard = std::ptr::without_provenance_mut(17);
    let mut guard = untouched;
    let out = if script.byte() == 255 { null_mut() } else { &raw mut guard };
    if options.is_null() {
        return;
    }
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_open(options, out, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        objects.guards.add(guard.addr() as u64);
    } else {
        assert_eq!(guard, untouched);
    }
}

fn input(script: &mut Script<'_>, holder: &mut Vec<Box<[u8]>>) -> siren_input {
    let mut input = zeroed::<siren_input>();
    match script.byte() {
        0..=127 => {
            let bytes = script.bytes();
            input.text = own(bytes, holder);
        }
        choice => {
            input.text = text(script, holder);
            input.prompt = text(script, holder);
            input.response = text(script, holder);
            input.reserved = u32::from(choice == 255);
        }
    }
    input
}

fn score_options(script: &mut Script<'_>, objects: &mut Objects) -> Option<Memory> {
    let choice = script.byte();
    if choice < 128 {
        return None;
    }
    let mut options = zeroed::<siren_score_options>();
    (options.has_threshold, options.threshold) = threshold(script, choice & 3);
    if choice & 4 != 0 {
        (options.cancel, options.timeout_ms) = limits(script, objects);
        options.wait = u32::from(script.byte() & 3);
    }
    if choice & 8 != 0 {
        [options.window_tokens, options.window_stride] = windows(script);
        options.windows = u32::from(choice >> 4 & 3);
    }
    Some(Memory::new(script, &[options]))
}

fn threshold(script: &mut Script<'_>, has_threshold: u8) -> (u32, f64) {
    let threshold = match script.byte() {
        n @ 0..=200 => f64::from(n) / 200.0,
        _ => f64::from_bits(script.number()),
    };
    (has_threshold.into(), threshold)
}

/// What may end a call early.
fn limits(script: &mut Script<'_>, objects: &mut Objects) -> (*mut siren_cancel_token, u64) {
    let token = match script.byte() {
        0..=127 => null_mut(),
        _ => objects.pick(script, Kind::Token).pointer(),
    };
    let timeout_ms = match script.byte() {
        0..=127 => 0,
        n @ 128..=250 => u64::from(n - 127),
        _ => script.number(),
    };
    (token, timeout_ms)
}

/// Tokens and stride: mostly some that a guard accepts.
fn windows(script: &mut Script<'_>) -> [u64; 2] {
    [31, 7].map(|mask| match script.byte() {
        255 => script.number(),
        n => (n & mask).into(),
    })
}

fn score(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Guard);
    let input = input(script, &mut holder);
    let mut inputs = Memory::new(script, &[input]);
    let mut options = score_options(script, objects);
    let mut results = Memory::new(script, &[zeroed::<siren_result>()]);
    let before = results.bytes.clone();
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let (input, result) = (inputs.pointer(script), results.pointer(script));
    let error = errors.pointer(script);
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_score(handle.pointer(), input, options, result, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        assert!(handle.may_work);
        check_result(&results, 0);
    } else {
        assert_eq!(results.bytes, before);
    }
}

fn score_batch(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Guard);
    let count = usize::from(script.byte() % 6);
    let inputs: Vec<_> = (0..count).map(|_| input(script, &mut holder)).collect();
    let mut inputs = Memory::new(script, &inputs);
    let mut options = score_options(script, objects);
    let mut results = Memory::new(script, &vec![zeroed::<siren_result>(); count]);
    let mut text_errors = Memory::new(script, &vec![zeroed::<siren_error>(); count]);
    let before = (results.bytes.clone(), text_errors.bytes.clone());
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let (input, result) = (inputs.pointer(script), results.pointer(script));
    let text_error = text_errors.pointer(script);
    let error = errors.pointer(script);
    // SAFETY: every pointer is NULL or to `count` structs of the size that is written there.
    let status = unsafe {
        siren_score_batch(handle.pointer(), input, count, options, result, text_error, error)
    };
    check(status, errors, !error.is_null());
    if status != 0 {
        assert_eq!((results.bytes, text_errors.bytes), before);
        return;
    }
    assert!(handle.may_work);
    for i in 0..count {
        let status = results.status(i);
        if status == 0 {
            check_result(&results, i);
            continue;
        }
        assert_ne!(status, Status::Internal as i32);
        let is_harmful = results.field(i, offset_of!(siren_result, is_harmful));
        assert_eq!(u32::from_le_bytes(is_harmful), 1, "a failure passes as safe");
        if !text_error.is_null() {
            assert_eq!(text_errors.status(i), status);
        }
    }
}

fn info(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    let handle = objects.pick(script, Kind::Guard);
    let mut memory = Memory::new(script, &[zeroed::<siren_guard_info>()]);
    let before = memory.bytes.clone();
    let (info, error) = (memory.pointer(script), errors.pointer(script));
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_info(handle.pointer(), info, error) };
    check(status, errors, !error.is_null());
    assert!(if status == 0 { handle.may_work } else { memory.bytes == before });
}

/// A call that writes text into a buffer of the caller's.
fn buffered(
    script: &mut Script<'_>,
    objects: &mut Objects,
    errors: &mut Memory,
    call: impl FnOnce(*mut siren_guard, *mut c_char, usize, *mut usize, *mut siren_error) -> i32,
) {
    let handle = objects.pick(script, Kind::Guard);
    let mut buffer = vec![0xA5u8; usize::from(script.byte()) * 32].into_boxed_slice();
    let capacity = buffer.len();
    let mut length = usize::MAX;
    let buffer_at: *mut c_char =
        if script.byte() > 127 { null_mut() } else { buffer.as_mut_ptr().cast() };
    let length_at = if script.byte() == 255 { null_mut() } else { &raw mut length };
    let error = errors.pointer(script);
    let status = call(handle.pointer(), buffer_at, capacity, length_at, error);
    check(status, errors, !error.is_null());
    if status != 0 {
        assert!(buffer.iter().all(|&byte| byte == 0xA5));
        return;
    }
    assert!(handle.may_work);
    if !buffer_at.is_null() {
        let text = CStr::from_bytes_until_nul(&buffer).expect("a NUL");
        assert_eq!(text.to_str().expect("UTF-8").len(), length);
    }
}

fn audit(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    let mut holder = Vec::new();
    let input = input(script, &mut holder);
    let mut inputs = Memory::new(script, &[input]);
    let mut result = zeroed::<siren_result>();
    let choice = script.byte();
    (_, result.threshold) = threshold(script, 0);
    (_, result.score) = threshold(script, 0);
    result.is_harmful = u32::from(result.score >= result.threshold) ^ u32::from(choice & 1);
    result.truncated = u32::from(choice >> 1 & 3);
    result.status = i32::from(choice >> 3 & 1);
    result.tokens = script.number();
    result.windows = u64::from(choice >> 4);
    let mut results = Memory::new(script, &[result]);
    let (input, result) = (inputs.pointer(script), results.pointer(script));
    buffered(script, objects, errors, |guard, buffer, capacity, length, error| {
        // SAFETY: every pointer is NULL or to memory of the size that is passed along.
        unsafe { siren_audit_json(guard, input, result, buffer, capacity, length, error) }
    });
}

fn stats(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    let handle = objects.pick(script, Kind::Guard);
    let mut memory = Memory::new(script, &[zeroed::<siren_guard_stats>()]);
    let before = memory.bytes.clone();
    let (stats, error) = (memory.pointer(script), errors.pointer(script));
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_stats(handle.pointer(), stats, error) };
    check(status, errors, !error.is_null());
    if status != 0 {
        assert_eq!(memory.bytes, before);
        return;
    }
    assert!(handle.may_work);
    let number = |offset| u64::from_le_bytes(memory.field(0, offset));
    assert!(
        number(offset_of!(siren_guard_stats, streams_parked))
            <= number(offset_of!(siren_guard_stats, streams))
    );
}

fn stream_new(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    if objects.streams.live.len() == MAX_HANDLES {
        return;
    }
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Guard);
    let choice = script.byte();
    let mut options = zeroed::<siren_stream_options>();
    if choice > 127 {
        options.prompt = text(script, &mut holder);
        (options.has_threshold, options.threshold) = threshold(script, choice & 3);
        options.hysteresis = u64::from(choice >> 2 & 3);
        options.windows = u32::from(script.byte() & 3);
        [options.window_tokens, options.window_stride] = windows(script);
        options.reserved = u32::from(script.byte() == 255);
    }
    let mut memory = Memory::new(script, &[options]);
    let options = if choice == 0 { null_mut() } else { memory.at(0) };
    let error = errors.pointer(script);
    let untouched: *mut siren_stream = std::ptr::without_provenance_mut(17);
    let mut stream = untouched;
    let out = if script.byte() == 255 { null_mut() } else { &raw mut stream };
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_stream_new(handle.pointer(), options, out, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        assert!(handle.may_work);
        objects.streams.add(stream.addr() as u64);
    } else {
        assert_eq!(stream, untouched);
    }
}

fn stream_fork(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    if objects.streams.live.len() == MAX_HANDLES {
        return;
    }
    let handle = objects.pick(script, Kind::Stream);
    let error = errors.pointer(script);
    let untouched: *mut siren_stream = std::ptr::without_provenance_mut(17);
    let mut forked = untouched;
    let out = if script.byte() == 255 { null_mut() } else { &raw mut forked };
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_stream_fork(handle.pointer(), out, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        assert!(handle.may_work);
        objects.streams.add(forked.addr() as u64);
    } else {
        assert_eq!(forked, untouched);
    }
}

/// The options of a push; `scores` is where they say its scores go.
fn push_options(
    script: &mut Script<'_>,
    objects: &mut Objects,
    scores: Option<&mut Scores>,
) -> Option<Memory> {
    let choice = script.byte();
    let mut options = zeroed::<siren_push_options>();
    if let Some(scores) = scores {
        options.token_scores_capacity = scores.capacity();
        options.token_scores = scores.bytes[scores.start..].as_mut_ptr().cast();
    } else if choice < 128 {
        return None;
    } else if choice & 3 == 3 {
        options.token_scores_capacity = script.number() as usize;
    }
    if choice & 4 != 0 {
        (options.cancel, options.timeout_ms) = limits(script, objects);
        options.wait = u32::from(script.byte() & 3);
    }
    Some(Memory::new(script, &[options]))
}

/// The bytes of a push, in memory of exactly their size.
fn chunk(script: &mut Script<'_>, holder: &mut Vec<Box<[u8]>>) -> siren_text {
    match script.byte() {
        0..=223 => own(script.chunk(), holder),
        _ => text(script, holder),
    }
}

fn push(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory, finish: bool) {
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Stream);
    let chunk = chunk(script, &mut holder);
    let mut scores = Scores::new(script);
    let mut options = push_options(script, objects, scores.as_mut());
    let mut results = Memory::new(script, &[zeroed::<siren_push_result>()]);
    let before = results.bytes.clone();
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let (result, error) = (results.pointer(script), errors.pointer(script));
    let stream = handle.pointer();
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe {
        match finish {
            true => siren_stream_finish(stream, options, result, error),
            false => siren_stream_push(stream, chunk.data, chunk.length, options, result, error),
        }
    };
    check(status, errors, !error.is_null());
    let mut written = 0;
    if status == 0 {
        assert!(handle.may_work);
        let result: [u8; size_of::<siren_push_result>()] = results.field(0, 0);
        // SAFETY: numbers alone, and as many bytes.
        let result = unsafe { std::mem::transmute::<_, siren_push_result>(result) };
        check_push(&result);
        written = result.token_scores_count as usize;
    } else {
        assert_eq!(results.bytes, before);
    }
    if let Some(scores) = &scores {
        scores.check(written);
    }
}

fn check_push(push: &siren_push_result) {
    assert!(is_score(push.score) && is_score(push.threshold));
    assert_eq!(push.is_harmful, u32::from(push.score >= push.threshold));
    assert!(push.truncated <= 1 && push.crossed <= 1 && push.status == 0);
    assert!(push.crossed == 1 || push.crossing_token == 0 && push.crossing_byte == 0);
    assert!(push.crossed == 0 || push.cleared_bytes <= push.crossing_byte);
    assert!(push.windows == 0 || push.window_index < push.windows);
    assert!(push.window_start <= push.window_end);
}

/// Checks the outcome of a call, as a callback is told it.
///
/// # Safety
/// `error` is NULL or lives through the callback.
unsafe fn check_outcome<T>(status: i32, result: *const T, error: *const siren_error) {
    check_status(status);
    assert_eq!((result.is_null(), error.is_null()), (status != 0, status == 0));
    // SAFETY: the caller's promise.
    let error = unsafe { error.as_ref() };
    assert!(error.is_none_or(|error| error.status == status));
}

unsafe extern "C" fn pushed(
    user_data: *mut c_void,
    status: i32,
    result: *const siren_push_result,
    error: *const siren_error,
) {
    // SAFETY: the library's promise.
    unsafe {
        check_outcome(status, result, error);
        if let Some(push) = result.as_ref() {
            check_push(push);
        }
        Pending::complete(user_data);
    }
}

unsafe extern "C" fn scored(
    user_data: *mut c_void,
    status: i32,
    result: *const siren_result,
    error: *const siren_error,
) {
    // SAFETY: the library's promise.
    unsafe {
        check_outcome(status, result, error);
        if let Some(result) = result.as_ref() {
            assert_eq!(result.is_harmful, u32::from(result.score >= result.threshold));
            assert!(is_score(result.score) && result.status == 0);
        }
        Pending::complete(user_data);
    }
}

unsafe extern "C" fn batch_scored(
    user_data: *mut c_void,
    status: i32,
    results: *const *const siren_result,
    errors: *const *const siren_error,
    count: usize,
    error: *const siren_error,
) {
    // SAFETY: the library's promise.
    unsafe {
        check_outcome(status, results, error);
        assert!(status == 0 || count == 0);
        for i in 0..count {
            let (result, error) = (&**results.add(i), (*errors.add(i)).as_ref());
            assert_eq!(result.status == 0, error.is_none());
            assert!(result.status == 0 || result.is_harmful == 1, "a failure passes as safe");
            check_status(result.status);
        }
        Pending::complete(user_data);
    }
}

/// What a call that completes later is given, and what its callback will do.
fn pending(script: &mut Script<'_>, objects: &mut Objects, scores: Option<Scores>) -> Arc<Pending> {
    let action = script.byte() & 7;
    let kind = match action {
        4 | 6 => Kind::Stream,
        5 => Kind::Token,
        _ => Kind::Guard,
    };
    let mut handle = objects.pick(script, kind).value;
    if action >= 6 {
        if handle == *COMMON {
            handle = 0;
        }
        let handles = objects.of(kind);
        if handles.live.contains(&handle) {
            handles.live.retain(|&live| live != handle);
            handles.doubtful.push(handle);
        }
    }
    let [completions, expected] = [0, 0].map(AtomicU32::new);
    Arc::new(Pending { completions, expected, action, handle, _scores: scores })
}

impl Objects {
    /// What came of asking for a completion.
    fn asked(&mut self, pending: Arc<Pending>, status: i32) {
        pending.expected.store((status == 0).into(), Ordering::Relaxed);
        self.pending.push(pending);
    }
}

fn push_async(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory, last: bool) {
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Stream);
    let chunk = chunk(script, &mut holder);
    let mut scores = Scores::new(script);
    let mut options = push_options(script, objects, scores.as_mut());
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let callback: siren_push_callback = if script.byte() == 255 { None } else { Some(pushed) };
    let pending = pending(script, objects, scores);
    let error = errors.pointer(script);
    let user_data = Arc::as_ptr(&pending).cast_mut().cast();
    // SAFETY: every pointer is NULL or to memory of the size that is written there; what the
    // callback needs lives until it has come.
    let status = unsafe {
        let stream = handle.pointer();
        let (data, length) = (chunk.data, chunk.length);
        if last {
            siren_stream_finish_async(stream, options, callback, user_data, error)
        } else {
            siren_stream_push_async(stream, data, length, options, callback, user_data, error)
        }
    };
    check(status, errors, !error.is_null());
    assert!(status != 0 || handle.may_work);
    objects.asked(pending, status);
}

fn score_async(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory, batch: bool) {
    let mut holder = Vec::new();
    let handle = objects.pick(script, Kind::Guard);
    let count = if batch { usize::from(script.byte() % 6) } else { 1 };
    let inputs: Vec<_> = (0..count).map(|_| input(script, &mut holder)).collect();
    let mut inputs = Memory::new(script, &inputs);
    let mut options = score_options(script, objects);
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let has_callback = script.byte() != 255;
    let pending = pending(script, objects, None);
    let (input, error) = (inputs.pointer(script), errors.pointer(script));
    let user_data = Arc::as_ptr(&pending).cast_mut().cast();
    let guard = handle.pointer();
    // SAFETY: as in `push_async`.
    let status = unsafe {
        if batch {
            let callback: siren_batch_callback = has_callback.then_some(batch_scored);
            siren_score_batch_async(guard, input, count, options, callback, user_data, error)
        } else {
            let callback: siren_score_callback = has_callback.then_some(scored);
            siren_score_async(guard, input, options, callback, user_data, error)
        }
    };
    check(status, errors, !error.is_null());
    assert!(status != 0 || handle.may_work);
    objects.asked(pending, status);
}

fn token_new(script: &mut Script<'_>, objects: &mut Objects, errors: &mut Memory) {
    if objects.tokens.live.len() == MAX_HANDLES {
        return;
    }
    let error = errors.pointer(script);
    let mut token = null_mut();
    let out = if script.byte() == 255 { null_mut() } else { &raw mut token };
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_cancel_token_new(out, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        objects.tokens.add(token.addr() as u64);
    } else {
        assert!(token.is_null());
    }
}

fn free(script: &mut Script<'_>, objects: &mut Objects, errors: &Memory, kind: Kind) {
    let handle = objects.pick(script, kind);
    if handle.value == *COMMON {
        return;
    }
    // SAFETY: any value may be freed.
    let status = unsafe {
        match kind {
            Kind::Guard => siren_free(handle.pointer()),
            Kind::Stream => siren_stream_free(handle.pointer()),
            Kind::Token => siren_cancel_token_free(handle.pointer()),
        }
    };
    check(status, errors, false);
    objects.of(kind).free(handle.value, status);
}

fn initialise(script: &mut Script<'_>, errors: &Memory) {
    let mut memory = Memory::new(script, &[zeroed::<siren_error>()]);
    let size = u32::from_le_bytes(memory.field(0, 0));
    memory.bytes[memory.start + 4..].fill(0xA5);
    // SAFETY: NULL, or `size` bytes (four, where a larger size must be refused).
    let status = unsafe {
        match script.byte() % 10 {
            0 => siren_error_init(memory.pointer(script), size),
            1 => siren_input_init(memory.pointer(script), size),
            2 => siren_result_init(memory.pointer(script), size),
            3 => siren_score_options_init(memory.pointer(script), size),
            4 => siren_open_options_init(memory.pointer(script), size),
            6 => siren_stats_init(memory.pointer(script), size),
            7 => siren_stream_options_init(memory.pointer(script), size),
            8 => siren_push_options_init(memory.pointer(script), size),
            9 => siren_push_result_init(memory.pointer(script), size),
            _ => siren_info_init(memory.pointer(script), size),
        }
    };
    check(status, errors, false);
    let rest = if status == 0 { 0 } else { 0xA5 };
    assert!(memory.bytes[memory.start + 4..].iter().all(|&byte| byte == rest));
}

unsafe extern "C" fn take_line(_: *mut c_void, level: i32, line: *const c_char, length: usize) {
    assert!((1..=5).contains(&level));
    // SAFETY: the library's promise.
    let line = unsafe { std::slice::from_raw_parts(line.cast::<u8>(), length) };
    assert!(std::str::from_utf8(line).is_ok());
}

fn log(script: &mut Script<'_>, errors: &mut Memory) {
    let callback: siren_log_callback = if script.byte() > 127 { Some(take_line) } else { None };
    let level = i32::from(script.byte() % 8) - 1;
    let error = errors.pointer(script);
    // SAFETY: the callback may be called from any thread.
    let status = unsafe { siren_log_set(callback, null_mut(), level, error) };
    check(status, errors, !error.is_null());
    let takes_error = error.is_null() || errors.stride >= size_of::<siren_error>();
    assert_eq!(status == 0, (0..=5).contains(&level) && takes_error);
}

/// A call on one handle that has nothing but an error.
fn plain(
    script: &mut Script<'_>,
    objects: &mut Objects,
    errors: &mut Memory,
    kind: Kind,
    call: impl FnOnce(&Handle, *mut siren_error) -> i32,
) {
    let handle = objects.pick(script, kind);
    let error = errors.pointer(script);
    let status = call(&handle, error);
    check(status, errors, !error.is_null());
    assert!(status != 0 || handle.may_work);
}

fn step(script: &mut Script<'_>, objects: &mut Objects) {
    let errors = &mut Memory::new(script, &[zeroed::<siren_error>()]);
    // SAFETY (of all calls below): the error is NULL or to memory of the size that is written
    // there, and so are a buffer and its length.
    let code = script.byte();
    match code % 32 {
        0 => open(script, objects, errors),
        1..=5 => score(script, objects, errors),
        6..=8 => score_batch(script, objects, errors),
        9 => info(script, objects, errors),
        10 => buffered(script, objects, errors, |guard, buffer, capacity, length, error| unsafe {
            siren_info_json(guard, buffer, capacity, length, error)
        }),
        11 | 12 => free(script, objects, errors, Kind::Guard),
        13 => initialise(script, errors),
        14 => plain(script, objects, errors, Kind::Guard, |guard, error| unsafe {
            siren_warmup(guard.pointer(), error)
        }),
        15 => log(script, errors),
        16 => stream_new(script, objects, errors),
        17..=19 => push(script, objects, errors, false),
        20 => push(script, objects, errors, true),
        21 => push_async(script, objects, errors, code > 127),
        22 => plain(script, objects, errors, Kind::Stream, |stream, error| unsafe {
            siren_stream_reset(stream.pointer(), error)
        }),
        23 => stream_fork(script, objects, errors),
        24 => free(script, objects, errors, Kind::Stream),
        25 => token_new(script, objects, errors),
        26 => plain(script, objects, errors, Kind::Token, |token, error| unsafe {
            siren_cancel(token.pointer(), error)
        }),
        27 => free(script, objects, errors, Kind::Token),
        28 => score_async(script, objects, errors, false),
        29 => score_async(script, objects, errors, true),
        30 if script.byte() > 127 => {
            buffered(script, objects, errors, |guard, buffer, capacity, length, error| unsafe {
                siren_stats_prometheus(guard, buffer, capacity, length, error)
            });
        }
        30 => stats(script, objects, errors),
        _ => audit(script, objects, errors),
    }
}

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&COMMON);
    let mut script = Script::new(data);
    let mut objects = Objects::default();
    while !script.is_over() {
        step(&mut script, &mut objects);
    }
    let give_up = Instant::now() + Duration::from_secs(20);
    for pending in &objects.pending {
        let expected = pending.expected.load(Ordering::Relaxed);
        while pending.completions.load(Ordering::Acquire) < expected {
            assert!(Instant::now() < give_up, "a completion is lost");
            std::thread::sleep(Duration::from_micros(20));
        }
    }
    let Objects { guards, streams, tokens, pending } = objects;
    // SAFETY (of these): any value may be freed.
    let free = |handles: &Handles, free: &dyn Fn(u64) -> i32| {
        handles.live.iter().for_each(|&handle| assert_eq!(free(handle), 0));
        // Those whose callback never came are still there.
        handles.doubtful.iter().for_each(|&handle| check_status(free(handle)));
    };
    let pointer = |handle: u64| handle as usize;
    free(&streams, &|h| unsafe { siren_stream_free(std::ptr::without_provenance_mut(pointer(h))) });
    free(&guards, &|h| unsafe { siren_free(std::ptr::without_provenance_mut(pointer(h))) });
    free(&tokens, &|h| unsafe {
        siren_cancel_token_free(std::ptr::without_provenance_mut(pointer(h)))
    });
    for pending in pending {
        let completions = pending.completions.load(Ordering::Relaxed);
        assert_eq!(completions, pending.expected.load(Ordering::Relaxed));
    }
});
