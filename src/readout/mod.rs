//! Hidden states -> means of the selected neurons -> head -> score.

mod gather;
mod head;
mod paged;
mod pool;
mod running;
mod taps;

pub(crate) use head::Head;
pub(crate) use pool::{Known, Part, Reading, Readings, Selection};
pub(crate) use taps::PAGE_TOKENS;
