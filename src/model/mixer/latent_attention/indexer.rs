//! The lightning indexer of sparse attention (DeepSeek-AI 2025, "DeepSeek-V3.2", section 2.1): small queries and keys choose the positions
//! that attention sees.

use crate::error::{Error, Result};
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::mixer::{At, Place};
use crate::model::ops;
use crate::model::part::{BlockTensor, Part, Reads};
use crate::model::rope::Rope;
use candle_core::Tensor;
use llmq_kernels::attention::{Shape, choose};
use llmq_kernels::elementwise::Pairing;
use std::ops::Range;

impl Part {
    /// Queries out of the vector that attention's queries come from.
    pub const INDEXER_Q_B: Part = Part("indexer.attn_q_b");
    /// Keys, which all of its heads share.
    pub const INDEXER_K: Part = Part("indexer.attn_k");
    /// Their norm.
    pub const INDEXER_K_NORM: Part = Part("indexer.k_norm");
    /// How much each head counts.
    pub const INDEXER_WEIGHTS: Part = Part("indexer.proj");
}

/// The ε of the keys' norm, in all that is published and in llama.cpp.
const EPS: f32 = 1e-6;

/// The sizes of an indexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexer {
    /// Heads.
    pub heads: usize,
    /// Numbers of each query and key; the first of them are turned, as many as of attention's keys.
    pub head_dim: usize,
    /// So many positions are seen.
    pub top: usize,
}

impl Indexer {
    /// Its tensors, in file order. `hidden`: the width of the stream; `query`: of the vector that queries come from.
    pub fn tensors(&self, hidden: usize, query: usize) -> Vec<BlockTensor> {
        let (input, width) = (Reads::Site(Place::Input), self.heads * self.head_dim);
        let layer = |part, source, rows| BlockTensor::linear(part, source, &[rows, hidden], input);
        vec![
            BlockTensor::linear(Part::INDEXER_Q_B, "self_attn.indexer.wq_b", &[width, query], Reads::Between),
            layer(Part::INDEXER_K, "self_attn.indexer.wk", self.head_dim),
            BlockTensor::new(Part::INDEXER_K_NORM, "self_attn.indexer.k_norm", &[self.head_dim]).bias(true),
            layer(Part::INDEXER_WEIGHTS, "self_attn.indexer.weights_proj", self.heads),
        ]
    }

    /// Which positions each position sees, `[windows · positions, past + positions]`; nothing while there are no more than all see.
    /// `x`: the half's input, `[n, hidden]`; `queries`: the vectors that queries come from, `[n, query]`; `rope`: attention's.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn chosen(
        &self,
        layers: &Layers,
        (x, queries): (&Tensor, &Tensor),
        rope: Option<&Rope>,
        positions: &Range<usize>,
        at: &mut At,
    ) -> Result<Vec<bool>> {
        let Indexer { heads, head_dim: d, top } = *self;
        let kept = at.state.as_mut().and_then(|state| state.numbers.first_mut());
        if positions.end <= top && kept.is_none() {
            return Ok(Vec::new());
        }
        // DeepSeek pairs neighbours in attention, and halves here.
        let turned = |x: Tensor| match rope {
            None => Ok(x),
            Some(rope) => {
                let (cos, sin) = layers.frame().table(rope, positions)?;
                Ok::<_, Error>(ops::rope(&x, &cos, &sin, d, Pairing::Halves)?)
            }
        };
        let k = layers.linear(Part::INDEXER_K, x)?; // [n, d]
        let k =
            ops::norm(Norm::Layer, &k, layers.weight(Part::INDEXER_K_NORM), layers.bias(Part::INDEXER_K_NORM), EPS)?;
        let mut k = turned(k)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(kept) = kept {
            kept[positions.start * d..positions.end * d].copy_from_slice(&k);
            k = kept[..positions.end * d].to_vec();
        }
        if positions.end <= top {
            return Ok(Vec::new());
        }
        let q = turned(layers.linear(Part::INDEXER_Q_B, queries)?)?.flatten_all()?.to_vec1::<f32>()?; // [n, heads · d]
        let weights = layers.linear(Part::INDEXER_WEIGHTS, x)?.flatten_all()?.to_vec1::<f32>()?; // [n, heads]
        let shape = Shape { positions: positions.len(), past: positions.start, heads, kv_heads: 1, d };
        Ok(choose(&q, &k, &weights, shape, top))
    }

    /// Numbers that a window of up to `capacity` positions needs to go on.
    pub fn state(&self, capacity: usize) -> Vec<Vec<f32>> {
        if capacity > self.top { vec![vec![0.0; capacity * self.head_dim]] } else { Vec::new() }
    }
}
