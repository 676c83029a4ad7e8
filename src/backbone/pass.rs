//! A pass at work: texts side by side, layer by layer, and inside a layer chunk by chunk of rows.
//!
//! It can be stopped between any two chunks and taken up again later. Only the layer at work needs
//! keys and values; a text whose later tokens are to run later keeps them for every layer.

use std::ops::Range;
use std::sync::Arc;

use super::decoder::Decoder;
use crate::error::{Error, Result};
use crate::kernels::{
    self, AtOnce, Backend, Form, HeadNorms, Inputs, Joined, Kv, KvShape, Meter, Places, Precision,
    Rows, Span, TextRows,
};

/// Rows of a chunk, for each thread: wide enough for the matrix products to run at full speed, and
/// few enough for a chunk of a small model to take some tens of milliseconds.
const CHUNK_ROWS_PER_THREAD: usize = 64;
const MIN_CHUNK_ROWS: usize = 128;
const MAX_CHUNK_ROWS: usize = 1024;
/// As [`MAX_CHUNK_ROWS`], where reading a layer's weights takes as long as the products of many rows.
const WIDE_CHUNK_ROWS: usize = 512;
/// Rows of a chunk for each multiprocessor of a GPU, and at the most: the smallest product of a layer,
/// `[rows, hidden_size]`, is to have some tiles of 128 by 128 for each of them. Not tried on one.
const CHUNK_ROWS_PER_PROCESSOR: usize = 32;
const MAX_CHUNK_ROWS_ON_GPU: usize = 4096;
/// Keys that each of a full chunk's rows sees before chunks get fewer rows.
const CHUNK_KEYS: usize = 2048;

/// The tokens of one text that a pass runs.
pub(crate) struct Segment {
    /// The whole text.
    pub(crate) tokens: Arc<[u32]>,
    /// How many of them have run before.
    pub(crate) start: usize,
    /// Keys and values of the tokens that have run.
    kv: Kv,
    /// Whether `kv` holds every layer, or just the one at work.
    keeps: bool,
}

/// Rows of a chunk that belong to one segment.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Index of the segment.
    pub(crate) segment: usize,
    pub(crate) rows: Range<usize>,
    /// Where in its text the first row stands.
    pub(crate) position: usize,
}

struct Chunk {
    parts: Vec<Part>,
    /// Hidden states, `[rows, hidden_size]`; none before the first layer.
    states: Option<Rows>,
    /// None before the first layer.
    places: Option<Places>,
}

/// Is shown an observed layer's states, `[rows, hidden_size]`, with the texts that they are of.
pub(crate) type Observe<'a> = dyn FnMut(usize, &Rows, &[Part], &Places) -> Result<()> + 'a;

/// See the module.
pub(crate) struct Pass {
    segments: Vec<Segment>,
    chunks: Vec<Chunk>,
    layer: usize,
    chunk: usize,
    /// Whether the segments have room for all of their keys and values.
    has_room: bool,
    /// Whether all of it is one step.
    is_at_once: bool,
}

impl Segment {
    /// A text that runs whole; with `keep`, its keys and values can be had afterwards.
    pub(crate) fn new(decoder: &Decoder, tokens: Arc<[u32]>, keep: bool, meter: &Meter) -> Self {
        let layers = if keep { decoder.blocks() } else { 1 };
        let shape = KvShape { layers, ..decoder.kv_shape() };
        let kv = Kv::new(shape, decoder.backend(), meter);
        Self { tokens, start: 0, kv, keeps: keep }
    }

    /// A text whose first `start` tokens' keys and values are known.
    pub(crate) fn resume(tokens: Arc<[u32]>, start: usize, kv: Kv) -> Self {
        Self { tokens, start, kv, keeps: true }
    }

    /// The keys and values of the whole text, where they were kept.
    pub(crate) fn into_kv(self) -> Option<Kv> {
        self.keeps.then_some(self.kv)
    }

    fn slot(&self, layer: usize) -> usize {
        if self.keeps { layer } else { 0 }
    }
}

impl Pass {
    pub(crate) fn new(decoder: &Decoder, segments: Vec<Segment>) -> Self {
        let chunks = parts(&segments, decoder.chunk_rows())
            .into_iter()
            .map(|parts| Chunk { parts, states: None, places: None })
            .collect();
        let rows = segments.iter().map(|s| s.tokens.len() - s.start).sum();
        let lengths = segments.iter().map(|segment| segment.tokens.len());
        let is_at_once = decoder.at_once().is_some() && AtOnce::takes(rows, lengths);
        Self { segments, chunks, layer: 0, chunk: 0, has_room: false, is_at_once }
    }

    /// Whether there is room for all of it, which its first step makes.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room
    }

    /// Whether its first step is all of it, whose launches are recorded: they read where the last
    /// pass's did.
    pub(crate) fn is_at_once(&self) -> bool {
        self.is_at_once
    }

    /// Runs the next chunk of the layer at work, and shows its states, `[rows, hidden_size]`, if
    /// the layer is an observed one. True when all is done. Chunks that hold no row of a segment
    /// that is still `live` are passed over.
    ///
    /// # Errors
    /// Those of `observe`; `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn advance(
        &mut self,
        decoder: &Decoder,
        live: impl Fn(usize) -> bool,
        observe: &mut Observe<'_>,
    ) -> Result<bool> {
        if !self.has_room {
            for segment in &mut self.segments {
                segment.kv.reserve(segment.start, segment.tokens.len())?;
            }
            self.has_room = true;
        }
        if self.is_at_once {
            self.run_at_once(decoder, live, observe)?;
            return Ok(true);
        }
        while self.layer < decoder.blocks() {
            let Some(chunk) = self.chunks.get_mut(self.chunk) else {
                self.layer += 1;
                self.chunk = 0;
                continue;
            };
            self.chunk += 1;
            if !chunk.parts.iter().any(|part| live(part.segment)) {
                chunk.states = None;
                continue;
            }
            if chunk.states.is_none() {
                chunk.begin(decoder, &self.segments)?;
            }
            let Chunk { parts, states: Some(states), places: Some(places) } = chunk else {
                return Err(Error::internal("a chunk that has not begun"));
            };
            let (layer, segments) = (self.layer, &mut self.segments);
            let mut attend = |qkv: Rows, norms: Option<&HeadNorms>, form: Form| {
                attend(decoder, layer, segments, parts, (qkv, places), norms, form)
            };
            decoder.block(layer, states, &mut attend, &mut |states| {
                observe(layer, states, parts, places)
            })?;
            return Ok(false);
        }
        Ok(true)
    }

    fn run_at_once(
        &self,
        decoder: &Decoder,
        live: impl Fn(usize) -> bool,
        observe: &mut Observe<'_>,
    ) -> Result<()> {
        let live = |chunk: &&Chunk| chunk.parts.iter().any(|part| live(part.segment));
        for Chunk { parts, .. } in self.chunks.iter().filter(live) {
            let (tokens, texts) = (tokens(parts, &self.segments), texts(parts, &self.segments));
            decoder.run_at_once(texts, &tokens, &mut |places| {
                let mut states = decoder.embed(&tokens, places)?;
                for layer in 0..decoder.blocks() {
                    let mut attend = |qkv: Rows, norms: Option<&HeadNorms>, _| {
                        kernels::attention_on_gpu(&qkv, places, norms, layer)
                    };
                    decoder.block(layer, &mut states, &mut attend, &mut |states| {
                        observe(layer, states, parts, places)
                    })?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The segments, in the order in which they were given; where the pass was given up, with more
    /// keys and values than they came with.
    pub(crate) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

impl Chunk {
    fn begin(&mut self, decoder: &Decoder, segments: &[Segment]) -> Result<()> {
        let tokens = tokens(&self.parts, segments);
        let places = decoder.places(texts(&self.parts, segments), &tokens)?;
        self.states = Some(decoder.embed(&tokens, &places)?);
        self.places = Some(places);
        Ok(())
    }
}

/// The tokens of a chunk's rows.
fn tokens(parts: &[Part], segments: &[Segment]) -> Vec<u32> {
    let tokens = parts.iter().flat_map(|part| {
        &segments[part.segment].tokens[part.position..part.position + part.rows.len()]
    });
    tokens.copied().collect()
}

fn texts<'a>(
    parts: &'a [Part],
    segments: &'a [Segment],
) -> impl Iterator<Item = TextRows<'a>> + Clone {
    parts.iter().map(|part| TextRows {
        rows: part.rows.clone(),
        position: part.position,
        text: part.segment,
        kv: &segments[part.segment].kv,
    })
}

/// Attention of a chunk's joined queries, keys and values, which are stored on the way.
fn attend(
    decoder: &Decoder,
    layer: usize,
    segments: &mut [Segment],
    parts: &[Part],
    (qkv, places): (Rows, &Places),
    norms: Option<&HeadNorms>,
    form: Form,
) -> Result<Inputs> {
    if let Places::Cuda(_) = places {
        return kernels::attention_on_gpu(&qkv, places, norms, layer);
    }
    let qkv = Joined::new(qkv, places, norms, decoder.config().heads())?;
    for part in parts {
        let segment = &mut segments[part.segment];
        let slot = segment.slot(layer);
        segment.kv.store(slot, part.position, &qkv, part.rows.clone())?;
    }
    let spans: Vec<_> = parts
        .iter()
        .map(|part| {
            let segment = &segments[part.segment];
            Span {
                rows: part.rows.clone(),
                position: part.position,
                kv: &segment.kv,
                layer: segment.slot(layer),
            }
        })
        .collect();
    kernels::attention(&qkv, &spans, form)
}

/// The most rows of a chunk on this GPU, or on the current rayon pool, for a block that takes
/// `row_flops` operations a row.
pub(super) fn chunk_rows(row_flops: usize, backend: &Backend, precision: Precision) -> usize {
    if let Backend::Cuda(gpu) = backend {
        let rows = CHUNK_ROWS_PER_PROCESSOR * gpu.processors();
        return rows.clamp(MIN_CHUNK_ROWS, MAX_CHUNK_ROWS_ON_GPU);
    }
    let threads = rayon::current_num_threads();
    let rows = (CHUNK_ROWS_PER_THREAD * threads).clamp(MIN_CHUNK_ROWS, MAX_CHUNK_ROWS);
    let Some(flops) = kernels::chunk_flops_per_thread(precision) else { return rows };
    (flops * threads / row_flops.max(1)).clamp(rows, rows.max(WIDE_CHUNK_ROWS))
}

/// Shares the segments' tokens out to as few chunks of at most `most` rows as there can be, of much the
/// same cost: a chunk of a few rows reads all weights too. Where rows see many keys, chunks get fewer
/// of them.
fn parts(segments: &[Segment], most: usize) -> Vec<Vec<Part>> {
    // A row costs its matrix products, whatever it sees.
    let cost = |position: usize| position.max(CHUNK_KEYS);
    let rows = segments.iter().map(|segment| segment.start..segment.tokens.len());
    let total: usize = rows.clone().flatten().map(cost).sum();
    let count = total.div_ceil(most * CHUNK_KEYS);
    let mut chunks: Vec<Vec<Part>> = Vec::with_capacity(count);
    let (mut rows_of_chunk, mut spent) = (0, 0);
    for (i, positions) in rows.enumerate() {
        for position in positions {
            spent += cost(position);
            let is_full = spent * count > total * chunks.len() || rows_of_chunk == most;
            if is_full {
                chunks.push(Vec::new());
                rows_of_chunk = 0;
            }
            let Some(chunk) = chunks.last_mut() else { continue };
            match chunk.last_mut().filter(|part| part.segment == i) {
                Some(part) => part.rows.end += 1,
                None => {
                    let rows = rows_of_chunk..rows_of_chunk + 1;
                    chunk.push(Part { segment: i, rows, position });
                }
            }
            rows_of_chunk += 1;
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Heads;

    /// The sizes of chunks of at most `most` rows, of texts of `(known, all)` tokens.
    fn sizes(texts: &[(usize, usize)], most: usize) -> Vec<usize> {
        let heads = Heads { query: 1, key_value: 1, dim: 2 };
        let shape = KvShape { layers: 1, heads, precision: Precision::F32 };
        let segments: Vec<_> = texts
            .iter()
            .map(|&(known, all)| {
                let kv = Kv::new(shape, &Backend::Cpu, &Meter::default());
                Segment::resume(vec![0; all].into(), known, kv)
            })
            .collect();
        let chunks = parts(&segments, most);
        let mut runs = texts.iter().map(|(known, _)| *known).collect::<Vec<_>>();
        for parts in &chunks {
            let mut rows = 0;
            for part in parts {
                assert_eq!(part.rows.start, rows);
                assert_eq!(part.position, runs[part.segment]);
                runs[part.segment] += part.rows.len();
                rows = part.rows.end;
            }
        }
        assert!(texts.iter().map(|(_, all)| all).eq(&runs), "every token runs once, in order");
        chunks.iter().map(|parts| parts.last().map_or(0, |part| part.rows.end)).collect()
    }

    #[test]
    fn chunks_are_as_few_as_there_can_be_and_of_one_size() {
        assert!(sizes(&[], 128).is_empty());
        assert_eq!(sizes(&[(0, 1)], 128), [1]);
        assert_eq!(sizes(&[(0, 128)], 128), [128]);
        assert_eq!(sizes(&[(0, 129)], 128), [64, 65]);
        assert_eq!(sizes(&[(0, 100), (90, 100), (0, 120)], 128), [115, 115]);
        assert_eq!(sizes(&[(0, 1025)], 512), [341, 342, 342]);
    }

    #[test]
    fn rows_that_see_many_keys_come_in_fewer_a_chunk() {
        let sizes = sizes(&[(0, 128), (4 * CHUNK_KEYS - 128, 4 * CHUNK_KEYS)], 128);
        assert_eq!(sizes.len(), 5);
        assert!(sizes[0] >= 120 && sizes[1..].iter().all(|rows| *rows < 40), "{sizes:?}");
    }
}
