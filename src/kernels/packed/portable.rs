//! Plain Rust, for CPUs without kernels of their own; the compiler vectorises it.
#![allow(unsafe_code)] // Raw pointers, called by the driver under the contract of `TileKernel::tile`.

use super::drive::{ACT_STRIDE, Tile, TileKernel};
use super::pack::{PANEL, Storage};

/// Columns summed at a time: with 4 rows, 16 vectors of 4 floats.
const WIDTH: usize = 8;

/// For bf16 storage, widened in registers, if `WIDEN`; else for f32 storage.
pub(super) struct Kernel<const WIDEN: bool>;

impl<const WIDEN: bool> TileKernel for Kernel<WIDEN> {
    const STORAGE: Storage = if WIDEN { Storage::Bf16Columns } else { Storage::F32 };
    const MAX_ROWS: usize = 4;

    fn panels(_rows: usize) -> usize {
        1
    }

    unsafe fn tile(rows: usize, panels: usize, t: &Tile) {
        assert!(panels == 1);
        // SAFETY: the caller's promises are those that `tile` asks for.
        unsafe {
            match rows {
                1 => tile::<1, WIDEN>(t),
                2 => tile::<2, WIDEN>(t),
                3 => tile::<3, WIDEN>(t),
                4 => tile::<4, WIDEN>(t),
                _ => unreachable!("no tile of {rows} rows"),
            }
        }
    }
}

/// # Safety
/// As [`TileKernel::tile`], for one panel.
unsafe fn tile<const R: usize, const WIDEN: bool>(t: &Tile) {
    let step = if WIDEN { 16 } else { 32 };
    // SAFETY: the slab of one panel.
    let slab = unsafe { std::slice::from_raw_parts(t.slab.cast::<u32>(), t.steps * step) };
    let rows: [&[f32]; R] = std::array::from_fn(|r| {
        // SAFETY: the activations of row r.
        unsafe { std::slice::from_raw_parts(t.acts.add(r * ACT_STRIDE), t.steps) }
    });
    // Each group is the columns c..c+WIDTH/2 and those 16 further.
    for column in (0..PANEL / 2).step_by(WIDTH / 2) {
        let mut sums = [[[0.0f32; WIDTH / 2]; 2]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (half, sums) in sums.iter_mut().enumerate() {
                // SAFETY: WIDTH / 2 columns of row r of the output tile.
                let y = unsafe { t.y.add(r * t.y_stride + half * 16 + column) };
                if !t.first {
                    // SAFETY: as above.
                    *sums = unsafe { y.cast::<[f32; WIDTH / 2]>().read() };
                }
            }
        }
        for (s, words) in slab.chunks_exact(step).enumerate() {
            let mut columns = [[0.0f32; WIDTH / 2]; 2];
            for j in 0..WIDTH / 2 {
                let word = words[column + j];
                let pair = if WIDEN {
                    [word << 16, word & 0xffff_0000]
                } else {
                    [word, words[column + j + 16]]
                };
                columns[0][j] = f32::from_bits(pair[0]);
                columns[1][j] = f32::from_bits(pair[1]);
            }
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = row[s];
                for (sums, columns) in sums.iter_mut().zip(&columns) {
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = add_product(*sum, x, *column);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (half, sums) in sums.iter().enumerate() {
                // SAFETY: WIDTH / 2 columns of row r of the output tile.
                let y = unsafe { t.y.add(r * t.y_stride + half * 16 + column) };
                // SAFETY: as above.
                unsafe { y.cast::<[f32; WIDTH / 2]>().write(*sums) };
            }
        }
    }
}

/// Fused where the target has it; a call into libm elsewhere would be far slower than two roundings.
fn add_product(sum: f32, x: f32, w: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        x.mul_add(w, sum)
    } else {
        sum + x * w
    }
}
