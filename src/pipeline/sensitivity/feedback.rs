//! How much of the error a calibrated method leaves: known from the inputs alone.
//!
//! Rounded to nearest, a layer's output error is `tr(H)` times the variance of the rounding errors. Rounded column by column,
//! each error fed to the columns that are still to come, it is `tr(D)` times the same variance, where `H = UᵀDU` with a unit
//! upper triangular `U`: `D` has what is left of each input's variance once the inputs behind it are known (Chee et al. 2023,
//! theorem 1; GPTQ is that method). So inputs that predict each other make rounding cheap, whatever the weights are.

use crate::calib::hessian::Hessian;
use crate::error::Result;
use candle_core::{Device, Tensor};
use faer::{Mat, Side};
use llmq_kernels::gemm::Precision;

/// Inputs that are looked at, at most: the factorization is cubic in them. Where a site has more, evenly spaced ones stand
/// for all.
const INPUTS: usize = 1 << 12;

/// What is added to the diagonal, as a fraction of its mean: GPTQ's damping.
const DAMP: f64 = 0.01;

/// The inputs of a site.
pub struct Feedback {
    /// Which inputs are looked at, where not all are: `[n]`.
    some: Option<Tensor>,
    hessian: Hessian,
}

impl Feedback {
    /// Of a site of so many inputs.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(columns: usize) -> Result<Feedback> {
        let n = columns.min(INPUTS);
        let places: Vec<u32> = (0..n).map(|i| (i * columns / n) as u32).collect();
        let some = (n < columns).then(|| Tensor::from_vec(places, n, &Device::Cpu)).transpose()?;
        Ok(Feedback { some, hessian: Hessian::new(Precision::Single, n) })
    }

    /// Adds activations, `[tokens, columns]`.
    ///
    /// # Errors
    /// NaN or infinity among them.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        match &self.some {
            Some(places) => self.hessian.add(&x.index_select(places, 1)?),
            None => self.hessian.add(x),
        }
    }

    /// `tr(D) / tr(H)`: what feedback leaves of the error of rounding to nearest. One where `H` cannot be factored.
    ///
    /// # Errors
    /// What computes it fails.
    pub fn left(self) -> Result<f64> {
        let n = self.hessian.columns();
        let h = self.hessian.finish()?;
        let trace: f64 = (0..n).map(|j| f64::from(h[j * n + j])).sum();
        let lambda = DAMP * trace / n as f64;
        // Reversed, so that the factor is the lower one that faer makes.
        let reversed = Mat::from_fn(n, n, |i, j| {
            let (i, j) = (n - 1 - i, n - 1 - j);
            f64::from(h[i * n + j]) + if i == j { lambda } else { 0.0 }
        });
        Ok(match reversed.llt(Side::Lower) {
            Ok(factor) if trace > 0.0 => {
                let pivots = (0..n).map(|j| factor.L()[(j, j)].powi(2));
                (pivots.sum::<f64>() / (trace + lambda * n as f64)).min(1.0)
            }
            _ => 1.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(rows: usize, columns: usize, of: impl Fn(usize, usize) -> f32) -> f64 {
        let mut feedback = Feedback::new(columns).unwrap();
        let x: Vec<f32> = (0..rows * columns).map(|i| of(i / columns, i % columns)).collect();
        feedback.add(&Tensor::from_vec(x, (rows, columns), &Device::Cpu).unwrap()).unwrap();
        feedback.left().unwrap()
    }

    #[test]
    fn inputs_that_predict_each_other_leave_little() {
        // Each input by itself: nothing to feed back to.
        let alone = left(8, 8, |i, j| if i == j { 1.0 } else { 0.0 });
        assert!((alone - 1.0).abs() < 1e-9, "{alone}");
        // All the same: only the last one's error stays, and the damping.
        let same = left(8, 8, |i, _| i as f32 - 3.5);
        assert!(same < 0.25, "{same}");
        assert_eq!(left(4, 4, |_, _| 0.0), 1.0);
    }

    #[test]
    fn the_pivots_are_those_of_conditional_variances() {
        // Variances 1 and 1.25, covariance 0.5: of the first, once the second is known, 1 − 0.5²/1.25 is left.
        let x = [[1.0, 1.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -1.5]];
        let (h, lambda) = ([[1.0, 0.5], [0.5, 1.25]], 0.01 * 2.25 / 2.0);
        let first = h[0][0] + lambda - h[0][1] * h[1][0] / (h[1][1] + lambda);
        let expected = (first + h[1][1] + lambda) / (2.25 + 2.0 * lambda);
        let got = left(4, 2, |i, j| x[i][j]);
        assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
    }
}
