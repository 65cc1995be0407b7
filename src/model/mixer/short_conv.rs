//! A short convolution between two gates, as in LFM2: `C ⊙ conv(B ⊙ x)`, where B, C and x come out of one layer.

use super::{At, Cost, Memory, Mix, Place};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::part::{Absorber, BlockTensor, Part, Reads};
use crate::model::states::MixerState;
use candle_core::{Device, Tensor};
use llmq_kernels::gemm::View;
use llmq_kernels::recurrent::{CausalConv, causal_conv};

impl Part {
    /// B, C and x.
    pub const SHORTCONV_IN: Part = Part("shortconv.in_proj");
    /// The convolution, `[hidden, taps]`.
    pub const SHORTCONV: Part = Part("shortconv.conv");
    /// The output layer.
    pub const SHORTCONV_OUT: Part = Part("shortconv.out_proj");
}

/// A short convolution of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConv {
    /// Width of the residual stream, and of each of the three.
    pub hidden: usize,
    /// Positions that it sees.
    pub taps: usize,
}

impl ShortConv {
    /// Numbers of its states: of the convolution.
    fn state_sizes(&self) -> [usize; 1] {
        [(self.taps - 1) * self.hidden]
    }
}

impl Mix for ShortConv {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (input, inner) = (Reads::Site(Place::Input), Reads::Site(Place::Inner));
        vec![
            BlockTensor::linear(Part::SHORTCONV_IN, "conv.in_proj", &[3 * hidden, hidden], input),
            BlockTensor::new(Part::SHORTCONV, "conv.conv", &[hidden, self.taps]),
            BlockTensor::linear(Part::SHORTCONV_OUT, "conv.out_proj", &[hidden, hidden], inner),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::SHORTCONV_OUT)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let (n, width) = (x.dim(0)?, self.hidden);
        let all = layers.linear(Part::SHORTCONV_IN, x)?;
        let part = |i: usize| all.narrow(1, i * width, width);
        let gated = (part(0)? * part(2)?)?.flatten_all()?.to_vec1::<f32>()?;
        let positions = layers.positions(n, at).len();
        let state = match &mut at.state {
            None => None,
            Some(state) => {
                state.seen += n;
                state.numbers.first_mut().map(Vec::as_mut_slice)
            }
        };
        let weight = layers.weight(Part::SHORTCONV).flatten_all()?.to_vec1::<f32>()?;
        let filter = CausalConv { weight: &weight, taps: self.taps, bias: None, activation: None };
        let mut y = vec![0.0; gated.len()];
        causal_conv(View::new(&gated, n, width, width), positions, &filter, state, &mut y);
        Ok((part(1)? * Tensor::from_vec(y, (n, width), x.device())?)?)
    }

    fn absorber(&self) -> Option<Absorber> {
        Some(Absorber::of(Part::SHORTCONV_IN, self.hidden..2 * self.hidden))
    }

    fn mixes_positions(&self) -> bool {
        true
    }

    fn state(&self, _: usize, _: &Device) -> Result<MixerState> {
        Ok(MixerState::zeros(&self.state_sizes()))
    }

    fn memory(&self) -> Memory {
        Memory::states(&self.state_sizes())
    }

    fn cost(&self) -> Cost {
        let width = self.hidden;
        Cost { between: 5 * width, inner: width, elementwise: ((self.taps + 2) * width) as f64, ..Cost::default() }
    }
}
