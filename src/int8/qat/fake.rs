//! Activations as a QuantizeLinear and a DequantizeLinear give them, with a gradient (Jacob et al. 2018, "Quantization and
//! Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3; the straight-through estimator
//! of Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons").
//!
//! The ends of the range are learned: `x̂ = s·clip(round(x/s))` with `s = (high − low)/255` has, as Esser et al. 2020
//! ("Learned Step Size Quantization", equation 3) derive it, `∂x̂/∂s = round(x/s) − x/s` inside of the range, and outside,
//! where `x̂` is an end, `∂x̂/∂end = 1`. Ends are learned as factors `exp(e)` of those that calibration found, so that they
//! keep their sign and zero stays in the range.

use crate::int8::ranges::{LEVELS, Range};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};

/// A range whose ends have been moved: `ends` are the logarithms of two factors.
pub fn moved(range: Range, ends: [f32; 2]) -> Range {
    let [low, high] = ends.map(|end| f64::from(end).exp());
    Range::new(f64::from(range.low) * low, f64::from(range.high) * high)
}

/// `x` in the 8 bits of a range that [`moved`] gave with `ends`, a tensor `[2]` to which a gradient flows, too.
///
/// # Errors
/// The tensor library refused.
pub fn quantized(x: &Tensor, ends: &Tensor, range: Range) -> candle_core::Result<Tensor> {
    let (scale, zero) = range.grid();
    x.contiguous()?.apply_op2(ends, Activation { range, scale, zero: f32::from(zero) })
}

struct Activation {
    range: Range,
    scale: f32,
    zero: f32,
}

impl Activation {
    /// The code of a number, its zero point taken off; one too small or too large stands for all outside of the range.
    fn code(&self, x: f32) -> f32 {
        let (least, most) = self.codes();
        // Adding 1.5 · 2^23 leaves no bits for fractions, so that the sum is rounded to an even whole number where two are as
        // near. Many CPUs' instructions for that are not in the baseline that programs are compiled for, this is.
        const SHIFT: f32 = 12_582_912.0;
        ((x / self.scale).clamp(least - 1.0, most + 1.0) + SHIFT) - SHIFT
    }

    /// The smallest and the largest code, the zero point taken off.
    fn codes(&self) -> (f32, f32) {
        (-self.zero, (LEVELS - 1) as f32 - self.zero)
    }
}

impl CustomOp2 for Activation {
    fn name(&self) -> &'static str {
        "quantized-activation"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _ends: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a tensor that is not contiguous: {layout:?}")
        };
        let (least, most) = self.codes();
        let quantized = |&x: &f32| self.scale * self.code(x).clamp(least, most);
        let y = x.as_slice::<f32>()?[from..to].iter().map(quantized).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        ends: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (least, most) = self.codes();
        let data = x.flatten_all()?.to_vec1::<f32>()?;
        let mut grad = grad.flatten_all()?.to_vec1::<f32>()?;
        let (mut low, mut high, mut scale) = (0f64, 0f64, 0f64);
        for (&x, g) in data.iter().zip(&mut grad) {
            let code = self.code(x);
            if code < least {
                low += f64::from(std::mem::take(g));
            } else if code > most {
                high += f64::from(std::mem::take(g));
            } else {
                scale += f64::from(*g) * f64::from(code - x / self.scale);
            }
        }
        scale /= (LEVELS - 1) as f64;
        let moved = [(low - scale) * f64::from(self.range.low), (high + scale) * f64::from(self.range.high)];
        let moved = Tensor::new(&moved.map(|g| g as f32), ends.device())?;
        Ok((Some(Tensor::from_vec(grad, x.dims(), x.device())?), Some(moved)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// The gradients of `Σ weights · x̂` for `x` and for both ends, and `x̂`.
    fn gradients(x: &[f32], weights: &[f32], range: Range) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let x = Var::new(x, &Device::Cpu).unwrap();
        let ends = Var::new(&[0f32; 2], &Device::Cpu).unwrap();
        let y = quantized(&x, &ends, range).unwrap();
        let loss = (&y * Tensor::new(weights, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let of = |x: &Tensor| grads.get(x).unwrap().to_vec1::<f32>().unwrap();
        (of(&x), of(&ends), y.to_vec1().unwrap())
    }

    #[test]
    fn halves_become_even_and_what_is_far_outside_stays_there() {
        let activation = Activation { range: Range::new(0.0, 255.0), scale: 1.0, zero: 5.0 };
        let x = [0.5, 1.5, 2.5, -0.5, -2.5, 0.499_999_97, 248.5, 300.0, 1e30, f32::MIN];
        assert_eq!(x.map(|x| activation.code(x)), [0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 248.0, 251.0, 251.0, -6.0]);
    }

    #[test]
    fn numbers_are_those_of_the_grid_and_gradients_pass_inside() {
        let range = Range::new(-1.0, 3.0);
        let (scale, zero) = range.grid();
        let (x, _, y) = gradients(&[-5.0, -0.3, 0.0, 1.234, 9.0], &[1.0, 2.0, 3.0, 4.0, 5.0], range);
        assert_eq!(x, [0.0, 2.0, 3.0, 4.0, 0.0]);
        let largest = scale * (255.0 - f32::from(zero));
        assert!(y[0] == -scale * f32::from(zero) && y[2] == 0.0 && y[4] == largest, "{y:?}");
        assert!((y[3] - 1.234).abs() <= scale / 2.0 && (y[3] / scale).fract() == 0.0);
    }

    /// A range that begins at zero has no zero point to be rounded, so that differences tell the slope between jumps.
    #[test]
    fn the_gradient_of_an_end_is_the_slope() {
        let range = Range::new(0.0, 2.0);
        let x: Vec<f32> = (0..200).map(|i| i as f32 * 0.011 + 0.0013).collect();
        let weights: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin()).collect();
        let (_, ends, _) = gradients(&x, &weights, range);
        assert_eq!(ends[0], 0.0);
        let step = 1e-2;
        let total = |end: f32| -> f64 {
            let (scale, _) = moved(range, [0.0, end]).grid();
            let (before, _) = range.grid();
            // The codes stay what they are: at a jump there is no slope.
            let back = |x: f32| f64::from(scale) * f64::from((x / before).round_ties_even().clamp(0.0, 255.0));
            // Straight through: what is rounded off stays the same part of a step.
            let passed = |x: f32| {
                if (x / before).round_ties_even() > 255.0 {
                    0.0
                } else {
                    f64::from(x) * f64::from(scale / before - 1.0)
                }
            };
            x.iter().zip(&weights).map(|(&x, &w)| f64::from(w) * (back(x) - passed(x))).sum()
        };
        let slope = (total(step) - total(-step)) / (2.0 * f64::from(step));
        assert!((slope - f64::from(ends[1])).abs() < 0.02 * slope.abs().max(0.1), "{slope} {ends:?}");
    }
}
