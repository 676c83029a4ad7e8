//! `siren_guard`: open, warm up, free.

use super::boundary;
use super::error::siren_error;
use super::handle::{self, Kind, Tables};
use super::options::{self, siren_open_options};
use crate::error::{Error, Result, Status};
use crate::guard::Guard;

/// Stack of the thread that opens: JSON and regular expressions recurse, and the caller's stack
/// may be small.
const OPEN_STACK_BYTES: usize = 8 << 20;

/// An open guard. Its value is a number that is looked up, never an address: a freed or foreign
/// handle is answered with `SIREN_INVALID_HANDLE`. Immutable: any number of threads may use it.
pub struct siren_guard {
    _opaque: (),
}

impl Kind for siren_guard {
    type Object = Guard;
    const NAME: &'static str = "guard";
    const TAG: u8 = 0xA7;
    fn tables() -> &'static Tables<Guard> {
        static TABLES: Tables<Guard> = Tables::new();
        &TABLES
    }
}

/// Opens a guard and stores its handle in `*guard`.
///
/// `options` may be NULL: the demo guard on the best device. Blocks while files are read, and
/// fetched when the model is a hub repository. `guard` must not be NULL; `*guard` is untouched on
/// failure. The caller frees the guard with `siren_free`. `error` may be NULL. Any thread; a child
/// that was forked while another thread was in here gets `SIREN_FORKED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_open(
    options: *const siren_open_options,
    guard: *mut *mut siren_guard,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        if guard.is_null() {
            return Err(Error::argument("guard is NULL"));
        }
        // SAFETY: NULL or the caller's struct.
        let options = unsafe { options::read(options)? };
        let opened = on_a_large_stack(|| Guard::open(options))?;
        let handle = handle::insert(opened)?;
        // SAFETY: not NULL, and the caller's place for a pointer.
        unsafe { guard.write_unaligned(handle) };
        Ok(())
    })
}

/// Frees a guard. Calls that run on it in other threads still finish, asynchronous ones with their
/// callback, and open streams stay as usable as before: what they need lives until the last of
/// them ends or is freed. Handles stay checked, so a second free is `SIREN_INVALID_HANDLE`. NULL
/// does nothing and is `SIREN_OK`. In a forked child the parent's guard is left alone
/// (`SIREN_FORKED`). Any thread, also from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_free(guard: *mut siren_guard) -> i32 {
    boundary::enter(std::ptr::null_mut(), || handle::free(guard))
}

/// Runs one short text, so that the first call is as fast as the second. `error` may be NULL. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_warmup(guard: *mut siren_guard, error: *mut siren_error) -> i32 {
    boundary::enter(error, || handle::get(guard)?.warmup())
}

fn on_a_large_stack<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("siren-open".into())
            .stack_size(OPEN_STACK_BYTES)
            .spawn_scoped(scope, run)
            .map_err(|e| Error::new(Status::OutOfMemory, format!("no thread to open on: {e}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
