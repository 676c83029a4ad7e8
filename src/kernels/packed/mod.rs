//! The CPU linear layer `y = x Wᵀ`: weights packed once, multiplied with any number of rows.
//!
//! **Exactness.** A row of `y` depends on that row of `x` and on `W` alone, bit for bit: never on the
//! number of rows, the row's place among them, the other rows, the number of threads or the other
//! weights packed beside. Each output element is one chain of fused multiply-adds over ascending k,
//! from zero; every tile shape of a kernel keeps that order, and the blocks over k only park the
//! chain in `y` (an exact f32 store). All f32 kernels with FMA (AVX-512, AVX2, aarch64) even agree
//! with each other; the portable one without FMA rounds once more per step. The bf16 dot kernel adds
//! k in pairs, the tile kernel 32 at a time, by the instructions' own rules (subnormal inputs and
//! results count as zero). In f32 the tile kernel multiplies activations in three bf16 parts that add
//! up to them: every product is exact, as in the other f32 kernels, and only the order of the sums is
//! another.
//!
//! Bias is the caller's. The rooms: `pack` (the layout of the panels), `drive` (tasks and tiles),
//! and one file of tile kernels per instruction set.
#![allow(unsafe_code)] // One promise to the driver: the CPU has what the layer was packed for.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod compact;
mod drive;
mod int8;
mod pack;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

use super::inputs::{Form, Inputs};
use super::{BlockType, Precision, Rows};
#[cfg(target_arch = "x86_64")]
use super::{strips::Strips, tiles::Unit};
#[cfg(target_arch = "x86_64")]
use crate::error::Error;
use crate::error::Result;
use crate::sys::file::Mapped;
pub(crate) use cache::{LAYOUT, Piece, Pieces, kernels};
#[cfg(target_arch = "x86_64")]
pub(super) use drive::share;
pub(crate) use int8::Int8Linear;
pub(super) use pack::{LINE_FLOATS, Line};
use pack::{PANEL, Panels, Storage};

/// A weight matrix as in the checkpoint, row-major `[n, k]`: one row per output feature.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// The upper half of an f32.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Quantised blocks, a whole number of them a row.
    Blocks(BlockType, &'a [u8]),
}

impl Weights<'_> {
    /// The number of elements.
    fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::Bf16(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::Blocks(of, w) => w.len() / of.bytes() * of.elements(),
        }
    }
}

/// Why weights could not be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackError {
    /// Part `part` holds `got` elements where its shape asks for `want`.
    Shape {
        /// Which of the parts, from 0.
        part: usize,
        /// Elements its `[n, k]` asks for.
        want: usize,
        /// Elements it has.
        got: usize,
    },
    /// The packed copy's memory could not be had.
    OutOfMemory {
        /// The size asked for; `usize::MAX` where it cannot even be counted.
        bytes: usize,
    },
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackError::Shape { part, want, got } => {
                write!(f, "weights {part}: the shape asks for {want} elements, there are {got}")
            }
            PackError::OutOfMemory { bytes } => {
                write!(f, "no memory for {bytes} bytes of packed weights")
            }
        }
    }
}

impl std::error::Error for PackError {}

/// The instructions a layer computes with, chosen when it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    /// Tiles of bf16; f32 activations in three parts.
    Amx,
    /// f32 in 512 bits, and tiles of bf16 by dot products of pairs.
    Avx512Bf16,
    /// f32 in 512 bits.
    Avx512,
    /// f32 in 256 bits with FMA.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Isa {
    const ALL: [Isa; 5] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// Whether this CPU has every instruction that the kernels of `self` use.
    fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Isa::Amx => Unit::Amx.available(),
            Isa::Avx512Bf16 => Unit::Dots.available(),
            Isa::Avx512 => is_x86_feature_detected!("avx512f"),
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Isa::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Isa::Portable)
    }

    /// The best this CPU has.
    fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.available()).unwrap_or(Isa::Portable)
    }

    /// What its kernels multiply.
    fn storages(self) -> impl Iterator<Item = Storage> {
        let bf16: &[Storage] = match self {
            Isa::Amx => &[Storage::Bf16Tiles],
            Isa::Avx512Bf16 => &[Storage::Bf16Tiles, Storage::Bf16Columns],
            Isa::Avx512 | Isa::Avx2 | Isa::Portable => &[Storage::Bf16Columns],
        };
        let blocks = BlockType::ALL.into_iter().map(Storage::Blocks);
        bf16.iter().copied().chain([Storage::F32, Storage::F16]).chain(blocks)
    }
}

/// A linear layer's weights, packed for the CPU at hand.
pub(crate) struct PackedLinear {
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    isa: Isa,
    precision: Precision,
    /// Outputs behind each other: a run of parts of one storage each.
    runs: Vec<Panels>,
    n: usize,
    k: usize,
}

impl PackedLinear {
    /// Packs weights that share their input side by side: part `i` is `[n_i, k]`, and the outputs
    /// come in the order of the parts (`q, k, v`, or `gate, up`, as one layer). [`Precision::Bf16`]
    /// rounds weights and activations to bf16, to nearest even; sums are f32 in both.
    ///
    /// Under [`Precision::F32`] each part is stored in its own type, under [`Precision::Bf16`]
    /// everything as bf16, which blocks cannot be. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`PackError::Shape`] where a part is not `n_i * k` elements, or its rows are not whole blocks;
    /// [`PackError::OutOfMemory`].
    ///
    /// # Panics
    /// Where blocks are to be bf16.
    pub(crate) fn pack(
        parts: &[(Weights<'_>, usize)],
        k: usize,
        precision: Precision,
    ) -> std::result::Result<Self, PackError> {
        Self::pack_for(Isa::detect(), parts, k, precision)
    }

    fn pack_for(
        isa: Isa,
        parts: &[(Weights<'_>, usize)],
        k: usize,
        precision: Precision,
    ) -> std::result::Result<Self, PackError> {
        // The kernels' safety rests on this line: no layer exists for instructions the CPU lacks.
        assert!(isa.available(), "{isa:?} is not available on this CPU");
        let storage = |weights: &Weights<'_>| match (precision, weights) {
            (Precision::Bf16, Weights::Blocks(..)) => panic!("blocks in bf16"),
            (Precision::Bf16, _) | (_, Weights::Bf16(_)) if isa == Isa::Amx => Storage::Bf16Tiles,
            (Precision::Bf16, _) if isa == Isa::Avx512Bf16 => Storage::Bf16Tiles,
            (Precision::Bf16, _) | (_, Weights::Bf16(_)) => Storage::Bf16Columns,
            (_, Weights::F32(_)) => Storage::F32,
            (_, Weights::F16(_)) => Storage::F16,
            (_, Weights::Blocks(of, _)) => Storage::Blocks(*of),
        };
        let runs = parts
            .chunk_by(|(a, _), (b, _)| storage(a) == storage(b))
            .map(|run| Panels::pack(run, k, storage(&run[0].0)))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let n = runs.iter().try_fold(0usize, |n, run| n.checked_add(run.n));
        let n = n.ok_or(PackError::OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { isa, precision, runs, n, k })
    }

    /// What a file holds of the layer.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece<Cow<'_, [u8]>>> {
        self.runs.iter().map(|run| Piece {
            kind: run.storage.name(),
            n: run.n,
            k: run.k,
            bytes: run.lines.as_bytes().into(),
        })
    }

    /// The layer of `n` outputs and `k` inputs that is next in a file; `None` if it is none.
    pub(crate) fn mapped(
        n: usize,
        k: usize,
        precision: Precision,
        pieces: &mut Pieces,
    ) -> Option<Self> {
        Self::mapped_for(Isa::detect(), n, k, precision, pieces)
    }

    fn mapped_for(
        isa: Isa,
        n: usize,
        k: usize,
        precision: Precision,
        pieces: &mut Pieces,
    ) -> Option<Self> {
        // The kernels' safety rests on this line and on `storages`.
        assert!(isa.available(), "{isa:?} is not available on this CPU");
        let (mut runs, mut found) = (vec![], 0usize);
        while found < n {
            let piece: Piece<Mapped> = pieces.next()?;
            let storage = isa.storages().find(|storage| storage.name() == piece.kind)?;
            found = found.checked_add(piece.n)?;
            runs.push(Panels::mapped(storage, k, piece)?);
        }
        (found == n).then_some(Self { isa, precision, runs, n, k })
    }

    /// The memory that the packed weights take.
    pub(crate) fn bytes(&self) -> usize {
        self.runs.iter().map(Panels::bytes).sum()
    }

    /// The length of an input row, k.
    pub(crate) fn in_features(&self) -> usize {
        self.k
    }

    /// The length of an output row, n.
    pub(crate) fn out_features(&self) -> usize {
        self.n
    }

    /// How inputs are read fastest.
    pub(crate) fn form(&self) -> Form {
        #[cfg(target_arch = "x86_64")]
        if let [Panels { storage: Storage::Bf16Tiles, .. }] = *self.runs {
            return Form::Strips { parts: self.parts() };
        }
        Form::Rows
    }

    /// What multiplies tiles.
    #[cfg(target_arch = "x86_64")]
    fn unit(&self) -> Unit {
        if self.isa == Isa::Amx { Unit::Amx } else { Unit::Dots }
    }

    /// bf16 that an activation is kept in by tiles.
    #[cfg(target_arch = "x86_64")]
    fn parts(&self) -> usize {
        if self.rounds() { 1 } else { 3 }
    }

    /// `x Wᵀ`, `[m, n]`, for `x`, `[m, k]`, which is rows or of [`Self::form`]. Runs on the current
    /// rayon pool.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for inputs of another form or width.
    pub(crate) fn matmul(&self, x: &Inputs) -> Result<Rows> {
        let (n, k) = (self.out_features(), self.in_features());
        x.expect_width(k)?;
        #[cfg(target_arch = "x86_64")]
        if let (Some(strips), [panels]) = (x.strips(), &*self.runs) {
            self.check(strips)?;
            let mut y = Rows::lend(strips.arena(), strips.rows(), n)?;
            if n > 0 && y.rows() > 0 {
                let columns = drive::Columns { y: y.cpu_mut()?, stride: n, first: 0 };
                // SAFETY: the strips are of this layer's width and parts, by what was just checked,
                // and `pack_for` saw that the CPU has the unit.
                unsafe { tiled::run(self.unit(), panels, strips, columns)? };
            }
            return Ok(y);
        }
        let x = x.rows()?;
        let mut y = x.beside(n)?;
        if n == 0 || y.rows() == 0 {
            return Ok(y);
        }
        let mut first = 0;
        for panels in &self.runs {
            let columns = drive::Columns { y: y.cpu_mut()?, stride: n, first };
            // SAFETY: `pack_for` saw that the CPU has `self.isa`, and these are its kernels.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                self.run(panels, x, columns)?
            };
            #[cfg(not(target_arch = "x86_64"))]
            self.run_portable(panels, x.cpu()?, columns);
            first += panels.n;
        }
        Ok(y)
    }

    /// As `silu(gate) * up` of the outputs, which are gate and up behind each other, in the form
    /// `form`, where there is a kernel for that.
    ///
    /// # Errors
    /// As [`Self::matmul`].
    pub(crate) fn swiglu(&self, x: &Inputs, form: Form) -> Result<Option<Inputs>> {
        #[cfg(target_arch = "x86_64")]
        if let (Some(strips), [panels]) = (x.strips(), &*self.runs)
            && form == self.form()
            && self.n.is_multiple_of(2 * PANEL)
            && self.k > 0
        {
            self.check(strips)?;
            let mut out = Inputs::lend(strips.arena(), strips.rows(), self.n / 2, form)?;
            if let Some(out) = out.strips_mut() {
                // SAFETY: as in `matmul`, and `out` was made for half the outputs.
                unsafe { tiled::swiglu(self.unit(), panels, strips, out)? };
            }
            return Ok(Some(out));
        }
        let _ = (x, form);
        Ok(None)
    }

    /// Whether `strips` are inputs of this layer.
    #[cfg(target_arch = "x86_64")]
    fn check(&self, strips: &Strips) -> Result<()> {
        let layout = strips.layout();
        let tiles = self.runs.first().map_or(0, |run| run.steps / pack::TILE_STEPS);
        if self.form() == (Form::Strips { parts: layout.parts }) && layout.tiles == tiles {
            return Ok(());
        }
        Err(Error::internal(format!("{layout:?} for a layer of {tiles} tiles, {:?}", self.form())))
    }

    /// The weights of the output features `range`, `[range, k]`, widened.
    fn rows(&self, range: Range<usize>, mut rows: &mut [f32]) {
        let mut first = 0;
        for panels in &self.runs {
            let (mut at, end) = (range.start.max(first), range.end.min(first + panels.n));
            while at < end {
                let column = (at - first) % PANEL;
                let count = (PANEL - column).min(end - at);
                let out;
                (out, rows) = std::mem::take(&mut rows).split_at_mut(count * self.k);
                panels.rows((at - first) / PANEL, column..column + count, out);
                at += count;
            }
            first += panels.n;
        }
    }

    /// # Safety
    /// The CPU has the instructions of `self.isa`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn run(&self, w: &Panels, rows: &Rows, y: drive::Columns<'_>) -> Result<()> {
        use drive::run;
        let x = rows.cpu()?;
        let round = self.rounds();
        // SAFETY: each kernel uses the instructions of its `isa` alone, as `available` asks for them.
        unsafe {
            match (self.isa, w.storage) {
                (Isa::Amx | Isa::Avx512Bf16, Storage::Bf16Tiles) => {
                    let strips = Inputs::converted(rows, Form::Strips { parts: self.parts() })?;
                    let run = |strips| tiled::run(self.unit(), w, strips, y);
                    return strips.strips().map_or(Ok(()), run);
                }
                (Isa::Avx512Bf16 | Isa::Avx512, Storage::Bf16Columns) => {
                    run::<avx512::Kernel<true>>(w, round, x, y);
                }
                (
                    Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512,
                    Storage::F32 | Storage::F16 | Storage::Blocks(_),
                ) => {
                    run::<avx512::Kernel<false>>(w, round, x, y);
                }
                (Isa::Avx2, Storage::Bf16Columns) => {
                    run::<avx2::Kernel<true>>(w, round, x, y);
                }
                (Isa::Avx2, Storage::F32 | Storage::F16 | Storage::Blocks(_)) => {
                    run::<avx2::Kernel<false>>(w, round, x, y);
                }
                _ => self.run_portable(w, x, y),
            }
        }
        Ok(())
    }

    fn run_portable(&self, w: &Panels, x: &[f32], y: drive::Columns<'_>) {
        use drive::run;
        let round = self.rounds();
        // SAFETY: these kernels are plain Rust.
        unsafe {
            match w.storage {
                Storage::F32 | Storage::F16 | Storage::Blocks(_) => {
                    run::<portable::Kernel<false>>(w, round, x, y);
                }
                Storage::Bf16Columns => run::<portable::Kernel<true>>(w, round, x, y),
                Storage::Bf16Tiles => {
                    unreachable!("packed for instructions that have their own kernels")
                }
            }
        }
    }

    /// Whether activations are rounded to bf16.
    fn rounds(&self) -> bool {
        self.precision == Precision::Bf16
    }
}
