//! Hidden states -> means of the selected neurons -> head -> score.

mod head;
mod pool;

pub(crate) use head::Head;
pub(crate) use pool::{Pool, Selection};
