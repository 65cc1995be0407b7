//! The row-wise operations of a decoder block: norms, rotary embedding, activations, softmax.

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
fn load(x: &[f32], fill: f32) -> F {
    let mut v = F::splat(fill);
    v.0[..x.len()].copy_from_slice(x);
    v
}

/// The sum of all lanes, always added in the same order.
#[inline(always)]
fn sum(v: F) -> f32 {
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
            part.copy_from_slice(&y.0[..part.len()]);
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

/// The function between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)` (Elfwing et al. 2017), also called swish.
    Silu,
    /// `x·Φ(x)`, with tanh in the place of the normal distribution (Hendrycks and Gimpel 2016, section 2).
    GeluTanh,
    /// `x·Φ(x)`.
    Gelu,
    /// `x·σ(1.702·x)` of x up to 7, what it gates being kept within ±7 and then raised by one (gpt-oss).
    SiluBounded,
}

impl Activation {
    #[inline(always)]
    fn of(self, x: F) -> F {
        // x·σ(s)
        let gate = |s: F| x.zip(exp(-s), |x, e| x / (1.0 + e));
        match self {
            Activation::Silu => gate(x),
            // (1 + tanh u)/2 = σ(2u), with u = √(2/π)·(x + 0.044715·x³).
            Activation::GeluTanh => gate(F::splat(1.595_769) * (F::splat(0.044_715) * x * x).mul_add(x, x)),
            Activation::Gelu => x * normal(x),
            Activation::SiluBounded => {
                let x = x.less(F::splat(7.0), x, F::splat(7.0));
                x.zip(exp(F::splat(-1.702) * x), |x, e| x / (1.0 + e))
            }
        }
    }

    /// What becomes of the numbers that the activation gates.
    #[inline(always)]
    fn gated(self, up: F) -> F {
        match self {
            Activation::SiluBounded => up.clamp(-7.0, 7.0) + F::splat(1.0),
            _ => up,
        }
    }
}

/// The normal distribution function Φ, to within 2·10⁻⁷ (Abramowitz and Stegun 1964, formula 7.1.26, of erf).
#[inline(always)]
fn normal(x: F) -> F {
    let z = x.abs() * F::splat(std::f32::consts::FRAC_1_SQRT_2);
    let t = z.map(|z| 1.0 / (1.0 + 0.327_591_1 * z));
    let mut p = F::splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.mul_add(t, F::splat(c));
    }
    // erfc(z)/2
    let tail = F::splat(0.5) * p * t * exp(-(z * z));
    x.less(F::ZERO, tail, F::splat(1.0) - tail)
}

kernel! {
    /// One row of [`gated`].
    pub fn gated_row / gated_row_on(kind: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, gate), up) in y.chunks_mut(LANES).zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
            let v = kind.of(load(gate, 0.0)) * kind.gated(load(up, 0.0));
            y.copy_from_slice(&v.0[..y.len()]);
        }
    }
}

kernel! {
    /// An activation in place.
    pub fn activate_row / activate_row_on(kind: Activation, x: &mut [f32]) {
        for x in x.chunks_mut(LANES) {
            let y = kind.of(load(x, 0.0));
            x.copy_from_slice(&y.0[..x.len()]);
        }
    }
}

kernel! {
    /// `cap·tanh(scale·x / cap)` in place: scores that stay within a bound (Gemma 2, section 2).
    pub fn softcap / softcap_on(x: &mut [f32], scale: f32, cap: f32) {
        for x in x.chunks_mut(LANES) {
            let e = exp(load(x, 0.0) * F::splat(2.0 * scale / cap));
            let y = e.map(|e| cap - 2.0 * cap / (1.0 + e));
            x.copy_from_slice(&y.0[..x.len()]);
        }
    }
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

/// `activation(gate) · up`, on all threads (Shazeer 2020, equations 5 and 6). All of one length.
pub fn gated(kind: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    const PART: usize = 1 << 14;
    y.par_chunks_mut(PART)
        .zip(gate.par_chunks(PART))
        .zip(up.par_chunks(PART))
        .for_each(|((y, gate), up)| gated_row(kind, gate, up, y));
}

/// An activation in place, on all threads.
pub fn activate(kind: Activation, x: &mut [f32]) {
    const PART: usize = 1 << 14;
    x.par_chunks_mut(PART).for_each(|x| activate_row(kind, x));
}

/// The place of the first NaN or infinity, on all threads.
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    first_beyond(x, f32::MAX)
}

/// The position of the first number that is NaN or of a larger magnitude than `most`, searched for on all threads.
pub fn first_beyond(x: &[f32], most: f32) -> Option<usize> {
    const PART: usize = 1 << 14;
    // Within a part nothing stops early, so that the loop is a vector one.
    let part = x.par_chunks(PART).position_first(|part| largest_magnitude(part) > most.to_bits())?;
    let beyond = |x: &f32| x.to_bits() & 0x7fff_ffff > most.to_bits();
    x[part * PART..].iter().position(beyond).map(|at| part * PART + at)
}

kernel! {
    /// The bits of the largest magnitude, which rise as magnitudes do; those of NaN are above all others.
    pub fn largest_magnitude / largest_magnitude_on(x: &[f32]) -> u32 {
        let (lanes, tail) = x.as_chunks::<LANES>();
        let mut largest = [0u32; LANES];
        for x in lanes {
            for (largest, x) in largest.iter_mut().zip(x) {
                *largest = (*largest).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        let tail = tail.iter().map(|x| x.to_bits() & 0x7fff_ffff);
        largest.into_iter().chain(tail).max().unwrap_or_default()
    }
}

/// Which two numbers of a head rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + rotary/2`: the usual order of rows in a checkpoint.
    Halves,
    /// `2i` and `2i + 1`: the order of rows in a GGUF of the llama family.
    Neighbours,
}

/// Rotary embedding in place, on all threads (Su et al. 2021, equation 34), of the first `rotary` of the `d` numbers of each head.
///
/// `x`: `[windows · positions, heads · d]`; `cos`, `sin`: `[positions, rotary/2]`, which also says how many positions a window
/// has.
///
/// # Panics
/// If the lengths do not fit.
pub fn rope(x: &mut [f32], d: usize, rotary: usize, heads: usize, cos: &[f32], sin: &[f32], pairing: Pairing) {
    let (width, half) = (heads * d, rotary / 2);
    let positions = cos.len() / half;
    assert!(
        rotary.is_multiple_of(2)
            && rotary <= d
            && x.len().is_multiple_of(positions * width)
            && cos.len() == positions * half
            && cos.len() == sin.len(),
        "shapes of rope"
    );
    x.par_chunks_mut(width).enumerate().for_each(|(t, row)| {
        let at = t % positions * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in row.chunks_mut(d) {
            let head = &mut head[..rotary];
            match pairing {
                Pairing::Halves => {
                    let (a, b) = head.split_at_mut(half);
                    for i in 0..half {
                        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                    }
                }
                Pairing::Neighbours => {
                    for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                        let (a, b) = (pair[0], pair[1]);
                        (pair[0], pair[1]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
                    }
                }
            }
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
                let acts =
                    [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::SiluBounded].map(|kind| {
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
    fn the_first_number_that_is_none_is_found() {
        let mut x = vec![1.0; 100_000];
        assert_eq!(first_non_finite(&x), None);
        x[70_001] = f32::NEG_INFINITY;
        x[99_999] = f32::NAN;
        assert_eq!(first_non_finite(&x), Some(70_001));
        assert_eq!(first_non_finite(&x[70_002..]), Some(29_997));
        assert_eq!(first_beyond(&[1.0, -3.0, 2.0], 3.0), None);
        assert_eq!(first_beyond(&[1.0, -3.0, 4.0, f32::NAN], 2.5), Some(1));
        for n in 0..40 {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs())).to_bits();
            for isa in Isa::available() {
                assert_eq!(largest_magnitude_on(isa, &x), largest, "{isa:?} {n}");
            }
        }
    }

    #[test]
    fn both_pairings_turn_the_same_pairs() {
        let (cos, sin) = ([0.6, 0.8], [0.8, 0.6]); // one position, d = 4
        let mut halves = [1.0, 2.0, 3.0, 4.0];
        let mut neighbours = [1.0, 3.0, 2.0, 4.0];
        rope(&mut halves, 4, 4, 1, &cos, &sin, Pairing::Halves);
        rope(&mut neighbours, 4, 4, 1, &cos, &sin, Pairing::Neighbours);
        let want = [0.6 - 2.4, 1.6 - 2.4, 1.8 + 0.8, 3.2 + 1.2];
        for i in 0..4 {
            assert!((halves[i] - want[i]).abs() < 1e-6);
        }
        assert_eq!([halves[0], halves[2], halves[1], halves[3]], neighbours);
        // A head of six, of which two do not turn.
        let mut part = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        rope(&mut part, 6, 4, 1, &cos, &sin, Pairing::Halves);
        assert_eq!((&part[..4], &part[4..]), (&halves[..], &[5.0, 6.0][..]));
    }

    #[test]
    fn activations_and_caps_are_what_they_say() {
        // Φ by Simpson's rule over the density.
        let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let simpson = |x: f64| {
            let h = x / 200.0;
            let inner = (1..200).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 });
            0.5 + h / 3.0 * (density(0.0) + density(x) + inner.sum::<f64>())
        };
        for i in -60..=60 {
            let x = f64::from(i) / 8.0;
            let of = |kind| {
                let mut y = [x as f32];
                activate_row(kind, &mut y);
                f64::from(y[0])
            };
            let tanh = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            assert!((of(Activation::Silu) - x / (1.0 + (-x).exp())).abs() < 2e-6, "{x}");
            assert!((of(Activation::GeluTanh) - tanh).abs() < 2e-6, "{x}");
            assert!((of(Activation::Gelu) - x * simpson(x)).abs() < 3e-6, "{x}");
            let mut y = [x as f32];
            softcap(&mut y, 3.0, 5.0);
            assert!((f64::from(y[0]) - 5.0 * (3.0 * x / 5.0).tanh()).abs() < 5e-6, "{x}");
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
