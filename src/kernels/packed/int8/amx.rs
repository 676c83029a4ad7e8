//! Products of int8 tiles on AMX: 16 rows by 16 columns by 64 k at a time.
#![allow(unsafe_code)] // Tile instructions on raw pointers, called by the driver under the contract of `TileKernel::tile`.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::quantise::{RowScales, Weights};
use super::{Line, PANEL, SECTION_STEPS, STEP_LINES, Tile, TileKernel, avx512};
use crate::kernels::tiles::{SIDE, Tiles};

/// Steps of a tile.
const TILE_STEPS: usize = 16;
/// Bytes of the panel that a tile takes.
const TILE_BYTES: usize = TILE_STEPS * STEP_LINES * 64;

/// Bytes of a tile of codes.
const ROWS_BYTES: usize = SIDE * 64;

const _: () = assert!(SECTION_STEPS == TILE_STEPS);

pub(super) struct Kernel;

/// Sums of two by two tiles.
#[repr(C, align(64))]
struct Sums([[MaybeUninit<i32>; PANEL]; 2 * SIDE]);

impl TileKernel for Kernel {
    type Registers = Tiles;

    const MAX_ROWS: usize = 2 * SIDE;
    const STRIP: usize = SIDE;

    fn panels(_rows: usize) -> usize {
        1
    }

    unsafe fn row(w: &Weights, x: &[f32], work: &mut [f32], codes: &mut [i8]) -> RowScales {
        // SAFETY: the CPU is the caller's promise.
        unsafe { avx512::row(w, x, work, codes) }
    }

    unsafe fn tile(tiles: &mut Tiles, rows: usize, panels: usize, t: &Tile) {
        assert!(panels == 1);
        // SAFETY: the CPU is the caller's promise.
        unsafe { tiles.shape(rows) };
        let mut sums = [const { Sums([[MaybeUninit::uninit(); PANEL]; 2 * SIDE]) }; 3];
        let mut ahead = t.ahead;
        let sections = [(0, 1), (1, 1), (2, t.steps / TILE_STEPS)];
        for (sums, (first, steps)) in sums.iter_mut().zip(sections) {
            // SAFETY: the caller's tile has these sections, each of whole tiles.
            unsafe { dots(t, rows, first, steps, sums, &mut ahead) };
        }
        // SAFETY: the sums of `rows` rows were just written.
        unsafe { store(t, rows, &sums) };
    }
}

/// Writes the sums of `steps` tiles along k, from tile `first` on, and fetches what is `ahead`.
///
/// # Safety
/// As [`TileKernel::tile`]; the tile registers have the shapes for `rows` rows, and `steps` is not 0.
unsafe fn dots(
    t: &Tile,
    rows: usize,
    first: usize,
    steps: usize,
    sums: &mut Sums,
    ahead: &mut *const Line,
) {
    let strip = SIDE * t.codes_stride;
    let upper = t.codes.wrapping_byte_add(first * ROWS_BYTES);
    let slab = t.panel.wrapping_byte_add(first * TILE_BYTES);
    let sums = sums.0.as_mut_ptr();
    /// The products of one step, of one strip of 16 rows or of two, whose codes `$load` loads.
    macro_rules! one_strip {
        ($load:literal) => {
            concat!(
                $load,
                " tmm4, [{upper} + {row}]\n",
                "tdpbsud tmm0, tmm4, tmm6\n",
                "tdpbsud tmm1, tmm4, tmm7",
            )
        };
    }
    macro_rules! two_strips {
        ($load:literal) => {
            concat!(
                one_strip!($load),
                "\n",
                $load,
                " tmm5, [{lower} + {row}]\n",
                "tdpbsud tmm2, tmm5, tmm6\n",
                "tdpbsud tmm3, tmm5, tmm7",
            )
        };
    }
    /// Multiplies along k by `$products`.
    macro_rules! along_k {
        ($products:expr) => {
            asm!(
                "2:",
                "tileloadd tmm6, [{slab} + {pair}]",
                "tileloadd tmm7, [{slab} + {pair} + 64]",
                $products,
                "mov {left}, {fetch}",
                "test {left}, {left}",
                "jz 4f",
                "3:",
                "prefetcht1 [{ahead}]",
                "prefetcht1 [{ahead} + 64]",
                "add {ahead}, 128",
                "sub {left}, 2",
                "ja 3b",
                "4:",
                "add {slab}, {bytes}",
                "add {upper}, {rows}",
                "add {lower}, {rows}",
                "dec {steps}",
                "jnz 2b",
                slab = inout(reg) slab => _,
                upper = inout(reg) upper => _,
                lower = inout(reg) upper.wrapping_add(strip) => _,
                ahead = inout(reg) *ahead,
                steps = inout(reg) steps => _,
                left = out(reg) _,
                fetch = in(reg) t.fetch,
                pair = in(reg) STEP_LINES * 64,
                row = in(reg) 64usize,
                rows = const ROWS_BYTES,
                bytes = const TILE_BYTES,
                options(nostack, readonly),
            )
        };
    }
    // SAFETY: the caller's operands; only tile registers change, which Rust never uses.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        if rows > SIDE {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            // Codes that make place for other codes must leave the panel in the L1 cache; those that
            // do not may stay.
            if t.fetch > 0 {
                along_k!(two_strips!("tileloaddt1"));
            } else {
                along_k!(two_strips!("tileloadd"));
            }
            asm!("tilestored [{sums} + {n}], tmm2", "tilestored [{sums} + {n} + 64], tmm3",
                sums = in(reg) sums.add(SIDE), n = in(reg) PANEL * 4, options(nostack));
        } else {
            along_k!(one_strip!("tileloadd"));
        }
        asm!("tilestored [{sums} + {n}], tmm0", "tilestored [{sums} + {n} + 64], tmm1",
            sums = in(reg) sums, n = in(reg) PANEL * 4, options(nostack));
    }
}

/// Scales the sums into the output.
///
/// # Safety
/// As [`TileKernel::tile`]; the sums of `rows` rows are initialised.
#[target_feature(enable = "avx512f")]
unsafe fn store(t: &Tile, rows: usize, sums: &[Sums; 3]) {
    for r in 0..rows {
        // SAFETY: row r.
        let row = unsafe { &*t.rows.add(r) };
        let (scale, outlier_scale) = (_mm512_set1_ps(row.scale), _mm512_set1_ps(row.outlier_scale));
        let offsets = row.offsets.map(|offset| _mm512_set1_epi32(offset));
        for column in [0, 16] {
            let sum = |section: usize| {
                // SAFETY: 16 of the row's sums.
                let sums =
                    unsafe { sums[section].0[r].as_ptr().add(column).cast::<__m512i>().read() };
                _mm512_add_epi32(sums, offsets[section])
            };
            let outliers = _mm512_add_epi32(_mm512_slli_epi32::<7>(sum(0)), sum(1));
            // SAFETY: 16 columns' scales, and 16 columns of row r of the output tile.
            unsafe {
                let by =
                    _mm512_mul_ps(outlier_scale, _mm512_loadu_ps(t.outlier_scales.add(column)));
                let outliers = _mm512_mul_ps(_mm512_cvtepi32_ps(outliers), by);
                let by = _mm512_mul_ps(scale, _mm512_loadu_ps(t.scales.add(column)));
                let others = _mm512_mul_ps(_mm512_cvtepi32_ps(sum(2)), by);
                let y = t.y.add(r * t.y_stride + column);
                _mm512_storeu_ps(y, _mm512_add_ps(outliers, others));
            }
        }
    }
}
