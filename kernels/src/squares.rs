//! Sums of squared errors.

use crate::dispatch::kernel;
use crate::lanes::{F, LANES};

#[inline(always)]
fn add(w: &F, q: &F, h: &F, error: &mut F, whole: &mut F) {
    let e = *w - *q;
    *error = (e * e).mul_add(*h, *error);
    *whole = (*w * *w).mul_add(*h, *whole);
}

kernel! {
    /// `Σ h·(w − q)²` and `Σ h·w²` of a row; without `h`, as if it were one everywhere.
    ///
    /// `w`, `q`, `h`: `[columns]`. Columns that are sixteen apart are added in single precision, these sums in double.
    pub fn errors / errors_on(w: &[f32], q: &[f32], h: Option<&[f32]>) -> (f64, f64) {
        let (mut error, mut whole) = (F::ZERO, F::ZERO);
        let (ones, even) = ([1.0; LANES], F::splat(1.0));
        let (w_lanes, w_tail) = w.as_chunks::<LANES>();
        let (q_lanes, q_tail) = q.as_chunks::<LANES>();
        match h {
            None => {
                for (w, q) in w_lanes.iter().zip(q_lanes) {
                    add(&F(*w), &F(*q), &even, &mut error, &mut whole);
                }
            }
            Some(h) => {
                for ((w, q), h) in w_lanes.iter().zip(q_lanes).zip(h.as_chunks::<LANES>().0) {
                    add(&F(*w), &F(*q), &F(*h), &mut error, &mut whole);
                }
            }
        }
        let tail = h.map_or(&ones[..], |h| h.as_chunks::<LANES>().1);
        let sum = |x: F| x.0.iter().map(|&x| f64::from(x)).sum::<f64>();
        let (mut error, mut whole) = (sum(error), sum(whole));
        for ((w, q), h) in w_tail.iter().zip(q_tail).zip(tail) {
            let e = w - q;
            error += f64::from(e * e * h);
            whole += f64::from(w * w * h);
        }
        (error, whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn sums_are_right_with_every_tail_and_alike_on_all_instruction_sets() {
        for n in [0, 1, 15, 16, 17, 100] {
            let numbers = |seed: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * seed).sin()).collect() };
            let (w, q, h) = (numbers(0.7), numbers(0.71), numbers(0.3).iter().map(|x| x.abs()).collect::<Vec<_>>());
            for weights in [None, Some(&h[..])] {
                let weight = |i: usize| weights.map_or(1.0, |h| f64::from(h[i]));
                let error: f64 = (0..n).map(|i| weight(i) * f64::from(w[i] - q[i]).powi(2)).sum();
                let whole: f64 = (0..n).map(|i| weight(i) * f64::from(w[i]).powi(2)).sum();
                let found = errors(&w, &q, weights);
                assert!((found.0 - error).abs() <= 1e-5 * error && (found.1 - whole).abs() <= 1e-5 * whole, "{n}");
                for isa in Isa::available() {
                    assert_eq!(errors_on(isa, &w, &q, weights), errors_on(Isa::Baseline, &w, &q, weights), "{isa:?}");
                }
            }
        }
    }
}
