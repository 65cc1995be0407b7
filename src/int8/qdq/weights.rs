//! Weights in 8 bits: symmetric, one scale for each output channel.

use crate::int8::onnx::Tensor;

/// The smallest scale that is used: its inverse is a number, and products with activations' scales do not vanish.
const SMALLEST: f32 = 1e-30;

/// The largest bias in units of its scale that is risked: a quarter of what 32 bits hold, which leaves room for the sum.
const LARGEST_BIAS: f64 = (1u32 << 29) as f64;

/// Quantized weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// In the shape of the weights.
    pub codes: Tensor<i8>,
    /// One for each channel.
    pub scales: Vec<f32>,
}

/// The place of a channel's weights in a tensor: `outer` runs of `inner` numbers.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// How many channels.
    pub channels: usize,
    inner: usize,
}

impl Layout {
    /// Of a tensor whose channels are along `axis`.
    pub fn of(dims: &[usize], axis: usize) -> Layout {
        Layout { channels: dims[axis], inner: dims[axis + 1..].iter().product() }
    }

    /// The channel of the number at a position.
    pub fn channel(&self, at: usize) -> usize {
        at / self.inner % self.channels
    }
}

/// Rounds to nearest. `limit`: the largest code, 127 or, where sums of two products must fit 16 bits, 64.
///
/// A bias is stored in 32 bits with the scale of the products, `input · weight`: where a channel's weights are so small that
/// its bias would not fit, its scale is made larger.
pub fn quantize(w: &Tensor<f32>, axis: usize, limit: f32, bias: Option<&[f32]>, input: f32) -> Quantized {
    let layout = Layout::of(&w.dims, axis);
    let mut scales = vec![0f32; layout.channels];
    for (at, w) in w.data.iter().enumerate() {
        let scale = &mut scales[layout.channel(at)];
        *scale = scale.max(w.abs());
    }
    for (c, scale) in scales.iter_mut().enumerate() {
        let fits = bias.map_or(0.0, |bias| f64::from(bias[c]).abs() / (LARGEST_BIAS * f64::from(input))) as f32;
        *scale = (*scale / limit).max(fits).max(SMALLEST);
    }
    let code = |(at, &w): (usize, &f32)| {
        let scale = scales[layout.channel(at)];
        (w / scale).round_ties_even().clamp(-limit, limit) as i8
    };
    let codes = w.data.iter().enumerate().map(code).collect();
    Quantized { codes: Tensor::new(w.dims.clone(), codes), scales }
}

impl Quantized {
    /// A bias in units of `input · scale`.
    pub fn bias(&self, bias: &[f32], input: f32) -> (Vec<i32>, Vec<f32>) {
        let scales: Vec<f32> = self.scales.iter().map(|scale| scale * input).collect();
        let code = |(&b, &scale): (&f32, &f32)| (f64::from(b) / f64::from(scale)).round_ties_even() as i32;
        (bias.iter().zip(&scales).map(code).collect(), scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn weights_are_off_by_half_a_step_and_biases_too(
            w in prop::collection::vec(-2.0..2.0f32, 24), axis in 0..3usize, b in -1e4..1e4f32, input in 1e-6..1e2f32,
            small in -30..1i32, limit in prop::sample::select(vec![127.0f32, 64.0])
        ) {
            let dims = vec![2, 3, 4];
            let data: Vec<f32> = w.iter().map(|w| w * 2f32.powi(small)).collect();
            let w = Tensor::new(dims.clone(), data);
            let bias = vec![b; dims[axis]];
            let q = quantize(&w, axis, limit, Some(&bias), input);
            let layout = Layout::of(&dims, axis);
            for (at, (&w, &code)) in w.data.iter().zip(&q.codes.data).enumerate() {
                // By hand: the channel is the index along the axis.
                let index = [at / 12, at / 4 % 3, at % 4][axis];
                prop_assert_eq!(layout.channel(at), index);
                let scale = q.scales[index];
                prop_assert!((w - f32::from(code) * scale).abs() <= 0.5001 * scale);
                prop_assert!(f32::from(code).abs() <= limit);
            }
            let (codes, scales) = q.bias(&bias, input);
            for (&code, &scale) in codes.iter().zip(&scales) {
                let off = (f64::from(code) * f64::from(scale) - f64::from(b)).abs();
                prop_assert!(off <= 0.51 * f64::from(scale) && code.unsigned_abs() <= 1 << 30, "{off} {scale} {code}");
            }
        }
    }

    #[test]
    fn channels_without_weights_keep_their_bias() {
        let w = Tensor::new([2, 1], vec![0.0f32, 1.0]);
        let q = quantize(&w, 0, 127.0, Some(&[3.0, 0.0]), 0.5);
        let (codes, scales) = q.bias(&[3.0, 0.0], 0.5);
        assert!((f64::from(codes[0]) * f64::from(scales[0]) - 3.0).abs() < 1e-6);
        assert_eq!(q.codes.data, [0, 127]);
    }
}
