//! What the rows of a chunk are, on the GPU: written once, and read at every layer.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::gpu::{Gpu, Memory};
use super::graphs::Graphs;
use super::names;
use super::pages::{Page, Pages};
use super::params::{self, Merge, Span, Work};
use crate::error::{Error, Result, Status};
use crate::kernels::Heads;
use crate::kernels::kv::PAGE_TOKENS;

/// As in `attention.cu`.
const TILE_ROWS: usize = 64;
const TILE_KEYS: usize = 64;
const PLAIN_ROWS: usize = 8;
pub(super) const MOST_DIM: usize = 256;
/// Keys that are worth a block of their own. Not measured.
const PART_KEYS: usize = 2 * TILE_KEYS;
/// Blocks that a multiprocessor holds at once, about.
const BLOCKS: usize = 2;
/// Rows that a recording is for: fewer are filled up.
const TIERS: [usize; 4] = [16, 32, 64, 128];
/// The most rows, texts, and pages of all texts that run at once, whose launches may be recorded.
pub(crate) const AT_ONCE_ROWS: usize = TIERS[TIERS.len() - 1];
pub(crate) const AT_ONCE_TEXTS: usize = 128;
pub(crate) const AT_ONCE_TABLES: usize = 4096;

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

/// The rows of a chunk. Parts come in the order of their rows, and together are all of them.
pub(crate) struct Chunk<'a> {
    pub(crate) parts: &'a [Part<'a>],
    /// Of each row, all of them below `vocabulary`.
    pub(crate) tokens: &'a [u32],
    pub(crate) vocabulary: usize,
    /// Cosines and sines, `[rows, dim / 2]` each.
    pub(crate) rotations: (&'a [f32], &'a [f32]),
    pub(crate) heads: Heads,
}

/// See the module.
pub(crate) struct Places {
    memory: Arc<Memory>,
    at: Offsets,
    room: Room,
    vocabulary: usize,
    pub(super) tile_rows: usize,
    /// The kernel that attends on tensor cores, where there is one for these heads.
    pub(super) tiled_attention: Option<&'static str>,
    /// Layers that the pages hold, at the least; none where all hold one that serves every layer.
    pub(super) layers: Option<usize>,
    heads: Heads,
    /// Nobody else is lent them while they are in use.
    _pages: Vec<Arc<Page>>,
}

/// How many there is room for of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    rows: usize,
    spans: usize,
    work: usize,
    merges: usize,
    /// Parts of results at work.
    slots: usize,
    /// Addresses of pages.
    tables: usize,
}

impl Room {
    /// For whatever up to `rows` rows need.
    fn of(rows: usize, blocks: usize, heads: Heads, tile_rows: usize) -> Self {
        let group = heads.query / heads.key_value;
        let blocks = blocks / heads.key_value;
        // Each row may be a text's only one. Keys are shared out where there are no more tiles than
        // half of the blocks, to no more parts than blocks.
        let work = (rows * group.div_ceil(tile_rows)).max(blocks);
        Self { rows, spans: rows, work, merges: blocks / 2, slots: blocks, tables: AT_ONCE_TABLES }
    }

    fn fits(&self, other: &Self) -> bool {
        let counts =
            |room: &Self| [room.rows, room.spans, room.work, room.merges, room.slots, room.tables];
        counts(self).iter().zip(counts(other)).all(|(own, other)| *own <= other)
    }
}

/// Where in the memory each kind begins.
#[derive(Clone, Copy)]
struct Offsets {
    tokens: usize,
    spans: usize,
    row_spans: usize,
    cos: usize,
    sin: usize,
    work: usize,
    merges: usize,
    tables: usize,
}

/// Whether a GPU's kernels serve these heads.
///
/// # Errors
/// `Unsupported`.
pub(crate) fn check_heads(heads: Heads) -> Result<()> {
    let Heads { query, key_value, dim } = heads;
    if (2..=MOST_DIM).contains(&dim) && dim.is_multiple_of(2) && query.is_multiple_of(key_value) {
        return Ok(());
    }
    Err(Error::new(
        Status::Unsupported,
        format!(
            "heads of {dim} numbers, {query} over {key_value}, on a GPU: expected an even number of \
             up to {MOST_DIM}, and a whole number of query heads a key head"
        ),
    ))
}

impl Places {
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails; `Unsupported` for heads that no kernel serves.
    pub(crate) fn new(gpu: &Gpu, chunk: &Chunk<'_>) -> Result<Self> {
        let plan = Plan::new(gpu, chunk)?;
        let (bytes, at) = plan.packed(chunk, plan.room);
        Ok(plan.lying(Arc::new(gpu.upload(&bytes)?), at, plan.room, chunk))
    }

    /// Does `launches` at once, for a chunk of up to [`AT_ONCE_ROWS`] rows and [`AT_ONCE_TABLES`] pages:
    /// rows are filled up to a number for which they are recorded, and replayed from then on.
    ///
    /// # Safety
    /// `launches` depends on nothing but its places and memory that stays.
    ///
    /// # Errors
    /// Those of `launches` and of [`Self::new`]; `Internal` for a larger chunk.
    pub(crate) unsafe fn at_once(
        graphs: &Graphs,
        chunk: &Chunk<'_>,
        launches: &mut dyn FnMut(Self) -> Result<()>,
    ) -> Result<()> {
        let gpu = graphs.gpu();
        let plan = Plan::new(gpu, chunk)?;
        let rows = TIERS.into_iter().find(|&rows| plan.room.rows <= rows);
        let blocks = gpu.processors() * BLOCKS;
        let room = rows.map(|rows| Room::of(rows, blocks, chunk.heads, plan.tile_rows));
        let room = room.filter(|room| plan.room.fits(room));
        let room = room.ok_or_else(|| Error::internal("a chunk that does not run at once"))?;
        let (bytes, at) = plan.packed(chunk, room);
        let all = at.tables + room.tables * size_of::<u64>();
        let mut lying =
            |memory: &Arc<Memory>| launches(plan.lying(memory.clone(), at, room, chunk));
        // SAFETY: the room for each number of rows is the same each time; the caller says the rest.
        unsafe { graphs.run(room.rows, all, &bytes, &mut lying) }
    }

    /// What lends the results for its rows.
    pub(crate) fn gpu(&self) -> &Gpu {
        self.memory.gpu()
    }

    pub(super) fn heads(&self) -> Heads {
        self.heads
    }

    /// How many ids its tokens are below.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(super) fn rows(&self) -> usize {
        self.room.rows
    }

    pub(super) fn spans(&self) -> usize {
        self.room.spans
    }

    pub(super) fn works(&self) -> usize {
        self.room.work
    }

    pub(super) fn merge_count(&self) -> usize {
        self.room.merges
    }

    pub(super) fn slots(&self) -> usize {
        self.room.slots
    }

    pub(super) fn params(&self) -> params::Places {
        params::Places {
            spans: self.memory.inside(self.at.spans),
            row_spans: self.memory.inside(self.at.row_spans),
            tables: self.memory.inside(self.at.tables),
        }
    }

    pub(super) fn tokens(&self) -> u64 {
        self.memory.inside(self.at.tokens)
    }

    pub(super) fn rotations(&self) -> (u64, u64) {
        (self.memory.inside(self.at.cos), self.memory.inside(self.at.sin))
    }

    pub(super) fn work(&self) -> u64 {
        self.memory.inside(self.at.work)
    }

    pub(super) fn merges(&self) -> u64 {
        self.memory.inside(self.at.merges)
    }
}

/// What is written to the GPU for a chunk.
struct Plan {
    spans: Vec<Span>,
    row_spans: Vec<i32>,
    tables: Vec<u64>,
    shares: Shares,
    /// What it takes.
    room: Room,
    tile_rows: usize,
    tiled_attention: Option<&'static str>,
    layers: Option<usize>,
    pages: Vec<Arc<Page>>,
}

impl Plan {
    fn new(gpu: &Gpu, chunk: &Chunk<'_>) -> Result<Self> {
        let heads = chunk.heads;
        check_heads(heads)?;
        let tiled_attention = names::tiled_attention(gpu.element(), heads.dim);
        let (mut spans, mut row_spans, mut tables) = (vec![], vec![], vec![]);
        let (mut kept, mut layers) = (vec![], None);
        for part in chunk.parts {
            let end = part.position + part.rows.len();
            let pages = part.pages.pages().get(..end.div_ceil(PAGE_TOKENS));
            let pages = pages.ok_or_else(|| Error::internal("no page for a token"))?;
            if row_spans.len() != part.rows.start {
                return Err(Error::internal("rows that belong to no text"));
            }
            if part.pages.layers() > 1 {
                let these = part.pages.layers();
                layers = Some(layers.map_or(these, |least: usize| least.min(these)));
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
        let (cos, sin) = chunk.rotations;
        let halves = rows * heads.dim / 2;
        if [cos.len(), sin.len(), chunk.tokens.len()] != [halves, halves, rows] {
            return Err(Error::internal("rotations or tokens for another number of rows"));
        }
        if let Some(token) = chunk.tokens.iter().find(|&&token| token as usize >= chunk.vocabulary)
        {
            let known = chunk.vocabulary;
            return Err(Error::internal(format!("token id {token} in a vocabulary of {known}")));
        }
        let tile_rows = if tiled_attention.is_some() { TILE_ROWS } else { PLAIN_ROWS };
        let shares = share_out(&spans, heads, tile_rows, gpu.processors() * BLOCKS);
        let room = Room {
            rows,
            spans: spans.len(),
            work: shares.work.len(),
            merges: shares.merges.len(),
            slots: shares.slots,
            tables: tables.len(),
        };
        let pages = kept;
        Ok(Self {
            spans,
            row_spans,
            tables,
            shares,
            room,
            tile_rows,
            tiled_attention,
            layers,
            pages,
        })
    }

    /// The bytes as they lie on the GPU, and where; what there is more room for stands for nothing.
    fn packed(&self, chunk: &Chunk<'_>, room: Room) -> (Vec<u8>, Offsets) {
        const NO_SPAN: Span =
            Span { layer_stride: 0, row: 0, rows: 0, position: 0, segment: 0, table: 0, unused: 0 };
        const NO_WORK: Work = Work { span: -1, first: 0, key_begin: 0, key_end: 0, slot: -1 };
        const NO_MERGE: Merge = Merge { span: 0, first: 0, slot: 0, count: 0 };
        let halves = room.rows * chunk.heads.dim / 2;
        let mut packed = Packed::default();
        let at = Offsets {
            tokens: packed.push(chunk.tokens, room.rows, 0),
            spans: packed.push(&self.spans, room.spans, NO_SPAN),
            row_spans: packed.push(&self.row_spans, room.rows, -1),
            cos: packed.push(chunk.rotations.0, halves, 0.0),
            sin: packed.push(chunk.rotations.1, halves, 0.0),
            work: packed.push(&self.shares.work, room.work, NO_WORK),
            merges: packed.push(&self.shares.merges, room.merges, NO_MERGE),
            // The last, since it may be the largest: nothing is written for what is not used.
            tables: packed.push(&self.tables, 0, 0),
        };
        (packed.0, at)
    }

    /// The places of what has been written to `memory`.
    fn lying(&self, memory: Arc<Memory>, at: Offsets, room: Room, chunk: &Chunk<'_>) -> Places {
        Places {
            memory,
            at,
            room,
            vocabulary: chunk.vocabulary,
            tile_rows: self.tile_rows,
            tiled_attention: self.tiled_attention,
            layers: self.layers,
            heads: chunk.heads,
            _pages: self.pages.clone(),
        }
    }
}

/// Values of several kinds, one after the other, each aligned.
#[derive(Default)]
struct Packed(Vec<u8>);

impl Packed {
    /// Where they begin; `filler` stands in the places of those that `room` has more of.
    fn push<T: Pod>(&mut self, values: &[T], room: usize, filler: T) -> usize {
        self.0.resize(self.0.len().next_multiple_of(16), 0);
        let at = self.0.len();
        self.0.extend_from_slice(bytemuck::cast_slice(values));
        for _ in values.len()..room {
            self.0.extend_from_slice(bytemuck::bytes_of(&filler));
        }
        at
    }
}

/// What blocks attention has, for each key head.
#[derive(Default)]
struct Shares {
    work: Vec<Work>,
    merges: Vec<Merge>,
    slots: usize,
}

/// Shares queries out to tiles, and where those are too few for `blocks`, a tile's keys to parts.
fn share_out(spans: &[Span], heads: Heads, tile_rows: usize, blocks: usize) -> Shares {
    let group = heads.query / heads.key_value;
    let tiles = |span: &Span| (span.rows as usize * group).div_ceil(tile_rows);
    let all = spans.iter().map(tiles).sum::<usize>() * heads.key_value;
    let mut plan = Shares::default();
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

    #[test]
    fn heads_that_no_kernel_serves_are_refused() {
        for (query, key_value, dim) in [(4, 2, 15), (4, 2, 258), (4, 3, 64), (4, 2, 0)] {
            let error = check_heads(Heads { query, key_value, dim }).unwrap_err();
            assert_eq!(error.status(), Status::Unsupported);
        }
        for (query, key_value, dim) in [(4, 2, 2), (40, 8, 128), (6, 6, 256)] {
            check_heads(Heads { query, key_value, dim }).unwrap();
        }
    }

    #[test]
    fn work_of_any_texts_finds_room_where_it_is_recorded() {
        let mut random = 1u32;
        let mut below = |most: usize| {
            random = random.wrapping_mul(1664525).wrapping_add(1013904223);
            (random >> 8) as usize % most
        };
        for (query, key_value) in [(6, 2), (32, 8), (16, 8), (5, 1), (40, 8)] {
            let heads = Heads { query, key_value, dim: 64 };
            for rows in TIERS {
                for tile_rows in [TILE_ROWS, PLAIN_ROWS] {
                    for _ in 0..50 {
                        let (mut left, mut spans) = (rows, vec![]);
                        let most = [1, 3, rows][below(3)];
                        while left > 0 {
                            let count = (1 + below(most)).min(left);
                            spans.push(span(count as i32, below(5000) as i32));
                            left -= count;
                        }
                        let blocks = [8, 264, 1][below(3)];
                        let shares = share_out(&spans, heads, tile_rows, blocks);
                        let room = Room::of(rows, blocks, heads, tile_rows);
                        assert!(shares.work.len() <= room.work);
                        assert!(shares.merges.len() <= room.merges);
                        assert!(shares.slots <= room.slots);
                    }
                }
            }
        }
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
