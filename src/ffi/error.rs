//! `siren_error`: the caller's own place for the text of an error.

use std::ffi::c_char;
use std::mem::size_of;

use super::boundary;
use super::structs::{self, AbiStruct};
use crate::error::{Error, Result};

/// Bytes of `siren_error.message`, its closing NUL included.
pub const SIREN_ERROR_MESSAGE_SIZE: usize = 1008;

/// What went wrong. Owned by the caller, who passes it to any call (or NULL); it is written only
/// when the call fails.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct siren_error {
    /// `sizeof(siren_error)`, set by the caller (`siren_error_init`, `SIREN_ERROR_INIT`).
    pub struct_size: u32,
    /// The status that the call returned.
    pub status: i32,
    /// Length of the whole message in bytes, without the NUL. When it is not less than
    /// `SIREN_ERROR_MESSAGE_SIZE`, `message` holds only its beginning.
    pub message_length: u64,
    /// UTF-8, NUL-terminated.
    pub message: [c_char; SIREN_ERROR_MESSAGE_SIZE],
}

// SAFETY: repr(C), size first, integers only.
unsafe impl AbiStruct for siren_error {
    const NAME: &'static str = "siren_error";
    const FIRST_SIZE: usize = 1024;
}

/// Refuses an error struct that could not be written.
pub(super) fn check(out: *const siren_error) -> Result<()> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: not NULL, and every siren_error starts with its size.
    unsafe { structs::check_output(out) }.map(|_| ())
}

/// Writes `error`, unless `out` is NULL or of a wrong size.
pub(super) fn write(out: *mut siren_error, error: &Error) {
    if out.is_null() || check(out).is_err() {
        return;
    }
    // SAFETY: checked above; the caller owns that many bytes.
    unsafe { structs::write(out, &value_of(error)) };
}

/// `error` as a struct of this library's own.
pub(super) fn value_of(error: &Error) -> siren_error {
    let mut value = siren_error {
        struct_size: size_of::<siren_error>() as u32,
        status: error.status() as i32,
        message_length: error.message().len() as u64,
        message: [0; SIREN_ERROR_MESSAGE_SIZE],
    };
    structs::copy_text(error.message(), &mut value.message);
    value
}

/// Prepares `error`, a struct of `struct_size` bytes (`sizeof(siren_error)`), for use.
///
/// Returns `SIREN_OK`, or `SIREN_INVALID_ARGUMENT` when `error` is NULL or `struct_size` is not
/// the size of any version of the struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_error_init(error: *mut siren_error, struct_size: u32) -> i32 {
    boundary::enter(std::ptr::null_mut(), || {
        // SAFETY: the caller owns `struct_size` bytes at `error`.
        unsafe { structs::init(error, struct_size) }
    })
}

const _: () = assert!(size_of::<siren_error>() == 1024);
