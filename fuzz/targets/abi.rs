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
        assert!(handle != 0 && ![&self.live, &self.freed, &self.doubtful].into_iter().any(is_known));
        self.live.push(handle);
    }

    /// What came of freeing `handle`.
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
    match script.byte() % 32 {
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
        21 => push_async(script, objects, errors),
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
