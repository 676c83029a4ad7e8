//! What a pass reads of its texts' states: the selected neurons, token by token into pages for texts
//! that keep them, as sums for texts that do not.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::gpu::{Element, Gpu, Grid, Memory};
use super::names;
use super::ops::Shape;
use super::pages::{Page, Pages};
use super::params::{self, ReadText};
use super::places::{AT_ONCE_TABLES, AT_ONCE_TEXTS, Places};
use crate::error::{Error, Result};
use crate::kernels::kv::PAGE_TOKENS;

/// As in `readout.cu`.
const SUM_COLUMNS: usize = 32;
const SUM_THREADS: u32 = 256;
const GATHER_THREADS: u32 = 128;

/// The columns of one layer's states that are read.
pub(crate) struct Columns {
    /// Their numbers, u32.
    memory: Memory,
    count: usize,
    /// Where among all features they begin.
    start: usize,
}

impl Columns {
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn new(gpu: &Gpu, numbers: &[u32], start: usize) -> Result<Self> {
        Ok(Self { memory: gpu.upload(numbers)?, count: numbers.len(), start })
    }
}

impl std::fmt::Debug for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Columns({} from {})", self.count, self.start)
    }
}

/// A text that is read.
pub(crate) struct Read<'a> {
    /// For neurons token by token, with room for all tokens; else only the sums of the tokens that
    /// run are had.
    pub(crate) pages: Option<&'a Pages>,
    /// Tokens, from the first one on, that are summed from the pages.
    pub(crate) summed: usize,
    /// Tokens whose neurons come back one by one.
    pub(crate) rows: Range<usize>,
}

/// See the module.
pub(crate) struct Reading {
    gpu: Gpu,
    params: params::Reading,
    texts: usize,
    features: usize,
    /// What comes back: f64 sums, `[texts, features]`, and then rows of neurons.
    out: Memory,
    /// Bytes of pages that come back as those rows.
    rows: Vec<(Arc<Page>, Range<usize>)>,
    /// Where the kernels find all of that.
    _memory: Arc<Memory>,
    /// Nobody else is lent them while they are in use.
    _pages: Vec<Arc<Page>>,
}

/// Memory in which recorded launches find what they read: that of one pass, which runs at once.
#[derive(Debug)]
pub(crate) struct Desk(Arc<Memory>);

impl Desk {
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        let bytes = tables_at(AT_ONCE_TEXTS) + AT_ONCE_TABLES * size_of::<u64>();
        Ok(Self(Arc::new(gpu.hold(bytes)?)))
    }
}

/// Where texts and, after as many as there is room for, tables lie.
const TEXTS_AT: usize = size_of::<u64>();

const fn tables_at(texts: usize) -> usize {
    TEXTS_AT + texts * size_of::<ReadText>()
}

/// What was read.
pub(crate) struct Results {
    /// `[texts, features]`
    pub(crate) sums: Vec<f64>,
    /// The neurons of the tokens that were asked for one by one, text after text.
    pub(crate) rows: Vec<f32>,
}

impl Reading {
    /// On `desk`, which holds a pass's texts until it has been replayed, or in memory of its own.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails, or for more than the desk has room for.
    pub(crate) fn new(
        gpu: &Gpu,
        texts: &[Read<'_>],
        features: usize,
        desk: Option<&Desk>,
    ) -> Result<Self> {
        let row_bytes = features * gpu.element().bytes();
        let (mut read, mut tables) = (vec![], vec![]);
        let (mut kept, mut rows) = (vec![], vec![]);
        for text in texts {
            let Some(pages) = text.pages else {
                read.push(ReadText { table: -1, summed: 0 });
                continue;
            };
            read.push(ReadText { table: tables.len() as i32, summed: text.summed as i32 });
            tables.extend(pages.pages().iter().map(|page| page.memory.address));
            kept.extend(pages.pages().iter().cloned());
            for (number, page) in pages.pages().iter().enumerate() {
                let first = number * PAGE_TOKENS;
                let begin = text.rows.start.max(first);
                let end = text.rows.end.min(first + PAGE_TOKENS);
                if begin < end {
                    let bytes = (begin - first) * row_bytes..(end - first) * row_bytes;
                    rows.push((page.clone(), bytes));
                }
            }
        }
        let sum_bytes = texts.len() * features * size_of::<f64>();
        let row_bytes: usize = rows.iter().map(|(_, bytes)| bytes.len()).sum();
        let out = gpu.zeros(sum_bytes + row_bytes)?;
        if desk.is_some() && read.len() > AT_ONCE_TEXTS {
            return Err(Error::internal(format!("{} texts that are read at once", read.len())));
        }
        let tables_at = tables_at(desk.map_or(read.len(), |_| AT_ONCE_TEXTS));
        let mut bytes = bytemuck::bytes_of(&out.inside(0)).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&read));
        bytes.resize(tables_at, 0);
        bytes.extend_from_slice(bytemuck::cast_slice(&tables));
        let memory = match desk {
            Some(Desk(memory)) => {
                memory.write(0, &bytes)?;
                memory.clone()
            }
            None => Arc::new(gpu.upload(&bytes)?),
        };
        let params = params::Reading {
            sums: memory.inside(0),
            texts: memory.inside(TEXTS_AT),
            tables: memory.inside(tables_at),
            features: features as i32,
        };
        let (gpu, texts) = (gpu.clone(), texts.len());
        Ok(Self { gpu, params, texts, features, out, rows, _memory: memory, _pages: kept })
    }

    /// Takes in `columns` of a layer's `states`, `[rows, width]`.
    ///
    /// # Errors
    /// `Internal` for other sizes, or when the device fails.
    pub(crate) fn observe(
        &self,
        states: &Memory,
        width: usize,
        places: &Places,
        columns: &Columns,
    ) -> Result<()> {
        let gpu = states.gpu();
        let count = columns.count;
        let params = params::Gather {
            states: gpu.at(states, Shape { rows: places.rows(), width })?,
            columns: columns.memory.at(count, 4)?,
            reading: self.params,
            places: places.params(),
            width: width as i32,
            count: count as i32,
            start: columns.start as i32,
        };
        let blocks = [places.rows(), count.div_ceil(GATHER_THREADS as usize), 1];
        let grid = Grid { blocks, threads: GATHER_THREADS, shared: 0 };
        // SAFETY: `new` has the texts' pages and room for their sums; whoever chose the columns held
        // them against the width.
        unsafe { gpu.launch(names::GATHER.of(gpu.element()), grid, &params)? };
        let grid = Self::sums(places.spans(), count);
        // SAFETY: as above.
        unsafe { gpu.launch(names::SUM.of(gpu.element()), grid, &params) }
    }

    /// Sums what lies in pages, and copies everything back.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn finish(self) -> Result<Results> {
        let grid = Self::sums(self.texts, self.features);
        let element = self.gpu.element();
        // SAFETY: as in `observe`; every token that is summed has been written, now or earlier.
        unsafe { self.gpu.launch(names::SUM_PAGES.of(element), grid, &self.params)? };
        let sum_bytes = self.texts * self.features * size_of::<f64>();
        let mut end = sum_bytes;
        for (page, bytes) in &self.rows {
            self.out.copy_from_page(end, &page.memory, bytes.clone())?;
            end += bytes.len();
        }
        let mut bytes = vec![0; end];
        self.out.read(&mut bytes)?;
        let (sum_bytes, row_bytes) = bytes.split_at(sum_bytes);
        let sums = sum_bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        let rows = match element {
            Element::F32 => row_bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
            Element::Bf16 => row_bytes
                .chunks_exact(2)
                .map(|x| bytemuck::pod_read_unaligned::<bf16>(x).to_f32())
                .collect(),
        };
        Ok(Results { sums, rows })
    }

    /// A block's sums of some columns for each of `count` spans or texts.
    fn sums(count: usize, columns: usize) -> Grid {
        Grid {
            blocks: [count, columns.div_ceil(SUM_COLUMNS), 1],
            threads: SUM_THREADS,
            shared: SUM_THREADS as usize * size_of::<f64>(),
        }
    }
}
