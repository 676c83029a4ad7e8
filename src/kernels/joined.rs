//! Queries, keys and values as a linear layer joins them, and how attention reads them: on the CPU,
//! queries and keys are normed and rotated as they are read, so that this takes no way through the
//! memory of its own.

use std::ops::Range;

use super::elementwise::rms_scale;
use super::math::LANES;
use super::{HeadNorms, Heads, Places, Rows, Vector, composed};
use crate::error::{Error, Result};

/// Rows of joined queries, keys and values, `[rows, (query + 2 key_value) * dim]`, that do not lie on a
/// GPU.
pub(crate) struct Joined<'a> {
    rows: Rows,
    heads: Heads,
    /// None where that is done.
    rotation: Option<Rotation<'a>>,
}

/// What becomes of query and key heads on the CPU.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    /// Of each row, `dim / 2`.
    cos: &'a [f32],
    sin: &'a [f32],
    /// Of queries and of keys, where the family has them.
    norms: Option<[&'a [f32]; 2]>,
    eps: f32,
}

impl<'a> Joined<'a> {
    /// Rows of these places; the norms are those of their queries and keys.
    ///
    /// # Errors
    /// `Internal` when the device fails, for rows of a GPU, and for what is not of these rows.
    pub(crate) fn new(
        rows: Rows,
        places: &'a Places,
        norms: Option<&'a HeadNorms>,
        heads: Heads,
    ) -> Result<Self> {
        let Places::Rotations(cos, sin) = places else {
            return Err(Error::internal("a GPU's places for rows that lie elsewhere"));
        };
        if let (Some(x), Some(cos), Some(sin)) = (rows.device(), cos.device(), sin.device()) {
            let norms = match norms {
                Some(n) => Some((n.query.device()?, n.key.device()?, n.eps)),
                None => None,
            };
            let rows = Rows::on_device(composed::norm_and_rotate(x, cos, sin, norms, heads)?)?;
            return Ok(Self { rows, heads, rotation: None });
        }
        let rotation = Rotation {
            cos: cos.cpu()?,
            sin: sin.cpu()?,
            norms: match norms {
                Some(n) => Some([weights(&n.query, heads)?, weights(&n.key, heads)?]),
                None => None,
            },
            eps: norms.map_or(0.0, |norms| norms.eps as f32),
        };
        let angles = rows.rows() * (heads.dim / 2);
        if rows.width() != heads.qkv()
            || [cos, sin].iter().any(|x| x.rows() != rows.rows())
            || rotation.cos.len() != angles
            || rotation.sin.len() != angles
        {
            return Err(Error::internal(format!(
                "rotations that are not those of {} rows",
                rows.rows()
            )));
        }
        Ok(Self { rows, heads, rotation: Some(rotation) })
    }

    /// Rows that are read as they are.
    #[cfg(test)]
    pub(super) fn rotated(rows: Rows, heads: Heads) -> Self {
        Self { rows, heads, rotation: None }
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn heads(&self) -> Heads {
        self.heads
    }

    /// The rows, on the CPU.
    ///
    /// # Errors
    /// `Internal` for those of another device.
    pub(super) fn view(&self) -> Result<View<'_>> {
        Ok(View { qkv: self.rows.cpu()?, heads: self.heads, rotation: self.rotation })
    }
}

fn weights(vector: &Vector, heads: Heads) -> Result<&[f32]> {
    let weights = vector.cpu()?;
    if weights.len() == heads.dim {
        return Ok(weights);
    }
    Err(Error::internal(format!("{} weights for heads of {}", weights.len(), heads.dim)))
}

/// Some of the rows, on the CPU.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    qkv: &'a [f32],
    heads: Heads,
    rotation: Option<Rotation<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn heads(self) -> Heads {
        self.heads
    }

    pub(super) fn len(self) -> usize {
        self.qkv.len() / self.heads.qkv()
    }

    /// # Panics
    /// Where there are fewer rows.
    pub(super) fn range(self, rows: Range<usize>) -> Self {
        let part = |x: &'a [f32], width: usize| &x[rows.start * width..rows.end * width];
        let half = self.heads.dim / 2;
        let rotation = self.rotation.map(|rotation| Rotation {
            cos: part(rotation.cos, half),
            sin: part(rotation.sin, half),
            ..rotation
        });
        Self { qkv: part(self.qkv, self.heads.qkv()), rotation, ..self }
    }

    /// Query head `head` of a row, `[dim]`.
    #[inline(always)]
    pub(super) fn query(self, row: usize, head: usize, out: &mut [f32]) {
        out.copy_from_slice(self.head(row, head));
        self.rotate(row, 0, out);
    }

    /// Key head `head` of a row, `[dim]`.
    #[inline(always)]
    pub(super) fn key(self, row: usize, head: usize, out: &mut [f32]) {
        out.copy_from_slice(self.head(row, self.heads.query + head));
        self.rotate(row, 1, out);
    }

    /// Value head `head` of a row, `[dim]`.
    #[inline(always)]
    pub(super) fn value(self, row: usize, head: usize) -> &'a [f32] {
        self.head(row, self.heads.query + self.heads.key_value + head)
    }

    #[inline(always)]
    fn head(self, row: usize, head: usize) -> &'a [f32] {
        &self.qkv[row * self.heads.qkv() + head * self.heads.dim..][..self.heads.dim]
    }

    /// Norms and rotates a head of a row: a query (0) or a key (1).
    #[inline(always)]
    fn rotate(self, row: usize, which: usize, head: &mut [f32]) {
        let Some(Rotation { cos, sin, norms, eps }) = self.rotation else { return };
        if let Some(weights) = norms {
            let scale = rms_scale(head, eps);
            for (x, weight) in head.iter_mut().zip(weights[which]) {
                *x = *x * scale * weight;
            }
        }
        let half = self.heads.dim / 2;
        let [cos, sin] = [cos, sin].map(|x| &x[row * half..][..half]);
        let (first, second) = head.split_at_mut(half);
        // By whole vectors, read before they are written: else the compiler has to ask first whether
        // the four overlap.
        let (firsts, first) = first.as_chunks_mut::<LANES>();
        let (seconds, second) = second.as_chunks_mut::<LANES>();
        let ((cosines, cos), (sines, sin)) = (cos.as_chunks(), sin.as_chunks());
        for (((a, b), cos), sin) in firsts.iter_mut().zip(seconds).zip(cosines).zip(sines) {
            (*a, *b) = turned(*a, *b, *cos, *sin);
        }
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            ([*a], [*b]) = turned([*a], [*b], [*cos], [*sin]);
        }
    }
}

/// Both elements of some pairs, by the angles whose cosines and sines these are.
#[inline(always)]
fn turned<const N: usize>(
    a: [f32; N],
    b: [f32; N],
    cos: [f32; N],
    sin: [f32; N],
) -> ([f32; N], [f32; N]) {
    (
        std::array::from_fn(|i| a[i] * cos[i] - b[i] * sin[i]),
        std::array::from_fn(|i| b[i] * cos[i] + a[i] * sin[i]),
    )
}
