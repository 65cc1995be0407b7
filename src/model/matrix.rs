//! Weight matrices: held as numbers, or dequantized on the fly, a few rows at a time.

use super::ops;
use crate::compute::{Key, Numbers, Products, Weights};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a matrix that can be decoded whenever they are needed.
pub trait Rows: Send + Sync {
    /// Decodes rows: `out`: `[rows, columns]`, all of it is overwritten.
    ///
    /// # Errors
    /// They cannot be read, or hold NaN or infinity.
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
}

/// A matrix that layers multiply with.
#[derive(Clone)]
pub enum Matrix<'a> {
    /// `[rows, columns]`, in `f32`.
    Held(Tensor),
    /// Decoded anew in each product, never all of it at once.
    OnTheFly(OnTheFly<'a>),
}

/// Some of the rows of a matrix that someone else has.
#[derive(Clone)]
pub struct OnTheFly<'a> {
    source: Arc<dyn Rows + 'a>,
    key: Key,
    first: usize,
    rows: usize,
    columns: usize,
}

impl<'a> OnTheFly<'a> {
    /// A matrix of `[rows, columns]`; a stack of matrices is one with the rows of all.
    pub fn new(source: Arc<dyn Rows + 'a>, rows: usize, columns: usize) -> OnTheFly<'a> {
        OnTheFly { source, key: Key::new_rows(), first: 0, rows, columns }
    }

    /// The `i`-th matrix of a stack of `count`.
    ///
    /// # Errors
    /// There is no such matrix.
    pub fn get(&self, i: usize, count: usize) -> Result<OnTheFly<'a>> {
        if i >= count {
            return Err(Error::new(format!("there is no matrix {i} in a stack of {count}")));
        }
        let rows = self.rows / count;
        Ok(OnTheFly { key: self.key.from_row(i * rows), first: self.first + i * rows, rows, ..self.clone() })
    }

    /// `x·wᵀ`. `x`: `[n, columns]`, result: `[n, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or rows that cannot be decoded.
    pub fn linear(&self, how: impl Into<Products>, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = (self.rows, self.columns);
        let decode = |rows: Range<usize>, out: &mut [f32]| {
            self.source.decode(self.first + rows.start..self.first + rows.end, out)
        };
        match x.device() {
            Device::Cpu => {
                let weights = Weights { key: self.key, rows, columns, numbers: Numbers::OnTheFly(&decode) };
                ops::linear_of(&how.into(), x, &weights)
            }
            device => {
                let mut numbers = vec![0.0; rows * columns];
                decode(0..rows, &mut numbers)?;
                ops::linear(how, x, &Tensor::from_vec(numbers, (rows, columns), device)?)
            }
        }
    }
}

impl Matrix<'_> {
    /// `x·wᵀ`. `x`: `[n, columns]`, result: `[n, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or rows that cannot be decoded.
    pub fn linear(&self, how: impl Into<Products>, x: &Tensor) -> Result<Tensor> {
        match self {
            Matrix::Held(w) => ops::linear(how, x, w),
            Matrix::OnTheFly(w) => w.linear(how, x),
        }
    }
}

impl From<Tensor> for Matrix<'_> {
    fn from(tensor: Tensor) -> Self {
        Matrix::Held(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmq_kernels::gemm::Precision;

    /// Row `r` is `r, r, …`; the one behind the fourth cannot be read.
    struct Numbered;

    impl Rows for Numbered {
        fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            let columns = out.len() / rows.len();
            for (row, out) in rows.zip(out.chunks_mut(columns)) {
                if row > 3 {
                    return Err(Error::new(format!("row {row} is gone")));
                }
                out.fill(row as f32);
            }
            Ok(())
        }
    }

    #[test]
    fn a_matrix_of_a_stack_is_multiplied_with() {
        let stack = OnTheFly::new(Arc::new(Numbered), 6, 3);
        let x = Tensor::from_vec(vec![1f32, 1.0, 1.0, 0.0, 2.0, 0.0], (2, 3), &Device::Cpu).unwrap();
        let y = Matrix::OnTheFly(stack.get(1, 3).unwrap()).linear(Precision::Single, &x).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[6.0, 9.0], [4.0, 6.0]]);
        assert!(stack.get(3, 3).is_err());
        assert_eq!(stack.get(2, 3).unwrap().linear(Precision::Single, &x).unwrap_err().to_string(), "row 4 is gone");
        let narrow = x.narrow(1, 0, 2).unwrap().contiguous().unwrap();
        assert!(
            stack
                .linear(Precision::Single, &narrow)
                .unwrap_err()
                .chain()
                .join(": ")
                .contains("3 columns on activations of 2")
        );
    }
}
