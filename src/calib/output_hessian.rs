//! The second moment of a loss's gradient at a layer's outputs, in chunks of rows: the Fisher information of these outputs.

use super::hessian::rows_of;
use crate::error::Result;
use candle_core::Tensor;
use llmq_kernels::gemm::{Old, Precision, View, product};
use rayon::prelude::*;

/// Rows of a layer whose errors are seen together: what is beyond the chunks of a whole second moment is not looked at, as it would be as
/// large as the layer.
pub const CHUNK: usize = 64;

/// Numbers of that of a layer of so many rows.
pub fn numbers(rows: usize) -> usize {
    rows.div_ceil(CHUNK) * CHUNK * CHUNK
}

/// `G = Σ g gᵀ` over tokens, divided by their number, its squares of [`CHUNK`] rows along the diagonal.
pub struct OutputHessian {
    rows: usize,
    tokens: usize,
    sum: Vec<f32>, // [⌈rows / CHUNK⌉, CHUNK, CHUNK]
}

impl OutputHessian {
    /// An empty sum for a layer of so many rows.
    pub fn new(rows: usize) -> OutputHessian {
        OutputHessian { rows, tokens: 0, sum: vec![0.0; numbers(rows)] }
    }

    /// Adds gradients, `[tokens, rows]`.
    ///
    /// # Errors
    /// NaN or infinity among them, or another width.
    pub fn add(&mut self, precision: Precision, grad: &Tensor) -> Result<()> {
        let (rows, sum) = (self.rows, &mut self.sum);
        rows_of(grad, rows, self.tokens, |g| {
            let tokens = g.len() / rows;
            sum.par_chunks_mut(CHUNK * CHUNK).enumerate().for_each(|(c, sum)| {
                let own = View::new(&g[c * CHUNK..], tokens, CHUNK.min(rows - c * CHUNK), rows);
                product(precision, sum, CHUNK, Old::Kept, 1.0, own.t(), own);
            });
        })?;
        self.tokens += grad.dim(0)?;
        Ok(())
    }

    /// The mean, `[⌈rows / CHUNK⌉, CHUNK, CHUNK]`; zeros where the last chunk has no more rows.
    pub fn finish(mut self) -> Vec<f32> {
        let scale = 1.0 / self.tokens.max(1) as f32;
        self.sum.iter_mut().for_each(|x| *x *= scale);
        self.sum
    }
}
