//! The C ABI as safe Rust: handles are numbers here too, so that freed and foreign ones can be
//! tried.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr;

use siren::ffi::*;

/// A failed call's status.
pub type Code = i32;

/// How a guard is opened; zeros are the library's defaults.
#[derive(Clone, Copy, Default)]
pub struct Opening {
    pub threads: u32,
    pub max_length: u64,
    pub max_text_bytes: u64,
    pub max_batch: u64,
    pub max_queue: u64,
    pub max_streams: u64,
    pub kv_bytes: u64,
    pub no_prefix_cache: bool,
}

/// How a call is made; zeros are the defaults.
#[derive(Clone, Copy, Default)]
pub struct How {
    pub cancel: u64,
    pub timeout_ms: u64,
    pub wait: bool,
    pub windows: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Scored {
    pub score: f64,
    pub tokens: u64,
}

type Done = Box<dyn FnOnce(Result<Scored, Code>) + Send>;

/// A struct of the ABI with its size set and zeros elsewhere, which are valid for all of them.
macro_rules! sized {
    ($name:ident) => {{
        // SAFETY: numbers, pointers and optional functions.
        let mut value: $name = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$name>() as u32;
        value
    }};
}

fn handle<T>(value: u64) -> *mut T {
    ptr::without_provenance_mut(value as usize)
}

fn text_of(bytes: &[u8]) -> siren_text {
    siren_text { data: bytes.as_ptr().cast(), length: bytes.len() }
}

fn input_of(prompt: Option<&str>, text: &[u8]) -> siren_input {
    let mut input = sized!(siren_input);
    match prompt {
        Some(prompt) => {
            input.prompt = text_of(prompt.as_bytes());
            input.response = text_of(text);
        }
        None => input.text = text_of(text),
    }
    input
}

fn score_options(how: How) -> siren_score_options {
    let mut options = sized!(siren_score_options);
    options.cancel = handle(how.cancel);
    options.timeout_ms = how.timeout_ms;
    options.wait = how.wait.into();
    options.windows = how.windows.into();
    options
}

fn push_options(how: How) -> siren_push_options {
    let mut options = sized!(siren_push_options);
    options.cancel = handle(how.cancel);
    options.timeout_ms = how.timeout_ms;
    options.wait = how.wait.into();
    options
}

fn checked<T>(status: Code, value: T) -> Result<T, Code> {
    if status == 0 { Ok(value) } else { Err(status) }
}

/// What was freed and is still resident is the allocator's own affair.
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> i32;
        }
        malloc_trim(0);
    }
}

pub fn status_name(status: Code) -> String {
    // SAFETY: a NUL-terminated constant.
    unsafe { CStr::from_ptr(siren_status_name(status)) }.to_string_lossy().into_owned()
}

pub fn open(model: &str, opening: Opening) -> Result<u64, String> {
    let mut options = sized!(siren_open_options);
    options.model = text_of(model.as_bytes());
    options.threads = opening.threads;
    options.max_length = opening.max_length;
    options.max_text_bytes = opening.max_text_bytes;
    options.max_batch = opening.max_batch;
    options.max_queue = opening.max_queue;
    options.max_streams = opening.max_streams;
    options.kv_bytes = opening.kv_bytes;
    options.no_prefix_cache = opening.no_prefix_cache.into();
    let (mut guard, mut error) = (ptr::null_mut(), sized!(siren_error));
    // SAFETY: whole structs, whose texts outlive the call.
    match unsafe { siren_open(&options, &mut guard, &mut error) } {
        0 => Ok(guard.addr() as u64),
        status => {
            let message = error.message.map(|byte| byte as u8);
            let end = message.iter().position(|&byte| byte == 0).unwrap_or(message.len());
            Err(format!("open: status {status}: {}", String::from_utf8_lossy(&message[..end])))
        }
    }
}

pub fn free(guard: u64) -> Code {
    // SAFETY: any value may be freed.
    unsafe { siren_free(handle(guard)) }
}

pub fn stats(guard: u64) -> Result<siren_guard_stats, Code> {
    let mut stats = sized!(siren_guard_stats);
    // SAFETY: a whole struct.
    let status = unsafe { siren_stats(handle(guard), &mut stats, ptr::null_mut()) };
    checked(status, stats)
}

pub fn score(guard: u64, prompt: Option<&str>, text: &[u8], how: How) -> Result<Scored, Code> {
    let (input, options) = (input_of(prompt, text), score_options(how));
    let mut result = sized!(siren_result);
    // SAFETY: whole structs, whose texts outlive the call.
    let status =
        unsafe { siren_score(handle(guard), &input, &options, &mut result, ptr::null_mut()) };
    checked(status, Scored { score: result.score, tokens: result.tokens })
}

/// Scores a text with a threshold, which may be out of its range.
pub fn score_at(guard: u64, text: &[u8], threshold: f64) -> Code {
    let (input, mut options) = (input_of(None, text), score_options(How::default()));
    (options.has_threshold, options.threshold) = (1, threshold);
    let mut result = sized!(siren_result);
    // SAFETY: as above.
    unsafe { siren_score(handle(guard), &input, &options, &mut result, ptr::null_mut()) }
}

pub fn score_batch(
    guard: u64,
    texts: &[&[u8]],
    how: How,
) -> Result<Vec<Result<Scored, Code>>, Code> {
    let inputs: Vec<_> = texts.iter().map(|text| input_of(None, text)).collect();
    let options = score_options(how);
    let mut results = vec![sized!(siren_result); texts.len()];
    // SAFETY: arrays of as many whole structs as are said, whose texts outlive the call.
    let status = unsafe {
        siren_score_batch(
            handle(guard),
            inputs.as_ptr(),
            inputs.len(),
            &options,
            results.as_mut_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    let of = |r: &siren_result| checked(r.status, Scored { score: r.score, tokens: r.tokens });
    checked(status, results.iter().map(of).collect())
}

unsafe extern "C" fn scored(
    done: *mut c_void,
    status: i32,
    result: *const siren_result,
    _error: *const siren_error,
) {
    // SAFETY: the box that `score_async` leaked, called once; the result is NULL or whole.
    let (done, result) = unsafe { (Box::from_raw(done.cast::<Done>()), result.as_ref()) };
    done(result.map(|r| Scored { score: r.score, tokens: r.tokens }).ok_or(status));
}

unsafe extern "C" fn pushed(
    done: *mut c_void,
    status: i32,
    result: *const siren_push_result,
    _error: *const siren_error,
) {
    // SAFETY: as in `scored`.
    let (done, result) = unsafe { (Box::from_raw(done.cast::<Done>()), result.as_ref()) };
    done(result.map(|r| Scored { score: r.score, tokens: r.tokens }).ok_or(status));
}

/// Runs `start` with a pointer to `done`, which comes back here when the call is refused.
fn begin(
    done: impl FnOnce(Result<Scored, Code>) + Send + 'static,
    start: impl FnOnce(*mut c_void) -> Code,
) -> Result<(), Code> {
    let boxed: Box<Done> = Box::new(Box::new(done));
    let pointer = Box::into_raw(boxed);
    let status = start(pointer.cast());
    if status != 0 {
        // SAFETY: a refused call never calls back.
        drop(unsafe { Box::from_raw(pointer) });
    }
    checked(status, ())
}

pub fn score_async(
    guard: u64,
    text: &[u8],
    how: How,
    done: impl FnOnce(Result<Scored, Code>) + Send + 'static,
) -> Result<(), Code> {
    let (input, options) = (input_of(None, text), score_options(how));
    let none = ptr::null_mut();
    // SAFETY: whole structs; the text is copied before the call returns.
    begin(done, |data| unsafe {
        siren_score_async(handle(guard), &input, &options, Some(scored), data, none)
    })
}

pub fn token() -> u64 {
    let mut token = ptr::null_mut();
    // SAFETY: a place for a handle.
    unsafe { siren_cancel_token_new(&mut token, ptr::null_mut()) };
    token.addr() as u64
}

pub fn cancel(token: u64) -> Code {
    // SAFETY: any value may be given.
    unsafe { siren_cancel(handle(token), ptr::null_mut()) }
}

pub fn token_free(token: u64) -> Code {
    // SAFETY: any value may be freed.
    unsafe { siren_cancel_token_free(handle(token)) }
}

pub fn stream(guard: u64, prompt: Option<&str>) -> Result<u64, Code> {
    let mut options = sized!(siren_stream_options);
    if let Some(prompt) = prompt {
        options.prompt = text_of(prompt.as_bytes());
    }
    let mut stream = ptr::null_mut();
    // SAFETY: whole structs; the prompt is copied.
    let status = unsafe { siren_stream_new(handle(guard), &options, &mut stream, ptr::null_mut()) };
    checked(status, stream.addr() as u64)
}

pub fn push(stream: u64, bytes: &[u8], how: How) -> Result<Scored, Code> {
    let (options, mut result) = (push_options(how), sized!(siren_push_result));
    let (data, length, none) = (bytes.as_ptr().cast(), bytes.len(), ptr::null_mut());
    // SAFETY: whole structs, and readable bytes.
    let status =
        unsafe { siren_stream_push(handle(stream), data, length, &options, &mut result, none) };
    checked(status, Scored { score: result.score, tokens: result.tokens })
}

pub fn push_async(
    stream: u64,
    bytes: &[u8],
    how: How,
    done: impl FnOnce(Result<Scored, Code>) + Send + 'static,
) -> Result<(), Code> {
    let (options, none) = (push_options(how), ptr::null_mut());
    let (text, length) = (bytes.as_ptr().cast(), bytes.len());
    // SAFETY: whole structs; the bytes are copied before the call returns.
    begin(done, |data| unsafe {
        siren_stream_push_async(handle(stream), text, length, &options, Some(pushed), data, none)
    })
}

pub fn finish(stream: u64) -> Result<Scored, Code> {
    let (options, mut result) = (push_options(How::default()), sized!(siren_push_result));
    // SAFETY: whole structs.
    let status =
        unsafe { siren_stream_finish(handle(stream), &options, &mut result, ptr::null_mut()) };
    checked(status, Scored { score: result.score, tokens: result.tokens })
}

pub fn reset(stream: u64) -> Code {
    // SAFETY: any value may be given.
    unsafe { siren_stream_reset(handle(stream), ptr::null_mut()) }
}

pub fn fork(stream: u64) -> Result<u64, Code> {
    let mut forked = ptr::null_mut();
    // SAFETY: a place for a handle.
    let status = unsafe { siren_stream_fork(handle(stream), &mut forked, ptr::null_mut()) };
    checked(status, forked.addr() as u64)
}

pub fn stream_free(stream: u64) -> Code {
    // SAFETY: any value may be freed.
    unsafe { siren_stream_free(handle(stream)) }
}
