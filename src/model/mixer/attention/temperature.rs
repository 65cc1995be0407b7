//! Scores that grow with the position, so that attention stays sharp in long contexts.

use crate::error::Result;
use candle_core::Tensor;
use std::ops::Range;

/// Scores are multiplied by `1 + β·ln(1 + ⌊(position + offset) / original⌋)`, as in Llama 4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// β.
    pub beta: f32,
    /// Tokens of the first training.
    pub original: usize,
    /// What is added to positions.
    pub offset: usize,
}

impl Temperature {
    /// Queries by what scores grow at their positions. `q`: `[windows · positions, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn warm(self, q: Tensor, positions: &Range<usize>) -> Result<Tensor> {
        let Temperature { beta, original, offset } = self;
        if positions.end + offset <= original {
            return Ok(q);
        }
        let factor = |t: usize| 1.0 + beta * (((t + offset) / original) as f32).ln_1p();
        let (n, width) = q.dims2()?;
        let factors = Tensor::from_vec(positions.clone().map(factor).collect(), (1, positions.len(), 1), q.device())?;
        let q = q.reshape((n / positions.len(), positions.len(), width))?.broadcast_mul(&factors)?;
        Ok(q.reshape((n, width))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn scores_grow_from_the_first_position_beyond_the_original_context_on() {
        let ones = Tensor::ones((6, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let grown = |offset: usize, positions: Range<usize>| -> Vec<f32> {
            let own = Temperature { beta: 1.0, original: 2, offset };
            own.warm(ones.clone(), &positions).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (two, three) = (1.0 + 2f32.ln(), 1.0 + 3f32.ln());
        assert_eq!(grown(0, 0..6)[..5], [1.0, 1.0, two, two, three]);
        assert_eq!(grown(1, 0..3), [1.0, two, two, 1.0, two, two]);
        assert_eq!(grown(0, 0..2), [1.0; 6]);
    }
}
