//! Scoring: inputs, results, one text and many.

use super::cancel::{self, siren_cancel_token};
use super::error::{self, siren_error};
use super::guard::siren_guard;
use super::options::{self, siren_text};
use super::structs::{self, AbiStruct, flag};
use super::version::SIREN_OK;
use super::{boundary, handle};
use crate::call::{ScoreOptions, Windows};
use crate::error::{Error, Result, Status};
use crate::guard::{BestWindow, Guard, Score};
use crate::text::Input;

/// What is scored: `text` alone, or `prompt` and/or `response`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_input {
    /// `sizeof(siren_input)`
    pub struct_size: u32,
    /// 0
    pub reserved: u32,
    /// One text. Then `prompt` and `response` are absent.
    pub text: siren_text,
    /// What a model was asked, or absent.
    pub prompt: siren_text,
    /// What it answered, or absent; joined to the prompt with one newline.
    pub response: siren_text,
}

/// How to score. Zeros are the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_score_options {
    /// `sizeof(siren_score_options)`
    pub struct_size: u32,
    /// 1: compare with `threshold`. 0: with the guard's own.
    pub has_threshold: u32,
    /// From 0 to 1; read when `has_threshold` is 1.
    pub threshold: f64,
    /// Ends the call with `SIREN_CANCELLED` when it is cancelled, or NULL. May be freed while the
    /// call runs.
    pub cancel: *mut siren_cancel_token,
    /// Milliseconds from the call until it ends with `SIREN_DEADLINE_EXCEEDED`. 0: none.
    pub timeout_ms: u64,
    /// 1: wait for a place when the queue is full. 0: `SIREN_BUSY` at once.
    pub wait: u32,
    /// 1: read a text that is longer than the guard's `max_length` in overlapping windows, whose
    /// highest score is the text's. 0: cut it.
    pub windows: u32,
    /// Tokens of a window, special ones included. 0: the guard's `max_length`.
    pub window_tokens: u64,
    /// Tokens of text from one window's start to the next one's. 0: half of a window's.
    pub window_stride: u64,
}

/// What a text scored.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct siren_result {
    /// `sizeof(siren_result)`
    pub struct_size: u32,
    /// `SIREN_OK`, or why this text of a batch has no score. Then `is_harmful` is 1, so that a
    /// failure that nobody looks at does not pass as safe, and the other fields are untouched.
    pub status: i32,
    /// Probability that the text is harmful, from 0 to 1.
    pub score: f64,
    /// The threshold that the score was compared with.
    pub threshold: f64,
    /// 1 when `score >= threshold`, else 0.
    pub is_harmful: u32,
    /// 1 when the text had more tokens than the guard reads, else 0.
    pub truncated: u32,
    /// Tokens that ran, special ones included.
    pub tokens: u64,
    /// Windows that the text was read in. 0, and so the next three, when the options asked for none.
    pub windows: u64,
    /// The window that scored highest, from 0.
    pub window_index: u64,
    /// Its first byte in the text; of a prompt and a response, in the two joined with one newline.
    pub window_start: u64,
    /// The byte after its last.
    pub window_end: u64,
}

// SAFETY: repr(C), size first; integers and pointers.
unsafe impl AbiStruct for siren_input {
    const NAME: &'static str = "siren_input";
    const FIRST_SIZE: usize = 56;
}
// SAFETY: repr(C), size first; numbers and a pointer.
unsafe impl AbiStruct for siren_score_options {
    const NAME: &'static str = "siren_score_options";
    const FIRST_SIZE: usize = 56;
}
// SAFETY: repr(C), size first; numbers.
unsafe impl AbiStruct for siren_result {
    const NAME: &'static str = "siren_result";
    const FIRST_SIZE: usize = 72;
}

const _: () = assert!(size_of::<siren_input>() == 56);
const _: () = assert!(size_of::<siren_score_options>() == 56);
const _: () = assert!(size_of::<siren_result>() == 72);

/// Fills `input`, a struct of `struct_size` bytes, with "absent" everywhere. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_input_init(input: *mut siren_input, struct_size: u32) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(input, struct_size) }
    })
}

/// Fills `options`, a struct of `struct_size` bytes, with defaults. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_score_options_init(
    options: *mut siren_score_options,
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
pub unsafe extern "C" fn siren_result_init(result: *mut siren_result, struct_size: u32) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(result, struct_size) }
    })
}

/// Scores one input.
///
/// `guard`, `input` and `result` must not be NULL; `options` and `error` may be. The input's text
/// is only read, and not kept. `*result` is untouched on failure. Any thread; concurrent calls
/// share passes of the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_score(
    guard: *mut siren_guard,
    input: *const siren_input,
    options: *const siren_score_options,
    result: *mut siren_result,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's structs.
        let (input, options) = unsafe { (structs::read(input)?, read_options(options)?) };
        // SAFETY: NULL or the caller's struct.
        unsafe { structs::check_output(result)? };
        // SAFETY: the caller's texts, which outlive the call.
        let input = unsafe { safe_input(&input, &guard)? };
        let score = guard.score(input, options)?;
        // SAFETY: checked above.
        unsafe { structs::write(result, &result_of(&score)) };
        Ok(())
    })
}

/// Scores `count` inputs; each result has its own `status`.
///
/// `inputs` and `results` are arrays of `count` structs. The `struct_size` of an array's first
/// element is the distance between its elements, and every element is checked to say the same:
/// else the call fails as a whole. `errors` is NULL or such an array of `count` siren_error: the
/// message of each text that failed. A call that fails as a whole (its returned
/// status and `error` say why) leaves `results` and `errors` untouched. `count` 0 is `SIREN_OK`.
/// `options` and `error` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_score_batch(
    guard: *mut siren_guard,
    inputs: *const siren_input,
    count: usize,
    options: *const siren_score_options,
    results: *mut siren_result,
    errors: *mut siren_error,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's struct.
        let options = unsafe { read_options(options)? };
        guard.check_batch(count)?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the caller's arrays of `count` elements.
        let (inputs, results, errors) = unsafe {
            (
                read_inputs(inputs, count)?,
                Elements::new(results, count)?,
                if errors.is_null() { None } else { Some(Elements::new(errors, count)?) },
            )
        };
        // SAFETY: the caller's texts, which outlive the call.
        let inputs = inputs.iter().map(|input| unsafe { safe_input(input, &guard) });
        let batch = Batch::new(inputs);
        let scores = guard.score_batch(&batch.valid, options)?;
        for (i, scored) in batch.refused.with(scores).enumerate() {
            match scored {
                // SAFETY: an element of the caller's array, of a checked size.
                Ok(score) => unsafe { structs::write(results.at(i), &result_of(&score)) },
                Err(e) => {
                    // SAFETY: as above; only the two fields that a failure has are written.
                    unsafe {
                        (&raw mut (*results.at(i)).status).write_unaligned(e.status() as i32);
                        (&raw mut (*results.at(i)).is_harmful).write_unaligned(1);
                    }
                    if let Some(errors) = &errors {
                        error::write(errors.at(i), &e);
                    }
                }
            }
        }
        Ok(())
    })
}

/// A batch without the inputs that cannot be scored.
pub(super) struct Batch<T> {
    pub(super) valid: Vec<T>,
    pub(super) refused: Refused,
}

/// What is wrong with each input of a batch, if anything.
pub(super) struct Refused(Vec<Option<Error>>);

impl<T> Batch<T> {
    pub(super) fn new(inputs: impl Iterator<Item = Result<T>>) -> Self {
        let mut valid = Vec::new();
        let refused = inputs.map(|input| input.map(|input| valid.push(input)).err()).collect();
        Self { valid, refused: Refused(refused) }
    }
}

impl Refused {
    /// One result for each input: its own error, or the next of `scores`.
    pub(super) fn with(self, scores: Vec<Result<Score>>) -> impl Iterator<Item = Result<Score>> {
        let mut scores = scores.into_iter();
        self.0.into_iter().map(move |refused| match refused {
            Some(error) => Err(error),
            None => {
                scores.next().unwrap_or_else(|| Err(Error::internal("a text without a result")))
            }
        })
    }
}

/// Copies of the caller's structs.
///
/// # Errors
/// `InvalidArgument` for elements of different or wrong sizes.
///
/// # Safety
/// `inputs` is NULL or an array of `count` elements; `count` is at least 1.
pub(super) unsafe fn read_inputs(
    inputs: *const siren_input,
    count: usize,
) -> Result<Vec<siren_input>> {
    // SAFETY: the caller's promise.
    let inputs = unsafe { Elements::new(inputs.cast_mut(), count)? };
    // SAFETY: elements of the caller's array.
    (0..count).map(|i| unsafe { structs::read(inputs.at(i)) }).collect()
}

/// A caller's array of structs, which may be of another version's size.
struct Elements<T> {
    first: *mut T,
    stride: usize,
}

impl<T: AbiStruct> Elements<T> {
    /// Checks that every element has the first one's size.
    ///
    /// # Safety
    /// `first` is NULL or an array of `count` elements.
    unsafe fn new(first: *mut T, count: usize) -> Result<Self> {
        // SAFETY: the caller's promise; `count` is at least 1 where this is used.
        let stride = unsafe { structs::check_output(first)? };
        let elements = Self { first, stride };
        for i in 1..count {
            // SAFETY: element `i` of the caller's array, which starts with its size.
            let size = unsafe { elements.at(i).cast::<u32>().read_unaligned() } as usize;
            if size != stride {
                return Err(Error::argument(format!(
                    "struct_size of {}[{i}] is {size}, that of the first is {stride}",
                    T::NAME
                )));
            }
        }
        Ok(elements)
    }

    fn at(&self, index: usize) -> *mut T {
        self.first.wrapping_byte_add(index * self.stride)
    }
}

/// The safe form of `options`; NULL is all defaults. A timeout starts here.
///
/// # Errors
/// `InvalidArgument`, and what the cancel token's handle is refused with.
///
/// # Safety
/// `options` is NULL or the caller's struct.
pub(super) unsafe fn read_options(options: *const siren_score_options) -> Result<ScoreOptions> {
    if options.is_null() {
        return Ok(ScoreOptions::default());
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { structs::read(options)? };
    Ok(ScoreOptions {
        threshold: threshold(raw.has_threshold, raw.threshold)?,
        windows: windows(raw.windows, raw.window_tokens, raw.window_stride)?,
        control: cancel::control(raw.cancel, raw.timeout_ms, raw.wait)?,
    })
}

pub(super) fn threshold(has_threshold: u32, threshold: f64) -> Result<Option<f64>> {
    Ok(flag("has_threshold", has_threshold)?.then_some(threshold))
}

pub(super) fn windows(windows: u32, tokens: u64, stride: u64) -> Result<Option<Windows>> {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let windows = flag("windows", windows)?;
    Ok(windows.then(|| Windows { tokens: size(tokens), stride: size(stride) }))
}

/// # Safety
/// The texts of `input` are readable and outlive it.
pub(super) unsafe fn safe_input<'a>(input: &'a siren_input, guard: &Guard) -> Result<Input<'a>> {
    structs::reserved("siren_input", input.reserved)?;
    let limit = guard.max_text_bytes();
    // SAFETY: the caller's promise.
    let (text, prompt, response) = unsafe {
        (
            options::borrowed("text", &input.text, limit)?,
            options::borrowed("prompt", &input.prompt, limit)?,
            options::borrowed("response", &input.response, limit)?,
        )
    };
    match (text, prompt, response) {
        (Some(text), None, None) => Ok(Input::Text(text)),
        (Some(_), ..) => Err(Error::new(
            Status::InvalidArgument,
            "text was given together with prompt or response, expected one or the other",
        )),
        (None, prompt, response) => Ok(Input::Exchange { prompt, response }),
    }
}

pub(super) fn result_of(score: &Score) -> siren_result {
    let [windows, window_index, window_start, window_end] = window_of(score.window);
    siren_result {
        struct_size: size_of::<siren_result>() as u32,
        status: SIREN_OK,
        score: score.score,
        threshold: score.threshold,
        is_harmful: score.is_harmful.into(),
        truncated: score.truncated.into(),
        tokens: score.tokens as u64,
        windows,
        window_index,
        window_start,
        window_end,
    }
}

/// How many windows there were, which one was the best, its first byte and the one after its last.
pub(super) fn window_of(window: Option<BestWindow>) -> [u64; 4] {
    let fields = |w: BestWindow| [w.count, w.index, w.start, w.end].map(|field| field as u64);
    window.map_or([0; 4], fields)
}
