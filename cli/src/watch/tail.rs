//! The end of a text that grows: what may still be passed on, and what stands around a crossing.

use siren::{Crossing, Push};

use crate::output::{HARMFUL, printable};

/// Most characters that are shown on either side of a crossing.
pub const AROUND: usize = 30;
/// Bytes that hold them, and the first of which may lie inside a character.
const KEPT: usize = 4 * AROUND + 4;

#[derive(Default)]
pub struct Tail {
    bytes: Vec<u8>,
    /// Bytes that came before `bytes`.
    forgotten: usize,
    /// Bytes in all.
    len: usize,
    cleared: usize,
    crossing: Option<Crossing>,
}

impl Tail {
    pub fn add(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.forget();
    }

    /// Bytes that came.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What `push`, of all that was added, cleared that was not cleared before.
    pub fn cleared(&mut self, push: &Push) -> Vec<u8> {
        let fresh =
            self.bytes[self.cleared - self.forgotten..push.cleared - self.forgotten].to_vec();
        self.cleared = push.cleared;
        self.crossing = push.first_crossing;
        self.forget();
        fresh
    }

    /// A crossing, in brackets, and up to `around` characters on either side of it.
    pub fn marked(&self, crossing: Crossing, around: usize) -> String {
        // Another chunk may have made other tokens of what was cleared.
        let start = self.cleared.min(crossing.byte).saturating_sub(self.forgotten);
        let end = crossing.byte.saturating_sub(self.forgotten);
        let [before, token, after] =
            [&self.bytes[..start], &self.bytes[start..end], &self.bytes[end..]]
                .map(String::from_utf8_lossy);
        let mut left: Vec<char> = printable(&before).rev().take(around).collect();
        left.reverse();
        let left = left.into_iter().collect::<String>();
        let right = printable(&after).take(around).collect::<String>();
        let token = printable(&token).collect::<String>();
        let cut =
            if self.forgotten > 0 || before.chars().nth(around).is_some() { "…" } else { "" };
        format!("{cut}{}{HARMFUL}[{token}]{HARMFUL:#}{}", left, right.trim_end())
    }

    /// A text without an end must not fill the memory.
    fn forget(&mut self) {
        if let Some(crossing) = self.crossing {
            let known = crossing.byte.max(self.cleared) + KEPT;
            self.bytes.truncate(known.saturating_sub(self.forgotten));
        } else {
            let old = self.cleared.saturating_sub(KEPT) - self.forgotten;
            self.bytes.drain(..old);
            self.forgotten += old;
        }
    }
}
