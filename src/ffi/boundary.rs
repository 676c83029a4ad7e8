//! What every entry point goes through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{self, siren_error};
use super::version::SIREN_OK;
use crate::error::{Error, Result, panic_message};

/// Runs `body`; its error or panic becomes the returned status, and the text of it is written to
/// `out`, which may be NULL.
pub(super) fn enter(out: *mut siren_error, body: impl FnOnce() -> Result<()>) -> i32 {
    quiet_panics();
    // An error struct that cannot be written is the caller's mistake: say so before any work.
    let result = error::check(out).and_then(|()| {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            Err(Error::internal(format!("a bug in the library: {}", panic_message(&*panic))))
        })
    });
    match result {
        Ok(()) => SIREN_OK,
        Err(e) => {
            error::write(out, &e);
            e.status() as i32
        }
    }
}

/// The default hook prints to stderr even when the panic is caught; this library prints nothing.
fn quiet_panics() {
    // Not a Once: a child that is forked while another thread is in there would wait for it.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(|info| ::log::error!("{info}")));
    }
}
