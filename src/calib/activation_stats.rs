//! What some windows of text say about a site: how large its inputs are, how they go together, and how they have drifted from
//! what the original model computes.

use super::hessian::{Hessian, rows_of};
use crate::compute::{OuterSum, Part, Products};
use crate::error::{Error, Result};
use candle_core::Tensor;
use llmq_kernels::elementwise::first_non_finite;
use rayon::prelude::*;

/// `E[a bᵀ]` over tokens.
pub struct Outer {
    products: Products,
    rows: usize,
    columns: usize,
    /// None before the first token.
    sum: Option<Box<dyn OuterSum>>,
    tokens: usize,
}

impl Outer {
    /// An empty sum for activations of `rows` and `columns` numbers.
    pub fn new(products: impl Into<Products>, rows: usize, columns: usize) -> Outer {
        Outer { products: products.into(), rows, columns, sum: None, tokens: 0 }
    }

    /// Adds activations. `a`: `[tokens, rows]`; `b`: `[tokens, columns]`.
    ///
    /// # Errors
    /// NaN or infinity among them, or other shapes; or what computes it fails.
    pub fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        let (rows, n, seen) = (self.rows, self.columns, self.tokens);
        let tokens = b.dims2()?.0;
        if a.dims2()? != (tokens, rows) {
            return Err(Error::new(format!("activations {:?} beside those of {tokens} tokens", a.dims())));
        }
        let sum = self.products.sum(&mut self.sum, rows, n, Part::Whole)?;
        rows_of(a, rows, seen, |a| rows_of(b, n, seen, |b| sum.add(a, Some(b))))???;
        self.tokens += tokens;
        Ok(())
    }

    /// The mean: `[rows, columns]`.
    ///
    /// # Errors
    /// What computes it fails.
    pub fn finish(self) -> Result<Vec<f32>> {
        let scale = 1.0 / self.tokens.max(1) as f32;
        let Some(sum) = self.sum else { return Ok(vec![0.0; self.rows * self.columns]) };
        let mut sum = sum.finish()?;
        sum.par_iter_mut().for_each(|x| *x *= scale);
        Ok(sum)
    }
}

/// Sums of a site in the making.
pub struct ActivationStats {
    hessian: Hessian,
    drift: Option<Outer>,
}

/// The means of a site.
pub struct FinishedStats {
    /// `E[x xᵀ]`: `[columns, columns]`.
    pub hessian: Vec<f32>,
    /// `E[d xᵀ]`, `d` being by how much something is off from the original model: `[rows, columns]`.
    pub drift: Option<Vec<f32>>,
    /// How many tokens were seen.
    pub tokens: usize,
}

impl ActivationStats {
    /// Empty sums for inputs of `columns` numbers. `drift`: how many numbers come along that say what is off.
    pub fn new(products: impl Into<Products>, columns: usize, drift: Option<usize>) -> ActivationStats {
        let products = products.into();
        let drift = drift.map(|rows| Outer::new(&products, rows, columns));
        ActivationStats { hessian: Hessian::new(products, columns), drift }
    }

    /// The same with a triangle of the Hessian.
    pub fn triangle(products: impl Into<Products>, columns: usize, drift: Option<usize>) -> ActivationStats {
        let products = products.into();
        let drift = drift.map(|rows| Outer::new(&products, rows, columns));
        ActivationStats { hessian: Hessian::triangle(products, columns), drift }
    }

    /// Adds the inputs of some tokens, `[tokens, columns]`. `off`: by how much something is off there, `[tokens, rows]`.
    ///
    /// # Errors
    /// NaN or infinity among them, or another width.
    pub fn add(&mut self, x: &Tensor, off: Option<&Tensor>) -> Result<()> {
        self.hessian.add(x)?;
        match (&mut self.drift, off) {
            (Some(drift), Some(off)) => drift.add(off, x),
            _ => Ok(()),
        }
    }

    /// How many tokens were seen.
    pub fn tokens(&self) -> usize {
        self.hessian.tokens()
    }

    /// The means.
    ///
    /// # Errors
    /// Activations so large that the sums of their products left single precision; or what computes them fails.
    pub fn finish(self) -> Result<FinishedStats> {
        let known = FinishedStats {
            tokens: self.hessian.tokens(),
            hessian: self.hessian.finish()?,
            drift: self.drift.map(Outer::finish).transpose()?,
        };
        let means = [Some(&known.hessian), known.drift.as_ref()];
        if let Some(at) = means.into_iter().flatten().find_map(|means| first_non_finite(means)) {
            let column = at % known.hessian.len().isqrt();
            return Err(Error::new(format!(
                "the activations at column {column} are too large: their squares overflow"
            ))
            .hint("the checkpoint is close to overflowing in its own forward pass: use --method rtn"));
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use llmq_kernels::gemm::Precision;

    #[test]
    fn drift_is_the_mean_product_of_what_is_off_and_inputs() {
        let of = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &Device::Cpu).unwrap();
        let mut stats = ActivationStats::new(Precision::Single, 2, Some(3));
        for (x, off) in [([1.0, 2.0], [1.0, 0.0, -1.0]), ([3.0, -1.0], [0.0, 2.0, 0.0])] {
            stats.add(&of(&x), Some(&of(&off))).unwrap();
        }
        let known = stats.finish().unwrap();
        assert_eq!(known.tokens, 2);
        assert_eq!(known.hessian, [5.0, -0.5, -0.5, 2.5]);
        assert_eq!(known.drift.unwrap(), [0.5, 1.0, 3.0, -1.0, -0.5, -1.0]);
    }

    #[test]
    fn squares_that_overflow_are_refused_by_their_column() {
        let mut stats = ActivationStats::new(Precision::Single, 3, None);
        stats.add(&Tensor::from_slice(&[1.0f32, 1e20, 2.0], (1, 3), &Device::Cpu).unwrap(), None).unwrap();
        let message = stats.finish().err().unwrap().to_string();
        assert!(message.contains("column 1 are too large"), "{message}");
    }
}
