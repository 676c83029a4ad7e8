//! Products on AMX: 16 rows by 16 columns by 32 k at a time.

use std::arch::asm;

use super::{Product, ROW, SIDE};

/// The tile registers' shapes, which this thread has from `shape` on until this is dropped.
#[derive(Default)]
pub(in crate::kernels) struct Tiles {
    /// Rows of the output; 0 while none were asked for.
    rows: usize,
}

impl Tiles {
    /// Sums in 0 to 3 (two above two), activations in 4 and 5, weights in 6 and 7, for an output of
    /// `rows` rows, at most 32. The registers' contents are lost if the shapes change.
    ///
    /// # Safety
    /// The CPU has AMX, and this process may use its tiles.
    pub(in crate::kernels) unsafe fn shape(&mut self, rows: usize) {
        /// The operand of `ldtilecfg`.
        #[repr(C, align(64))]
        struct Shapes {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        if self.rows == rows {
            return;
        }
        let (upper, lower) = (rows.min(SIDE) as u8, rows.saturating_sub(SIDE) as u8);
        let mut shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let heights = [upper, upper, lower, lower, upper, lower, SIDE as u8, SIDE as u8];
        for (tile, height) in heights.into_iter().enumerate() {
            if height > 0 {
                (shapes.rows[tile], shapes.row_bytes[tile]) = (height, ROW as u16);
            }
        }
        // SAFETY: palette 1 has eight tiles of at most 16 rows of 64 bytes; that the
        // process may use them is the caller's promise.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        self.rows = rows;
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: the tiles were configured, and hold nothing that is still wanted.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Multiplies along k: `$products` are the instructions of a step, `$advance` moves on to the next.
macro_rules! along_k {
    ($product:ident, [$($advance:literal),+], [$($products:expr),+]) => {
        asm!(
            "2:",
            "tileloadd tmm6, [{panel} + {pair}]",
            "tileloadd tmm7, [{panel} + {pair} + 64]",
            $($products,)+
            "mov {left}, {fetch}",
            "3:",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "add {ahead}, 128",
            "sub {left}, 2",
            "ja 3b",
            "add {panel}, 2048",
            $($advance,)+
            "dec {tiles}",
            "jnz 2b",
            panel = inout(reg) $product.panel => _,
            upper = inout(reg) $product.upper => _,
            lower = inout(reg) $product.lower => _,
            ahead = inout(reg) $product.ahead => _,
            tiles = inout(reg) $product.tiles => _,
            left = out(reg) _,
            fetch = in(reg) $product.fetch,
            pair = in(reg) 2 * ROW,
            row = in(reg) ROW,
            options(nostack, readonly),
        )
    };
}

/// Left factors of one part of up to 32 rows, or of up to 16, times the right ones at hand.
macro_rules! two_strips {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{upper} + {row} + ",
            $at,
            "]\n",
            "tileloadd tmm5, [{lower} + {row} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}
macro_rules! one_strip {
    ($at:literal) => {
        concat!(
            "tileloadd tmm4, [{upper} + {row} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7",
        )
    };
}

impl Product {
    /// # Safety
    /// As [`super::Multiplier::run`], for one panel; the tile registers have the shapes for `height`
    /// rows.
    pub(super) unsafe fn on_amx<const PARTS: usize>(&self, height: usize) {
        let two = height > SIDE;
        // SAFETY: the caller's operands; only tile registers change, which Rust never uses.
        unsafe {
            if self.from.start.is_null() {
                asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
                if two {
                    asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
                }
            } else {
                let bytes = self.from.row_bytes();
                asm!("tileloadd tmm0, [{y} + {n}]", "tileloadd tmm1, [{y} + {n} + 64]",
                    y = in(reg) self.from.start, n = in(reg) bytes, options(nostack, readonly));
                if two {
                    asm!("tileloadd tmm2, [{y} + {n}]", "tileloadd tmm3, [{y} + {n} + 64]",
                        y = in(reg) self.from.lower(), n = in(reg) bytes,
                        options(nostack, readonly));
                }
            }
            match (two, PARTS) {
                (true, 1) => {
                    along_k!(self, ["add {upper}, 1024", "add {lower}, 1024"], [two_strips!(0)])
                }
                (false, 1) => {
                    along_k!(self, ["add {upper}, 1024", "add {lower}, 1024"], [one_strip!(0)])
                }
                (true, 3) => along_k!(
                    self,
                    ["add {upper}, 3072", "add {lower}, 3072"],
                    [two_strips!(0), two_strips!(1024), two_strips!(2048)]
                ),
                (false, 3) => along_k!(
                    self,
                    ["add {upper}, 3072", "add {lower}, 3072"],
                    [one_strip!(0), one_strip!(1024), one_strip!(2048)]
                ),
                _ => unreachable!("left factors in {PARTS} parts"),
            }
            let bytes = self.to.row_bytes();
            asm!("tilestored [{y} + {n}], tmm0", "tilestored [{y} + {n} + 64], tmm1",
                y = in(reg) self.to.start, n = in(reg) bytes, options(nostack));
            if two {
                asm!("tilestored [{y} + {n}], tmm2", "tilestored [{y} + {n} + 64], tmm3",
                    y = in(reg) self.to.lower(), n = in(reg) bytes, options(nostack));
            }
        }
    }
}
