//! Kimi Delta Attention (Kimi Team 2025, "Kimi Linear"): a gated delta net whose states decay by another factor in each channel of their
//! keys, as Ling 3 has it: decays with a lower bound, and full layers for decays and gates.

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
use llmq_kernels::recurrent::{CausalConv, KdaInputs, KdaShape, causal_conv, kda};

impl Part {
    /// The convolution of queries.
    pub const SSM_CONV1D_Q: Part = Part("ssm_conv1d_q");
    /// The same of keys.
    pub const SSM_CONV1D_K: Part = Part("ssm_conv1d_k");
    /// The same of values.
    pub const SSM_CONV1D_V: Part = Part("ssm_conv1d_v");
    /// The decays' layer.
    pub const SSM_F_A: Part = Part("ssm_f_a");
    /// The layer of a gate of the heads' results.
    pub const SSM_G_A: Part = Part("ssm_g_a");
}

/// Kimi Delta Attention of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KimiDeltaAttention {
    /// Heads.
    pub heads: usize,
    /// Numbers of each query, key and value.
    pub head_dim: usize,
    /// Positions that the convolutions see.
    pub taps: usize,
    /// Logarithms of decays are above this.
    pub lower_bound: f32,
    /// The ε of its norms.
    pub eps: f32,
}

impl KimiDeltaAttention {
    /// Numbers of all queries, of all keys, or of all values.
    fn inner_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Logarithms of decays, `[tokens, heads · head_dim]`: `bound · sigmoid(a · (x·w + b))`.
    fn decays(&self, layers: &Layers, x: &Tensor) -> Result<Vec<f32>> {
        let a = layers.weight(Part::SSM_A).flatten_all()?.to_vec1::<f32>()?;
        let dt = layers.weight(Part::SSM_DT).to_vec1::<f32>()?;
        let mut g = layers.linear(Part::SSM_F_A, x)?.flatten_all()?.to_vec1::<f32>()?;
        for row in g.chunks_mut(self.inner_width()) {
            for (i, (x, dt)) in row.iter_mut().zip(&dt).enumerate() {
                *x = self.lower_bound / (1.0 + (-a[i / self.head_dim] * (*x + dt)).exp());
            }
        }
        Ok(g)
    }

    /// Numbers of its states: of the convolution, and of the scan.
    fn state_sizes(&self) -> [usize; 2] {
        let width = self.inner_width();
        [(self.taps - 1) * 3 * width, width * self.head_dim]
    }
}

impl Mix for KimiDeltaAttention {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (width, input) = (self.inner_width(), Reads::Site(Place::Input));
        let layer = |part, source, rows| BlockTensor::linear(part, source, &[rows, hidden], input);
        let conv = |part, source| BlockTensor::new(part, source, &[width, 1, self.taps]);
        vec![
            layer(Part::Q, "self_attn.q_proj", width),
            layer(Part::K, "self_attn.k_proj", width),
            layer(Part::V, "self_attn.v_proj", width),
            conv(Part::SSM_CONV1D_Q, "self_attn.q_conv1d"),
            conv(Part::SSM_CONV1D_K, "self_attn.k_conv1d"),
            conv(Part::SSM_CONV1D_V, "self_attn.v_conv1d"),
            layer(Part::SSM_F_A, "self_attn.f_proj", width),
            layer(Part::SSM_BETA, "self_attn.b_proj", self.heads),
            BlockTensor::new(Part::SSM_A, "self_attn.A_log", &[self.heads, 1]).bare(""),
            BlockTensor::new(Part::SSM_DT, "self_attn.dt_bias", &[width]).bare("bias"),
            layer(Part::SSM_G_A, "self_attn.g_proj", width),
            BlockTensor::new(Part::SSM_NORM, "self_attn.o_norm", &[self.head_dim]),
            BlockTensor::linear(Part::O, "self_attn.o_proj", &[hidden, width], Reads::Site(Place::Inner)),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::O)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let (n, width) = (x.dim(0)?, self.inner_width());
        let all = [Part::Q, Part::K, Part::V].map(|part| layers.linear(part, x));
        let [q, k, v] = all;
        let qkv = Tensor::cat(&[q?, k?, v?], 1)?.flatten_all()?.to_vec1::<f32>()?;
        let (g, gate) = (self.decays(layers, x)?, layers.linear(Part::SSM_G_A, x)?);
        let beta = ops::sigmoid(&layers.linear(Part::SSM_BETA, x)?)?.flatten_all()?.to_vec1::<f32>()?;
        let positions = layers.positions(n, at).len();
        let [conv_state, scan_state] = match &mut at.state {
            None => [None, None],
            Some(state) => {
                state.seen += n;
                let [conv, scan] = &mut state.numbers[..] else { return Err(layers.missing("a state of its own")) };
                [Some(conv.as_mut_slice()), Some(scan.as_mut_slice())]
            }
        };
        let filters = [Part::SSM_CONV1D_Q, Part::SSM_CONV1D_K, Part::SSM_CONV1D_V].map(|part| layers.weight(part));
        let weight = Tensor::cat(&filters, 0)?.flatten_all()?.to_vec1::<f32>()?;
        let filter = CausalConv { weight: &weight, taps: self.taps, bias: None, activation: Some(Activation::Silu) };
        let mut conv = vec![0.0; qkv.len()]; // [n, q | k | v]
        causal_conv(View::new(&qkv, n, 3 * width, 3 * width), positions, &filter, conv_state, &mut conv);
        let part = |i: usize| View::new(&conv[i * width..], n, width, 3 * width);
        let inputs = KdaInputs { q: part(0), k: part(1), v: part(2), g: View::new(&g, n, width, width), beta: &beta };
        let shape = KdaShape { positions, heads: self.heads, dk: self.head_dim, dv: self.head_dim };
        let mut y = vec![0.0; n * width];
        kda(&inputs, shape, self.eps, scan_state, &mut y);
        let y = Tensor::from_vec(y, (n * self.heads, self.head_dim), x.device())?;
        let y = ops::norm(Norm::Rms, &y, layers.weight(Part::SSM_NORM), None, self.eps)?.reshape((n, width))?;
        Ok((y * ops::sigmoid(&gate)?)?)
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
        let width = self.inner_width();
        // Each position reads its state twice, and writes it.
        Cost {
            between: 10 * width,
            inner: width,
            per_position: 0.0,
            per_token: (3 * width * self.head_dim) as f64,
            elementwise: (3 * width * (self.taps + 1) + 3 * width) as f64,
        }
    }
}
