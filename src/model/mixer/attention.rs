//! Causal attention with grouped heads (Vaswani et al. 2017; Ainslie et al. 2023), and its variations.

use super::{At, Cost, Mix};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::half::Norm;
use crate::model::ops;
use crate::model::part::{Absorber, BlockTensor, Part, Reads, RowOrder};
use crate::model::rope::Rope;
use crate::model::states::MixerState;
use crate::model::mixer::Place;
use candle_core::{Device, Tensor};
use llmq_kernels::attention::{Scores, Shape};
use llmq_kernels::elementwise::Activation;
use std::ops::Range;

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

/// Scores are multiplied by `1 + β·ln(1 + ⌊(position + offset) / original⌋)`, as in Llama 4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// β.
    pub beta: f32,
    /// Tokens of the first training.
    pub original: usize,
    /// What is added to positions.
    pub offset: usize,
}

impl Temperature {
    /// Queries by what scores grow at their positions. `q`: `[windows · positions, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn warm(self, q: Tensor, positions: &Range<usize>) -> Result<Tensor> {
        let Temperature { beta, original, offset } = self;
        if positions.end + offset <= original {
            return Ok(q);
        }
        let factor = |t: usize| 1.0 + beta * (((t + offset) / original) as f32).ln_1p();
        let (n, width) = q.dims2()?;
        let factors = Tensor::from_vec(positions.clone().map(factor).collect(), (1, positions.len(), 1), q.device())?;
        let q = q.reshape((n / positions.len(), positions.len(), width))?.broadcast_mul(&factors)?;
        Ok(q.reshape((n, width))?)
    }
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

    /// Queries or keys, `[tokens, heads · head_dim]`, behind their norm.
    fn head_norm(&self, layers: &Layers, part: Part, x: &Tensor) -> Result<Tensor> {
        if self.head_norms == HeadNorms::None {
            return Ok(x.clone());
        }
        if self.head_norms == HeadNorms::Bare {
            let rows = x.reshape(((), self.head_dim))?;
            let ones = rows.get(0)?.ones_like()?;
            return Ok(ops::norm(Norm::Rms, &rows, &ones, None, self.eps)?.reshape(x.shape())?);
        }
        let gain = layers.weight(part);
        // One gain for every row, and then one for each head.
        let centred = self.head_norms == HeadNorms::Centred;
        let shared = if centred { gain.get(0)?.ones_like()? } else { gain.clone() };
        let rows = x.reshape(((), shared.elem_count()))?;
        let kind = if centred { Norm::Layer } else { Norm::Rms };
        let y = ops::norm(kind, &rows, &shared, None, self.eps)?.reshape(x.shape())?;
        Ok(if centred { y.broadcast_mul(&gain.flatten_all()?)? } else { y })
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

    /// The heads' results. `q`: those of `positions`; `k`, `v`: those of all up to the last, in each window.
    fn attended(&self, q: &Tensor, k: &Tensor, v: &Tensor, positions: &Range<usize>, scores: &Scores) -> Result<Tensor> {
        let (chunk, all) = (self.chunk.unwrap_or(usize::MAX), positions.len());
        let windows = q.dim(0)? / all;
        let cut = |x: &Tensor, of: usize, part: Range<usize>| -> Result<Tensor> {
            let width = x.dim(1)?;
            let x = x.reshape((windows, of, width))?.narrow(1, part.start, part.len())?.contiguous()?;
            Ok(x.reshape((windows * part.len(), width))?)
        };
        let mut parts = Vec::new();
        let mut first = positions.start;
        while first < positions.end {
            let begin = first / chunk * chunk;
            let end = positions.end.min(begin.saturating_add(chunk));
            let shape = Shape {
                positions: end - first,
                past: first - begin,
                heads: self.heads,
                kv_heads: self.kv_heads,
                d: self.head_dim,
            };
            if end - begin == positions.end {
                return Ok(ops::attention(q, k, v, shape, scores)?);
            }
            let (k, v) = (cut(k, positions.end, begin..end)?, cut(v, positions.end, begin..end)?);
            let q = cut(q, all, first - positions.start..end - positions.start)?;
            let y = ops::attention(&q, &k, &v, shape, scores)?;
            parts.push(y.reshape((windows, end - first, ()))?);
            first = end;
        }
        Ok(Tensor::cat(&parts, 1)?.reshape(q.shape())?)
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
            return Ok((part(0, q)?, part(q, kv)?, part(q + kv, kv)?));
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
        let layer = |part, source, rows: usize| BlockTensor::linear(part, source, &[rows, hidden], input).bias(self.qkv_bias);
        let mut tensors = Vec::new();
        if self.fused_qkv {
            tensors.push(layer(Part::QKV, "self_attn.qkv_proj", q + 2 * kv));
        } else {
            tensors.push(layer(Part::Q, "self_attn.q_proj", if doubled { 2 * q } else { q }).order(self.order));
        }
        if !self.fused_qkv && !self.is_shared() {
            tensors.push(layer(Part::K, "self_attn.k_proj", kv).order(self.order));
            if self.keys_values == KeysValues::Own {
                tensors.push(layer(Part::V, "self_attn.v_proj", kv).values(self.rotated_values().is_some()));
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
        tensors.extend(of_gate.map(|rows| {
            BlockTensor::linear(Part::ATTN_GATE, "self_attn.gate_proj", &[rows, hidden], input)
        }));
        if self.sinks {
            tensors.push(BlockTensor::new(Part::SINKS, "self_attn.sinks", &[self.heads]).bare("weight"));
        }
        let o = BlockTensor::linear(Part::O, "self_attn.o_proj", &[hidden, q], Reads::Site(Place::Inner));
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
                let kept = at.states.kept.as_ref().ok_or_else(|| layers.missing("keys and values of an earlier block"))?;
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
        };
        if self.both_ways && at.state.is_some() {
            return Err(layers.missing("the positions that follow, which this model sees, too"));
        }
        let positions = layers.positions(q.dim(0)?, at);
        let q = match self.temperature {
            Some(temperature) => temperature.warm(q, &positions)?,
            None => q,
        };
        let (k, v) = match &mut at.state {
            Some(state) => state.extended(k, v)?,
            None => (k, v),
        };
        let y = self.attended(&q, &k, &v, &positions, &scores)?;
        Ok(match self.gate {
            Gate::None => y,
            Gate::WithQueries => match gate {
                Some(gate) => (y * ops::sigmoid(&gate)?)?,
                None => y,
            },
            Gate::Each(activation) => (y * ops::activate(activation, &layers.linear(Part::ATTN_GATE, x)?)?)?,
            Gate::PerHead(activation) => {
                let gate = ops::activate(activation, &layers.linear(Part::ATTN_GATE, x)?)?.unsqueeze(2)?;
                y.reshape(((), self.heads, d))?.broadcast_mul(&gate)?.reshape(y.shape())?
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
        let channels = (0..heads * d).map(|j| first + j / d / shared * d + j % d).collect();
        Some(Absorber { part: if self.fused_qkv { Part::QKV } else { Part::V }, channels, squared: false })
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        self.fused_qkv.then_some("it has several layers in one tensor")
    }

    fn rotated_values(&self) -> Option<usize> {
        let plain = self.gate == Gate::None && !self.value_norm && self.keys_values == KeysValues::Own;
        (plain && !self.fused_qkv).then_some(self.head_dim)
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
        MixerState::keys_values(capacity, self.kv_heads * self.head_dim, device)
    }

    fn cost(&self) -> Cost {
        let (q, kv) = self.rows();
        let gate = if self.gate == Gate::None { 0 } else { q };
        Cost {
            between: 2 * q + 2 * kv + 2 * gate,
            inner: q,
            per_position: q as f64,
            per_token: 0.0,
            elementwise: (2 * q + kv + gate) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_see_none_of_another_chunk() {
        let numbers = |n: usize, step: f32| -> Tensor {
            let x: Vec<f32> = (0..n * 4).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_vec(x, (n, 4), &Device::Cpu).unwrap()
        };
        let own = Attention { chunk: Some(3), ..Attention::plain(2, 2, 2, None) };
        let whole = Attention { chunk: None, ..own.clone() };
        let scores = Scores { scale: 1.0, ..Scores::default() };
        // Two windows of five positions: chunks of three and two.
        let (q, k, v) = (numbers(10, 0.7), numbers(10, 0.4), numbers(10, 0.3));
        let y = own.attended(&q, &k, &v, &(0..5), &scores).unwrap().to_vec2::<f32>().unwrap();
        for (first, count) in [(0, 3), (3, 2), (5, 3), (8, 2)] {
            let part = |x: &Tensor| x.narrow(0, first, count).unwrap().contiguous().unwrap();
            let alone = whole.attended(&part(&q), &part(&k), &part(&v), &(0..count), &scores).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap(), y[first..first + count]);
        }
        // The last three positions of a window, behind two that are known.
        let (q, k, v) = (numbers(3, 0.7), numbers(5, 0.4), numbers(5, 0.3));
        let y = own.attended(&q, &k, &v, &(2..5), &scores).unwrap().to_vec2::<f32>().unwrap();
        let part = |x: &Tensor, first: usize, count: usize| x.narrow(0, first, count).unwrap().contiguous().unwrap();
        let third =
            whole.attended(&part(&q, 0, 1), &part(&k, 0, 3), &part(&v, 0, 3), &(2..3), &scores).unwrap();
        assert_eq!(third.to_vec2::<f32>().unwrap(), y[..1]);
        let last = whole.attended(&part(&q, 1, 2), &part(&k, 3, 2), &part(&v, 3, 2), &(0..2), &scores).unwrap();
        assert_eq!(last.to_vec2::<f32>().unwrap(), y[1..]);
    }

    #[test]
    fn scores_grow_from_the_first_position_beyond_the_original_context_on() {
        let ones = Tensor::ones((6, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let grown = |offset: usize, positions: Range<usize>| -> Vec<f32> {
            let own = Temperature { beta: 1.0, original: 2, offset };
            own.warm(ones.clone(), &positions).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (two, three) = (1.0 + 2f32.ln(), 1.0 + 3f32.ln());
        assert_eq!(grown(0, 0..6)[..5], [1.0, 1.0, two, two, three]);
        assert_eq!(grown(1, 0..3), [1.0, two, two, 1.0, two, two]);
        assert_eq!(grown(0, 0..2), [1.0; 6]);
    }
}
