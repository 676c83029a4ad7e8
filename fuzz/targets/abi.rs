//! A script of calls into the C ABI, read from bytes: structs of odd sizes, at odd addresses, in
//! memory that ends where `struct_size` says; handles that are live, freed, foreign or NULL; text
//! that is no UTF-8. Every status is a known one and none tells of a bug, a dead handle never
//! works, outputs are whole on success and untouched on failure.
#![no_main]

use std::ffi::{CStr, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::ptr::null_mut;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{fixture, is_score};
use siren::Status;
use siren::ffi::*;

/// Guards that a script may hold open at once.
const MAX_GUARDS: usize = 3;
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

/// What is left of the script. Past its end everything is 0.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn bytes(&mut self) -> &'a [u8] {
        let wanted = match self.byte() {
            255 => self.0.len(),
            n => n.into(),
        };
        let (bytes, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// A text of a call: absent, from the script, or with a length that no buffer has but that the
    /// library must refuse before it reads.
    fn text(&mut self, holder: &mut Vec<Box<[u8]>>) -> siren_text {
        match self.byte() {
            0..=63 => siren_text { data: std::ptr::null(), length: 0 },
            64..=71 => siren_text { data: std::ptr::null(), length: self.number() as usize },
            72..=79 => {
                let text = self.own(&[b'x'], holder);
                siren_text { length: usize::MAX >> (self.byte() & 31), ..text }
            }
            80..=87 => self.own(&[], holder),
            _ => {
                let bytes = self.bytes();
                self.own(bytes, holder)
            }
        }
    }

    /// A text in memory of exactly its size.
    fn own(&self, bytes: &[u8], holder: &mut Vec<Box<[u8]>>) -> siren_text {
        holder.push(bytes.into());
        text_of(&holder[holder.len() - 1])
    }
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

/// A guard's handle, and whether calls on it may succeed.
struct Handle {
    guard: *mut siren_guard,
    is_live: bool,
}

/// The guards that a script has opened and freed.
#[derive(Default)]
struct Guards {
    live: Vec<u64>,
    freed: Vec<u64>,
}

impl Guards {
    fn pick(&self, script: &mut Script<'_>) -> Handle {
        let one_of = |handles: &[u64], n: u8| {
            handles.get(usize::from(n) % handles.len().max(1)).copied().unwrap_or(*COMMON)
        };
        let value = match script.byte() {
            0..=127 => *COMMON,
            128..=191 => one_of(&self.live, script.byte()),
            192..=223 => one_of(&self.freed, script.byte()),
            224..=247 => one_of(&self.live, script.byte()) ^ (1 << (script.byte() & 63)),
            248 => 0,
            _ => script.number(),
        };
        let is_live = value == *COMMON || self.live.contains(&value);
        Handle { guard: std::ptr::without_provenance_mut(value as usize), is_live }
    }
}

/// Checks what every call promises about its status and its error struct.
fn check(status: i32, error: &Memory, was_given: bool) {
    // SAFETY: a static C string.
    let name = unsafe { CStr::from_ptr(siren_status_name(status)) };
    assert_ne!(name, c"unknown", "status {status}");
    for bug in [Status::Internal, Status::Poisoned, Status::NonFinite] {
        assert_ne!(status, bug as i32);
    }
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

fn open(script: &mut Script<'_>, guards: &mut Guards, errors: &mut Memory) {
    if guards.live.len() == MAX_GUARDS {
        return;
    }
    let mut holder = Vec::new();
    let mut options = zeroed::<siren_open_options>();
    options.model = match script.byte() {
        0..=191 => script.own(MODEL.as_bytes(), &mut holder),
        192..=199 => script.own(b"/nowhere/at/all", &mut holder),
        _ => script.text(&mut holder),
    };
    if options.model.data.is_null() {
        // All defaults: the demo guard. It is large, and has tests of its own.
        options.model = script.own(b"absent", &mut holder);
    }
    if script.byte() > 127 {
        options.backbone = script.text(&mut holder);
        options.device = match script.byte() {
            0..=127 => script.own(b"cpu", &mut holder),
            _ => script.text(&mut holder),
        };
        options.dtype = match script.byte() {
            0..=63 => script.own(b"bf16", &mut holder),
            64..=127 => script.own(b"f32", &mut holder),
            _ => script.text(&mut holder),
        };
        options.cache_dir = script.text(&mut holder);
        options.hub_endpoint = script.text(&mut holder);
        options.hub_token = script.text(&mut holder);
        options.data_dir = script.text(&mut holder);
        options.max_length = u64::from(script.byte());
        options.max_text_bytes = u64::from(script.byte()) << (script.byte() & 15);
        options.max_batch = u64::from(script.byte() & 7);
        options.max_queue = u64::from(script.byte() & 7);
        options.offline = u32::from(script.byte() & 3);
        options.read_weights = u32::from(script.byte() & 3);
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
        assert!(!guard.is_null());
        let value = guard.addr() as u64;
        assert!(!guards.freed.contains(&value) && !guards.live.contains(&value));
        guards.live.push(value);
    } else {
        assert_eq!(guard, untouched);
    }
}

fn input(script: &mut Script<'_>, holder: &mut Vec<Box<[u8]>>) -> siren_input {
    let mut input = zeroed::<siren_input>();
    match script.byte() {
        0..=127 => {
            let bytes = script.bytes();
            input.text = script.own(bytes, holder);
        }
        choice => {
            input.text = script.text(holder);
            input.prompt = script.text(holder);
            input.response = script.text(holder);
            input.reserved = u32::from(choice == 255);
        }
    }
    input
}

fn score_options(script: &mut Script<'_>) -> Option<Memory> {
    let choice = script.byte();
    if choice < 128 {
        return None;
    }
    let mut options = zeroed::<siren_score_options>();
    options.has_threshold = u32::from(choice & 3);
    options.threshold = match script.byte() {
        n @ 0..=200 => f64::from(n) / 200.0,
        _ => f64::from_bits(script.number()),
    };
    Some(Memory::new(script, &[options]))
}

fn score(script: &mut Script<'_>, guards: &Guards, errors: &mut Memory) {
    let mut holder = Vec::new();
    let handle = guards.pick(script);
    let input = input(script, &mut holder);
    let mut inputs = Memory::new(script, &[input]);
    let mut options = score_options(script);
    let mut results = Memory::new(script, &[zeroed::<siren_result>()]);
    let before = results.bytes.clone();
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let (input, result) = (inputs.pointer(script), results.pointer(script));
    let error = errors.pointer(script);
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_score(handle.guard, input, options, result, error) };
    check(status, errors, !error.is_null());
    if status == 0 {
        assert!(handle.is_live);
        check_result(&results, 0);
    } else {
        assert_eq!(results.bytes, before);
    }
}

fn score_batch(script: &mut Script<'_>, guards: &Guards, errors: &mut Memory) {
    let mut holder = Vec::new();
    let handle = guards.pick(script);
    let count = usize::from(script.byte() % 6);
    let inputs: Vec<_> = (0..count).map(|_| input(script, &mut holder)).collect();
    let mut inputs = Memory::new(script, &inputs);
    let mut options = score_options(script);
    let mut results = Memory::new(script, &vec![zeroed::<siren_result>(); count]);
    let mut text_errors = Memory::new(script, &vec![zeroed::<siren_error>(); count]);
    let before = (results.bytes.clone(), text_errors.bytes.clone());
    let options = options.as_mut().map_or(null_mut(), |memory| memory.at(0));
    let (input, result) = (inputs.pointer(script), results.pointer(script));
    let text_error = text_errors.pointer(script);
    let error = errors.pointer(script);
    // SAFETY: every pointer is NULL or to `count` structs of the size that is written there.
    let status = unsafe {
        siren_score_batch(handle.guard, input, count, options, result, text_error, error)
    };
    check(status, errors, !error.is_null());
    if status != 0 {
        assert_eq!((results.bytes, text_errors.bytes), before);
        return;
    }
    assert!(handle.is_live);
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

fn info(script: &mut Script<'_>, guards: &Guards, errors: &mut Memory) {
    let handle = guards.pick(script);
    let mut memory = Memory::new(script, &[zeroed::<siren_guard_info>()]);
    let before = memory.bytes.clone();
    let (info, error) = (memory.pointer(script), errors.pointer(script));
    // SAFETY: every pointer is NULL or to memory of the size that is written there.
    let status = unsafe { siren_info(handle.guard, info, error) };
    check(status, errors, !error.is_null());
    assert!(if status == 0 { handle.is_live } else { memory.bytes == before });
}

fn info_json(script: &mut Script<'_>, guards: &Guards, errors: &mut Memory) {
    let handle = guards.pick(script);
    let mut buffer = vec![0xA5u8; usize::from(script.byte()) * 16].into_boxed_slice();
    let capacity = buffer.len();
    let mut length = usize::MAX;
    let buffer_at: *mut c_char =
        if script.byte() > 127 { null_mut() } else { buffer.as_mut_ptr().cast() };
    let length_at = if script.byte() == 255 { null_mut() } else { &raw mut length };
    let error = errors.pointer(script);
    // SAFETY: every pointer is NULL or to memory of the size that is passed along.
    let status = unsafe { siren_info_json(handle.guard, buffer_at, capacity, length_at, error) };
    check(status, errors, !error.is_null());
    if status != 0 {
        assert!(buffer.iter().all(|&byte| byte == 0xA5));
        return;
    }
    assert!(handle.is_live);
    if !buffer_at.is_null() {
        let json = CStr::from_bytes_until_nul(&buffer).expect("a NUL");
        assert_eq!(json.to_str().expect("UTF-8").len(), length);
    }
}

fn free(script: &mut Script<'_>, guards: &mut Guards, errors: &Memory) {
    let handle = guards.pick(script);
    let value = handle.guard.addr() as u64;
    if value == *COMMON {
        return;
    }
    // SAFETY: any value may be freed.
    let status = unsafe { siren_free(handle.guard) };
    check(status, errors, false);
    assert_eq!(status == 0, handle.is_live || value == 0, "status {status}");
    if handle.is_live {
        guards.live.retain(|&live| live != value);
        guards.freed.push(value);
    }
}

fn initialise(script: &mut Script<'_>, errors: &Memory) {
    let mut memory = Memory::new(script, &[zeroed::<siren_error>()]);
    let size = u32::from_le_bytes(memory.field(0, 0));
    memory.bytes[memory.start + 4..].fill(0xA5);
    // SAFETY: NULL, or `size` bytes (four, where a larger size must be refused).
    let status = unsafe {
        match script.byte() % 6 {
            0 => siren_error_init(memory.pointer(script), size),
            1 => siren_input_init(memory.pointer(script), size),
            2 => siren_result_init(memory.pointer(script), size),
            3 => siren_score_options_init(memory.pointer(script), size),
            4 => siren_open_options_init(memory.pointer(script), size),
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

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&COMMON);
    let mut script = Script(data);
    let mut guards = Guards::default();
    while !script.0.is_empty() {
        let mut errors = Memory::new(&mut script, &[zeroed::<siren_error>()]);
        match script.byte() % 16 {
            0 => open(&mut script, &mut guards, &mut errors),
            1..=5 => score(&mut script, &guards, &mut errors),
            6..=8 => score_batch(&mut script, &guards, &mut errors),
            9 => info(&mut script, &guards, &mut errors),
            10 => info_json(&mut script, &guards, &mut errors),
            11 | 12 => free(&mut script, &mut guards, &errors),
            13 => initialise(&mut script, &errors),
            14 => {
                let handle = guards.pick(&mut script);
                let error = errors.pointer(&mut script);
                // SAFETY: the error is NULL or to memory of the size that is written there.
                let status = unsafe { siren_warmup(handle.guard, error) };
                check(status, &errors, !error.is_null());
                assert!(status != 0 || handle.is_live);
            }
            _ => {
                let callback: siren_log_callback =
                    if script.byte() > 127 { Some(take_line) } else { None };
                let level = i32::from(script.byte() % 8) - 1;
                let error = errors.pointer(&mut script);
                // SAFETY: the callback may be called from any thread.
                let status = unsafe { siren_log_set(callback, null_mut(), level, error) };
                check(status, &errors, !error.is_null());
                assert_eq!(
                    status == 0,
                    (0..=5).contains(&level) && {
                        error.is_null() || errors.stride >= size_of::<siren_error>()
                    }
                );
            }
        }
    }
    for guard in guards.live {
        // SAFETY: any value may be freed.
        let status = unsafe { siren_free(std::ptr::without_provenance_mut(guard as usize)) };
        assert_eq!(status, 0);
    }
});
