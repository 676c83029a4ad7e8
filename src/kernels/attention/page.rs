//! How pages of the CPU keep keys and values: as the kernel that attends to them reads them.
#![allow(unsafe_code)] // Tiles exist only where the CPU has the instructions that fill them.

use super::super::joined::View;
use super::super::kv::PAGE_TOKENS;
use super::super::math::Widest;
use super::super::packed::Line;
use super::super::{Heads, Precision};
#[cfg(target_arch = "x86_64")]
use super::{super::tiles::Unit, tile_pages, tiled};

/// The form of a page's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) enum PageForm {
    /// f32: of a head keys `[dim, PAGE_TOKENS]` and values `[PAGE_TOKENS, dim]`.
    Numbers,
    /// The nearest bf16, laid out for products of tiles by this unit; see [`tile_pages`].
    #[cfg(target_arch = "x86_64")]
    Tiles(Unit),
}

impl PageForm {
    /// What attention of these heads reads in this precision, on this CPU.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(in crate::kernels) fn new(heads: Heads, precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        if precision != Precision::F32
            && let Some(unit) = tiled::unit(heads.dim)
        {
            return Self::Tiles(unit);
        }
        Self::Numbers
    }

    /// Bytes of a number.
    pub(in crate::kernels) fn number_bytes(self) -> usize {
        match self {
            Self::Numbers => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(_) => 2,
        }
    }

    /// Writes the keys and values of rows into a page's layer, from its token `first` on.
    pub(in crate::kernels) fn write(self, page: &mut [Line], first: usize, qkv: View<'_>) {
        let (keys, values) = page.split_at_mut(page.len() / 2);
        match self {
            Self::Numbers => {
                let keys = bytemuck::cast_slice_mut(keys);
                let values = bytemuck::cast_slice_mut(values);
                let mut key = vec![0.0; qkv.heads().dim];
                Widest::detect().run(
                    #[inline(always)]
                    || write_numbers(keys, values, first, qkv, &mut key),
                );
            }
            // SAFETY: the unit is there, and with it the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(_) => unsafe { tile_pages::write(keys, values, first, qkv) },
        }
    }
}

/// `key` is for a key at work.
#[inline(always)]
fn write_numbers(
    keys: &mut [f32],
    values: &mut [f32],
    first: usize,
    qkv: View<'_>,
    key: &mut [f32],
) {
    let dim = qkv.heads().dim;
    let of_heads = keys.chunks_exact_mut(dim * PAGE_TOKENS);
    let of_heads = of_heads.zip(values.chunks_exact_mut(dim * PAGE_TOKENS));
    // Head by head: a head's part of a page stays in the L1 cache, that of all heads does not.
    for (head, (keys, values)) in of_heads.enumerate() {
        for row in 0..qkv.len() {
            let token = first + row;
            qkv.key(row, head, key);
            // A key's elements stand apart, so that those of a page's tokens stand side by side.
            let targets = keys[token..].iter_mut().step_by(PAGE_TOKENS);
            targets.zip(&*key).for_each(|(target, x)| *target = *x);
            values[token * dim..][..dim].copy_from_slice(qkv.value(row, head));
        }
    }
}
