//! Hidden states -> means of the selected neurons -> head -> score.

mod head;
mod pool;
mod taps;

pub(crate) use head::Head;
pub(crate) use pool::{Reading, Selection};
pub(crate) use taps::{PAGE_TOKENS, Taps};
