//! Plain Rust, for CPUs without kernels of their own; the compiler vectorises it.
#![allow(unsafe_code)] // Raw pointers, called by the driver under the contract of `TileKernel::tile`.

use super::{PANEL, SECTION_STEPS, STEP_K, STEP_LINES, Tile, TileKernel};

pub(super) struct Kernel;

impl TileKernel for Kernel {
    type Registers = ();

    const MAX_ROWS: usize = 4;

    fn panels(_rows: usize) -> usize {
        1
    }

    unsafe fn tile((): &mut (), rows: usize, panels: usize, t: &Tile) {
        assert!(panels == 1);
        for r in 0..rows {
            // SAFETY: the caller's tile has row r.
            unsafe { row(t, r) };
        }
    }
}

/// # Safety
/// As [`TileKernel::tile`], for one panel and a row `r` of it.
unsafe fn row(t: &Tile, r: usize) {
    // SAFETY: row r of the caller's tile.
    let scales = unsafe { &*t.rows.add(r) };
    let dots = |mut sums: [i32; PANEL], first: usize, steps: usize| {
        // SAFETY: steps of the panel, and words of row r.
        let (steps, codes) = unsafe {
            let panel = t.panel.add(first * STEP_LINES).cast::<[[u8; STEP_K]; PANEL]>();
            let codes = t.codes.add(r * t.codes_stride + first).cast::<[i8; STEP_K]>();
            (std::slice::from_raw_parts(panel, steps), std::slice::from_raw_parts(codes, steps))
        };
        for (step, codes) in steps.iter().zip(codes) {
            for (sum, weights) in sums.iter_mut().zip(step) {
                for (w, x) in weights.iter().zip(codes) {
                    *sum = sum.wrapping_add(i32::from(*w) * i32::from(*x));
                }
            }
        }
        sums
    };
    let [high, low, rotated] = scales.offsets;
    let sums = dots([high; PANEL], 0, t.outlier_words);
    let sums = sums.map(|sum| sum.wrapping_mul(128).wrapping_add(low));
    let outliers = dots(sums, SECTION_STEPS, 2 * t.outlier_words);
    let sums = dots([rotated; PANEL], 2 * SECTION_STEPS, t.steps);
    for (j, (outliers, sum)) in outliers.into_iter().zip(sums).enumerate() {
        // SAFETY: column j of the panel's scales, and of row r of the output tile.
        unsafe {
            let outliers = outliers as f32 * (scales.outlier_scale * *t.outlier_scales.add(j));
            let sum = sum as f32 * (scales.scale * *t.scales.add(j));
            t.y.add(r * t.y_stride + j).write(outliers + sum);
        }
    }
}
