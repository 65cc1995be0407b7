//! Mamba: a state for each channel whose decay depends on what it reads, behind a short convolution (Gu and Dao 2023, algorithm 2), with
//! Jamba's norms of the step, of what is written and of what is read (Lieber et al. 2024).

use super::gated_delta_net::softplus;
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
use llmq_kernels::recurrent::{CausalConv, causal_conv};
use rayon::prelude::*;

impl Part {
    /// The layer of the step, of what is written to the state, and of what is read from it.
    pub const SSM_X: Part = Part("ssm_x");
    /// The norm of the step.
    pub const SSM_DT_NORM: Part = Part("ssm_dt_norm");
    /// The norm of what is written.
    pub const SSM_B_NORM: Part = Part("ssm_b_norm");
    /// The norm of what is read.
    pub const SSM_C_NORM: Part = Part("ssm_c_norm");
}

/// Mamba of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba {
    /// Channels.
    pub inner: usize,
    /// Numbers of the state for each channel.
    pub state: usize,
    /// Numbers that the steps of all channels come from.
    pub rank: usize,
    /// Positions that the convolution sees.
    pub taps: usize,
    /// The ε of its norms.
    pub eps: f32,
}

/// Channels that one task handles.
const CHANNELS: usize = 64;

/// What the scan reads of `n` positions of one window, and of all channels.
struct Inputs<'a> {
    inner: usize,
    state: usize,
    /// `[n, inner]`.
    x: &'a [f32],
    /// Behind its softplus, `[n, inner]`.
    dt: &'a [f32],
    /// `[n, state]`.
    b: &'a [f32],
    c: &'a [f32],
    /// Below zero, `[inner, state]`.
    a: &'a [f32],
    /// `[inner]`.
    d: &'a [f32],
}

impl Inputs<'_> {
    /// The channels from `first` on, position by position: `h = exp(dt·a)·h + dt·x·b`, `y = h·c + d·x`. `h`: `[channels, state]`;
    /// result: `[n, channels]`.
    fn scan(&self, first: usize, h: &mut [f32]) -> Vec<f32> {
        let (inner, keys) = (self.inner, self.state);
        let channels = h.len() / keys;
        let mut y = Vec::with_capacity(self.x.len() / inner * channels);
        let rows = self.x.chunks(inner).zip(self.dt.chunks(inner)).zip(self.b.chunks(keys).zip(self.c.chunks(keys)));
        for ((x, dt), (b, c)) in rows {
            for (i, h) in h.chunks_mut(keys).enumerate() {
                let (at, mut sum) = (first + i, 0.0);
                let written = dt[at] * x[at];
                for (((h, a), b), c) in h.iter_mut().zip(&self.a[at * keys..]).zip(b).zip(c) {
                    *h = (dt[at] * a).exp() * *h + written * b;
                    sum += *h * c;
                }
                y.push(sum + self.d[at] * x[at]);
            }
        }
        y
    }
}

impl Mamba {
    /// The scan of all windows, each of which begins with zeros; or of one that goes on from a state, `[inner, state]`.
    /// `inputs`: of all windows; result: `[windows · positions, inner]`.
    fn scan(&self, inputs: &Inputs, positions: usize, state: Option<&mut [f32]>) -> Vec<f32> {
        let (inner, keys) = (self.inner, self.state);
        let window = |w: usize| {
            let of = |width: usize| w * positions * width..(w + 1) * positions * width;
            let (x, dt) = (&inputs.x[of(inner)], &inputs.dt[of(inner)]);
            Inputs { x, dt, b: &inputs.b[of(keys)], c: &inputs.c[of(keys)], ..*inputs }
        };
        let windows = inputs.x.len() / inner / positions.max(1);
        let mut zeros = Vec::new();
        let states = match state {
            Some(state) => state,
            None => {
                zeros.resize(windows * inner * keys, 0.0);
                &mut zeros[..]
            }
        };
        let of_window = |(w, states): (usize, &mut [f32])| -> Vec<Vec<f32>> {
            let inputs = window(w);
            let parts = states.par_chunks_mut(CHANNELS * keys).enumerate();
            parts.map(|(i, h)| inputs.scan(i * CHANNELS, h)).collect()
        };
        let all: Vec<Vec<Vec<f32>>> = states.par_chunks_mut(inner * keys).enumerate().map(of_window).collect();
        let mut y = vec![0.0; inputs.x.len()];
        for (t, row) in y.chunks_mut(inner).enumerate() {
            let parts = row.chunks_mut(CHANNELS).zip(&all[t / positions]);
            parts.for_each(|(to, from)| to.copy_from_slice(&from[t % positions * to.len()..][..to.len()]));
        }
        y
    }

    /// Numbers of its states: of the convolution, and of the scan.
    fn state_sizes(&self) -> [usize; 2] {
        [(self.taps - 1) * self.inner, self.inner * self.state]
    }
}

impl Mix for Mamba {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let Mamba { inner, state, rank, taps, .. } = *self;
        let layer = |part, source, shape: [usize; 2], reads| BlockTensor::linear(part, source, &shape, reads);
        vec![
            layer(Part::SSM_IN, "mamba.in_proj", [2 * inner, hidden], Reads::Site(Place::Input)),
            BlockTensor::new(Part::SSM_CONV1D, "mamba.conv1d", &[inner, taps]).bias(true),
            layer(Part::SSM_X, "mamba.x_proj", [rank + 2 * state, inner], Reads::Between),
            BlockTensor::new(Part::SSM_DT_NORM, "mamba.dt_layernorm", &[rank]),
            layer(Part::SSM_DT, "mamba.dt_proj", [inner, rank], Reads::Between).bias(true),
            BlockTensor::new(Part::SSM_B_NORM, "mamba.b_layernorm", &[state]),
            BlockTensor::new(Part::SSM_C_NORM, "mamba.c_layernorm", &[state]),
            BlockTensor::new(Part::SSM_A, "mamba.A_log", &[inner, state]).bare(""),
            BlockTensor::new(Part::SSM_D, "mamba.D", &[inner]).bare(""),
            layer(Part::SSM_OUT, "mamba.out_proj", [hidden, inner], Reads::Site(Place::Inner)),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::SSM_OUT)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let Mamba { inner, state, rank, taps, eps } = *self;
        let xz = layers.linear(Part::SSM_IN, x)?; // [n, x | z]
        let n = xz.dim(0)?;
        let positions = layers.positions(n, at).len();
        let [conv_state, scan_state] = match &mut at.state {
            None => [None, None],
            Some(state) => {
                state.seen += n;
                let [conv, scan] = &mut state.numbers[..] else { return Err(layers.missing("a state of its own")) };
                [Some(conv.as_mut_slice()), Some(scan.as_mut_slice())]
            }
        };
        let z = xz.narrow(1, inner, inner)?.contiguous()?;
        let vector = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let (xz, weight) = (vector(&xz)?, vector(layers.weight(Part::SSM_CONV1D))?);
        let bias = layers.bias(Part::SSM_CONV1D).map(Tensor::to_vec1::<f32>).transpose()?;
        let filter = CausalConv { weight: &weight, taps, bias: bias.as_deref(), activation: Some(Activation::Silu) };
        let mut x = vec![0.0; n * inner];
        causal_conv(View::new(&xz, n, inner, 2 * inner), positions, &filter, conv_state, &mut x);
        let x = Tensor::from_vec(x, (n, inner), z.device())?;
        let all = layers.linear(Part::SSM_X, &x)?; // [n, dt | b | c]
        let normed = |first: usize, norm: Part| {
            let gain = layers.weight(norm);
            ops::norm(Norm::Rms, &all.narrow(1, first, gain.elem_count())?.contiguous()?, gain, None, eps)
        };
        let dt = layers.linear(Part::SSM_DT, &normed(0, Part::SSM_DT_NORM)?)?;
        let mut dt = vector(&dt)?;
        dt.par_iter_mut().for_each(|x| *x = softplus(*x));
        let (b, c) = (vector(&normed(rank, Part::SSM_B_NORM)?)?, vector(&normed(rank + state, Part::SSM_C_NORM)?)?);
        let (x, a, d) = (vector(&x)?, vector(layers.weight(Part::SSM_A))?, vector(layers.weight(Part::SSM_D))?);
        let inputs = Inputs { inner, state, x: &x, dt: &dt, b: &b, c: &c, a: &a, d: &d };
        let y = Tensor::from_vec(self.scan(&inputs, positions, scan_state), (n, inner), z.device())?;
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
        let Mamba { inner, state, taps, .. } = *self;
        Cost {
            between: 8 * inner,
            inner,
            per_position: 0.0,
            // An exponential is as much as some ten multiplications.
            per_token: (12 * inner * state) as f64,
            elementwise: (inner * (taps + 4)) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on from a state is what was not cut; and channels do not depend on which task they are in.
    #[test]
    fn windows_can_be_cut_anywhere() {
        let (inner, state, positions) = (CHANNELS + 3, 2, 5);
        let mamba = Mamba { inner, state, rank: 1, taps: 2, eps: 1e-6 };
        let numbers = |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        let (x, b, c) =
            (numbers(positions * inner, 0.7), numbers(positions * state, 0.3), numbers(positions * state, 0.9));
        let dt: Vec<f32> = x.iter().map(|x| 0.5 + 0.2 * x).collect();
        let (a, d) = (vec![-0.5; inner * state], numbers(inner, 0.1));
        let inputs = Inputs { inner, state, x: &x, dt: &dt, b: &b, c: &c, a: &a, d: &d };
        let whole = mamba.scan(&inputs, positions, None);
        let mut own = vec![0.0; inner * state];
        let mut cut = Vec::new();
        for (first, n) in [(0, 3), (3, 2)] {
            let (of, keys) = (first * inner..(first + n) * inner, first * state..(first + n) * state);
            let part = Inputs { x: &x[of.clone()], dt: &dt[of], b: &b[keys.clone()], c: &c[keys], ..inputs };
            cut.extend(mamba.scan(&part, n, Some(&mut own)));
        }
        assert_eq!(whole, cut);
        // The last channel by hand.
        let (mut h, at) = ([0.0f32; 2], inner - 1);
        for t in 0..positions {
            let (x, dt) = (x[t * inner + at], dt[t * inner + at]);
            (0..2).for_each(|s| h[s] = (-0.5 * dt).exp() * h[s] + dt * x * b[t * 2 + s]);
            let y = h[0] * c[t * 2] + h[1] * c[t * 2 + 1] + d[at] * x;
            assert!((y - whole[t * inner + at]).abs() < 1e-6, "position {t}");
        }
    }
}
