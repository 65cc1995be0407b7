//! The forward pass of one decoder block, cut at its sites.
//!
//! A block is two halves, attention and MLP. Each reads the residual stream `h` through a norm (its *input*), mixes it
//! into what its last linear layer reads (its *inner*), and adds that layer's result to `h` (its *output*).

use super::cache::{Cache, extended};
use super::form::{HeadNorms, MlpLayers, Norm};
use super::matrix::{Lent, Matrix, Rows};
use super::ops;
use super::{Kind, Model, Part, Role, Site, TensorSpec};
use crate::error::{Context, Error, Result};
use candle_core::{Device, Tensor};
use llmq_kernels::attention::{Scores, Shape};
use llmq_kernels::elementwise::Pairing;
use llmq_kernels::gemm::Precision;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::Arc;

/// The half of a block that a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Half {
    Attention,
    Mlp,
}

impl Half {
    /// In the order of the block.
    pub const ALL: [Half; 2] = [Half::Attention, Half::Mlp];

    /// The site that the half's first linear layers read.
    pub fn input(self) -> Site {
        match self {
            Half::Attention => Site::AttnIn,
            Half::Mlp => Site::FfnIn,
        }
    }

    fn last(self) -> Part {
        match self {
            Half::Attention => Part::O,
            Half::Mlp => Part::Down,
        }
    }

    /// The site that its last linear layer reads.
    pub fn inner(self) -> Site {
        match self {
            Half::Attention => Site::AttnOut,
            Half::Mlp => Site::FfnMid,
        }
    }
}

/// The size of the errors that [`Block::response`] probes with, against the outputs that they are added to: about that of four-bit
/// rounding.
const PROBE: f32 = 0.03;

/// What all blocks of a model share: sizes and rotary tables.
#[derive(Clone)]
pub struct Frame {
    pub(super) model: Model,
    pub(super) pairing: Pairing,
    pub(super) positions: usize,
    /// Cosines and sines, `[positions, rotary / 2]`: of blocks that see everything, and of the others.
    pub(super) tables: Option<[(Tensor, Tensor); 2]>,
    device: Device,
    pub(super) precision: Precision,
}

impl Frame {
    /// For windows of `positions` tokens. `pairing` says in which order the rows of queries and keys come.
    ///
    /// # Errors
    /// The device has no room for the tables.
    pub fn new(model: &Model, pairing: Pairing, positions: usize, device: &Device) -> Result<Frame> {
        let tables = model.rope.as_ref().map(|rope| -> Result<_> {
            let of = |local: bool| -> Result<(Tensor, Tensor)> {
                let (cos, sin) = rope.tables(positions, local);
                let tensor = |x: Vec<f32>| Tensor::from_vec(x, (positions, rope.rotary / 2), device);
                Ok((tensor(cos)?, tensor(sin)?))
            };
            let whole = of(false)?;
            let local = if rope.local_base.is_some() { of(true)? } else { whole.clone() };
            Ok([whole, local])
        });
        let tables = tables.transpose()?;
        Ok(Frame {
            model: model.clone(),
            pairing,
            positions,
            tables,
            device: device.clone(),
            precision: Precision::Split,
        })
    }

    /// The same with linear layers that need not be more exact than this.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Frame {
        Frame { precision, ..self }
    }

    /// Tokens per window.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// One block's weights, in `f32` or lent, and its forward pass. A clone shares them until one of the two gets others.
#[derive(Clone)]
pub struct Block<'a> {
    pub(super) frame: &'a Frame,
    pub(super) index: usize,
    pub(super) tensors: HashMap<(Part, Kind), Tensor>,
    lent: HashMap<Part, Lent<'a>>,
}

impl<'a> Block<'a> {
    /// Block `index` without weights; [`Block::set`] brings them.
    pub fn new(frame: &'a Frame, index: usize) -> Block<'a> {
        Block { frame, index, tensors: HashMap::new(), lent: HashMap::new() }
    }

    /// Replaces a tensor's numbers, in the shape that its description has.
    ///
    /// # Errors
    /// It is not a block's tensor, or the device has no room.
    pub fn set(&mut self, spec: &TensorSpec, numbers: Vec<f32>) -> Result<()> {
        let Role::Block(part, kind) = spec.role else {
            return Err(Error::new(format!("{} is not a tensor of a block", spec.gguf)));
        };
        let tensor = Tensor::from_vec(numbers, spec.shape.as_slice(), &self.frame.device)
            .context(|| format!("tensor '{}' of shape {:?}", spec.source, spec.shape))?;
        self.tensors.insert((part, kind), tensor);
        Ok(())
    }

    /// Lends a matrix, which takes the place of numbers. False if it is one that is used otherwise than by multiplying with it.
    #[must_use]
    pub fn lend(&mut self, spec: &TensorSpec, source: &Arc<dyn Rows + 'a>) -> bool {
        let Role::Block(part, Kind::Weight) = spec.role else { return false };
        // Two are cut into heads, and the one of keys is turned over; norms may have a gain for each head.
        let only_multiplied = spec.shape.len() > 1 && !matches!(part, Part::KB | Part::VB | Part::QNorm | Part::KNorm);
        if only_multiplied {
            self.lent.insert(part, Lent::new(source.clone(), spec.rows(), spec.columns()));
        }
        only_multiplied
    }

    /// Drops the matrices that a half's [`output`](Self::output) does not need: all but its last.
    pub fn keep_last(&mut self, half: Half) {
        let last = half.last();
        self.tensors.retain(|(part, _), tensor| *part == last || tensor.rank() < 2);
        self.lent.retain(|part, _| *part == last);
    }

    /// A tensor's numbers.
    ///
    /// # Errors
    /// It was never set.
    pub fn numbers(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tensor = match spec.role {
            Role::Block(part, kind) => self.tensors.get(&(part, kind)),
            _ => None,
        };
        let tensor = tensor.ok_or_else(|| Error::new(format!("the block has no '{}'", spec.gguf)))?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    pub(super) fn weight(&self, part: Part) -> &Tensor {
        self.tensors.get(&(part, Kind::Weight)).expect("every part of a block has a weight")
    }

    /// Whether it has a weight for this part, held or lent.
    pub(super) fn has(&self, part: Part) -> bool {
        self.lent.contains_key(&part) || self.tensors.contains_key(&(part, Kind::Weight))
    }

    pub(super) fn bias(&self, part: Part) -> Option<&Tensor> {
        self.tensors.get(&(part, Kind::Bias))
    }

    pub(super) fn linear(&self, part: Part, x: &Tensor) -> Result<Tensor> {
        let y = match self.lent.get(&part) {
            Some(weight) => weight.linear(self.frame.precision, x)?,
            None => ops::linear(self.frame.precision, x, self.weight(part))?,
        };
        match self.bias(part) {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// One matrix of a stack of `count`, `[rows, columns]`.
    pub(super) fn of_stack(&self, part: Part, i: usize, count: usize) -> Result<Matrix<'a>> {
        match self.lent.get(&part) {
            Some(stack) => Ok(Matrix::Lent(stack.get(i, count)?)),
            None => Ok(Matrix::Held(self.weight(part).get(i)?)),
        }
    }

    pub(super) fn norm(&self, part: Part, x: &Tensor) -> Result<Tensor> {
        let model = &self.frame.model;
        Ok(ops::norm(model.form.norm, x, self.weight(part), self.bias(part), model.norm_eps)?)
    }

    /// What the first linear layers of a half read. `h`: the stream in front of the half, `[windows · positions, hidden]`;
    /// `before`: in front of the block, which is the same for the first half; result: as `h`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn input(&self, half: Half, h: &Tensor, before: &Tensor) -> Result<Tensor> {
        let form = &self.frame.model.form;
        let h = if form.parallel { before } else { h };
        if !form.pre_norms {
            return Ok(h.clone());
        }
        let norm = match half {
            Half::Mlp if !form.shared_norm => Part::FfnNorm,
            _ => Part::AttnNorm,
        };
        self.norm(norm, h)
    }

    /// What the last linear layer of a half reads. `x`: the half's input; result: `[windows · positions, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn inner(&self, half: Half, x: &Tensor) -> Result<Tensor> {
        self.inner_moved(half, x, None)
    }

    /// The same with something added to the output of one of the half's first linear layers.
    fn inner_moved(&self, half: Half, x: &Tensor, moved: Option<(Part, &Tensor)>) -> Result<Tensor> {
        let linear = |part: Part| -> Result<Tensor> {
            let y = self.linear(part, x)?;
            match moved {
                Some((of, by)) if of == part => Ok((y + by)?),
                _ => Ok(y),
            }
        };
        let y = match half {
            Half::Attention => self.attention(linear, None)?,
            Half::Mlp => {
                let mlp = self.frame.model.form.mlp;
                match mlp.layers {
                    MlpLayers::Gated => ops::gated(mlp.activation, &linear(Part::Gate)?, &linear(Part::Up)?)?,
                    MlpLayers::Fused => {
                        let both = linear(Part::GateUp)?;
                        let width = both.dim(1)? / 2;
                        let part = |i: usize| both.narrow(1, i * width, width)?.contiguous();
                        ops::gated(mlp.activation, &part(0)?, &part(1)?)?
                    }
                    MlpLayers::Plain => ops::activate(mlp.activation, &linear(Part::Up)?)?,
                }
            }
        };
        Ok(y)
    }

    /// What the attention's last layer reads. `cache`: the window's earlier positions; the input then is of those behind them.
    pub(super) fn attention(
        &self,
        linear: impl Fn(Part) -> Result<Tensor>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let Frame { model, pairing, .. } = self.frame;
        let (form, heads, kv_heads, d) = (&model.form, model.heads, model.kv_heads, model.head_dim);
        if let Some(latent) = form.latent {
            return self.latent_attention(latent, linear, cache);
        }
        let (mut q, mut k, v) = if form.fused_qkv {
            let all = linear(Part::Qkv)?;
            let part = |first: usize, n: usize| all.narrow(1, first * d, n * d)?.contiguous();
            (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?)
        } else {
            (linear(Part::Q)?, linear(Part::K)?, linear(Part::V)?)
        };
        if form.head_norms != HeadNorms::None {
            (q, k) = (self.head_norm(Part::QNorm, &q)?, self.head_norm(Part::KNorm, &k)?);
        }
        let local = form.window.is_some_and(|window| window.holds(self.index));
        let positions = self.positions(&q, cache.as_deref());
        if let Some((cos, sin)) = self.tables(local, &positions)? {
            (q, k) = (ops::rope(&q, &cos, &sin, d, *pairing)?, ops::rope(&k, &cos, &sin, d, *pairing)?);
        }
        let scores = Scores {
            scale: form.attention_scale.unwrap_or(1.0 / (d as f32).sqrt()),
            cap: form.attention_cap,
            window: form.window.filter(|_| local).map(|window| window.tokens),
            sinks: match self.tensors.get(&(Part::Sinks, Kind::Weight)) {
                Some(sinks) => sinks.to_vec1()?,
                None => Vec::new(),
            },
        };
        let (k, v) = extended(cache, k, v)?;
        let shape = Shape { positions: positions.len(), past: positions.start, heads, kv_heads, d };
        Ok(ops::attention(&q, &k, &v, shape, &scores)?)
    }

    /// Queries or keys, `[tokens, heads · head_dim]`, behind their norm.
    fn head_norm(&self, part: Part, x: &Tensor) -> candle_core::Result<Tensor> {
        let (model, gain) = (&self.frame.model, self.weight(part));
        // One gain for every row, and then one for each head.
        let centred = model.form.head_norms == HeadNorms::Centred;
        let shared = if centred { gain.get(0)?.ones_like()? } else { gain.clone() };
        let rows = x.reshape(((), shared.elem_count()))?;
        let kind = if centred { Norm::Layer } else { Norm::Rms };
        let y = ops::norm(kind, &rows, &shared, None, model.norm_eps)?.reshape(x.shape())?;
        if centred { y.broadcast_mul(&gain.flatten_all()?) } else { Ok(y) }
    }

    /// The residual stream after a half: `h` plus its last linear layer of `inner`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn output(&self, half: Half, h: &Tensor, inner: &Tensor) -> Result<Tensor> {
        self.added(half, h, self.last(half, inner)?)
    }

    /// The residual stream with what a half makes.
    fn added(&self, half: Half, h: &Tensor, mut y: Tensor) -> Result<Tensor> {
        let form = &self.frame.model.form;
        if form.post_norms {
            y = self.norm(if half == Half::Attention { Part::AttnPostNorm } else { Part::FfnPostNorm }, &y)?;
        }
        if form.residual_scale != 1.0 {
            y = (y * f64::from(form.residual_scale))?;
        }
        Ok(ops::sum(h, &y)?)
    }

    /// What a half's last linear layer would have to add, so that the stream after it moves by `gap`, `[tokens, hidden]`; none
    /// where more than a factor stands between.
    ///
    /// # Errors
    /// The device has no room.
    pub fn owed(&self, gap: Tensor) -> Result<Option<Tensor>> {
        let form = &self.frame.model.form;
        match form.residual_scale {
            // What the shared expert adds depends on the token, and the others add to it.
            _ if form.post_norms || self.frame.model.experts(self.index).is_some() => Ok(None),
            1.0 => Ok(Some(gap)),
            scale => Ok(Some((gap / f64::from(scale))?)),
        }
    }

    pub(super) fn last(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        self.linear(half.last(), inner)
    }

    /// What the half's last linear layer makes of a difference between two inners: the layer without its bias.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn difference(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(self.frame.precision, inner, self.weight(half.last()))?)
    }

    /// How much an error of one of a half's first linear layers moves what the half adds to the residual stream: the mean of
    /// the diagonal of the output-side Hessian of that layer, per token.
    ///
    /// Measured with one random error for all of its outputs at once: independent signs, so that the products of different
    /// ones cancel (Hutchinson's estimator of a trace). `x`: the half's input, `[windows · positions, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a block without the part.
    pub fn response(&self, half: Half, x: &Tensor, part: Part) -> Result<f64> {
        let weight = self.weight(part);
        let y = self.linear(part, x)?;
        let size = y.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt() * PROBE;
        if size == 0.0 {
            return Ok(0.0);
        }
        let (tokens, rows) = y.dims2()?;
        let mut signs = ChaCha8Rng::seed_from_u64(tokens as u64);
        let noise: Vec<f32> = (0..tokens * rows).map(|_| if signs.random() { size } else { -size }).collect();
        let noise = Tensor::from_vec(noise, (tokens, rows), weight.device())?;
        let moved = self.last(half, &self.inner_moved(half, x, Some((part, &noise)))?)?;
        let difference = (moved - self.last(half, &self.inner(half, x)?)?)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(difference) / (tokens * rows) as f64 / f64::from(size * size))
    }

    /// The whole block.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, before: &Tensor) -> Result<Tensor> {
        let mut h = before.clone();
        for half in Half::ALL {
            h = self.half(half, &h, before)?;
        }
        Ok(h)
    }

    /// A half of it. `h`: the stream in front of the half; `before`: in front of the block.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn half(&self, half: Half, h: &Tensor, before: &Tensor) -> Result<Tensor> {
        self.half_of(half, h, before, &|part, expert| self.expert(part, expert))
    }

    /// The same with matrices of experts from elsewhere. `weight`: one of an expert, `[rows, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn half_of(
        &self,
        half: Half,
        h: &Tensor,
        before: &Tensor,
        weight: &dyn Fn(Part, usize) -> Result<Matrix<'a>>,
    ) -> Result<Tensor> {
        let x = self.input(half, h, before)?;
        let y = match half {
            Half::Mlp if self.frame.model.experts(self.index).is_some() => self.mixture(&x, weight)?,
            _ => self.last(half, &self.inner(half, &x)?)?,
        };
        self.added(half, h, y)
    }
}
