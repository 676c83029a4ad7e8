//! What kernels are called with: `params.cuh` has the same structs, field by field. Addresses are
//! the device's.

use bytemuck::{Pod, Zeroable};

use crate::kernels::Heads as HeadCounts;

/// Consecutive rows of a chunk that are consecutive tokens of one text.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) layer_stride: i64,
    pub(super) row: i32,
    pub(super) rows: i32,
    pub(super) position: i32,
    pub(super) segment: i32,
    pub(super) table: i32,
    pub(super) unused: i32,
}

/// Some of a span's queries, and the keys that they are held against.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) span: i32,
    pub(super) first: i32,
    pub(super) key_begin: i32,
    pub(super) key_end: i32,
    pub(super) slot: i32,
}

/// Parts of a result that become one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) span: i32,
    pub(super) first: i32,
    pub(super) slot: i32,
    pub(super) count: i32,
}

/// What is read of a text of a pass.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadText {
    pub(super) table: i32,
    pub(super) summed: i32,
}

// SAFETY: structs of numbers in C's layout, without a gap, that may all be zero.
unsafe impl Zeroable for Span {}
// SAFETY: as above; any bits are numbers.
unsafe impl Pod for Span {}
// SAFETY: as above.
unsafe impl Zeroable for Work {}
// SAFETY: as above.
unsafe impl Pod for Work {}
// SAFETY: as above.
unsafe impl Zeroable for Merge {}
// SAFETY: as above.
unsafe impl Pod for Merge {}
// SAFETY: as above.
unsafe impl Zeroable for ReadText {}
// SAFETY: as above.
unsafe impl Pod for ReadText {}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) spans: u64,
    pub(super) row_spans: u64,
    pub(super) tables: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Heads {
    query: i32,
    key_value: i32,
    dim: i32,
}

impl From<HeadCounts> for Heads {
    fn from(heads: HeadCounts) -> Self {
        let [query, key_value, dim] = [heads.query, heads.key_value, heads.dim].map(|n| n as i32);
        Self { query, key_value, dim }
    }
}

#[repr(C)]
pub(super) struct Embed {
    pub(super) table: u64,
    pub(super) tokens: u64,
    pub(super) out: u64,
    pub(super) width: i32,
}

#[repr(C)]
pub(super) struct Norm {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) weight: u64,
    pub(super) out: u64,
    pub(super) width: i32,
    pub(super) eps: f32,
}

#[repr(C)]
pub(super) struct Add {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) y_rows: i32,
    pub(super) rows: i32,
    pub(super) width: i32,
}

#[repr(C)]
pub(super) struct Gate {
    pub(super) gate_up: u64,
    pub(super) out: u64,
    pub(super) rows: i32,
    pub(super) width: i32,
}

#[repr(C)]
pub(super) struct Rotate {
    pub(super) qkv: u64,
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) query_norm: u64,
    pub(super) key_norm: u64,
    pub(super) places: Places,
    pub(super) heads: Heads,
    pub(super) rows: i32,
    pub(super) layer: i32,
    pub(super) eps: f32,
}

#[repr(C)]
pub(super) struct Attention {
    pub(super) qkv: u64,
    pub(super) out: u64,
    pub(super) work: u64,
    pub(super) parts: u64,
    pub(super) extents: u64,
    pub(super) places: Places,
    pub(super) heads: Heads,
    pub(super) layer: i32,
    pub(super) scale: f32,
}

#[repr(C)]
pub(super) struct MergeParts {
    pub(super) parts: u64,
    pub(super) extents: u64,
    pub(super) out: u64,
    pub(super) merges: u64,
    pub(super) spans: u64,
    pub(super) heads: Heads,
    pub(super) tile_rows: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) sums: u64,
    pub(super) texts: u64,
    pub(super) tables: u64,
    pub(super) features: i32,
}

#[repr(C)]
pub(super) struct Gather {
    pub(super) states: u64,
    pub(super) columns: u64,
    pub(super) reading: Reading,
    pub(super) places: Places,
    pub(super) width: i32,
    pub(super) count: i32,
    pub(super) start: i32,
}
