//! Causal attention with grouped heads (Vaswani et al. 2017; Ainslie et al. 2023), and its variations.

mod chunks;
mod norms;
mod temperature;
mod widths;

use super::{At, Cost, Memory, Mix};
use crate::error::Result;
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::mixer::Place;
use crate::model::ops;
use crate::model::part::{Absorber, BlockTensor, Part, Reads, RowOrder};
use crate::model::rope::Rope;
use crate::model::states::MixerState;
use candle_core::{Device, Tensor};
use llmq_kernels::attention::Scores;
use llmq_kernels::elementwise::Activation;
pub use temperature::Temperature;

impl Part {
    /// Queries; with a gate for each number of a head, these rows behind those of the query, head by head.
    pub const Q: Part = Part("attn_q");
    /// Keys.
    pub const K: Part = Part("attn_k");
    /// Values.
    pub const V: Part = Part("attn_v");
    /// Queries, keys and values in one.
    pub const QKV: Part = Part("attn_qkv");
    /// The norm of queries.
    pub const Q_NORM: Part = Part("attn_q_norm");
    /// The norm of keys.
    pub const K_NORM: Part = Part("attn_k_norm");
    /// A score of nothing for each head.
    pub const SINKS: Part = Part("attn_sinks");
    /// A gate of the heads' results.
    pub const ATTN_GATE: Part = Part("attn_gate");
    /// The output layer.
    pub const O: Part = Part("attn_output");
}

/// Attention of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Numbers of each value, where they are not as many.
    pub value_dim: Option<usize>,
    /// q, k and v are one layer.
    pub fused_qkv: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on the output.
    pub o_bias: bool,
    /// Norms of queries and keys.
    pub head_norms: HeadNorms,
    /// What the gain of queries is, where checkpoints have none and GGUF has one.
    pub made_up_gain: Option<f32>,
    /// Queries and keys are turned before they go through their norms, not after.
    pub norms_behind_rope: bool,
    /// The ε of norms of heads.
    pub eps: f32,
    /// Values go through an RMS norm without a gain, each head by itself.
    pub value_norm: bool,
    /// What the heads' results are multiplied by.
    pub gate: Gate,
    /// Where keys and values come from.
    pub keys_values: KeysValues,
    /// Later blocks share its keys and values.
    pub keeps: bool,
    /// By what scores are multiplied.
    pub scale: f32,
    /// They grow beyond the context of the first training.
    pub temperature: Option<Temperature>,
    /// Scores stay below this.
    pub cap: Option<f32>,
    /// A position sees itself and so many less one before it; all of them without.
    pub window: Option<usize>,
    /// It sees those behind it, too; and a window has half of it on each side.
    pub both_ways: bool,
    /// Positions are in chunks of so many, and see none of another chunk.
    pub chunk: Option<usize>,
    /// Each head has a score of nothing.
    pub sinks: bool,
    /// Rotary embedding; none where nothing is turned.
    pub rope: Option<Rope>,
    /// The order of the rows of queries and keys.
    pub order: RowOrder,
}

/// Norms of queries and keys, before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// There are none.
    None,
    /// Each head by itself, all with the same gain of `head_dim` numbers.
    PerHead,
    /// Each head by itself, with a gain of its own, after its mean was subtracted.
    Centred,
    /// All heads as one vector.
    Whole,
    /// Each head by itself, without a gain.
    Bare,
}

/// What the heads' results are multiplied by before the output layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    None,
    /// The sigmoid of numbers that come with the queries: `[heads, 2, head_dim]` rows.
    WithQueries,
    /// A function of what a layer of its own gives, for each number of the heads.
    Each(Activation),
    /// The same, for each head.
    PerHead(Activation),
}

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysValues {
    /// A layer each.
    Own,
    /// Values are the keys, before their norm.
    Same,
    /// An earlier block, which kept them beside the stream from this column on.
    Shared {
        /// The first column.
        first: usize,
    },
}

impl Attention {
    /// The plainest: Llama's.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize, rope: Option<Rope>) -> Attention {
        Attention {
            heads,
            kv_heads,
            head_dim,
            value_dim: None,
            fused_qkv: false,
            qkv_bias: false,
            o_bias: false,
            head_norms: HeadNorms::None,
            made_up_gain: None,
            norms_behind_rope: false,
            eps: 1e-6,
            value_norm: false,
            gate: Gate::None,
            keys_values: KeysValues::Own,
            keeps: false,
            temperature: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap: None,
            window: None,
            both_ways: false,
            chunk: None,
            sinks: false,
            rope,
            order: RowOrder::AsIs,
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.keys_values, KeysValues::Shared { .. })
    }

    /// Rows of all query and of all key heads.
    fn rows(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    /// Rows of all value heads.
    fn value_rows(&self) -> usize {
        self.kv_heads * self.value_dim()
    }

    /// Queries or keys, normed and turned.
    fn placed(&self, layers: &Layers, norm: Part, x: Tensor, at: &At) -> Result<Tensor> {
        match self.norms_behind_rope {
            false => self.turned(layers, self.head_norm(layers, norm, &x)?, at),
            true => self.head_norm(layers, norm, &self.turned(layers, x, at)?),
        }
    }

    fn turned(&self, layers: &Layers, x: Tensor, at: &At) -> Result<Tensor> {
        let Some(rope) = &self.rope else { return Ok(x) };
        let positions = layers.positions(x.dim(0)?, at);
        let (cos, sin) = layers.frame().table(rope, &positions)?;
        Ok(ops::rope(&x, &cos, &sin, self.head_dim, layers.frame().pairing())?)
    }

    /// Keys and values of the positions of `x`, `[tokens, kv_heads · head_dim]` each.
    fn keys_values(&self, layers: &Layers, k: Tensor, v: Tensor, at: &At) -> Result<(Tensor, Tensor)> {
        let v = match self.value_norm {
            true => {
                let rows = v.reshape(((), self.head_dim))?;
                ops::norm(Norm::Rms, &rows, &rows.get(0)?.ones_like()?, None, self.eps)?.reshape(v.shape())?
            }
            false => v,
        };
        Ok((self.placed(layers, Part::K_NORM, k, at)?, v))
    }

    /// Queries, keys and values as their layers give them; a query's gate comes with it.
    fn projected(&self, layers: &Layers, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let (q, kv) = self.rows();
        if self.fused_qkv {
            let all = layers.linear(Part::QKV, x)?;
            let part = |first: usize, n: usize| all.narrow(1, first, n)?.contiguous();
            return Ok((part(0, q)?, part(q, kv)?, part(q + kv, self.value_rows())?));
        }
        let (q, k) = (layers.linear(Part::Q, x)?, layers.linear(Part::K, x)?);
        let v = if self.keys_values == KeysValues::Same { k.clone() } else { layers.linear(Part::V, x)? };
        Ok((q, k, v))
    }
}

impl Mix for Attention {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let ((q, kv), d, input) = (self.rows(), self.head_dim, Reads::Site(Place::Input));
        let doubled = self.gate == Gate::WithQueries;
        let layer =
            |part, source, rows: usize| BlockTensor::linear(part, source, &[rows, hidden], input).bias(self.qkv_bias);
        let mut tensors = Vec::new();
        if self.fused_qkv {
            tensors.push(layer(Part::QKV, "self_attn.qkv_proj", q + kv + self.value_rows()));
        } else {
            tensors.push(layer(Part::Q, "self_attn.q_proj", if doubled { 2 * q } else { q }).order(self.order));
        }
        if !self.fused_qkv && !self.is_shared() {
            tensors.push(layer(Part::K, "self_attn.k_proj", kv).order(self.order));
            if self.keys_values == KeysValues::Own {
                let v = layer(Part::V, "self_attn.v_proj", self.value_rows());
                tensors.push(v.values(self.rotated_values().is_some()));
            }
        }
        let shapes: Option<[Vec<usize>; 2]> = match self.head_norms {
            HeadNorms::None | HeadNorms::Bare => None,
            HeadNorms::PerHead => Some([vec![d], vec![d]]),
            HeadNorms::Centred => Some([vec![self.heads, d], vec![self.kv_heads, d]]),
            HeadNorms::Whole => Some([vec![q], vec![kv]]),
        };
        if let Some([of_queries, of_keys]) = shapes {
            tensors.push(BlockTensor::new(Part::Q_NORM, "self_attn.q_norm", &of_queries));
            if !self.is_shared() {
                tensors.push(BlockTensor::new(Part::K_NORM, "self_attn.k_norm", &of_keys));
            }
        }
        let of_gate = match self.gate {
            Gate::None | Gate::WithQueries => None,
            Gate::Each(_) => Some(q),
            Gate::PerHead(_) => Some(self.heads),
        };
        tensors.extend(
            of_gate.map(|rows| BlockTensor::linear(Part::ATTN_GATE, "self_attn.gate_proj", &[rows, hidden], input)),
        );
        if self.sinks {
            tensors.push(BlockTensor::new(Part::SINKS, "self_attn.sinks", &[self.heads]).bare("weight"));
        }
        let of_o = [hidden, self.heads * self.value_dim()];
        let o = BlockTensor::linear(Part::O, "self_attn.o_proj", &of_o, Reads::Site(Place::Inner));
        tensors.push(o.bias(self.o_bias).values(self.rotated_values().is_some()));
        tensors
    }

    fn last(&self) -> Option<Part> {
        Some(Part::O)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let ((rows, kv), d) = (self.rows(), self.head_dim);
        let (mut q, k, v) = match self.keys_values {
            KeysValues::Shared { first } => {
                let kept =
                    at.states.kept.as_ref().ok_or_else(|| layers.missing("keys and values of an earlier block"))?;
                let part = |first: usize| kept.narrow(1, first, kv)?.contiguous();
                (layers.linear(Part::Q, x)?, part(first)?, part(first + kv)?)
            }
            _ => {
                let (q, k, v) = self.projected(layers, x)?;
                let (k, v) = self.keys_values(layers, k, v, at)?;
                (q, k, v)
            }
        };
        let mut gate = None;
        if self.gate == Gate::WithQueries {
            let both = q.reshape(((), self.heads, 2 * d))?;
            let part = |first: usize| both.narrow(2, first, d)?.contiguous()?.reshape(((), rows));
            (q, gate) = (part(0)?, Some(part(d)?));
        }
        let q = self.placed(layers, Part::Q_NORM, q, at)?;
        let scores = Scores {
            scale: self.scale,
            cap: self.cap,
            window: self.window,
            both_ways: self.both_ways,
            sinks: if self.sinks { layers.weight(Part::SINKS).to_vec1()? } else { Vec::new() },
            chosen: Vec::new(),
        };
        if self.both_ways && at.state.is_some() {
            return Err(layers.missing("the positions that follow, which this model sees, too"));
        }
        let positions = layers.positions(q.dim(0)?, at);
        let q = match self.temperature {
            Some(temperature) => temperature.warm(q, &positions)?,
            None => q,
        };
        let (q, k, v) = (self.widened(q, d)?, self.widened(k, d)?, self.widened(v, self.value_dim())?);
        let (k, v) = match &mut at.state {
            Some(state) => state.extended(k, v)?,
            None => (k, v),
        };
        let y = self.narrowed(self.attended(&q, &k, &v, &positions, &scores)?)?;
        Ok(match self.gate {
            Gate::None => y,
            Gate::WithQueries => match gate {
                Some(gate) => (y * ops::sigmoid(&gate)?)?,
                None => y,
            },
            Gate::Each(activation) => (y * ops::activate(activation, &layers.linear(Part::ATTN_GATE, x)?)?)?,
            Gate::PerHead(activation) => {
                let gate = ops::activate(activation, &layers.linear(Part::ATTN_GATE, x)?)?.unsqueeze(2)?;
                y.reshape(((), self.heads, self.value_dim()))?.broadcast_mul(&gate)?.reshape(y.shape())?
            }
        })
    }

    fn absorber(&self) -> Option<Absorber> {
        let (heads, kv_heads, d) = (self.heads, self.kv_heads, self.head_dim);
        if self.value_norm || self.keys_values != KeysValues::Own {
            return None;
        }
        // Query heads share the channels of their value head.
        let first = if self.fused_qkv { (heads + kv_heads) * d } else { 0 };
        let shared = heads / kv_heads;
        let each = self.value_dim();
        let channels = (0..heads * each).map(|j| first + j / each / shared * each + j % each).collect();
        Some(Absorber { part: if self.fused_qkv { Part::QKV } else { Part::V }, channels, squared: false })
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        self.fused_qkv.then_some("it has several layers in one tensor")
    }

    fn obstacle_to_backward(&self) -> Option<&'static str> {
        (self.keeps || self.is_shared()).then_some("its blocks share keys and values")
    }

    fn rotated_values(&self) -> Option<usize> {
        let plain = self.gate == Gate::None && !self.value_norm && self.keys_values == KeysValues::Own;
        (plain && !self.fused_qkv).then_some(self.value_dim())
    }

    fn mixes_positions(&self) -> bool {
        true
    }

    fn kept(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Option<Tensor>> {
        let (_, k, v) = self.projected(layers, x)?;
        let (k, v) = self.keys_values(layers, k, v, at)?;
        Ok(Some(Tensor::cat(&[k, v], 1)?))
    }

    fn kept_columns(&self) -> usize {
        if self.keeps { 2 * self.kv_heads * self.head_dim } else { 0 }
    }

    fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    fn state(&self, capacity: usize, device: &Device) -> Result<MixerState> {
        MixerState::keys_values(capacity, self.kv_heads * self.width(), device)
    }

    fn memory(&self) -> Memory {
        let per_position = if self.is_shared() { 0 } else { self.kv_heads * (self.head_dim + self.value_dim()) };
        Memory { per_position, window: self.window.or(self.chunk), states: 0 }
    }

    fn cost(&self) -> Cost {
        let (q, kv) = self.rows();
        let gate = if self.gate == Gate::None { 0 } else { q };
        Cost {
            between: 2 * q + kv + self.value_rows() + 2 * gate,
            inner: self.heads * self.value_dim(),
            per_position: (self.heads * self.width()) as f64,
            per_token: 0.0,
            elementwise: (2 * q + kv + gate) as f64,
        }
    }
}
