//! Mamba-2: a state per head that decays and takes in each position, behind a short convolution (Dao and Gu 2024), as in Nemotron-H,
//! Granite 4 and Falcon-H1.

use super::gated_delta_net::softplus;
use super::{At, Cost, Memory, Mix, Place};
use crate::error::Result;
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::{Absorber, BlockTensor, Part, Reads};
use crate::model::states::MixerState;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::Activation;
use llmq_kernels::gemm::View;
use llmq_kernels::recurrent::{CausalConv, Mamba2Inputs, Mamba2Shape, causal_conv, mamba2_scan};

impl Part {
    /// The first layer. Mamba-2: gate, x, b, c, and the step of each head; Mamba: x and gate.
    pub const SSM_IN: Part = Part("ssm_in");
    /// How much of x each head adds to its result.
    pub const SSM_D: Part = Part("ssm_d");
}

/// Mamba-2 of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba2 {
    /// Heads.
    pub heads: usize,
    /// Numbers of each.
    pub head_dim: usize,
    /// Groups of heads that share what is written to the state and read from it, and a norm.
    pub groups: usize,
    /// Numbers of the state for each number of a head.
    pub state: usize,
    /// Positions that the convolution sees.
    pub taps: usize,
    /// The ε of the norm behind the gate; none where no norm is.
    pub norm: Option<f32>,
}

impl Mamba2 {
    /// Numbers of all heads.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers of all groups that are written to the state, or read from it.
    pub fn shared(&self) -> usize {
        self.groups * self.state
    }

    /// Channels of the convolution: x, b, c.
    fn channels(&self) -> usize {
        self.inner() + 2 * self.shared()
    }

    /// Rows of the first layer.
    fn rows(&self) -> usize {
        self.inner() + self.channels() + self.heads
    }

    /// What the last layer reads: `y` behind the gate, and behind a norm of each group if there is one. `y`, `z`: `[tokens, inner]`.
    fn gated(&self, layers: &Layers, z: &Tensor, y: &Tensor) -> Result<Tensor> {
        let y = ops::gated(Activation::Silu, z, y)?;
        let Some(eps) = self.norm else { return Ok(y) };
        let gain = layers.weight(Part::SSM_NORM); // [groups, inner / groups]
        let rows = y.reshape(((), self.inner() / self.groups))?;
        if self.groups == 1 {
            return Ok(ops::norm(Norm::Rms, &rows, &gain.flatten_all()?, None, eps)?);
        }
        let normed = ops::norm(Norm::Rms, &rows, &gain.get(0)?.ones_like()?, None, eps)?;
        Ok(normed.reshape(y.shape())?.broadcast_mul(&gain.flatten_all()?)?)
    }

    /// Numbers of its states: of the convolution, and of the scan.
    fn state_sizes(&self) -> [usize; 2] {
        [(self.taps - 1) * self.channels(), Mamba2::inner(self) * self.state]
    }
}

impl Mix for Mamba2 {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (heads, inner, channels) = (self.heads, self.inner(), self.channels());
        let first = [self.rows(), hidden];
        let mut tensors = vec![
            BlockTensor::linear(Part::SSM_IN, "mamba.in_proj", &first, Reads::Site(Place::Input)),
            BlockTensor::new(Part::SSM_CONV1D, "mamba.conv1d", &[channels, self.taps]).bias(true),
            BlockTensor::new(Part::SSM_DT, "mamba.dt_bias", &[heads]).bare("bias"),
            BlockTensor::new(Part::SSM_A, "mamba.A_log", &[heads, 1]).bare(""),
            BlockTensor::new(Part::SSM_D, "mamba.D", &[heads, 1]).bare(""),
        ];
        if self.norm.is_some() {
            tensors.push(BlockTensor::new(Part::SSM_NORM, "mamba.norm", &[self.groups, inner / self.groups]));
        }
        let last = [hidden, inner];
        tensors.push(BlockTensor::linear(Part::SSM_OUT, "mamba.out_proj", &last, Reads::Site(Place::Inner)));
        tensors
    }

    fn last(&self) -> Option<Part> {
        Some(Part::SSM_OUT)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let (heads, inner, shared, channels) = (self.heads, Mamba2::inner(self), self.shared(), self.channels());
        let all = layers.linear(Part::SSM_IN, x)?; // [n, z | x | b | c | dt]
        let (n, width) = all.dims2()?;
        let positions = layers.positions(n, at).len();
        let [conv_state, scan_state] = match &mut at.state {
            None => [None, None],
            Some(state) => {
                state.seen += n;
                let [conv, scan] = &mut state.numbers[..] else { return Err(layers.missing("a state of its own")) };
                [Some(conv.as_mut_slice()), Some(scan.as_mut_slice())]
            }
        };
        let z = all.narrow(1, 0, inner)?.contiguous()?;
        let all = all.flatten_all()?.to_vec1::<f32>()?;
        let vector = |part: Part| layers.weight(part).flatten_all()?.to_vec1::<f32>();
        let (weight, bias) = (vector(Part::SSM_CONV1D)?, layers.bias(Part::SSM_CONV1D));
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        let filter =
            CausalConv { weight: &weight, taps: self.taps, bias: bias.as_deref(), activation: Some(Activation::Silu) };
        let mut conv = vec![0.0; n * channels]; // [n, x | b | c]
        causal_conv(View::new(&all[inner..], n, channels, width), positions, &filter, conv_state, &mut conv);
        let (steps, a, d) = (vector(Part::SSM_DT)?, vector(Part::SSM_A)?, vector(Part::SSM_D)?);
        let own = all.chunks(width).flat_map(|row| row[width - heads..].iter().zip(&steps));
        let dt: Vec<f32> = own.map(|(x, step)| softplus(x + step)).collect();
        let part = |first: usize, width: usize| View::new(&conv[first..], n, width, channels);
        let (x, b, c) = (part(0, inner), part(inner, shared), part(inner + shared, shared));
        let inputs = Mamba2Inputs { x, dt: &dt, a: &a, b, c, d: &d };
        let (head_dim, groups, state) = (self.head_dim, self.groups, self.state);
        let mut y = vec![0.0; n * inner];
        mamba2_scan(&inputs, Mamba2Shape { positions, heads, head_dim, groups, state }, scan_state, &mut y);
        self.gated(layers, &z, &Tensor::from_vec(y, (n, inner), z.device())?)
    }

    fn absorber(&self) -> Option<Absorber> {
        // Without a norm, SiLU stands behind both that could.
        self.norm.map(|_| Absorber::of(Part::SSM_NORM, 0..Mamba2::inner(self)))
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
        let (inner, channels) = (Mamba2::inner(self), self.channels());
        // A chunk of 64 positions: c with b, that with x, and the state with each of them.
        let per_token = 64 * self.shared() + inner * (64 + 2 * self.state);
        Cost {
            between: 2 * self.rows() + channels + 2 * inner,
            inner,
            per_position: 0.0,
            per_token: per_token as f64,
            elementwise: (channels * (self.taps + 1) + 3 * inner) as f64,
        }
    }
}
