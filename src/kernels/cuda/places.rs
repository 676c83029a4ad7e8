//! What the rows of a chunk are, on the GPU: written once, and read at every layer.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::gpu::{Element, Gpu, Memory};
use super::pages::{Page, Pages};
use super::params::{self, Merge, Span, Work};
use crate::error::{Error, Result};
use crate::kernels::Heads;
use crate::kernels::kv::PAGE_TOKENS;

/// Head dimensions that tensor cores serve.
pub(super) const TILED_DIMS: [usize; 2] = [64, 128];
/// As in `attention.cu`.
const TILE_ROWS: usize = 64;
const TILE_KEYS: usize = 64;
const PLAIN_ROWS: usize = 8;
pub(super) const MOST_DIM: usize = 256;
/// Keys that are worth a block of their own. Not measured.
const PART_KEYS: usize = 2 * TILE_KEYS;
/// Blocks that a multiprocessor holds at once, about.
const BLOCKS: usize = 2;

/// Rows of a chunk that belong to one text.
pub(crate) struct Part<'a> {
    pub(crate) rows: Range<usize>,
    /// Where in its text the first row stands.
    pub(crate) position: usize,
    /// Number of the text in its pass.
    pub(crate) segment: usize,
    /// With room for the last of the rows.
    pub(crate) pages: &'a Pages,
}

/// See the module.
pub(crate) struct Places {
    memory: Memory,
    /// What lies in the memory, from where on.
    spans: usize,
    row_spans: usize,
    tables: usize,
    cos: usize,
    sin: usize,
    work: usize,
    merges: usize,
    pub(super) rows: usize,
    pub(super) span_count: usize,
    pub(super) works: usize,
    pub(super) merge_count: usize,
    /// Parts of results at work.
    pub(super) slots: usize,
    pub(super) tile_rows: usize,
    pub(super) is_tiled: bool,
    /// Layers that the pages hold, at the least; none where all hold one that serves every layer.
    pub(super) layers: Option<usize>,
    heads: Heads,
    /// Nobody else is lent them while they are in use.
    _pages: Vec<Arc<Page>>,
}

impl Places {
    /// For rows whose rotations are `cos` and `sin`, `[rows, dim / 2]` each. Parts come in the order
    /// of their rows, and together are all of them.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails, or for heads that no kernel serves.
    pub(crate) fn new(
        gpu: &Gpu,
        parts: &[Part<'_>],
        (cos, sin): (&[f32], &[f32]),
        heads: Heads,
    ) -> Result<Self> {
        let is_tiled = gpu.element() == Element::Bf16 && TILED_DIMS.contains(&heads.dim);
        if heads.dim > MOST_DIM
            || !heads.dim.is_multiple_of(2)
            || !heads.query.is_multiple_of(heads.key_value)
        {
            return Err(Error::internal(format!("no attention on a GPU for {heads:?}")));
        }
        let mut spans = Vec::new();
        let mut row_spans: Vec<i32> = Vec::new();
        let mut tables: Vec<u64> = Vec::new();
        let mut kept = Vec::new();
        let mut layers = None;
        for part in parts {
            let end = part.position + part.rows.len();
            let pages = part.pages.pages().get(..end.div_ceil(PAGE_TOKENS));
            let pages = pages.ok_or_else(|| Error::internal("no page for a token"))?;
            if row_spans.len() != part.rows.start {
                return Err(Error::internal("rows that belong to no text"));
            }
            let shape = part.pages.shape();
            if shape.layers > 1 {
                layers = Some(layers.map_or(shape.layers, |most| shape.layers.min(most)));
            }
            row_spans.resize(part.rows.end, spans.len() as i32);
            spans.push(Span {
                layer_stride: part.pages.layer_stride() as i64,
                row: part.rows.start as i32,
                rows: part.rows.len() as i32,
                position: part.position as i32,
                segment: part.segment as i32,
                table: tables.len() as i32,
                unused: 0,
            });
            tables.extend(pages.iter().map(|page| page.memory.address));
            kept.extend(pages.iter().cloned());
        }
        let rows = row_spans.len();
        let halves = rows * heads.dim / 2;
        if cos.len() != halves || sin.len() != halves {
            return Err(Error::internal("rotations for another number of rows"));
        }
        let tile_rows = if is_tiled { TILE_ROWS } else { PLAIN_ROWS };
        let blocks = gpu.processors() * BLOCKS;
        let plan = share_out(&spans, heads, tile_rows, blocks);

        let mut packed = Packed::default();
        let [spans_at, row_spans_at, tables_at, cos_at, sin_at, work_at, merges_at] = [
            packed.push(&spans),
            packed.push(&row_spans),
            packed.push(&tables),
            packed.push(cos),
            packed.push(sin),
            packed.push(&plan.work),
            packed.push(&plan.merges),
        ];
        Ok(Self {
            memory: gpu.upload(&packed.0)?,
            spans: spans_at,
            row_spans: row_spans_at,
            tables: tables_at,
            cos: cos_at,
            sin: sin_at,
            work: work_at,
            merges: merges_at,
            rows,
            span_count: spans.len(),
            works: plan.work.len(),
            merge_count: plan.merges.len(),
            slots: plan.slots,
            tile_rows,
            is_tiled,
            layers,
            heads,
            _pages: kept,
        })
    }

    pub(super) fn heads(&self) -> Heads {
        self.heads
    }

    pub(super) fn params(&self) -> params::Places {
        params::Places {
            spans: self.memory.inside(self.spans),
            row_spans: self.memory.inside(self.row_spans),
            tables: self.memory.inside(self.tables),
        }
    }

    pub(super) fn rotations(&self) -> (u64, u64) {
        (self.memory.inside(self.cos), self.memory.inside(self.sin))
    }

    pub(super) fn work(&self) -> u64 {
        self.memory.inside(self.work)
    }

    pub(super) fn merges(&self) -> u64 {
        self.memory.inside(self.merges)
    }
}

/// Values of several kinds, one after the other, each aligned.
#[derive(Default)]
struct Packed(Vec<u8>);

impl Packed {
    /// Where they begin.
    fn push<T: Pod>(&mut self, values: &[T]) -> usize {
        self.0.resize(self.0.len().next_multiple_of(16), 0);
        let at = self.0.len();
        self.0.extend_from_slice(bytemuck::cast_slice(values));
        at
    }
}

/// What blocks attention has, for each key head.
#[derive(Default)]
struct Plan {
    work: Vec<Work>,
    merges: Vec<Merge>,
    slots: usize,
}

/// Shares queries out to tiles, and where those are too few for `blocks`, a tile's keys to parts.
fn share_out(spans: &[Span], heads: Heads, tile_rows: usize, blocks: usize) -> Plan {
    let group = heads.query / heads.key_value;
    let tiles = |span: &Span| (span.rows as usize * group).div_ceil(tile_rows);
    let all = spans.iter().map(tiles).sum::<usize>() * heads.key_value;
    let mut plan = Plan::default();
    for (number, span) in spans.iter().enumerate() {
        for tile in 0..tiles(span) {
            let first = tile * tile_rows;
            let last_token = ((first + tile_rows - 1) / group).min(span.rows as usize - 1);
            let keys = span.position as usize + last_token + 1;
            let parts = (blocks / all.max(1)).clamp(1, keys.div_ceil(PART_KEYS));
            let step = keys.div_ceil(parts).next_multiple_of(TILE_KEYS);
            let work = |begin: usize, slot: i32| Work {
                span: number as i32,
                first: first as i32,
                key_begin: begin as i32,
                key_end: keys.min(begin + step) as i32,
                slot,
            };
            let begins = (0..keys).step_by(step);
            let count = begins.len();
            if count == 1 {
                plan.work.push(work(0, -1));
                continue;
            }
            let slot = plan.slots as i32;
            plan.work.extend(begins.zip(slot..).map(|(begin, slot)| work(begin, slot)));
            let (span, first) = (number as i32, first as i32);
            plan.merges.push(Merge { span, first, slot, count: count as i32 });
            plan.slots += count;
        }
    }
    // What takes longest begins first.
    plan.work.sort_by_key(|work| work.key_begin - work.key_end);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(rows: i32, position: i32) -> Span {
        Span { layer_stride: 0, row: 0, rows, position, segment: 0, table: 0, unused: 0 }
    }

    /// Every query is held against every key that it sees, once.
    #[test]
    fn work_covers_every_query_and_key_once() {
        let heads = Heads { query: 6, key_value: 2, dim: 64 };
        for (rows, position, blocks) in
            [(1, 0, 264), (1, 2000, 264), (32, 2000, 264), (300, 17, 264), (2000, 0, 8), (5, 63, 0)]
        {
            for tile_rows in [TILE_ROWS, PLAIN_ROWS] {
                let spans = [span(rows, position), span(3, 0)];
                let plan = share_out(&spans, heads, tile_rows, blocks);
                let mut seen = 0;
                for tile in 0..(rows as usize * 3).div_ceil(tile_rows) {
                    let first = (tile * tile_rows) as i32;
                    let mut work: Vec<_> =
                        plan.work.iter().filter(|w| w.span == 0 && w.first == first).collect();
                    work.sort_by_key(|w| w.key_begin);
                    let mut end = 0;
                    for w in &work {
                        assert_eq!((w.key_begin, w.key_begin % TILE_KEYS as i32), (end, 0));
                        assert!(w.key_end > w.key_begin);
                        end = w.key_end;
                    }
                    let last = ((first + tile_rows as i32 - 1) / 3).min(rows - 1);
                    assert_eq!(end, position + last + 1);
                    let merge = plan.merges.iter().find(|m| m.span == 0 && m.first == first);
                    assert_eq!(merge.is_some(), work.len() > 1);
                    if let Some(merge) = merge {
                        let slots: Vec<_> = work.iter().map(|w| w.slot).collect();
                        let expected: Vec<_> = (merge.slot..merge.slot + merge.count).collect();
                        assert_eq!(slots, expected);
                    } else {
                        assert_eq!(work[0].slot, -1);
                    }
                    seen += work.len();
                }
                assert_eq!(seen, plan.work.iter().filter(|w| w.span == 0).count());
                let slots: i32 = plan.merges.iter().map(|m| m.count).sum();
                assert_eq!(slots as usize, plan.slots);
            }
        }
        // A short push onto a long text is many blocks.
        let plan = share_out(&[span(32, 2000)], heads, TILE_ROWS, 264);
        assert!(plan.work.len() > 2 && !plan.merges.is_empty());
    }
}
