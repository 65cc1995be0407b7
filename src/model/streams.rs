//! Several residual streams side by side (Alternating Updates, Baykal et al. 2023; Gemma 3n): a block works on the first of them. In front
//! of it all are predicted from all; behind it each is corrected by what the block has changed of the first.
//!
//! ```text
//! m(x)       = tanh(W_r·norm(x) / hidden)                        [streams]
//! predicted  p_j = h_j + Σ_i (W_p·m(h_0))_{j,i}·h_i              W_p: [streams², streams]
//! corrected  h_j = p_j + (1 + (W_c·m(y))_j)·(y − p_0)            W_c: [streams, streams], y: what the block has made of p_0
//! ```

use super::block::Block;
use super::half::Norm;
use super::part::{BlockTensor, Part, TensorRole};
use super::states::States;
use super::{Model, TensorMapping, TensorSpec, ops};
use crate::error::Result;
use candle_core::{D, Device, Tensor};
use llmq_kernels::gemm::Precision;

impl Part {
    /// From embedded tokens to each of the other streams, `[streams − 1, hidden, hidden]`.
    pub const ALTUP_PROJ: Part = Part("altup_proj");
    /// From each of the other streams to what is added to the first, `[streams − 1, hidden, hidden]`.
    pub const ALTUP_UNEMBD_PROJ: Part = Part("altup_unembd_proj");
    /// `W_r`, `[streams, hidden]`.
    pub const ALTUP_ROUTER: Part = Part("altup_router");
    /// The norm in front of it, `[hidden]`.
    pub const ALTUP_ROUTER_NORM: Part = Part("altup_router_norm");
    /// `W_p`, `[streams², streams]`.
    pub const ALTUP_PREDICT_COEF: Part = Part("altup_predict_coef");
    /// `W_c`, `[streams, streams]`.
    pub const ALTUP_CORRECT_COEF: Part = Part("altup_correct_coef");
    /// What the first stream is multiplied by where a block reads it once more, `[hidden]`.
    pub const ALTUP_CORRECT_SCALE: Part = Part("altup_correct_scale");

    const OF_STREAMS: [Part; 4] =
        [Part::ALTUP_ROUTER, Part::ALTUP_ROUTER_NORM, Part::ALTUP_PREDICT_COEF, Part::ALTUP_CORRECT_COEF];
}

/// The residual streams of a model that has several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Streams {
    /// How many.
    pub count: usize,
    /// The ε of the norm in front of the router.
    pub eps: f32,
}

/// Where the result of a half goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the stream that the block works on.
    Stream,
    /// To that stream, after which all are corrected.
    Corrected,
    /// To the other streams.
    Others,
}

/// Mean squares of a stream are no less than this, where another is made as large as the first.
const LEAST: f64 = 1e-5;

impl Streams {
    /// The tensors of a block that predict and correct.
    pub(super) fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let n = self.count;
        vec![
            BlockTensor::new(Part::ALTUP_ROUTER, "altup.modality_router", &[n, hidden]),
            BlockTensor::new(Part::ALTUP_ROUTER_NORM, "altup.router_norm", &[hidden]),
            BlockTensor::new(Part::ALTUP_PREDICT_COEF, "altup.prediction_coefs", &[n * n, n]),
            BlockTensor::new(Part::ALTUP_CORRECT_COEF, "altup.correction_coefs", &[n, n]),
        ]
    }

    /// Whether a tensor is one of them.
    pub(super) fn has(part: Part) -> bool {
        Part::OF_STREAMS.contains(&part)
    }

    /// The states in front of a block, as they are predicted.
    pub(super) fn predicted(&self, block: &Block, states: &States) -> Result<States> {
        let (tokens, hidden) = states.h.dims2()?;
        let n = self.count;
        let all = states.streams()?.reshape((tokens, n, hidden))?;
        let mixed = self.coefficients(block, Part::ALTUP_PREDICT_COEF, &states.h)?.reshape((tokens, n, n))?;
        let all = (mixed.matmul(&all)? + &all)?; // [tokens, streams, hidden]
        states.with_streams(all.reshape((tokens, n * hidden))?, hidden)
    }

    /// The states behind it, as they are corrected. `predicted`: what it began with; `states`: what it has made of that.
    pub(super) fn corrected(&self, block: &Block, predicted: &States, states: &States) -> Result<States> {
        let (tokens, hidden) = states.h.dims2()?;
        let n = self.count;
        let moved = (&states.h - &predicted.h)?.unsqueeze(1)?; // [tokens, 1, hidden]
        let by = (self.coefficients(block, Part::ALTUP_CORRECT_COEF, &states.h)? + 1.0)?.unsqueeze(2)?;
        let all = predicted.streams()?.reshape((tokens, n, hidden))?;
        let all = (by.matmul(&moved)? + all)?; // [tokens, streams, hidden]
        states.with_streams(all.reshape((tokens, n * hidden))?, hidden)
    }

    /// `W·m(x)`. `x`: `[tokens, hidden]`, result: `[tokens, rows of W]`.
    fn coefficients(&self, block: &Block, part: Part, x: &Tensor) -> Result<Tensor> {
        let normed = ops::norm(Norm::Rms, x, block.weight(Part::ALTUP_ROUTER_NORM), None, self.eps)?;
        let normed = (normed / x.dim(1)? as f64)?;
        let routed = ops::linear(Precision::Single, &normed, block.weight(Part::ALTUP_ROUTER))?.tanh()?;
        ops::linear(Precision::Single, &routed, block.weight(part))
    }
}

impl Model {
    /// Numbers for each token that go from block to block, once all blocks have kept theirs: those of all streams, and what is kept.
    pub fn state_columns(&self) -> usize {
        self.hidden + self.other_columns() + self.kept_columns()
    }

    /// Numbers for each token of the other streams.
    pub fn other_columns(&self) -> usize {
        match (self.streams, self.looped) {
            (Some(streams), _) => (streams.count - 1) * self.hidden,
            (None, Some(_)) => self.hidden,
            (None, None) => 0,
        }
    }

    /// What makes several streams of one, and one of several.
    pub fn stream_tensors(&self) -> Vec<TensorSpec> {
        let Some(Streams { count, .. }) = self.streams else { return Vec::new() };
        let (n, hidden) = (count - 1, self.hidden);
        let tensor = |part: Part, source: &str| TensorSpec {
            mapping: TensorMapping::STACKED,
            ..self.outside(source, part.0, vec![n, hidden, hidden], TensorRole::Streams(part))
        };
        vec![
            tensor(Part::ALTUP_PROJ, "model.altup_projections.{}"),
            tensor(Part::ALTUP_UNEMBD_PROJ, "model.altup_unembed_projections.{}"),
        ]
    }
}

/// One layer for each of the other streams.
pub(super) struct StreamLayers(Vec<Tensor>);

impl StreamLayers {
    /// Reads them; none where the model has one stream alone. `read`: a tensor, decoded.
    pub(super) fn new(
        model: &Model,
        part: Part,
        read: impl FnOnce(&TensorSpec) -> Result<Vec<f32>>,
    ) -> Result<Option<StreamLayers>> {
        let Some(spec) = model.stream_tensors().into_iter().find(|spec| spec.role == TensorRole::Streams(part)) else {
            return Ok(None);
        };
        let all = Tensor::from_vec(read(&spec)?, spec.shape.as_slice(), &Device::Cpu)?;
        Ok(Some(StreamLayers((0..spec.shape[0]).map(|i| all.get(i)).collect::<Result<_, _>>()?)))
    }

    /// The other streams in front of the first block. `h`: embedded tokens, `[tokens, hidden]`.
    pub(super) fn spread(&self, h: &Tensor) -> Result<Tensor> {
        let each = self.0.iter().map(|w| as_large(&ops::linear(Precision::Single, h, w)?, h));
        Ok(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// The mean of all streams behind the last block, `[tokens, hidden]`.
    pub(super) fn merged(&self, states: &States) -> Result<Tensor> {
        let (streams, hidden) = (states.streams()?, states.h.dim(1)?);
        let mut sum = states.h.clone();
        for (i, w) in self.0.iter().enumerate() {
            let own = streams.narrow(1, (i + 1) * hidden, hidden)?.contiguous()?;
            sum = (sum + as_large(&ops::linear(Precision::Single, &own, w)?, &states.h)?)?;
        }
        Ok((sum / (self.0.len() + 1) as f64)?)
    }
}

/// `x` with each row as long as that of `h`, both `[tokens, hidden]`.
fn as_large(x: &Tensor, h: &Tensor) -> Result<Tensor> {
    let square = |x: &Tensor| x.sqr()?.mean_keepdim(D::Minus1);
    Ok(x.broadcast_mul(&square(h)?.sqrt()?.div(&square(x)?.maximum(LEAST)?.sqrt()?)?)?)
}
