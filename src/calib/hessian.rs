//! The statistics of a site: the Hessian of its layers' output error.

use crate::compute::{OuterSum, Part, Products};
use crate::error::{Error, Result};
use crate::model::ops;
use candle_core::Tensor;
use llmq_kernels::elementwise::first_non_finite;
use llmq_kernels::syrk;
use rayon::prelude::*;

/// `H = Σ x xᵀ` over the tokens that a site saw, divided by their number (Frantar et al. 2022, section 3: the Hessian of
/// `‖WX − QX‖²`, up to a factor).
pub struct Hessian {
    products: Products,
    columns: usize,
    tokens: usize,
    /// None before the first token.
    sum: Option<Box<dyn OuterSum>>,
    triangle: bool,
}

impl Hessian {
    /// An empty sum for activations of `columns` numbers.
    pub fn new(products: impl Into<Products>, columns: usize) -> Hessian {
        Hessian { products: products.into(), columns, tokens: 0, sum: None, triangle: false }
    }

    /// The same, of which only what [`Hessian::finish`] says of a triangle will be there, in half the memory.
    pub fn triangle(products: impl Into<Products>, columns: usize) -> Hessian {
        Hessian { triangle: true, ..Hessian::new(products, columns) }
    }

    /// Adds activations, `[tokens, columns]`.
    ///
    /// # Errors
    /// NaN or infinity among them, or another width; or what computes it fails.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        let n = self.columns;
        let part = if self.triangle { Part::Triangle } else { Part::Lower };
        let sum = self.products.sum(&mut self.sum, n, n, part)?;
        let seen = self.tokens;
        row_of(x, n, |x| {
            sum.add(x, None)?;
            // What is not finite makes its column's square so: those are fewer to look through.
            if sum.is_finite() == Some(true) { Ok(()) } else { refuse_non_finite(x, n, seen) }
        })??;
        self.tokens += x.dims2()?.0;
        Ok(())
    }

    /// How many tokens were seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `Σx²` of each column so far.
    ///
    /// # Errors
    /// What computes it fails.
    pub fn squares(&self) -> Result<Vec<f32>> {
        self.sum.as_ref().map_or(Ok(vec![0.0; self.columns]), |sum| sum.diagonal())
    }

    /// How many columns it has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The mean outer product, `[columns, columns]`, whole; or of a triangle what lies below the diagonal and in the squares of
    /// [`BAND`] columns along it.
    ///
    /// # Errors
    /// What computes it fails.
    pub fn finish(self) -> Result<Vec<f32>> {
        let (n, scale) = (self.columns, 1.0 / self.tokens.max(1) as f32);
        let Some(sum) = self.sum else { return Ok(vec![0.0; n * n]) };
        let mut sum = sum.finish()?; // [n, n]
        let there = |i: usize| if self.triangle { (i / BAND * BAND + BAND).min(n) } else { n };
        let rows = sum.par_chunks_mut(n.max(1)).enumerate();
        rows.for_each(|(i, row)| row[..there(i)].iter_mut().for_each(|x| *x *= scale));
        if !self.triangle {
            syrk::mirror(n, &mut sum);
            return Ok(sum);
        }
        for (i, j) in (0..n).flat_map(|i| (i + 1..there(i)).map(move |j| (i, j))) {
            sum[i * n + j] = sum[j * n + i];
        }
        Ok(sum)
    }
}

/// Columns that a product with a symmetric matrix takes at once: it reads what lies below the diagonal, and whole squares along it.
pub const BAND: usize = 512;

/// Hands activations, `[tokens, columns]`, to `work` as one row of numbers. `seen`: the tokens before them, for the error.
///
/// # Errors
/// NaN or infinity among them, or another width.
pub(super) fn rows_of<T>(x: &Tensor, columns: usize, seen: usize, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    row_of(x, columns, |x| refuse_non_finite(x, columns, seen).map(|()| work(x)))?
}

/// The same with whatever numbers there are.
fn row_of<T>(x: &Tensor, columns: usize, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let found = x.dims2()?.1;
    if found != columns {
        return Err(Error::new(format!("activations of {found} numbers at a site of {columns}")));
    }
    Ok(ops::with_numbers(x, work)?)
}

fn refuse_non_finite(x: &[f32], columns: usize, seen: usize) -> Result<()> {
    let Some(at) = first_non_finite(x) else { return Ok(()) };
    let (token, column) = (seen + at / columns, at % columns);
    Err(Error::new(format!("the activations hold {} at token {token} and column {column}", x[at]))
        .hint("the checkpoint overflows in its own forward pass: check it with `llmq eval --perplexity`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use llmq_kernels::gemm::Precision;

    #[test]
    fn it_is_the_mean_outer_product() {
        let mut h = Hessian::new(Precision::Single, 2);
        for row in [[1.0f32, 2.0], [3.0, -1.0]] {
            h.add(&Tensor::from_slice(&row, (1, 2), &Device::Cpu).unwrap()).unwrap();
        }
        assert_eq!(h.finish().unwrap(), [5.0, -0.5, -0.5, 2.5]);
    }

    #[test]
    fn of_a_triangle_the_squares_along_the_diagonal_are_whole() {
        let n = BAND + 40;
        let x: Vec<f32> = (0..3 * n).map(|i| (i as f32 * 0.37).sin()).collect();
        let of = |mut h: Hessian| {
            h.add(&Tensor::from_slice(&x, (3, n), &Device::Cpu).unwrap()).unwrap();
            h.finish().unwrap()
        };
        let [whole, triangle] = [Hessian::new, Hessian::triangle].map(|new| of(new(Precision::Single, n)));
        let there = |&(i, j): &(usize, usize)| j <= i || i / BAND == j / BAND;
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(there) {
            assert_eq!(triangle[i * n + j], whole[i * n + j], "{i} {j}");
        }
    }

    #[test]
    fn infinite_activations_are_refused_by_place() {
        let mut h = Hessian::new(Precision::Single, 2);
        let x = Tensor::from_slice(&[1.0f32, 2.0, f32::INFINITY, 0.0], (2, 2), &Device::Cpu).unwrap();
        let message = h.add(&x).unwrap_err().to_string();
        assert!(message.contains("inf at token 1 and column 0"), "{message}");
    }
}
