//! Hidden states -> means of the selected neurons -> head -> score.

mod gather;
mod head;
mod pool;
mod taps;

pub(crate) use head::Head;
pub(crate) use pool::{Known, Part, Reading, Readings, Selection};
pub(crate) use taps::PAGE_TOKENS;
