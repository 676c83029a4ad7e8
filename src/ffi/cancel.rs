//! `siren_cancel_token`, and the other things that may end a call early.

use std::time::{Duration, Instant};

use super::boundary;
use super::error::siren_error;
use super::handle::{self, Kind, Tables};
use super::structs::flag;
use crate::call::{CancelToken, Control};
use crate::error::{Error, Result};

/// Cancels the calls whose options name it. A checked number, as `siren_guard` is.
pub struct siren_cancel_token {
    _opaque: (),
}

impl Kind for siren_cancel_token {
    type Object = CancelToken;
    const NAME: &'static str = "cancel token";
    const TAG: u8 = 0xCD;
    fn tables() -> &'static Tables<CancelToken> {
        static TABLES: Tables<CancelToken> = Tables::new();
        &TABLES
    }
}

/// Makes a token that is not cancelled and stores its handle in `*token`.
///
/// `token` must not be NULL; `*token` is untouched on failure. The caller frees it with
/// `siren_cancel_token_free`. `error` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_cancel_token_new(
    token: *mut *mut siren_cancel_token,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        if token.is_null() {
            return Err(Error::argument("token is NULL"));
        }
        let handle = handle::insert(CancelToken::new())?;
        // SAFETY: not NULL, and the caller's place for a pointer.
        unsafe { token.write_unaligned(handle) };
        Ok(())
    })
}

/// Ends every call that runs with `token`, and those that are still to come, with
/// `SIREN_CANCELLED`. It cannot be taken back. `error` may be NULL. Any thread, also while calls
/// run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_cancel(
    token: *mut siren_cancel_token,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        handle::get(token)?.cancel();
        Ok(())
    })
}

/// Frees a token. Calls that run with it go on, and can no longer be cancelled. NULL does nothing
/// and is `SIREN_OK`; a second free is `SIREN_INVALID_HANDLE`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_cancel_token_free(token: *mut siren_cancel_token) -> i32 {
    boundary::enter(std::ptr::null_mut(), || handle::free(token))
}

/// The safe form of the options `cancel`, `timeout_ms` and `wait`. The time starts here.
///
/// # Errors
/// `InvalidHandle`, `Forked`; `InvalidArgument` for a flag that is none.
pub(super) fn control(
    cancel: *mut siren_cancel_token,
    timeout_ms: u64,
    wait: u32,
) -> Result<Control> {
    let cancel = match cancel.is_null() {
        true => None,
        false => Some(CancelToken::clone(&*handle::get(cancel)?)),
    };
    let deadline = match timeout_ms {
        0 => None,
        // A time past what the clock can tell never comes.
        ms => Instant::now().checked_add(Duration::from_millis(ms)),
    };
    Ok(Control { cancel, deadline, wait: flag("wait", wait)? })
}
