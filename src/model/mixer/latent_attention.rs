//! Attention whose keys and values come out of one narrow vector per token (DeepSeek-AI 2024, section 2.1).

pub mod indexer;

use super::attention::Temperature;
use super::{At, Cost, Memory, Mix, Place};
use crate::error::Result;
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::{BlockTensor, Part, Reads};
use crate::model::rope::Rope;
use crate::model::states::MixerState;
use candle_core::{Device, Tensor};
use indexer::Indexer;
use llmq_kernels::attention::{Scores, Shape};

impl Part {
    /// Into the vector that queries come from.
    pub const Q_A: Part = Part("attn_q_a");
    /// Its norm.
    pub const Q_A_NORM: Part = Part("attn_q_a_norm");
    /// Out of it.
    pub const Q_B: Part = Part("attn_q_b");
    /// Into the vector that keys and values come from, and what is turned of a key.
    pub const KV_A: Part = Part("attn_kv_a_mqa");
    /// Its norm.
    pub const KV_A_NORM: Part = Part("attn_kv_a_norm");
    /// Keys out of it.
    pub const K_B: Part = Part("attn_k_b");
    /// Values out of it.
    pub const V_B: Part = Part("attn_v_b");
    /// Both in one: those of one head behind those of the other, keys first.
    pub const KV_B: Part = Part("attn_kv_b");
}

/// Attention through narrow vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAttention {
    /// Heads.
    pub heads: usize,
    /// Numbers of each query and key.
    pub head_dim: usize,
    /// Width of the vector that queries come from; none if they come from the stream itself.
    pub query: Option<usize>,
    /// Width of the vector that keys and values come from.
    pub latent: usize,
    /// Numbers of each key that are turned, the same for all heads; they come last.
    pub turned: usize,
    /// Numbers of each value.
    pub value: usize,
    /// One layer makes keys and values out of their vector.
    pub joined: bool,
    /// The heads' results are multiplied by sigmoids of what a layer of its own gives, one for each head.
    pub gate: bool,
    /// By what scores are multiplied.
    pub scale: f32,
    /// They grow beyond the context of the first training.
    pub temperature: Option<Temperature>,
    /// Rotary embedding of the part that is turned.
    pub rope: Option<Rope>,
    /// What chooses the positions that each position sees; they are all seen without it.
    pub indexer: Option<Indexer>,
    /// The ε of its norms.
    pub eps: f32,
}

impl Mix for LatentAttention {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (input, between) = (Reads::Site(Place::Input), Reads::Between);
        let (q, still) = (self.heads * self.head_dim, self.head_dim - self.turned);
        let mut tensors = Vec::new();
        match self.query {
            None => tensors.push(BlockTensor::linear(Part::Q, "self_attn.q_proj", &[q, hidden], input)),
            Some(width) => {
                tensors.push(BlockTensor::linear(Part::Q_A, "self_attn.q_a_proj", &[width, hidden], input));
                tensors.push(BlockTensor::new(Part::Q_A_NORM, "self_attn.q_a_layernorm", &[width]));
                tensors.push(BlockTensor::linear(Part::Q_B, "self_attn.q_b_proj", &[q, width], between));
            }
        }
        let kv = [self.latent + self.turned, hidden];
        tensors.push(BlockTensor::linear(Part::KV_A, "self_attn.kv_a_proj_with_mqa", &kv, input));
        tensors.push(BlockTensor::new(Part::KV_A_NORM, "self_attn.kv_a_layernorm", &[self.latent]));
        // The two are cut into heads, and the one of keys is turned over.
        let cut = |part, shape: &[usize]| BlockTensor {
            reads: Some(between),
            ..BlockTensor::new(part, "self_attn.kv_b_proj", shape)
        };
        match self.joined {
            true => {
                let shape = [self.heads * (still + self.value), self.latent];
                tensors.push(BlockTensor::linear(Part::KV_B, "self_attn.kv_b_proj", &shape, between));
            }
            false => {
                tensors.push(cut(Part::K_B, &[self.heads, self.latent, still]));
                tensors.push(cut(Part::V_B, &[self.heads, self.value, self.latent]));
            }
        }
        if self.gate {
            tensors.push(BlockTensor::linear(Part::ATTN_GATE, "self_attn.g_proj", &[self.heads, hidden], input));
        }
        if let Some((indexer, query)) = self.indexer.zip(self.query) {
            tensors.extend(indexer.tensors(hidden, query));
        }
        let o = [hidden, self.heads * self.value];
        tensors.push(BlockTensor::linear(Part::O, "self_attn.o_proj", &o, Reads::Site(Place::Inner)));
        tensors
    }

    fn last(&self) -> Option<Part> {
        Some(Part::O)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let LatentAttention { heads, head_dim: d, latent, turned, value, .. } = *self;
        let (still, products) = (d - turned, layers.frame().products());
        let norm = |part: Part, x: &Tensor| ops::norm(Norm::Rms, x, layers.weight(part), None, self.eps);
        let narrow = match self.query {
            None => None,
            Some(_) => Some(norm(Part::Q_A_NORM, &layers.linear(Part::Q_A, x)?)?),
        };
        let q = match &narrow {
            None => layers.linear(Part::Q, x)?,
            Some(narrow) => layers.linear(Part::Q_B, narrow)?,
        };
        let both = layers.linear(Part::KV_A, x)?; // [n, latent + turned]
        let n = both.dim(0)?;
        let c = norm(Part::KV_A_NORM, &both.narrow(1, 0, latent)?.contiguous()?)?;
        let q = q.reshape((n, heads, d))?;
        let mut q_turned = q.narrow(2, still, turned)?.contiguous()?.reshape((n, heads * turned))?;
        let mut k_turned = both.narrow(1, latent, turned)?.contiguous()?;
        let positions = layers.positions(n, at);
        if let Some(rope) = &self.rope {
            let (cos, sin) = layers.frame().table(rope, &positions)?;
            q_turned = ops::rope(&q_turned, &cos, &sin, turned, layers.frame().pairing())?;
            k_turned = ops::rope(&k_turned, &cos, &sin, turned, layers.frame().pairing())?;
        }
        let q = Tensor::cat(&[q.narrow(2, 0, still)?, q_turned.reshape((n, heads, turned))?], 2)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let padding = Tensor::zeros((n, d - value.min(d)), q.dtype(), q.device())?;
        let both = if self.joined { Some(layers.linear(Part::KV_B, &c)?) } else { None };
        for head in 0..heads {
            let (k, v) = match &both {
                Some(both) => {
                    let part = |first: usize, width: usize| both.narrow(1, head * (still + value) + first, width);
                    (part(0, still)?, part(still, value)?)
                }
                None => {
                    // [latent, still] and [value, latent]
                    let (k, v) = (layers.weight(Part::K_B).get(head)?, layers.weight(Part::V_B).get(head)?);
                    (ops::linear(products, &c, &k.t()?.contiguous()?)?, ops::linear(products, &c, &v)?)
                }
            };
            keys.push(Tensor::cat(&[k, k_turned.clone()], 1)?);
            // Values are as wide as keys for the kernel.
            values.push(Tensor::cat(&[v, padding.clone()], 1)?);
        }
        let (k, v) = (Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?);
        let (k, v) = match &mut at.state {
            Some(state) => state.extended(k, v)?,
            None => (k, v),
        };
        let chosen = match self.indexer.zip(narrow.as_ref()) {
            Some((indexer, narrow)) => indexer.chosen(layers, (x, narrow), self.rope.as_ref(), &positions, at)?,
            None => Vec::new(),
        };
        let scores = Scores { scale: self.scale, chosen, ..Scores::default() };
        let shape = Shape { positions: positions.len(), past: positions.start, heads, kv_heads: heads, d };
        let mut q = q.reshape((n, heads * d))?.contiguous()?;
        if let Some(temperature) = self.temperature {
            q = temperature.warm(q, &positions)?;
        }
        let y = ops::attention(&q, &k, &v, shape, &scores)?;
        let mut y = y.reshape((n, heads, d))?.narrow(2, 0, value)?.contiguous()?;
        if self.gate {
            y = y.broadcast_mul(&ops::sigmoid(&layers.linear(Part::ATTN_GATE, x)?)?.unsqueeze(2)?)?;
        }
        Ok(y.reshape((n, heads * value))?)
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some("its keys and values come from a narrower vector")
    }

    fn mixes_positions(&self) -> bool {
        true
    }

    fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    fn state(&self, capacity: usize, device: &Device) -> Result<MixerState> {
        let numbers = self.indexer.map(|indexer| indexer.state(capacity)).unwrap_or_default();
        Ok(MixerState { numbers, ..MixerState::keys_values(capacity, self.heads * self.head_dim, device)? })
    }

    fn memory(&self) -> Memory {
        // What all heads share, unless one layer makes the keys and values of each; their values are a part of their keys.
        let per_position =
            if self.joined { self.heads * (self.head_dim + self.value) } else { self.latent + self.turned };
        let of_indexer = self.indexer.map_or(0, |indexer| indexer.head_dim);
        Memory { per_position: per_position + of_indexer, ..Memory::default() }
    }

    fn cost(&self) -> Cost {
        let q = self.heads * self.head_dim;
        let (latent, still) = (self.latent, self.head_dim - self.turned);
        let between = self.query.unwrap_or(0) * q + self.heads * latent * (still + self.value);
        Cost {
            between: 4 * q + latent,
            inner: self.heads * self.value,
            per_position: q as f64,
            per_token: between as f64,
            elementwise: 3.0 * q as f64,
        }
    }
}
