//! Attention whose values are not as wide as its keys, as in MiMo V2: what is narrower is filled up with zeros, which change neither
//! scores nor sums.

use super::Attention;
use crate::error::Result;
use candle_core::Tensor;

impl Attention {
    /// Numbers of each value.
    pub fn value_dim(&self) -> usize {
        self.value_dim.unwrap_or(self.head_dim)
    }

    /// Numbers of each head while it attends: those of a key or of a value, whichever has more.
    pub(super) fn width(&self) -> usize {
        self.head_dim.max(self.value_dim())
    }

    /// Heads of `d` numbers filled up. `x`: `[tokens, heads · d]`.
    pub(super) fn widened(&self, x: Tensor, d: usize) -> Result<Tensor> {
        let (n, columns) = x.dims2()?;
        if d == self.width() {
            return Ok(x);
        }
        let heads = columns / d;
        let zeros = Tensor::zeros((n, heads, self.width() - d), x.dtype(), x.device())?;
        let x = Tensor::cat(&[x.reshape((n, heads, d))?, zeros], 2)?;
        Ok(x.reshape((n, heads * self.width()))?)
    }

    /// What the heads give without what was filled up.
    pub(super) fn narrowed(&self, y: Tensor) -> Result<Tensor> {
        let (n, value) = (y.dim(0)?, self.value_dim());
        if value == self.width() {
            return Ok(y);
        }
        let y = y.reshape((n, self.heads, self.width()))?.narrow(2, 0, value)?.contiguous()?;
        Ok(y.reshape((n, self.heads * value))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_filled_up_is_taken_away_again() {
        let own = Attention { value_dim: Some(2), ..Attention::plain(2, 1, 3, None) };
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0], (1, 4), &Device::Cpu).unwrap();
        let wide = own.widened(x.clone(), 2).unwrap();
        assert_eq!(wide.to_vec2::<f32>().unwrap(), [[1.0, 2.0, 0.0, 3.0, 4.0, 0.0]]);
        assert_eq!(own.narrowed(wide).unwrap().to_vec2::<f32>().unwrap(), x.to_vec2::<f32>().unwrap());
    }
}
