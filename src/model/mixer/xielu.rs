//! Two layers with xIELU between (Huang and Schlag 2024, arXiv 2411.13010, section 4): what grows by a square above zero, and by an
//! exponential below, with slopes that each block learns.

use super::{At, Cost, Mix, Place};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::part::{BlockTensor, Part, Reads};
use candle_core::Tensor;
use rayon::prelude::*;

/// An MLP with xIELU. Its four numbers are those that a checkpoint stores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// Width inside.
    pub width: usize,
    /// α above zero is the softplus of this.
    pub alpha_p: f32,
    /// α below zero is β and the softplus of this.
    pub alpha_n: f32,
    /// The slope at zero.
    pub beta: f32,
    /// Numbers between this and zero count as this in the exponential.
    pub eps: f32,
}

/// `ln(1 + exp(x))`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

impl Xielu {
    /// With the numbers that training begins with.
    pub fn new(width: usize) -> Xielu {
        let inverse = |y: f32| y.exp_m1().ln();
        Xielu { width, alpha_p: inverse(0.8), alpha_n: inverse(0.8 - 0.5), beta: 0.5, eps: -1e-6 }
    }

    fn apply(&self, x: &mut [f32]) {
        const PART: usize = 1 << 12;
        let Xielu { beta, eps, .. } = *self;
        let (above, below) = (softplus(self.alpha_p), beta + softplus(self.alpha_n));
        let of = |x: f32| match x > 0.0 {
            true => above * x * x + beta * x,
            false => (x.min(eps).exp_m1() - x) * below + beta * x,
        };
        x.par_chunks_mut(PART).for_each(|x| x.iter_mut().for_each(|x| *x = of(*x)));
    }
}

impl Mix for Xielu {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (input, inner) = (Reads::Site(Place::Input), Reads::Site(Place::Inner));
        vec![
            BlockTensor::linear(Part::UP, "mlp.up_proj", &[self.width, hidden], input),
            BlockTensor::linear(Part::DOWN, "mlp.down_proj", &[hidden, self.width], inner),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::DOWN)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, _: &mut At) -> Result<Tensor> {
        let up = layers.linear(Part::UP, x)?;
        let mut numbers = up.flatten_all()?.to_vec1::<f32>()?;
        self.apply(&mut numbers);
        Ok(Tensor::from_vec(numbers, up.shape(), x.device())?)
    }

    fn cost(&self) -> Cost {
        Cost { between: 2 * self.width, inner: self.width, elementwise: 2.0 * self.width as f64, ..Cost::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_square_above_zero_and_an_exponential_below() {
        let own = Xielu::new(3);
        let mut x = [2.0, -1.0, 0.0];
        own.apply(&mut x);
        // 0.8·x² + x/2, and 0.8·(exp(x) − 1 − x) + x/2.
        let below = 0.8 * (-1f32).exp() - 0.5;
        assert!((x[0] - 4.2).abs() < 1e-5 && (x[1] - below).abs() < 1e-5 && x[2].abs() < 1e-5, "{x:?}");
        let mut steeper = [1.0];
        Xielu { alpha_p: 30.0, beta: 0.0, ..own }.apply(&mut steeper);
        assert_eq!(steeper, [30.0]);
    }
}
