//! Causal attention over packed texts on the CPU: an online softmax over blocks of keys, so that
//! no `[heads, n, n]` scores exist, and blocks that no query may see are never computed.
//!
//! A query's result depends on its own text up to itself alone: blocks are counted from the text's
//! first token, and no kernel looks at the queries beside.
#![allow(unsafe_code)] // Tasks write disjoint columns of the result, which slices cannot express.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod page;
mod simd;
#[cfg(target_arch = "x86_64")]
mod tile_pages;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use super::inputs::Inputs;
use super::joined::View;
use super::kv::{Kv, Pages};
use super::{Arena, Heads, Span};
#[cfg(target_arch = "x86_64")]
use super::{
    packed::Line,
    strips::{self, Layout},
    tiles::{TILE_K, Unit},
};
use crate::error::{Error, Result};
pub(super) use page::PageForm;

/// What a task computes with.
#[derive(Clone, Copy)]
enum Kernel {
    /// Tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Tiled(Unit),
    /// Vectors of f32 of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Vectors of f32.
    Simd(Arch),
}

impl Kernel {
    /// What reads pages of this form, for heads of `dim`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn new(form: PageForm, dim: usize) -> Self {
        match form {
            #[cfg(target_arch = "x86_64")]
            PageForm::Tiles(unit) => Self::Tiled(unit),
            #[cfg(target_arch = "x86_64")]
            PageForm::Numbers if avx512::available(dim) => Self::Avx512,
            PageForm::Numbers => Self::Simd(Arch::new()),
        }
    }

    /// Whether it reads pages of this form.
    fn reads(self, form: PageForm) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiled(unit) => form == PageForm::Tiles(unit),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => form == PageForm::Numbers,
            Self::Simd(_) => form == PageForm::Numbers,
        }
    }

    /// Query rows of a task, the fewest and the most.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn rows(self, group: usize) -> (usize, usize) {
        match self {
            // Enough queries for a tile's rows; so many that what was made of the keys pays.
            #[cfg(target_arch = "x86_64")]
            Self::Tiled(_) => (tiled::QUERIES.div_ceil(group), 128),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => (simd::MOST_ROWS, 32),
            Self::Simd(_) => (simd::TILE, 32),
        }
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn run(self, task: Task<'_>, arena: &Arena) -> Result<()> {
        match self {
            // SAFETY: the pages of these heads are for this unit, as was seen.
            #[cfg(target_arch = "x86_64")]
            Self::Tiled(unit) => unsafe { tiled::attend(unit, task, arena) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                // SAFETY: `new` saw that the CPU has the instructions, for these heads.
                unsafe { avx512::attend(task) };
                Ok(())
            }
            Self::Simd(arch) => {
                arch.dispatch(task);
                Ok(())
            }
        }
    }
}

/// See [`super::attention`].
///
/// # Errors
/// `Internal` for spans that are not what is asked there; `OutOfMemory`.
pub(super) fn attention(
    qkv: View<'_>,
    spans: &[Span<'_>],
    arena: &Arena,
    out: &mut Inputs,
) -> Result<()> {
    let form = match spans.first() {
        Some(Span { kv: Kv::Pages(pages), .. }) => pages.form(),
        _ => PageForm::Numbers,
    };
    attend(Kernel::new(form, qkv.heads().dim), qkv, spans, arena, out)
}

/// As [`attention`], with that kernel.
fn attend(
    kernel: Kernel,
    qkv: View<'_>,
    spans: &[Span<'_>],
    arena: &Arena,
    out: &mut Inputs,
) -> Result<()> {
    let Heads { query, key_value, dim } = qkv.heads();
    let tokens = qkv.len();
    let per_task = (tokens * key_value).div_ceil(4 * rayon::current_num_threads());
    let (fewest, most) = kernel.rows(query / key_value);
    let per_task = per_task.clamp(fewest, most);
    let mut strips = Vec::new();
    let mut covered = 0;
    for span in spans {
        let Kv::Pages(pages) = span.kv else {
            return Err(Error::internal("keys of another device for attention on the CPU"));
        };
        if !kernel.reads(pages.form()) {
            return Err(Error::internal(format!(
                "pages of {:?} for other attention",
                pages.form()
            )));
        }
        // The tasks' safety rests on this: rows of one span each. That there are no gaps leaves
        // nothing in the result from before.
        if span.rows.start != covered || span.rows.end > tokens {
            return Err(Error::internal(format!("spans that are not just {tokens} tokens")));
        }
        covered = span.rows.end;
        if pages.room() < span.position + span.rows.len() {
            let room = pages.room();
            return Err(Error::internal(format!(
                "pages for {room} tokens, fewer than are attended"
            )));
        }
        for start in span.rows.clone().step_by(per_task) {
            let rows = start..span.rows.end.min(start + per_task);
            strips.push((pages, span.layer, rows, span.position + start - span.rows.start));
        }
    }
    if covered != tokens {
        return Err(Error::internal(format!(
            "spans of {covered} tokens, where there are {tokens}"
        )));
    }
    let out = Output::new(out, tokens, query * dim)?;
    let mut tasks = Vec::new();
    for (pages, layer, rows, position) in &strips {
        for head in 0..key_value {
            tasks.push(Task {
                qkv: qkv.range(rows.clone()),
                pages,
                layer: *layer,
                head,
                positions: *position..position + rows.len(),
                out,
                first_row: rows.start,
            });
        }
    }
    // The last queries of a text see the most keys: start with them.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.positions.end));
    tasks.into_par_iter().try_for_each(|task| kernel.run(task, arena))
}

/// The result, of which each task writes its own columns of its own rows.
#[derive(Clone, Copy)]
enum Output {
    Rows {
        start: *mut f32,
        width: usize,
    },
    #[cfg(target_arch = "x86_64")]
    Strips {
        start: *mut Line,
        layout: Layout,
    },
}

// SAFETY: the spans' rows are disjoint, as was checked, and so are the columns of a row's heads.
unsafe impl Send for Output {}

impl Output {
    /// # Errors
    /// `Internal` where `out` is not `tokens` rows of `width` on the CPU.
    fn new(out: &mut Inputs, tokens: usize, width: usize) -> Result<Self> {
        let other = || Error::internal("a result of another shape");
        #[cfg(target_arch = "x86_64")]
        if let Some(strips) = out.strips_mut() {
            let layout = strips.layout();
            if strips.rows() != tokens || layout.tiles * TILE_K != width {
                return Err(other());
            }
            return Ok(Self::Strips { start: strips.lines_mut().as_mut_ptr(), layout });
        }
        let rows = out.rows_mut()?.cpu_mut()?;
        if rows.len() != tokens * width {
            return Err(other());
        }
        Ok(Self::Rows { start: rows.as_mut_ptr(), width })
    }

    /// Writes `numbers` to the columns of `row` from `column` on.
    ///
    /// # Safety
    /// They are in the result, and nobody else uses them meanwhile; in strips they are whole tiles.
    #[inline(always)]
    unsafe fn write(self, row: usize, column: usize, numbers: &[f32]) {
        match self {
            Self::Rows { start, width } => {
                // SAFETY: the caller's promise.
                unsafe {
                    let to = start.add(row * width + column);
                    std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len());
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Strips { start, layout } => {
                // SAFETY: the caller's promise; there are strips only with AVX-512 BF16.
                unsafe { strips::write_columns(layout, start, row, column, numbers) };
            }
        }
    }
}

/// The attention of some query rows of one text, for one key head.
struct Task<'a> {
    /// The rows' queries, keys and values.
    qkv: View<'a>,
    pages: &'a Pages,
    layer: usize,
    head: usize,
    /// Where in their text the rows stand.
    positions: Range<usize>,
    out: Output,
    /// The first row's place in the result.
    first_row: usize,
}

impl Task<'_> {
    fn heads(&self) -> Heads {
        self.qkv.heads()
    }

    /// Query heads that share the key head.
    fn group(&self) -> usize {
        self.heads().query / self.heads().key_value
    }

    /// How many queries there are: of every row those that share the key head, row by row.
    fn queries(&self) -> usize {
        self.positions.len() * self.group()
    }

    /// The place of query `at` in its text.
    #[cfg(target_arch = "x86_64")]
    fn position(&self, at: usize) -> usize {
        self.positions.start + at / self.group()
    }

    /// Query `at`, `[dim]`.
    #[inline(always)]
    fn query(&self, at: usize, out: &mut [f32]) {
        let (row, member) = (at / self.group(), at % self.group());
        self.qkv.query(row, self.head * self.group() + member, out);
    }

    /// What queries are multiplied by.
    fn scale(&self) -> f32 {
        1.0 / (self.heads().dim as f32).sqrt()
    }

    /// Takes the result of query `at`, `[dim]`.
    #[inline(always)]
    fn put(&mut self, at: usize, result: &[f32]) {
        assert!(at < self.queries() && result.len() == self.heads().dim);
        let (row, member) = (at / self.group(), at % self.group());
        let column = (self.head * self.group() + member) * self.heads().dim;
        // SAFETY: a head's columns of one of this task's rows, which nobody else has.
        unsafe { self.out.write(self.first_row + row, column, result) };
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kernels::{Backend, Form, Joined, KvShape, Meter, Precision, Rows};

    /// Text of `length` tokens whose first `known` ran before, by each kernel of f32.
    #[test]
    fn kernels_of_f32_have_the_same_bits() {
        let arena = Arena::new(1 << 20);
        for (query, key_value, dim) in [(4, 2, 64), (3, 1, 16), (5, 5, 80), (2, 1, 128)] {
            let heads = Heads { query, key_value, dim };
            if !avx512::available(dim) {
                // SKIPPED: without AVX-512 there is one kernel of f32.
                return;
            }
            for (length, known) in [(1, 0), (7, 0), (16, 15), (63, 20), (65, 0), (150, 131)] {
                let shape = KvShape { layers: 1, heads, precision: Precision::F32 };
                let mut kv = Kv::new(shape, &Backend::Cpu, &Meter::default());
                kv.reserve(0, length).unwrap();
                let text = Tensor::randn(0f32, 1.5, length * heads.qkv(), &Device::Cpu).unwrap();
                let text = Rows::copied(&arena, &text.to_vec1().unwrap(), heads.qkv()).unwrap();
                let text = Joined::rotated(text, heads);
                kv.store(0, 0, &text, 0..length).unwrap();
                let rows = length - known;
                let run = |kernel| {
                    let span = Span { rows: 0..rows, position: known, kv: &kv, layer: 0 };
                    let mut out = Inputs::lend(&arena, rows, query * dim, Form::Rows).unwrap();
                    out.rows_mut().unwrap().cpu_mut().unwrap().fill(f32::NAN);
                    let qkv = text.view().unwrap().range(known..length);
                    attend(kernel, qkv, &[span], &arena, &mut out).unwrap();
                    let out = out.into_rows().unwrap();
                    out.cpu().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                let [wide, any] = [Kernel::Avx512, Kernel::Simd(Arch::new())].map(run);
                assert!(wide == any, "{heads:?} {length} {known}");
                assert!(wide.iter().all(|bits| f32::from_bits(*bits).is_finite()));
            }
        }
    }
}
