//! Sixteen numbers side by side.
//!
//! Plain arrays and plain loops: each loop over the lanes becomes one vector instruction (or two, or four) of whatever
//! instruction set the surrounding kernel is compiled for. Lanes usually are sixteen rows of a weight matrix, so sums
//! over a block's columns need no horizontal step and their order is the same everywhere.

use std::ops::{Add, Mul, Neg, Sub};

/// How many numbers an [`F`] holds.
pub const LANES: usize = 16;

/// Sixteen `f32`, one per lane.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(64))]
pub struct F(pub [f32; LANES]);

impl Default for F {
    fn default() -> Self {
        F::ZERO
    }
}

impl F {
    /// Zero in every lane.
    pub const ZERO: F = F([0.0; LANES]);

    /// `value` in every lane.
    #[inline(always)]
    pub const fn splat(value: f32) -> F {
        F([value; LANES])
    }

    /// `f` applied lane by lane.
    #[inline(always)]
    pub fn map(self, f: impl Fn(f32) -> f32) -> F {
        let mut out = F::ZERO;
        for l in 0..LANES {
            out.0[l] = f(self.0[l]);
        }
        out
    }

    /// `f` applied to each pair of lanes.
    #[inline(always)]
    pub fn zip(self, other: F, f: impl Fn(f32, f32) -> f32) -> F {
        let mut out = F::ZERO;
        for l in 0..LANES {
            out.0[l] = f(self.0[l], other.0[l]);
        }
        out
    }

    /// `self · b + c`, rounded once.
    #[inline(always)]
    pub fn mul_add(self, b: F, c: F) -> F {
        let mut out = F::ZERO;
        for l in 0..LANES {
            out.0[l] = self.0[l].mul_add(b.0[l], c.0[l]);
        }
        out
    }

    /// The nearest integer, ties to even.
    #[inline(always)]
    pub fn round(self) -> F {
        self.map(f32::round_ties_even)
    }

    /// The absolute value.
    #[inline(always)]
    pub fn abs(self) -> F {
        self.map(f32::abs)
    }

    /// The larger of each pair.
    #[inline(always)]
    pub fn max(self, other: F) -> F {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    /// The smaller of each pair.
    #[inline(always)]
    pub fn min(self, other: F) -> F {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    /// Each lane limited to `lo ..= hi`.
    #[inline(always)]
    pub fn clamp(self, lo: f32, hi: f32) -> F {
        self.max(F::splat(lo)).min(F::splat(hi))
    }

    /// `1 / x`, and zero where `x` is zero or so small that the reciprocal is infinite.
    #[inline(always)]
    pub fn recip(self) -> F {
        self.map(|x| {
            let r = 1.0 / x;
            if r.abs() < f32::INFINITY { r } else { 0.0 }
        })
    }

    /// `self / other`, and zero where `other` is zero.
    #[inline(always)]
    pub fn div_or_zero(self, other: F) -> F {
        self.zip(other, |a, b| if b != 0.0 { a / b } else { 0.0 })
    }

    /// The lanes of `then` where `self < other`, those of `otherwise` elsewhere.
    #[inline(always)]
    pub fn less(self, other: F, then: F, otherwise: F) -> F {
        let mut out = F::ZERO;
        for l in 0..LANES {
            out.0[l] = if self.0[l] < other.0[l] { then.0[l] } else { otherwise.0[l] };
        }
        out
    }

    /// Each lane rounded to the nearest half-precision number, ties to even; beyond its range, to the largest.
    ///
    /// Scales and minima are stored in half precision, and an infinite one would ruin its block.
    #[inline(always)]
    pub fn to_f16(self) -> F {
        self.map(|x| half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32())
    }
}

impl Add for F {
    type Output = F;
    #[inline(always)]
    fn add(self, other: F) -> F {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for F {
    type Output = F;
    #[inline(always)]
    fn sub(self, other: F) -> F {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for F {
    type Output = F;
    #[inline(always)]
    fn mul(self, other: F) -> F {
        self.zip(other, |a, b| a * b)
    }
}

impl Neg for F {
    type Output = F;
    #[inline(always)]
    fn neg(self) -> F {
        self.map(|a| -a)
    }
}

/// Keeps a loop over [`F`]s a loop over whole `F`s.
///
/// Without it, LLVM may turn such a loop inside out: one vector per lane, gathered from and scattered to memory, at a
/// tenth of the speed. It does not touch loops that contain assembly, even none.
#[inline(always)]
pub fn whole() {
    // SAFETY: no instruction at all.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags));
    }
}

/// Transposes up to sixteen rows, `stride` apart in `rows`, into one [`F`] per column; missing rows become zero.
///
/// `rows`: `[n ≤ 16, stride]`, of which columns `first .. first + out.len()` are read; `out`: `[columns]`.
pub fn gather(rows: &[f32], stride: usize, first: usize, out: &mut [F]) {
    out.fill(F::ZERO);
    for (l, row) in rows.chunks(stride).enumerate().take(LANES) {
        for (column, &x) in out.iter_mut().zip(&row[first..]) {
            column.0[l] = x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_transposes_and_fills_missing_rows_with_zero() {
        let rows: Vec<f32> = (0..3 * 5).map(|i| i as f32).collect(); // [3, 5]
        let mut out = [F::splat(9.0); 2];
        gather(&rows, 5, 1, &mut out);
        assert_eq!(out[0].0[..4], [1.0, 6.0, 11.0, 0.0]);
        assert_eq!(out[1].0[..4], [2.0, 7.0, 12.0, 0.0]);
    }

    #[test]
    fn half_precision_saturates_instead_of_overflowing() {
        assert_eq!(F::splat(1e9).to_f16().0[0], 65504.0);
        assert_eq!(F::splat(-1e9).to_f16().0[3], -65504.0);
        assert_eq!(F::splat(1.0 + 1.0 / 4096.0).to_f16().0[0], 1.0);
    }

    #[test]
    fn division_by_zero_gives_zero() {
        assert_eq!(F::splat(3.0).div_or_zero(F::ZERO), F::ZERO);
        assert_eq!(F::ZERO.recip(), F::ZERO);
        assert_eq!(F::splat(1e-45).recip(), F::ZERO);
    }
}
