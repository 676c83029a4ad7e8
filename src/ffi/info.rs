//! What an open guard is made of.

use std::ffi::c_char;

use super::buffer::Buffer;
use super::error::siren_error;
use super::guard::siren_guard;
use super::structs::{self, AbiStruct};
use super::{boundary, handle};

/// Numbers of an open guard; `siren_info_json` tells the rest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_guard_info {
    /// `sizeof(siren_guard_info)`
    pub struct_size: u32,
    /// Threads of the guard's own pool.
    pub threads: u32,
    /// Longest text in tokens, special ones included.
    pub max_length: u64,
    /// The threshold of calls that give none.
    pub default_threshold: f64,
    /// Blocks of the backbone that run, and how many it has.
    pub layers_run: u32,
    /// See `layers_run`.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Selected neurons over all layers.
    pub neurons: u64,
    /// Bytes of the linear layers' weights in memory.
    pub weight_bytes: u64,
    /// Longest text in bytes; of a stream, as in `siren_open_options`.
    pub max_text_bytes: u64,
    /// Most texts of one batch.
    pub max_batch: u64,
    /// Bytes that one token takes where it is kept for streams and in the prefix cache.
    pub kv_token_bytes: u64,
    /// `cpu` or `cuda:N`, NUL-terminated.
    pub device: [c_char; 16],
    /// `f32`, `bf16` or `int8`, NUL-terminated.
    pub dtype: [c_char; 16],
}

// SAFETY: repr(C), size first; numbers.
unsafe impl AbiStruct for siren_guard_info {
    const NAME: &'static str = "siren_guard_info";
    const FIRST_SIZE: usize = 112;
}

const _: () = assert!(size_of::<siren_guard_info>() == 112);

/// Prepares `info`, a struct of `struct_size` bytes, for use. Returns `SIREN_OK` or
/// `SIREN_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_info_init(info: *mut siren_guard_info, struct_size: u32) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes there.
        unsafe { structs::init(info, struct_size) }
    })
}

/// Tells what `guard` is made of. `info` must not be NULL, and is untouched on failure; `error`
/// may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_info(
    guard: *mut siren_guard,
    info: *mut siren_guard_info,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        // SAFETY: NULL or the caller's struct.
        unsafe { structs::check_output(info)? };
        let own = guard.info();
        let mut value = siren_guard_info {
            struct_size: size_of::<siren_guard_info>() as u32,
            threads: own.threads as u32,
            max_length: own.max_length as u64,
            default_threshold: own.default_threshold,
            layers_run: own.layers_run as u32,
            layers: own.backbone_layers as u32,
            hidden_size: own.hidden_size as u64,
            neurons: own.layers.iter().map(|layer| layer.neurons as u64).sum(),
            weight_bytes: own.weight_bytes as u64,
            max_text_bytes: guard.max_text_bytes() as u64,
            max_batch: guard.max_batch() as u64,
            kv_token_bytes: own.kv_token_bytes as u64,
            device: [0; 16],
            dtype: [0; 16],
        };
        structs::copy_text(&own.device, &mut value.device);
        structs::copy_text(own.dtype, &mut value.dtype);
        // SAFETY: checked above.
        unsafe { structs::write(info, &value) };
        Ok(())
    })
}

/// Writes everything about `guard` as one JSON object, UTF-8 and NUL-terminated, into `buffer` of
/// `capacity` bytes, and its length without the NUL into `*length`.
///
/// Call it with `buffer` NULL and `capacity` 0 to learn the length. A buffer that is too small is
/// `SIREN_INVALID_ARGUMENT`: `*length` is written, the buffer untouched. `length` must not be
/// NULL, and neither must `buffer` with a `capacity`; `error` may be. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_info_json(
    guard: *mut siren_guard,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let guard = handle::get(guard)?;
        let buffer = Buffer::new(buffer, capacity, length)?;
        // SAFETY: the caller's buffer and length.
        unsafe { buffer.write(&guard.info().to_json().to_string()) }
    })
}
