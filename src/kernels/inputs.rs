//! What linear layers read: rows in the form of their kernels, written so by whatever comes before.
//!
//! Rows that were written as f32 first would go through the memory twice more.
#![allow(unsafe_code)] // Strips exist only where the CPU has the instructions that fill them.

#[cfg(target_arch = "x86_64")]
use rayon::iter::Either;
use rayon::prelude::*;

use super::arena::Arena;
use super::rows::Rows;
#[cfg(target_arch = "x86_64")]
use super::{
    packed::Line,
    strips::{self, Strips},
    tiles::SIDE,
};
use crate::error::{Error, Result};

/// Rows of a task.
#[cfg(not(target_arch = "x86_64"))]
const SIDE: usize = 16;
/// Numbers of a row that are written to strips together.
pub(super) const TILE: usize = 32;

/// How a linear layer wants its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// f32 on the CPU, or another device's tensor.
    Rows,
    /// bf16 tiles, of as many parts a number.
    #[cfg(target_arch = "x86_64")]
    Strips { parts: usize },
}

/// Inputs of a linear layer, `[rows, width]`.
pub(crate) struct Inputs {
    values: Values,
    width: usize,
}

enum Values {
    Rows(Rows),
    #[cfg(target_arch = "x86_64")]
    Strips(Strips),
}

impl From<Rows> for Inputs {
    fn from(rows: Rows) -> Self {
        Self { width: rows.width(), values: Values::Rows(rows) }
    }
}

impl Inputs {
    /// Room on the CPU for inputs that are still to be written.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn lend(arena: &Arena, rows: usize, width: usize, form: Form) -> Result<Self> {
        let values = match form {
            Form::Rows => Values::Rows(Rows::lend(arena, rows, width)?),
            #[cfg(target_arch = "x86_64")]
            Form::Strips { parts } => {
                // SAFETY: the form is a packed layer's, which is there for this CPU.
                Values::Strips(unsafe { Strips::lend(arena, rows, width, parts)? })
            }
        };
        Ok(Self { values, width })
    }

    /// `rows`, of the CPU, in another form.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` for rows of another device.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn converted(rows: &Rows, form: Form) -> Result<Self> {
        let width = rows.width();
        let mut converted = Self::lend(rows.arena()?, rows.rows(), width, form)?;
        let tasks = rows.cpu()?.par_chunks((Sink::ROWS * width).max(1));
        converted.sinks()?.zip(tasks).for_each(|(mut sink, rows)| {
            for (r, row) in rows.chunks_exact(width).enumerate() {
                sink.write(r, |out| out.copy_from_slice(row));
            }
        });
        Ok(converted)
    }

    /// Numbers of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// # Errors
    /// `Internal` where they are not the inputs of a layer of `width`.
    pub(super) fn expect_width(&self, width: usize) -> Result<()> {
        if self.width == width {
            return Ok(());
        }
        Err(Error::internal(format!("{} inputs for a layer of {width}", self.width)))
    }

    /// The rows, where that is their form.
    ///
    /// # Errors
    /// `Internal` where it is another.
    pub(crate) fn rows(&self) -> Result<&Rows> {
        match &self.values {
            Values::Rows(rows) => Ok(rows),
            #[cfg(target_arch = "x86_64")]
            Values::Strips(_) => Err(tiles()),
        }
    }

    /// The rows alone, as [`Self::rows`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn into_rows(self) -> Result<Rows> {
        match self.values {
            Values::Rows(rows) => Ok(rows),
            #[cfg(target_arch = "x86_64")]
            Values::Strips(_) => Err(tiles()),
        }
    }

    /// As [`Self::rows`], to write.
    ///
    /// # Errors
    /// As there.
    pub(super) fn rows_mut(&mut self) -> Result<&mut Rows> {
        match &mut self.values {
            Values::Rows(rows) => Ok(rows),
            #[cfg(target_arch = "x86_64")]
            Values::Strips(_) => Err(tiles()),
        }
    }

    /// The strips, where that is their form.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn strips(&self) -> Option<&Strips> {
        match &self.values {
            Values::Rows(_) => None,
            Values::Strips(strips) => Some(strips),
        }
    }

    /// As [`Self::strips`], to write.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn strips_mut(&mut self) -> Option<&mut Strips> {
        match &mut self.values {
            Values::Rows(_) => None,
            Values::Strips(strips) => Some(strips),
        }
    }

    /// Where rows are to be written, [`Sink::ROWS`] at a time.
    ///
    /// # Errors
    /// `Internal` for rows of another device.
    pub(super) fn sinks(&mut self) -> Result<impl IndexedParallelIterator<Item = Sink<'_>>> {
        let width = self.width;
        Ok(match &mut self.values {
            Values::Rows(rows) => {
                let chunks = rows.cpu_mut()?.par_chunks_mut((Sink::ROWS * width).max(1));
                let sinks = chunks.map(move |rows| Sink::Rows { rows, width });
                #[cfg(target_arch = "x86_64")]
                let sinks = Either::Left(sinks);
                sinks
            }
            #[cfg(target_arch = "x86_64")]
            Values::Strips(strips) => {
                let layout = strips.layout();
                let strips = strips.lines_mut().par_chunks_exact_mut(layout.lines().max(1));
                let row = move || vec![0.0; width];
                Either::Right(strips.map(move |strip| Sink::Strip { strip, layout, row: row() }))
            }
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn tiles() -> Error {
    Error::internal("tiles where rows were expected")
}

/// Where some consecutive rows are written.
pub(super) enum Sink<'a> {
    Rows {
        rows: &'a mut [f32],
        width: usize,
    },
    #[cfg(target_arch = "x86_64")]
    Strip {
        strip: &'a mut [Line],
        layout: strips::Layout,
        /// The row at work.
        row: Vec<f32>,
    },
}

impl Sink<'_> {
    /// Rows of a sink, but for the last: enough to be worth the hand-over, few enough to share out.
    pub(super) const ROWS: usize = SIDE;

    /// Writes row `r` of these, which `compute` is given to fill.
    #[inline(always)]
    pub(super) fn write(&mut self, r: usize, mut compute: impl FnMut(&mut [f32])) {
        match self {
            Self::Rows { rows, width } => compute(&mut rows[r * *width..][..*width]),
            #[cfg(target_arch = "x86_64")]
            Self::Strip { strip, layout, row } => {
                compute(row);
                // SAFETY: there are strips only where the CPU has AVX-512 BF16.
                unsafe { strips::write_row(*layout, strip, r, row) };
            }
        }
    }
}
