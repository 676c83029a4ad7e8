//! `siren_stream`: a response that grows, scored after every push.

use std::ffi::{c_char, c_void};

use super::callback::Host;
use super::cancel::{self, siren_cancel_token};
use super::error::siren_error;
use super::guard::siren_guard;
use super::handle::{self, Kind, Tables};
use super::options::{self, siren_text};
use super::structs::{self, AbiStruct};
use super::version::SIREN_OK;
use super::{boundary, score};
use crate::call::{PushOptions, StreamOptions};
use crate::error::{Error, Result};
use crate::stream::{Push, Stream};

/// A growing response on a guard, after an optional prompt. A checked number, as `siren_guard` is.
///
/// It keeps what it needs of its guard alive, and belongs to one thread at a time: a call while
/// another runs on it is `SIREN_IN_USE`.
pub struct siren_stream {
    _opaque: (),
}

/// A stream with the limit that its guard sets.
pub(super) struct Open {
    stream: Stream,
    max_text_bytes: usize,
}

impl Kind for siren_stream {
    type Object = Open;
    const NAME: &'static str = "stream";
    const TAG: u8 = 0xB2;
    fn tables() -> &'static Tables<Open> {
        static TABLES: Tables<Open> = Tables::new();
        &TABLES
    }
}

/// What a stream scores, and how. Zeros are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_stream_options {
    /// `sizeof(siren_stream_options)`
    pub struct_size: u32,
    /// 1: compare with `threshold`. 0: with the guard's own.
    pub has_threshold: u32,
    /// From 0 to 1; read when `has_threshold` is 1.
    pub threshold: f64,
    /// What the growing response answers, or absent; joined to it with one newline. Copied.
    pub prompt: siren_text,
    /// Tokens in a row at or above the threshold before they count as a crossing, which is then
    /// reported at the last of them. 0 and 1 are the same.
    pub hysteresis: u64,
    /// 1: go on past the guard's `max_length` in windows, as in `siren_score_options`. 0: keep the
    /// score of the first tokens.
    pub windows: u32,
    /// 0
    pub reserved: u32,
    /// See `siren_score_options`.
    pub window_tokens: u64,
    /// See `siren_score_options`.
    pub window_stride: u64,
}

/// How to push. Zeros are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_push_options {
    /// `sizeof(siren_push_options)`
    pub struct_size: u32,
    /// 1: wait for a place when the queue is full. 0: `SIREN_BUSY` at once.
    pub wait: u32,
    /// Ends the call with `SIREN_CANCELLED` when it is cancelled, or NULL. May be freed while the
    /// call runs.
    pub cancel: *mut siren_cancel_token,
    /// Milliseconds from the call until it ends with `SIREN_DEADLINE_EXCEEDED`. 0: none.
    pub timeout_ms: u64,
    /// Where the running score after each token that this push runs is written, or NULL. Of an
    /// asynchronous call it must stay writable until the callback is called.
    pub token_scores: *mut f64,
    /// Scores that `token_scores` has room for; what is over it is not written.
    pub token_scores_capacity: usize,
}

/// What the whole of a stream scores after a push.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_push_result {
    /// `sizeof(siren_push_result)`
    pub struct_size: u32,
    /// `SIREN_OK`
    pub status: i32,
    /// Probability that all that was pushed (after the prompt) is harmful, from 0 to 1.
    pub score: f64,
    /// The threshold that the score was compared with.
    pub threshold: f64,
    /// 1 when `score >= threshold`, else 0: now, whatever earlier pushes scored.
    pub is_harmful: u32,
    /// 1 when there are more tokens than the guard reads, and the rest was not read, else 0.
    pub truncated: u32,
    /// Tokens that were scored, special ones and the prompt's included. May shrink.
    pub tokens: u64,
    /// 1 when the running score has crossed the threshold; it stays 1. Else 0, and so are
    /// `crossing_token` and `crossing_byte`.
    pub crossed: u32,
    /// 0
    pub reserved: u32,
    /// The crossing token's index from 0, special ones and the prompt's counted.
    pub crossing_token: u64,
    /// Where the crossing token ends in the pushed bytes.
    pub crossing_byte: u64,
    /// Pushed bytes, whole characters, that may be shown: up to the last token at or before which
    /// no running score reached the threshold. Never shrinks, also where a later push makes other
    /// tokens of the last word and one of these crosses: `crossing_byte` may then be less.
    pub cleared_bytes: u64,
    /// Windows that the text was read in. 0, and so the next three, when the options asked for none.
    pub windows: u64,
    /// The window that scored highest, from 0.
    pub window_index: u64,
    /// Its first byte in the pushed bytes.
    pub window_start: u64,
    /// The byte after its last.
    pub window_end: u64,
    /// The token, from 0, that the first of `token_scores` belongs to.
    pub first_scored: u64,
    /// Token scores that there are, which may be more than there was room for. 0 when
    /// `token_scores` was NULL.
    pub token_scores_count: u64,
}

// SAFETY: repr(C), size first; numbers and pointers.
unsafe impl AbiStruct for siren_stream_options {
    const NAME: &'static str = "siren_stream_options";
    const FIRST_SIZE: usize = 64;
}
// SAFETY: repr(C), size first; numbers and pointers.
unsafe impl AbiStruct for siren_push_options {
    const NAME: &'static str = "siren_push_options";
    const FIRST_SIZE: usize = 40;
}
// SAFETY: repr(C), size first; numbers.
unsafe impl AbiStruct for siren_push_result {
    const NAME: &'static str = "siren_push_result";
    const FIRST_SIZE: usize = 120;
}

const _: () = assert!(size_of::<siren_stream_options>() == 64);
const _: () = assert!(size_of::<siren_push_options>() == 40);
const _: () = assert!(size_of::<siren_push_result>() == 120);

/// Takes the outcome of `siren_stream_push_async` and `siren_stream_finish_async`, under the
/// conditions of `siren_score_callback`.
/// The stream may be used again from here on, by the callback itself too.
pub type siren_push_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        status: i32,
        result: *const siren_push_result,
        error: *const siren_error,
    ),
>;

/// Fills `options`, a struct of `struct_size` bytes, with defaults. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_options_init(
    options: *mut siren_stream_options,
    struct_size: u32,
) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(options, struct_size) }
    })
}

/// Fills `options`, a struct of `struct_size` bytes, with defaults. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_push_options_init(
    options: *mut siren_push_options,
    struct_size: u32,
) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(options, struct_size) }
    })
}

/// Prepares `result`, a struct of `struct_size` bytes, for use. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_push_result_init(
    result: *mut siren_push_result,
    struct_size: u32,
) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(result, struct_size) }
    })
}

/// Opens a stream on `guard` and stores its handle in `*stream`.
///
/// `options` may be NULL: no prompt, the guard's threshold. `stream` must not be NULL; `*stream` is
/// untouched on failure. The caller frees the stream with `siren_stream_free`; until then it keeps
/// the guard's engine alive, also after `siren_free`. `SIREN_LIMIT_EXCEEDED` when too many streams
/// are open. `error` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_new(
    guard: *mut siren_guard,
    options: *const siren_stream_options,
    stream: *mut *mut siren_stream,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        let max_text_bytes = guard.max_text_bytes();
        // SAFETY: NULL or the caller's struct, whose text is readable.
        let options = unsafe { read_stream_options(options, max_text_bytes)? };
        // SAFETY: NULL or the caller's place for a pointer.
        unsafe { give(stream, || Ok(Open { stream: guard.stream(options)?, max_text_bytes })) }
    })
}

/// Adds `length` bytes of UTF-8 at `data` to the stream and scores all of it.
///
/// A character may be split between pushes. `data` may be NULL when `length` is 0. `options` and
/// `error` may be NULL; `result` must not be. When the call fails, `*result` is untouched and the
/// stream is as it was before. Any thread, but one at a time: else `SIREN_IN_USE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_push(
    stream: *mut siren_stream,
    data: *const c_char,
    length: usize,
    options: *const siren_push_options,
    result: *mut siren_push_result,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let open = handle::get(stream)?;
        // SAFETY: NULL or the caller's structs, and the caller's bytes.
        unsafe {
            score_into(options, result, |options| {
                let bytes = options::bytes("data", data, length, open.max_text_bytes)?;
                open.stream.push(bytes.unwrap_or_default(), options)
            })
        }
    })
}

/// Says that nothing more comes: the last result, in which every byte is cleared that can be.
///
/// Half a character that was held back is `SIREN_INVALID_UTF8`. Pushes are
/// `SIREN_INVALID_ARGUMENT` from then on, until `siren_stream_reset`. The pointers and threads are
/// as with `siren_stream_push`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_finish(
    stream: *mut siren_stream,
    options: *const siren_push_options,
    result: *mut siren_push_result,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let open = handle::get(stream)?;
        // SAFETY: NULL or the caller's structs.
        unsafe { score_into(options, result, |options| open.stream.finish(options)) }
    })
}

/// Adds bytes as `siren_stream_push` does, without blocking: `callback` is called once, with
/// `user_data`, when the result is there. The stream is in use until then.
///
/// `stream` and `callback` must not be NULL; `data` with `length` 0, `options`, `user_data` and
/// `error` may be. The bytes are copied before the call returns; `options->token_scores` must stay
/// writable until the callback. When the call returns another status than `SIREN_OK`, `callback` is
/// never called; when it returns `SIREN_OK`, exactly once, perhaps before the call returns, and
/// also after `siren_stream_free` and `siren_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_push_async(
    stream: *mut siren_stream,
    data: *const c_char,
    length: usize,
    options: *const siren_push_options,
    callback: siren_push_callback,
    user_data: *mut c_void,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let open = handle::get(stream)?;
        // SAFETY: NULL or the caller's struct.
        let (options, done) = unsafe { score_later(options, callback, user_data)? };
        // SAFETY: the caller's bytes, which outlive the call.
        let bytes = unsafe { options::bytes("data", data, length, open.max_text_bytes)? };
        open.stream.push_async(bytes.unwrap_or_default().to_vec(), options, done)
    })
}

/// Says that nothing more comes, as `siren_stream_finish` does, without blocking: `callback` is
/// called once, with `user_data`, when the last result is there. The stream is in use until then.
///
/// `stream` and `callback` must not be NULL; `options`, `user_data` and `error` may be. What holds
/// for the callback and for `options->token_scores` is as with `siren_stream_push_async`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_finish_async(
    stream: *mut siren_stream,
    options: *const siren_push_options,
    callback: siren_push_callback,
    user_data: *mut c_void,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let open = handle::get(stream)?;
        // SAFETY: NULL or the caller's struct.
        let (options, done) = unsafe { score_later(options, callback, user_data)? };
        open.stream.finish_async(options, done)
    })
}

/// Forgets what was pushed, and keeps the prompt and the options. `error` may be NULL. Threads as
/// with `siren_stream_push`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_reset(
    stream: *mut siren_stream,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || handle::get(stream)?.stream.reset())
}

/// Makes a second stream in the same state and stores its handle in `*forked`: what has run is
/// shared, not run again. From then on the two know nothing of each other.
///
/// `forked` must not be NULL; `*forked` is untouched on failure. The caller frees it with
/// `siren_stream_free`. `error` may be NULL. Threads as with `siren_stream_push`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_fork(
    stream: *mut siren_stream,
    forked: *mut *mut siren_stream,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let Open { stream, max_text_bytes } = &*handle::get(stream)?;
        let fork = || Ok(Open { stream: stream.fork()?, max_text_bytes: *max_text_bytes });
        // SAFETY: NULL or the caller's place for a pointer.
        unsafe { give(forked, fork) }
    })
}

/// Frees a stream. A call that runs on it in another thread still finishes, an asynchronous one
/// with its callback. NULL does nothing and is `SIREN_OK`; a second free is
/// `SIREN_INVALID_HANDLE`. In a forked child the parent's stream is left alone (`SIREN_FORKED`).
/// Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_stream_free(stream: *mut siren_stream) -> i32 {
    boundary::enter(std::ptr::null_mut(), || handle::free(stream))
}

/// Stores the handle of what `make` makes in `*place`.
///
/// # Safety
/// `place` is NULL or the caller's place for a pointer.
unsafe fn give(place: *mut *mut siren_stream, make: impl FnOnce() -> Result<Open>) -> Result<()> {
    if place.is_null() {
        return Err(Error::argument("the place for a stream is NULL"));
    }
    let handle = handle::insert(make()?)?;
    // SAFETY: not NULL, and the caller's promise.
    unsafe { place.write_unaligned(handle) };
    Ok(())
}

/// Checks the structs, runs `push`, and writes what came of it.
///
/// # Safety
/// `options` and `result` are NULL or the caller's structs.
unsafe fn score_into(
    options: *const siren_push_options,
    result: *mut siren_push_result,
    push: impl FnOnce(PushOptions) -> Result<Push>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let (options, scores) = unsafe { read_push_options(options)? };
    // SAFETY: the caller's promise.
    unsafe { structs::check_output(result)? };
    let push = push(options)?;
    // SAFETY: the caller's place for scores, and a result of a checked size.
    unsafe {
        scores.write(&push.token_scores);
        structs::write(result, &result_of(&push));
    }
    Ok(())
}

/// Checks the struct and the callback: the safe options, and what tells the host the outcome.
///
/// # Safety
/// `options` is NULL or the caller's struct, whose place for scores stays writable until the
/// callback.
unsafe fn score_later(
    options: *const siren_push_options,
    callback: siren_push_callback,
    user_data: *mut c_void,
) -> Result<(PushOptions, impl FnOnce(Result<Push>) + Send + 'static)> {
    // SAFETY: the caller's promise.
    let (options, scores) = unsafe { read_push_options(options)? };
    let host = Host::new(callback, user_data)?;
    let done = move |pushed: Result<Push>| {
        host.deliver(pushed.map(|push| {
            // SAFETY: the caller keeps the place for scores until the callback.
            unsafe { scores.write(&push.token_scores) };
            result_of(&push)
        }));
    };
    Ok((options, done))
}

/// # Safety
/// `options` is NULL or the caller's struct, whose text is readable.
unsafe fn read_stream_options(
    options: *const siren_stream_options,
    limit: usize,
) -> Result<StreamOptions> {
    if options.is_null() {
        return Ok(StreamOptions::default());
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { structs::read(options)? };
    structs::reserved("siren_stream_options", raw.reserved)?;
    // SAFETY: the caller's promise.
    let prompt = unsafe { options::borrowed("prompt", &raw.prompt, limit)? };
    Ok(StreamOptions {
        prompt: prompt.map(str::to_owned),
        threshold: score::threshold(raw.has_threshold, raw.threshold)?,
        hysteresis: usize::try_from(raw.hysteresis).unwrap_or(usize::MAX),
        windows: score::windows(raw.windows, raw.window_tokens, raw.window_stride)?,
    })
}

/// A caller's place for token scores.
struct TokenScores {
    place: *mut f64,
    capacity: usize,
}

// SAFETY: the documentation of `token_scores` makes the host leave the place alone until the call
// has ended, on whatever thread that is.
unsafe impl Send for TokenScores {}

impl TokenScores {
    /// Writes as many of `scores` as there is room for.
    ///
    /// # Safety
    /// The place is NULL with a capacity of 0, or has `capacity` writable scores.
    unsafe fn write(&self, scores: &[f64]) {
        let count = scores.len().min(self.capacity);
        // SAFETY: the caller's promise; by bytes, since the place may be unaligned.
        unsafe {
            std::ptr::copy_nonoverlapping(
                scores.as_ptr().cast::<u8>(),
                self.place.cast::<u8>(),
                count * size_of::<f64>(),
            );
        }
    }
}

/// The safe form of `options`; NULL is all defaults. A timeout starts here.
///
/// # Safety
/// `options` is NULL or the caller's struct.
unsafe fn read_push_options(
    options: *const siren_push_options,
) -> Result<(PushOptions, TokenScores)> {
    if options.is_null() {
        let scores = TokenScores { place: std::ptr::null_mut(), capacity: 0 };
        return Ok((PushOptions::default(), scores));
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { structs::read(options)? };
    let scores = TokenScores { place: raw.token_scores, capacity: raw.token_scores_capacity };
    if scores.place.is_null() && scores.capacity != 0 {
        return Err(Error::argument(format!(
            "token_scores is NULL with a capacity of {}",
            scores.capacity
        )));
    }
    let options = PushOptions {
        token_scores: !scores.place.is_null(),
        control: cancel::control(raw.cancel, raw.timeout_ms, raw.wait)?,
    };
    Ok((options, scores))
}

fn result_of(push: &Push) -> siren_push_result {
    let [windows, window_index, window_start, window_end] = score::window_of(push.window);
    let (crossing_token, crossing_byte) =
        push.first_crossing.map_or((0, 0), |crossing| (crossing.token, crossing.byte));
    siren_push_result {
        struct_size: size_of::<siren_push_result>() as u32,
        status: SIREN_OK,
        score: push.score,
        threshold: push.threshold,
        is_harmful: push.is_harmful.into(),
        truncated: push.truncated.into(),
        tokens: push.tokens as u64,
        crossed: push.first_crossing.is_some().into(),
        reserved: 0,
        crossing_token: crossing_token as u64,
        crossing_byte: crossing_byte as u64,
        cleared_bytes: push.cleared as u64,
        windows,
        window_index,
        window_start,
        window_end,
        first_scored: push.first_scored as u64,
        token_scores_count: push.token_scores.len() as u64,
    }
}
