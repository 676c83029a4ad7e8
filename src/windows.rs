//! How the tokens of a long text are shared out to windows that overlap.

use std::ops::Range;

use crate::call::Windows;
use crate::error::{Error, Result};

/// Sizes in tokens of text; the special tokens that every window gets besides are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Of a window.
    room: usize,
    /// From the start of one window to the next one's.
    stride: usize,
}

impl Layout {
    /// Windows of a guard that reads `max_length` tokens, `special` of them special ones.
    ///
    /// # Errors
    /// `InvalidArgument` for windows that hold no text, more than `max_length`, or leave gaps.
    pub(crate) fn new(windows: Windows, max_length: usize, special: usize) -> Result<Self> {
        let tokens = if windows.tokens == 0 { max_length } else { windows.tokens };
        if tokens <= special || tokens > max_length {
            return Err(Error::argument(format!(
                "a window has {tokens} tokens, expected {} to {max_length}, the guard's max_length",
                special + 1
            )));
        }
        let room = tokens - special;
        let stride = if windows.stride == 0 { room.div_ceil(2) } else { windows.stride };
        if stride > room {
            return Err(Error::argument(format!(
                "the stride is {stride} tokens, expected at most {room}, the text's tokens in a \
                 window"
            )));
        }
        Ok(Self { room, stride })
    }

    /// One window of `room` tokens; there is never a second one if no more tokens are looked at.
    pub(crate) fn single(room: usize) -> Self {
        Self { room, stride: room.max(1) }
    }

    /// Windows of a text of `tokens` tokens: as many as it takes to reach its end.
    pub(crate) fn count(self, tokens: usize) -> usize {
        1 + tokens.saturating_sub(self.room).div_ceil(self.stride)
    }

    /// The tokens of window `index` of a text of `tokens` tokens.
    pub(crate) fn range(self, index: usize, tokens: usize) -> Range<usize> {
        let start = index * self.stride;
        start..tokens.min(start + self.room)
    }

    /// The first token of window `index` that no earlier window holds.
    pub(crate) fn fresh(self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => (index - 1) * self.stride + self.room,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn windows_cover_a_text_without_gaps_and_end_with_it() {
        for (room, stride) in [(4, 2), (4, 4), (5, 3), (1, 1), (7, 1)] {
            let layout = Layout::new(Windows { tokens: room + 1, stride }, room + 1, 1).unwrap();
            for tokens in 1..60 {
                let count = layout.count(tokens);
                let mut next = 0;
                for index in 0..count {
                    let range = layout.range(index, tokens);
                    assert!(range.start <= next && range.len() <= room);
                    assert_eq!(layout.fresh(index), next, "{room} {stride} {tokens} {index}");
                    assert!(range.end > next || tokens == 0);
                    next = range.end;
                }
                assert_eq!(next, tokens);
            }
        }
        assert_eq!(Layout::single(10).count(10), 1);
        assert_eq!(Layout::single(0).count(0), 1);
    }

    #[test]
    fn windows_that_cannot_be_are_refused_and_zero_is_a_default() {
        let new = |tokens, stride| Layout::new(Windows { tokens, stride }, 16, 1);
        assert_eq!(new(0, 0).unwrap(), Layout { room: 15, stride: 8 });
        for (tokens, stride) in [(1, 1), (17, 1), (10, 10), (0, 16)] {
            assert_eq!(new(tokens, stride).unwrap_err().status(), Status::InvalidArgument);
        }
        assert_eq!(new(10, 9).unwrap(), Layout { room: 9, stride: 9 });
    }
}
