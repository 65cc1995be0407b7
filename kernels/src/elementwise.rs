//! The row-wise operations of a decoder block: norms, rotary embedding, activations, softmax.

mod activation;
mod magnitude;
mod rope;

pub use activation::*;
pub use magnitude::*;
pub use rope::*;

use crate::dispatch::kernel;
use crate::lanes::{F, LANES};
use rayon::prelude::*;

/// Rows that one task handles.
const ROWS: usize = 32;

/// eˣ in every lane, to within 2 units in the last place; zero below −87, and NaN stays NaN.
///
/// The reduction and the polynomial are those of Cephes' `expf` (S. Moshier).
#[inline(always)]
pub fn exp(x: F) -> F {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const MAGIC: f32 = 12_582_912.0;
    let x_in = x;
    // In this order of operands a comparison with NaN yields NaN.
    let x = F::splat(88.0).min(F::splat(-87.0).max(x));
    let t = x.mul_add(F::splat(std::f32::consts::LOG2_E), F::splat(MAGIC));
    let n = t - F::splat(MAGIC);
    let r = n.mul_add(F::splat(-0.693_359_4), x);
    let r = n.mul_add(F::splat(2.121_944_4e-4), r);
    let mut p = F::splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = p.mul_add(r, F::splat(c));
    }
    let y = (r * r).mul_add(p, r + F::splat(1.0));
    let scaled = y.zip(t, |y, t| y * f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)));
    x_in.less(F::splat(-87.0), F::ZERO, scaled)
}

/// Loads up to sixteen numbers; the rest of the lanes get `fill`.
#[inline(always)]
pub(crate) fn load(x: &[f32], fill: f32) -> F {
    // A copy whose length is not known before is a call.
    if let Some(x) = x.as_array() {
        return F(*x);
    }
    let mut v = F::splat(fill);
    v.0[..x.len()].copy_from_slice(x);
    v
}

/// Stores the first lanes, as many as there is room for.
#[inline(always)]
pub(crate) fn store(v: F, y: &mut [f32]) {
    match y.as_mut_array() {
        Some(y) => *y = v.0,
        None => y.copy_from_slice(&v.0[..y.len()]),
    }
}

/// The sum of all lanes, always added in the same order.
#[inline(always)]
pub(crate) fn sum(v: F) -> f32 {
    let mut v = v.0;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            v[l] += v[l + half];
        }
        half /= 2;
    }
    v[0]
}

kernel! {
    /// Replaces scores by their softmax: `x[i] = exp(scale·x[i]) / Σ exp(scale·x[j])`.
    pub fn softmax / softmax_on(x: &mut [f32], scale: f32) {
        let mut largest = F::splat(f32::NEG_INFINITY);
        for part in x.chunks(LANES) {
            largest = largest.max(load(part, f32::NEG_INFINITY));
        }
        let largest = largest.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let shift = F::splat(-largest * scale);
        let mut total = F::ZERO;
        for part in x.chunks_mut(LANES) {
            let y = exp(load(part, f32::NEG_INFINITY).mul_add(F::splat(scale), shift));
            store(y, part);
            total = total + y;
        }
        let inverse = 1.0 / sum(total);
        for v in x.iter_mut() {
            *v *= inverse;
        }
    }
}

kernel! {
    /// The logarithm of `Σ exp(x[i])`; the exponentials in `f32`, their sum in `f64`.
    pub fn log_sum_exp / log_sum_exp_on(x: &[f32]) -> f64 {
        let mut largest = F::splat(f32::NEG_INFINITY);
        for part in x.chunks(LANES) {
            largest = largest.max(load(part, f32::NEG_INFINITY));
        }
        let largest = largest.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let mut total = [0.0f64; LANES];
        for part in x.chunks(LANES) {
            let y = exp(load(part, f32::NEG_INFINITY) - F::splat(largest));
            for (total, y) in total.iter_mut().zip(y.0) {
                *total += f64::from(y);
            }
        }
        total.iter().sum::<f64>().ln() + f64::from(largest)
    }
}

kernel! {
    /// [`log_sum_exp`] of `x`, to the last bit, and the mean of `x[i] − y[i]` under the softmax of `x`: what a piece of
    /// two rows of logits adds to their Kullback-Leibler divergence. Both in nats. `y` is as long as `x`.
    pub fn log_sum_exp_and_gap / log_sum_exp_and_gap_on(x: &[f32], y: &[f32]) -> (f64, f64) {
        let mut largest = F::splat(f32::NEG_INFINITY);
        for part in x.chunks(LANES) {
            largest = largest.max(load(part, f32::NEG_INFINITY));
        }
        let largest = largest.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let (mut total, mut gaps) = ([0.0f64; LANES], [0.0f64; LANES]);
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            let weight = exp(load(x, f32::NEG_INFINITY) - F::splat(largest));
            let gap = load(x, 0.0) - load(y, 0.0);
            for l in 0..LANES {
                total[l] += f64::from(weight.0[l]);
                gaps[l] += f64::from(weight.0[l]) * f64::from(gap.0[l]);
            }
        }
        let total = total.iter().sum::<f64>();
        (total.ln() + f64::from(largest), gaps.iter().sum::<f64>() / total)
    }
}

kernel! {
    /// One row of [`rms_norm`]: `y = x / √(mean(x²) + eps) · gain`.
    pub fn rms_norm_row / rms_norm_row_on(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
        let mut squares = F::ZERO;
        for part in x.chunks(LANES) {
            let v = load(part, 0.0);
            squares = v.mul_add(v, squares);
        }
        let inverse = 1.0 / (sum(squares) / x.len() as f32 + eps).sqrt();
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * inverse * g;
        }
    }
}

kernel! {
    /// One row of [`layer_norm`]: `y = (x − mean(x)) / √(var(x) + eps) · gain + bias`; no bias is an empty one.
    pub fn layer_norm_row / layer_norm_row_on(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let mut total = F::ZERO;
        for part in x.chunks(LANES) {
            total = total + load(part, 0.0);
        }
        let mean = sum(total) / x.len() as f32;
        let mut squares = F::ZERO;
        for part in x.chunks(LANES) {
            let v = load(part, mean) - F::splat(mean);
            squares = v.mul_add(v, squares);
        }
        let inverse = 1.0 / (sum(squares) / x.len() as f32 + eps).sqrt();
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
            *y = (x - mean) * inverse * g;
        }
        for (y, b) in y.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// `y = a + b`, on all threads. All: `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    pairs(a, b, y, |a, b| a + b);
}

/// `y = a − b`; see [`add`].
pub fn subtract(a: &[f32], b: &[f32], y: &mut [f32]) {
    pairs(a, b, y, |a, b| a - b);
}

/// Each row divided by the same numbers, on all threads. `x`, `y`: `[n, by.len()]`.
pub fn divide(x: &[f32], by: &[f32], y: &mut [f32]) {
    let part = ROWS * by.len().max(1);
    y.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(y, x)| {
        for (y, x) in y.chunks_mut(by.len()).zip(x.chunks(by.len())) {
            y.iter_mut().zip(x.iter().zip(by)).for_each(|(y, (x, by))| *y = x / by);
        }
    });
}

fn pairs(a: &[f32], b: &[f32], y: &mut [f32], of: impl Fn(f32, f32) -> f32 + Sync) {
    const PART: usize = 1 << 15;
    assert_eq!((a.len(), b.len()), (y.len(), y.len()), "lengths of a sum");
    y.par_chunks_mut(PART).zip(a.par_chunks(PART).zip(b.par_chunks(PART))).for_each(|(y, (a, b))| {
        y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = of(*a, *b));
    });
}

/// Root-mean-square norm of every row, on all threads (Zhang and Sennrich 2019, equation 4).
///
/// `x`, `y`: `[n, gain.len()]`.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    let width = gain.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
            rms_norm_row(x, gain, eps, y);
        }
    });
}

/// Layer norm of every row, on all threads (Ba et al. 2016, equation 4). No bias is an empty one.
///
/// `x`, `y`: `[n, gain.len()]`.
pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let width = gain.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
            layer_norm_row(x, gain, bias, eps, y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(F::splat(x)).0[0], f64::from(x).exp() as f32);
            let error = (i64::from(got.to_bits()) - i64::from(want.to_bits())).abs();
            assert!(error <= 2, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(F::splat(-1000.0)), F::ZERO);
        assert_eq!(exp(F::splat(f32::NEG_INFINITY)), F::ZERO);
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit_with_tails() {
        for n in [1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 1.7).sin() * 9.0).collect();
            let gain: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 * 0.01).collect();
            let run = |isa| {
                let (mut a, mut b, mut c) = (x.clone(), vec![0.0; n], vec![0.0; n]);
                softmax_on(isa, &mut a, 0.3);
                rms_norm_row_on(isa, &x, &gain, 1e-5, &mut b);
                let acts = Activation::ALL.map(|kind| {
                    let mut y = x.clone();
                    gated_row_on(isa, kind, &x, &gain, &mut c);
                    activate_row_on(isa, kind, &mut y);
                    (c.clone(), y)
                });
                let (mut capped, mut centred) = (x.clone(), vec![0.0; n]);
                softcap_on(isa, &mut capped, 0.7, 5.0);
                layer_norm_row_on(isa, &x, &gain, &gain, 1e-5, &mut centred);
                let sums = (log_sum_exp_on(isa, &x), log_sum_exp_and_gap_on(isa, &x, &gain));
                (a, b, acts, capped, centred, sums)
            };
            let reference = run(Isa::Baseline);
            for isa in Isa::available() {
                assert_eq!(run(isa), reference, "{isa:?} with {n}");
            }
        }
    }

    #[test]
    fn softmax_and_its_logarithm_are_what_they_say() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32).cos() * 5.0).collect();
        let total: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
        assert!((log_sum_exp(&x) - total.ln()).abs() < 1e-6);
        let y: Vec<f32> = (0..37).map(|i| (i as f32).sin() * 5.0).collect();
        let (sum, gap) = log_sum_exp_and_gap(&x, &y);
        let weighed = |(&x, &y): (&f32, &f32)| f64::from(x).exp() / total * (f64::from(x) - f64::from(y));
        assert_eq!(sum, log_sum_exp(&x));
        assert!((gap - x.iter().zip(&y).map(weighed).sum::<f64>()).abs() < 1e-6);
        assert_eq!(log_sum_exp_and_gap(&x, &x).1, 0.0);
        let mut y = x.clone();
        softmax(&mut y, 1.0);
        for (y, x) in y.iter().zip(&x) {
            assert!((f64::from(*y) - f64::from(*x).exp() / total).abs() < 1e-6);
        }
    }

    #[test]
    fn scores_beyond_all_bounds_are_not_hidden_by_softmax() {
        for bad in [f32::INFINITY, f32::NAN] {
            for at in [0, 17, 36] {
                let mut x: Vec<f32> = (0..37).map(|i| (i as f32).cos()).collect();
                x[at] = bad;
                assert!(log_sum_exp(&x).is_nan(), "{bad} at {at}");
                softmax(&mut x, 0.5);
                assert!(x.iter().all(|y| y.is_nan()), "{bad} at {at}");
            }
        }
    }

    #[test]
    fn layer_norm_centres_and_scales() {
        let (x, gain, bias) = ([1.0, 2.0, 6.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]);
        let mut y = [0.0; 3];
        layer_norm_row(&x, &gain, &bias, 0.0, &mut y);
        let deviation = (14.0f32 / 3.0).sqrt();
        for (y, want) in y.iter().zip([-2.0 / deviation, 1.0 - 2.0 / deviation, 3.0 / deviation]) {
            assert!((y - want).abs() < 1e-6, "{y} {want}");
        }
    }
}
