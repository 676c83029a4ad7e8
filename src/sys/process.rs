//! A guard's threads do not survive `fork`: the child must be told, not left waiting.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result, Status};

/// The process in which a guard was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home(u32);

impl Home {
    pub(crate) fn here() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_here(self) -> bool {
        self.0 == std::process::id()
    }

    /// # Errors
    /// `Forked` when this process is not the one that opened the guard.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(Error::new(
            Status::Forked,
            format!(
                "this guard was opened in process {}, and its threads do not exist in the forked \
                 process {}: open a guard after the fork",
                self.0,
                std::process::id()
            ),
        ))
    }
}

/// How many guards are being opened, below the process that does so.
static OPENING: AtomicU64 = AtomicU64::new(0);
const PROCESS_SHIFT: u32 = 32;

/// A guard that is being opened. Opening takes locks of whole-process kind, such as the one of
/// onig's compiler: a child that is forked meanwhile would wait for them for ever.
pub(crate) struct Opening(());

impl Opening {
    /// # Errors
    /// `Forked` when this process was forked while another thread was opening a guard.
    pub(crate) fn begin() -> Result<Self> {
        let here = u64::from(std::process::id());
        let add = |now: u64| match (now >> PROCESS_SHIFT, now as u32) {
            (_, 0) => Some((here << PROCESS_SHIFT) + 1),
            (process, _) => (process == here).then_some(now + 1),
        };
        let added = OPENING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.map(|_| Self(())).map_err(|now| {
            Error::new(
                Status::Forked,
                format!(
                    "process {} was opening a guard when this process, {here}, was forked from it, \
                     and locks may be held by threads that do not exist here: fork before or after",
                    now >> PROCESS_SHIFT
                ),
            )
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        OPENING.fetch_sub(1, Ordering::Relaxed);
    }
}
