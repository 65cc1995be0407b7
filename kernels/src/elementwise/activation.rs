//! What stands between the layers of an MLP, and bounds of scores.

use super::{exp, load, store};
use crate::dispatch::kernel;
use crate::lanes::{F, LANES};
use rayon::prelude::*;

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
    /// `max(x, 0)²` (So et al. 2021).
    ReluSquared,
    /// `ln(1 + exp(x))`.
    Softplus,
    /// `1 / (1 + exp(−x))`.
    Sigmoid,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 7] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::Gelu,
        Activation::SiluBounded,
        Activation::ReluSquared,
        Activation::Softplus,
        Activation::Sigmoid,
    ];

    #[inline(always)]
    pub(crate) fn of(self, x: F) -> F {
        match self {
            Activation::Silu => gate(x, x),
            // (1 + tanh u)/2 = σ(2u), with u = √(2/π)·(x + 0.044715·x³).
            Activation::GeluTanh => gate(x, F::splat(1.595_769) * (F::splat(0.044_715) * x * x).mul_add(x, x)),
            Activation::Gelu => x * normal(x),
            Activation::SiluBounded => {
                let x = x.less(F::splat(7.0), x, F::splat(7.0));
                x.zip(exp(F::splat(-1.702) * x), |x, e| x / (1.0 + e))
            }
            Activation::ReluSquared => {
                let x = x.less(F::ZERO, F::ZERO, x);
                x * x
            }
            Activation::Softplus => x.map(|x| if x > 20.0 { x } else { x.exp().ln_1p() }),
            Activation::Sigmoid => gate(F::splat(1.0), x),
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

/// `x·σ(s)`. A closure might stay a call, and would be compiled for the baseline then.
#[inline(always)]
fn gate(x: F, s: F) -> F {
    x.zip(exp(-s), |x, e| x / (1.0 + e))
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
            store(v, y);
        }
    }
}

kernel! {
    /// An activation in place.
    pub fn activate_row / activate_row_on(kind: Activation, x: &mut [f32]) {
        for x in x.chunks_mut(LANES) {
            let y = kind.of(load(x, 0.0));
            store(y, x);
        }
    }
}

kernel! {
    /// `cap·tanh(scale·x / cap)` in place: scores that stay within a bound (Gemma 2, section 2).
    pub fn softcap / softcap_on(x: &mut [f32], scale: f32, cap: f32) {
        for x in x.chunks_mut(LANES) {
            let e = exp(load(x, 0.0) * F::splat(2.0 * scale / cap));
            let y = e.map(|e| cap - 2.0 * cap / (1.0 + e));
            store(y, x);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
