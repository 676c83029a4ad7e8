//! A guard's threads do not survive `fork`: the child must be told, not left waiting.

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
