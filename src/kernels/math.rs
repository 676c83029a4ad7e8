//! What the compiler can vectorise: functions, where the C library's cannot be, and how code is
//! compiled for the vectors that the CPU has.

use pulp::{Arch, Simd, WithSimd};

/// The widest vectors of this CPU.
#[derive(Clone, Copy)]
pub(super) struct Widest(Arch);

impl Widest {
    pub(super) fn detect() -> Self {
        Self(Arch::new())
    }

    /// Calls `body`, a closure that is `#[inline(always)]`, as it is compiled for these vectors.
    ///
    /// It is no `FnOnce`: the shim through which such a call goes is not inlined, and is compiled
    /// for the narrowest vectors there are.
    pub(super) fn run(self, body: impl FnMut()) {
        self.0.dispatch(Body(body));
    }
}

struct Body<F>(F);

impl<F: FnMut()> WithSimd for Body<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _simd: S) {
        (self.0)();
    }
}

/// Partial results of a row, which are brought together in one order.
pub(super) const LANES: usize = 16;

/// The lanes' halves are joined until one is left: a chain of 16 would wait for each of them.
#[inline(always)]
pub(super) fn join(lanes: [f32; LANES], operation: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| operation(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| operation(eight[i], eight[i + 4]));
    let two: [f32; 2] = std::array::from_fn(|i| operation(four[i], four[i + 2]));
    operation(two[0], two[1])
}

/// `e^x` in f32, within 2 units in the last place; 0 below -87.3, and `e^88.3` above 88.3.
///
/// Branch-free: Cephes' reduction by ln 2 in two parts and its degree-5 polynomial.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5 * 2^23: adding it rounds to a whole number and leaves that number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = (-n).mul_add(LN2_LOW, (-n).mul_add(LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.mul_add(r, c);
    }
    let fraction = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { fraction * power }
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `silu(gate) * up`, number by number.
#[inline(always)]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = silu(*gate) * up;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_close_to_the_exact_value() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(super::exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(super::exp(-100.0), 0.0);
        assert_eq!(super::exp(0.0), 1.0);
        assert!(super::exp(f32::INFINITY) > 1e38);
        assert!(super::exp(f32::NAN).is_nan());
    }
}
