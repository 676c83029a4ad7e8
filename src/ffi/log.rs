//! Log lines for hosts that want to hear them. Nothing is ever printed.

use std::ffi::{c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};

use super::boundary;
use super::error::siren_error;
use crate::error::Error;

/// Takes one log line: `level` 1 error, 2 warning, 3 information, 4 debugging, 5 tracing;
/// `message_length` bytes of UTF-8, no NUL. May be called from any thread, several at once; it
/// must not call into the library.
pub type siren_log_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: i32,
        message: *const c_char,
        message_length: usize,
    ),
>;

#[derive(Clone, Copy)]
struct Target {
    callback: siren_log_callback,
    user_data: *mut c_void,
}

// SAFETY: the documentation of the callback makes the host answer for calls from any thread.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

static TARGET: RwLock<Target> =
    RwLock::new(Target { callback: None, user_data: std::ptr::null_mut() });

struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let target = *TARGET.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(callback) = target.callback {
            let line = format!("{}: {}", record.target(), record.args());
            // SAFETY: the host's function takes these; `line` lives through the call.
            unsafe {
                callback(target.user_data, record.level() as i32, line.as_ptr().cast(), line.len());
            }
        }
    }

    fn flush(&self) {}
}

/// Sends the library's log lines up to `level` (1 to 5) to `callback`; NULL or level 0 ends that.
///
/// One callback for the whole process; a line that is on its way in another thread may still
/// arrive at the old one. `user_data` is handed on. `error` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siren_log_set(
    callback: siren_log_callback,
    user_data: *mut c_void,
    level: i32,
    error: *mut siren_error,
) -> i32 {
    boundary::enter(error, || {
        let filter = match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => return Err(Error::argument(format!("level is {level}, expected 0 to 5"))),
        };
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // A Rust host that set its own logger keeps it.
            let _ = log::set_logger(&Forward);
        });
        let filter = if callback.is_some() { filter } else { LevelFilter::Off };
        *TARGET.write().unwrap_or_else(PoisonError::into_inner) = Target { callback, user_data };
        log::set_max_level(filter);
        Ok(())
    })
}
