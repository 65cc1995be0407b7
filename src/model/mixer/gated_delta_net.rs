//! Gated delta net: a state per head that decays and is corrected towards each value (Yang et al. 2024, equation 10), behind a
//! short convolution, as in Qwen 3.5.

use super::{At, Cost, Memory, Mix, Place};
use crate::error::Result;
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::{BlockTensor, Part, Reads};
use crate::model::states::MixerState;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::Activation;
use llmq_kernels::gemm::View;
use llmq_kernels::recurrent::{CausalConv, DeltaInputs, DeltaShape, HeadOrder, causal_conv, gated_delta_rule};

impl Part {
    /// The decays' layer.
    pub const SSM_ALPHA: Part = Part("ssm_alpha");
    /// The layer of how far a state is corrected.
    pub const SSM_BETA: Part = Part("ssm_beta");
    /// Both in one: for each key head, corrections and then decays of its value heads.
    pub const SSM_BA: Part = Part("ssm_ba");
    /// The convolution.
    pub const SSM_CONV1D: Part = Part("ssm_conv1d");
    /// The decay of each head, below zero.
    pub const SSM_A: Part = Part("ssm_a");
    /// What is added to the decays' layer.
    pub const SSM_DT: Part = Part("ssm_dt");
    /// The norm of each head's result.
    pub const SSM_NORM: Part = Part("ssm_norm");
    /// The output layer.
    pub const SSM_OUT: Part = Part("ssm_out");
}

/// A gated delta net of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedDeltaNet {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values.
    pub value_heads: usize,
    /// Numbers of a query or a key.
    pub key_dim: usize,
    /// Numbers of a value.
    pub value_dim: usize,
    /// Positions that the convolution sees.
    pub taps: usize,
    /// The ε of its norms.
    pub eps: f32,
    /// Decays and corrections come from one layer, and value heads stand beside those of the same key head; else from two, and
    /// value heads go round the key heads.
    pub grouped: bool,
}

impl GatedDeltaNet {
    /// Numbers of all queries, or of all keys.
    fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Numbers of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys, values.
    fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Log-decays and corrections, `[tokens, value_heads]` each.
    fn decays(&self, layers: &Layers, x: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
        let heads = self.value_heads;
        let (alpha, beta) = match self.grouped {
            false => (layers.linear(Part::SSM_ALPHA, x)?, layers.linear(Part::SSM_BETA, x)?),
            true => {
                let each = heads / self.key_heads;
                let both = layers.linear(Part::SSM_BA, x)?.reshape(((), self.key_heads, 2 * each))?;
                let part = |first: usize| both.narrow(2, first, each)?.contiguous()?.reshape(((), heads));
                (part(each)?, part(0)?)
            }
        };
        let (a, dt) = (layers.weight(Part::SSM_A).to_vec1::<f32>()?, layers.weight(Part::SSM_DT).to_vec1::<f32>()?);
        let mut g = alpha.flatten_all()?.to_vec1::<f32>()?;
        for row in g.chunks_mut(heads) {
            for ((x, a), dt) in row.iter_mut().zip(&a).zip(&dt) {
                *x = a * softplus(*x + dt);
            }
        }
        Ok((g, ops::sigmoid(&beta)?.flatten_all()?.to_vec1()?))
    }

    /// Numbers of its states: of the convolution, and of the scan.
    fn state_sizes(&self) -> [usize; 2] {
        let scan = self.value_heads * self.key_dim * self.value_dim;
        [(self.taps - 1) * self.channels(), scan]
    }
}

/// `ln(1 + exp(x))`.
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

impl Mix for GatedDeltaNet {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (heads, values, input) = (self.value_heads, self.values(), Reads::Site(Place::Input));
        let layer = |part, source, rows| BlockTensor::linear(part, source, &[rows, hidden], input);
        let mut tensors = vec![
            layer(Part::QKV, "linear_attn.in_proj_qkv", self.channels()),
            layer(Part::ATTN_GATE, "linear_attn.in_proj_z", values),
        ];
        match self.grouped {
            true => tensors.push(layer(Part::SSM_BA, "linear_attn.in_proj_ba", 2 * heads)),
            false => {
                tensors.push(layer(Part::SSM_ALPHA, "linear_attn.in_proj_a", heads));
                tensors.push(layer(Part::SSM_BETA, "linear_attn.in_proj_b", heads));
            }
        }
        tensors.push(BlockTensor::new(Part::SSM_CONV1D, "linear_attn.conv1d", &[self.channels(), self.taps]));
        tensors.push(BlockTensor::new(Part::SSM_DT, "linear_attn.dt_bias", &[heads]).bare("bias"));
        tensors.push(BlockTensor::new(Part::SSM_A, "linear_attn.A_log", &[heads]).bare(""));
        tensors.push(BlockTensor::new(Part::SSM_NORM, "linear_attn.norm", &[self.value_dim]));
        let out = [hidden, values];
        tensors.push(BlockTensor::linear(Part::SSM_OUT, "linear_attn.out_proj", &out, Reads::Site(Place::Inner)));
        tensors
    }

    fn last(&self) -> Option<Part> {
        Some(Part::SSM_OUT)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let (keys, values) = (self.keys(), self.values());
        let qkv = layers.linear(Part::QKV, x)?;
        let z = layers.linear(Part::ATTN_GATE, x)?;
        let (g, beta) = self.decays(layers, x)?;
        let n = x.dim(0)?;
        let positions = layers.positions(n, at).len();
        let [conv_state, scan_state] = match &mut at.state {
            None => [None, None],
            Some(state) => {
                state.seen += n;
                let [conv, scan] = &mut state.numbers[..] else { return Err(layers.missing("a state of its own")) };
                [Some(conv.as_mut_slice()), Some(scan.as_mut_slice())]
            }
        };
        let (channels, qkv) = (self.channels(), qkv.flatten_all()?.to_vec1::<f32>()?);
        let weight = layers.weight(Part::SSM_CONV1D).flatten_all()?.to_vec1::<f32>()?;
        let filter = CausalConv { weight: &weight, taps: self.taps, bias: None, activation: Some(Activation::Silu) };
        let mut conv = vec![0.0; qkv.len()]; // [n, q | k | v]
        causal_conv(View::new(&qkv, n, channels, channels), positions, &filter, conv_state, &mut conv);
        let part = |first: usize, width: usize| View::new(&conv[first..], n, width, channels);
        let shape = DeltaShape {
            positions,
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            dk: self.key_dim,
            dv: self.value_dim,
            order: if self.grouped { HeadOrder::Grouped } else { HeadOrder::Tiled },
        };
        let (q, k, v) = (part(0, keys), part(keys, keys), part(2 * keys, values));
        let inputs = DeltaInputs { q, k, v, g: &g, beta: &beta };
        let mut y = vec![0.0; n * values];
        gated_delta_rule(&inputs, shape, self.eps, scan_state, &mut y);
        let y = Tensor::from_vec(y, (n * self.value_heads, self.value_dim), x.device())?;
        let y = ops::norm(Norm::Rms, &y, layers.weight(Part::SSM_NORM), None, self.eps)?.reshape((n, values))?;
        Ok(ops::gated(Activation::Silu, &z, &y)?)
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
        let (values, channels) = (self.values(), self.channels());
        // A chunk of 64 positions: keys with keys and queries, and the state with each of them.
        let per_token = self.value_heads * (self.key_dim * (2 * 64 + 3 * self.value_dim) + 2 * 64 * self.value_dim);
        Cost {
            between: 3 * channels + 2 * values,
            inner: values,
            per_position: 0.0,
            per_token: per_token as f64,
            elementwise: (channels * (self.taps + 1) + 2 * values) as f64,
        }
    }
}
