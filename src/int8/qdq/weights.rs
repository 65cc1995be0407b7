//! Weights in 8 bits: symmetric, one scale for each output channel along any axis, and biases in 32 bits.

use super::plan::Plan;
use crate::error::{Error, Result};
use crate::int8::onnx::{Graph, Tensor};
use crate::int8::weights::{Levels, Quantized, channel};
use llmq_kernels::elementwise::first_non_finite;

/// Refuses weights and biases that are not numbers, before they make a calibration look bad.
///
/// # Errors
/// Some are not, or a tensor is damaged.
pub fn check_finite(graph: &Graph, plan: &Plan) -> Result<()> {
    for (&at, _) in plan.roles.iter().filter(|(_, role)| role.weighted()) {
        let node = &graph.nodes()[at];
        for name in [1, 2].into_iter().filter_map(|input| node.input_at(input)) {
            let Some(tensor) = graph.constant(name) else { continue };
            let w = Tensor::<f32>::read(tensor)?.data;
            if let Some(at) = first_non_finite(&w) {
                let (op, label, x) = (node.op_type(), node.label(), w[at]);
                return Err(Error::new(format!("weight '{name}' of {op} node '{label}' holds {x} at element {at}"))
                    .hint("the float model is damaged: export it again"));
            }
        }
    }
    Ok(())
}

/// The largest bias in units of its scale that is risked: a quarter of what 32 bits hold, which leaves room for the sum.
const LARGEST_BIAS: f64 = (1u32 << 29) as f64;

/// The place of a channel's weights in a tensor: `outer` runs of `inner` numbers.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: usize,
    inner: usize,
}

impl Layout {
    /// Of a tensor whose channels are along `axis`.
    fn of(dims: &[usize], axis: usize) -> Layout {
        Layout { channels: dims[axis], inner: dims[axis + 1..].iter().product() }
    }

    /// The positions of a channel's numbers in a tensor of `length`.
    fn positions(self, channel: usize, length: usize) -> impl Iterator<Item = usize> {
        let Layout { channels, inner } = self;
        let runs = (channel * inner..length).step_by(channels * inner);
        runs.flat_map(move |first| first..first + inner)
    }
}

/// Rounds to nearest.
///
/// A bias is stored in 32 bits with the scale of the products, `input · weight`: where a channel's weights are so small that
/// its bias would not fit, its scale is made larger.
pub fn quantize(w: &Tensor<f32>, axis: usize, levels: Levels, bias: Option<&[f32]>, input: f32) -> Quantized {
    let layout = Layout::of(&w.dims, axis);
    let (mut codes, mut scales) = (vec![0; w.data.len()], Vec::with_capacity(layout.channels));
    let length = w.data.len() / layout.channels;
    let (mut row, mut rounded) = (Vec::with_capacity(length), vec![0; length]);
    for c in 0..layout.channels {
        row.clear();
        row.extend(layout.positions(c, w.data.len()).map(|at| w.data[at]));
        let least = bias.map_or(0.0, |bias| f64::from(bias[c]).abs() / (LARGEST_BIAS * f64::from(input))) as f32;
        scales.push(channel(&row, &mut rounded, levels, least));
        layout.positions(c, w.data.len()).zip(&rounded).for_each(|(at, &code)| codes[at] = code);
    }
    Quantized { codes: Tensor::new(w.dims.clone(), codes), scales }
}

/// A bias in units of `input · scale`, and these units.
pub fn bias_codes(bias: &[f32], scales: &[f32], input: f32) -> (Vec<i32>, Vec<f32>) {
    let scales: Vec<f32> = scales.iter().map(|scale| (scale * input).max(f32::MIN_POSITIVE)).collect();
    let code = |(&b, &scale): (&f32, &f32)| (f64::from(b) / f64::from(scale)).round_ties_even() as i32;
    (bias.iter().zip(&scales).map(code).collect(), scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn weights_are_off_by_half_a_step_and_biases_too(
            w in prop::collection::vec(-2.0..2.0f32, 24), axis in 0..3usize, b in -1e4..1e4f32, input in 1e-6..1e2f32,
            small in -30..1i32, reduced: bool
        ) {
            let dims = vec![2, 3, 4];
            let data: Vec<f32> = w.iter().map(|w| w * 2f32.powi(small)).collect();
            let w = Tensor::new(dims.clone(), data);
            let bias = vec![b; dims[axis]];
            let levels = if reduced { Levels::Reduced } else { Levels::Full };
            let q = quantize(&w, axis, levels, Some(&bias), input);
            for (at, (&w, &code)) in w.data.iter().zip(&q.codes.data).enumerate() {
                // By hand: the channel is the index along the axis.
                let index = [at / 12, at / 4 % 3, at % 4][axis];
                let scale = q.scales[index];
                // The scale may clip the largest ones by 15%.
                let off = (w - f32::from(code) * scale).abs();
                let clipped = code.abs() == levels.largest();
                prop_assert!(off <= 0.5001 * scale || (clipped && off <= 0.16 * w.abs()), "{w} {code} {scale}");
                prop_assert!(code.abs() <= levels.largest());
            }
            let (codes, scales) = bias_codes(&bias, &q.scales, input);
            for (&code, &scale) in codes.iter().zip(&scales) {
                let off = (f64::from(code) * f64::from(scale) - f64::from(b)).abs();
                prop_assert!(off <= 0.51 * f64::from(scale) && code.unsigned_abs() <= 1 << 30, "{off} {scale} {code}");
            }
        }
    }

    #[test]
    fn channels_without_weights_keep_their_bias() {
        let w = Tensor::new([2, 1], vec![0.0f32, 1.0]);
        let q = quantize(&w, 0, Levels::Full, Some(&[3.0, 0.0]), 0.5);
        let (codes, scales) = bias_codes(&[3.0, 0.0], &q.scales, 0.5);
        assert!((f64::from(codes[0]) * f64::from(scales[0]) - 3.0).abs() < 1e-6);
        assert_eq!(q.codes.data, [0, 127]);
    }
}
