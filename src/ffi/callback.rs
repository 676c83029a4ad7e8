//! Completion callbacks, and the calls that score without blocking.

use std::ffi::c_void;

use super::error::{self, siren_error};
use super::guard::siren_guard;
use super::score::{self, Batch, siren_input, siren_result, siren_score_options};
use super::version::SIREN_OK;
use super::{boundary, handle, structs};
use crate::error::{Error, Result};
use crate::guard::{OwnedInput, Score};
use crate::text::Input;

/// Takes the outcome of `siren_score_async`.
///
/// `status` is `SIREN_OK` with a `result` and a NULL `error`, or why there is none: then `result`
/// is NULL and `error` says more. Both are the library's, and gone when the callback returns; a
/// newer library's `result` may be larger than the header's. Called on a thread of the guard's
/// own: it should return soon. It may call into the library, `siren_free` of its own guard
/// included, but a blocking call that waits for the guard's queue holds up other callbacks. It
/// must not throw, unwind or `longjmp` out.
pub type siren_score_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        status: i32,
        result: *const siren_result,
        error: *const siren_error,
    ),
>;

/// Takes the outcome of `siren_score_batch_async`, under the conditions of `siren_score_callback`.
///
/// With `SIREN_OK`, `results[i]` points to the result of input `i`, and `errors[i]` is NULL or says
/// why that input has no score: then the result has that `status` and `is_harmful` 1, and its other
/// fields are 0. With any other `status` the call failed as a whole: `count` is 0, `results` and
/// `errors` are NULL, and `error` says why.
pub type siren_batch_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        status: i32,
        results: *const *const siren_result,
        errors: *const *const siren_error,
        count: usize,
        error: *const siren_error,
    ),
>;

/// A host's callback and the word that goes with it.
pub(super) struct Host<F> {
    callback: F,
    user_data: *mut c_void,
}

// SAFETY: the documentation of the callbacks makes the host answer for calls from other threads.
unsafe impl<F: Send> Send for Host<F> {}

impl<F> Host<F> {
    /// # Errors
    /// `InvalidArgument` for NULL.
    pub(super) fn new(callback: Option<F>, user_data: *mut c_void) -> Result<Self> {
        let callback = callback.ok_or_else(|| Error::argument("callback is NULL"))?;
        Ok(Self { callback, user_data })
    }
}

impl<T> Host<unsafe extern "C" fn(*mut c_void, i32, *const T, *const siren_error)> {
    /// Tells the host how its call ended.
    pub(super) fn deliver(self, outcome: Result<T>) {
        let failure = outcome.as_ref().err().map(error::value_of);
        let error = failure.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let result = outcome.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let status = failure.as_ref().map_or(SIREN_OK, |failure| failure.status);
        // SAFETY: the host's function takes these, which live through the call.
        unsafe { (self.callback)(self.user_data, status, result, error) };
    }
}

type BatchCallback = unsafe extern "C" fn(
    *mut c_void,
    i32,
    *const *const siren_result,
    *const *const siren_error,
    usize,
    *const siren_error,
);

impl Host<BatchCallback> {
    fn deliver_batch(self, outcome: Result<Vec<Result<Score>>>) {
        let scores = match outcome {
            Ok(scores) => scores,
            Err(e) => {
                let error = error::value_of(&e);
                let null = std::ptr::null();
                let none = std::ptr::null();
                // SAFETY: the host's function takes these, which live through the call.
                unsafe { (self.callback)(self.user_data, error.status, null, none, 0, &error) };
                return;
            }
        };
        let failure = |scored: &Result<Score>| scored.as_ref().err().map(error::value_of);
        let failures: Vec<_> = scores.iter().map(|scored| failure(scored).map(Box::new)).collect();
        let results: Vec<_> = scores.iter().map(result_or_failure).collect();
        let results: Vec<_> = results.iter().map(std::ptr::from_ref).collect();
        let error_of = |failure: &Option<Box<siren_error>>| {
            failure.as_deref().map_or(std::ptr::null(), std::ptr::from_ref)
        };
        let errors: Vec<_> = failures.iter().map(error_of).collect();
        // SAFETY: as above.
        unsafe {
            (self.callback)(
                self.user_data,
                SIREN_OK,
                results.as_ptr(),
                errors.as_ptr(),
                results.len(),
                std::ptr::null(),
            );
        }
    }
}

/// Scores one input without blocking: `callback` is called once, with `user_data`, when the result
/// is there.
///
/// `guard`, `input` and `callback` must not be NULL; `options`, `user_data` and `error` may be. The
/// input is copied before the call returns. When the call returns another status than `SIREN_OK`,
/// `callback` is never called; when it returns `SIREN_OK`, exactly once, perhaps before the call
/// returns, and also after `siren_free` of the guard. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_score_async(
    guard: *mut siren_guard,
    input: *const siren_input,
    options: *const siren_score_options,
    callback: siren_score_callback,
    user_data: *mut c_void,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's structs.
        let (input, options) = unsafe { (structs::read(input)?, score::read_options(options)?) };
        let host = Host::new(callback, user_data)?;
        // SAFETY: the caller's texts, which outlive the call.
        let input = unsafe { score::safe_input(&input, &guard)? };
        guard.score_async(owned(input), options, move |scored| {
            host.deliver(scored.map(|score| score::result_of(&score)));
        })
    })
}

/// Scores `count` inputs without blocking, as `siren_score_async` does one; each has its own
/// result.
///
/// `inputs` is an array of `count` structs, every one of which must say the `struct_size` that the
/// first says; it may be NULL when `count` is 0. An input that cannot be scored fails by itself, in
/// the callback. The rest is as with `siren_score_async`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_score_batch_async(
    guard: *mut siren_guard,
    inputs: *const siren_input,
    count: usize,
    options: *const siren_score_options,
    callback: siren_batch_callback,
    user_data: *mut c_void,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's struct.
        let options = unsafe { score::read_options(options)? };
        let host = Host::new(callback, user_data)?;
        guard.check_batch(count)?;
        let inputs = match count {
            0 => Vec::new(),
            // SAFETY: the caller's array of `count` elements.
            _ => unsafe { score::read_inputs(inputs, count)? },
        };
        // SAFETY: the caller's texts, which outlive the call.
        let inputs = inputs.iter().map(|input| unsafe { score::safe_input(input, &guard) });
        let Batch { valid, refused } = Batch::new(inputs.map(|input| input.map(owned)));
        guard.score_batch_async(valid, options, move |scores| {
            host.deliver_batch(scores.map(|scores| refused.with(scores).collect()));
        })
    })
}

/// A result of this library's own; of a failure with the two fields that it has.
fn result_or_failure(scored: &Result<Score>) -> siren_result {
    match scored {
        Ok(score) => score::result_of(score),
        Err(e) => siren_result {
            struct_size: size_of::<siren_result>() as u32,
            status: e.status() as i32,
            is_harmful: 1,
            ..siren_result::default()
        },
    }
}

fn owned(input: Input<'_>) -> OwnedInput {
    match input {
        Input::Text(text) => OwnedInput::Text(text.to_owned()),
        Input::Exchange { prompt, response } => OwnedInput::Exchange {
            prompt: prompt.map(str::to_owned),
            response: response.map(str::to_owned),
        },
    }
}
