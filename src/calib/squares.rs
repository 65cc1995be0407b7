//! The diagonal of a site's statistics alone: how large each input is.

use super::hessian::rows_of;
use crate::error::Result;
use candle_core::Tensor;

/// `Σx²` of each column over the tokens that a site saw; sums in `f64`.
pub struct Squares {
    sums: Vec<f64>,
    tokens: usize,
}

impl Squares {
    /// An empty sum for activations of `columns` numbers.
    pub fn new(columns: usize) -> Squares {
        Squares { sums: vec![0.0; columns], tokens: 0 }
    }

    /// Adds activations, `[tokens, columns]`.
    ///
    /// # Errors
    /// NaN or infinity among them, or another width.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        let columns = self.sums.len();
        rows_of(x, columns, self.tokens, |x| {
            for row in x.chunks(columns) {
                self.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x * x));
            }
            self.tokens += x.len() / columns;
        })
    }

    /// How many columns it has.
    pub fn columns(&self) -> usize {
        self.sums.len()
    }

    /// How many tokens were seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The mean squares: `[columns]`; zero before any token.
    pub fn means(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.tokens.max(1) as f64) as f32).collect()
    }

    /// The sums: `[columns]`.
    pub fn sums(&self) -> Vec<f32> {
        self.sums.iter().map(|&sum| sum as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn squares_are_summed_per_column_and_infinities_are_refused() {
        let mut squares = Squares::new(2);
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, -1.0], (2, 2), &Device::Cpu).unwrap();
        squares.add(&x).unwrap();
        squares.add(&x).unwrap();
        assert_eq!((squares.sums(), squares.tokens()), (vec![20.0, 10.0], 4));
        let x = Tensor::from_slice(&[1.0f32, f32::NAN], (1, 2), &Device::Cpu).unwrap();
        assert!(squares.add(&x).unwrap_err().to_string().contains("NaN at token 4 and column 1"));
        assert!(squares.add(&Tensor::zeros((1, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).is_err());
    }
}
