//! The forward pass of one decoder block, cut at its sites.
//!
//! A block is two halves, attention and MLP. Each reads the residual stream `h` through a norm (its *input*), mixes it
//! into what its last linear layer reads (its *inner*), and adds that layer's result to `h` (its *output*).

use super::form::{Experts, HeadNorms, Latent, MlpLayers, Scoring};
use super::ops;
use super::{Kind, Model, Part, Role, Site, TensorSpec};
use crate::error::{Context, Error, Result};
use candle_core::{Device, Tensor};
use llmq_kernels::attention::{Scores, Shape};
use llmq_kernels::elementwise::Pairing;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

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
    model: Model,
    pairing: Pairing,
    positions: usize,
    /// Cosines and sines, `[positions, rotary / 2]`: of blocks that see everything, and of the others.
    tables: Option<[(Tensor, Tensor); 2]>,
    device: Device,
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
        Ok(Frame { model: model.clone(), pairing, positions, tables, device: device.clone() })
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

/// One block's weights in `f32`, and its forward pass. A clone shares them until one of the two gets others.
#[derive(Clone)]
pub struct Block<'a> {
    frame: &'a Frame,
    index: usize,
    tensors: HashMap<(Part, Kind), Tensor>,
}

/// The tokens of an expert.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// Which rows of the input go to it, in order.
    pub tokens: Vec<u32>,
    /// By what its outputs are multiplied.
    pub weights: Vec<f32>,
}

impl<'a> Block<'a> {
    /// Block `index` without weights; [`Block::set`] brings them.
    pub fn new(frame: &'a Frame, index: usize) -> Block<'a> {
        Block { frame, index, tensors: HashMap::new() }
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

    fn weight(&self, part: Part) -> &Tensor {
        self.tensors.get(&(part, Kind::Weight)).expect("every part of a block has a weight")
    }

    fn bias(&self, part: Part) -> Option<&Tensor> {
        self.tensors.get(&(part, Kind::Bias))
    }

    fn linear(&self, part: Part, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = ops::linear(x, self.weight(part))?;
        match self.bias(part) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn norm(&self, part: Part, x: &Tensor) -> candle_core::Result<Tensor> {
        let model = &self.frame.model;
        ops::norm(model.form.norm, x, self.weight(part), self.bias(part), model.norm_eps)
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
            Half::Attention => Part::AttnNorm,
            Half::Mlp => Part::FfnNorm,
        };
        Ok(self.norm(norm, h)?)
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
        let linear = |part: Part| -> candle_core::Result<Tensor> {
            let y = self.linear(part, x)?;
            match moved {
                Some((of, by)) if of == part => y + by,
                _ => Ok(y),
            }
        };
        let y = match half {
            Half::Attention => self.attention(linear)?,
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

    fn attention(&self, linear: impl Fn(Part) -> candle_core::Result<Tensor>) -> candle_core::Result<Tensor> {
        let Frame { model, pairing, positions, tables, .. } = self.frame;
        let (form, heads, kv_heads, d) = (&model.form, model.heads, model.kv_heads, model.head_dim);
        if let Some(latent) = form.latent {
            return self.latent_attention(latent, linear);
        }
        let (mut q, mut k, v) = if form.fused_qkv {
            let all = linear(Part::Qkv)?;
            let part = |first: usize, n: usize| all.narrow(1, first * d, n * d)?.contiguous();
            (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?)
        } else {
            (linear(Part::Q)?, linear(Part::K)?, linear(Part::V)?)
        };
        if form.head_norms != HeadNorms::None {
            let norm = |part: Part, x: &Tensor| {
                let (shape, gain) = (x.shape().clone(), self.weight(part));
                let rows = x.reshape((x.elem_count() / gain.elem_count(), gain.elem_count()))?;
                ops::rms_norm(&rows, gain, model.norm_eps)?.reshape(shape)
            };
            (q, k) = (norm(Part::QNorm, &q)?, norm(Part::KNorm, &k)?);
        }
        let local = form.window.is_some_and(|window| window.holds(self.index));
        if let Some(tables) = tables.as_ref().filter(|_| model.turns(self.index)) {
            let (cos, sin) = &tables[usize::from(local)];
            (q, k) = (ops::rope(&q, cos, sin, d, *pairing)?, ops::rope(&k, cos, sin, d, *pairing)?);
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
        ops::attention(&q, &k, &v, Shape { positions: *positions, heads, kv_heads, d }, &scores)
    }

    /// Attention whose keys and values come out of one narrow vector per token; the part of a key that is turned is the same for
    /// all heads (DeepSeek-AI 2024, section 2.1).
    fn latent_attention(
        &self,
        Latent { latent, turned, value, .. }: Latent,
        linear: impl Fn(Part) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let Frame { model, pairing, positions, tables, .. } = self.frame;
        let (heads, d) = (model.heads, model.head_dim);
        let still = d - turned;
        let q = match self.frame.model.form.latent.and_then(|latent| latent.query) {
            None => linear(Part::Q)?,
            Some(_) => self.linear(Part::QB, &self.norm(Part::QANorm, &linear(Part::QA)?)?)?,
        };
        let both = linear(Part::KvA)?; // [n, latent + turned]
        let n = both.dim(0)?;
        let c = self.norm(Part::KvANorm, &both.narrow(1, 0, latent)?.contiguous()?)?;
        let q = q.reshape((n, heads, d))?;
        let mut q_turned = q.narrow(2, still, turned)?.contiguous()?.reshape((n, heads * turned))?;
        let mut k_turned = both.narrow(1, latent, turned)?.contiguous()?;
        if let Some([(cos, sin), _]) = tables.as_ref().filter(|_| model.turns(self.index)) {
            q_turned = ops::rope(&q_turned, cos, sin, turned, *pairing)?;
            k_turned = ops::rope(&k_turned, cos, sin, turned, *pairing)?;
        }
        let q = Tensor::cat(&[q.narrow(2, 0, still)?, q_turned.reshape((n, heads, turned))?], 2)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let padding = Tensor::zeros((n, d - value.min(d)), q.dtype(), q.device())?;
        for head in 0..heads {
            // [latent, still] and [value, latent]
            let (k, v) = (self.weight(Part::KB).get(head)?, self.weight(Part::VB).get(head)?);
            keys.push(Tensor::cat(&[ops::linear(&c, &k.t()?.contiguous()?)?, k_turned.clone()], 1)?);
            // Values are as wide as keys for the kernel.
            values.push(Tensor::cat(&[ops::linear(&c, &v)?, padding.clone()], 1)?);
        }
        let (k, v) = (Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?);
        let scores =
            Scores { scale: model.form.attention_scale.unwrap_or(1.0 / (d as f32).sqrt()), ..Scores::default() };
        let shape = Shape { positions: *positions, heads, kv_heads: heads, d };
        let y = ops::attention(&q.reshape((n, heads * d))?.contiguous()?, &k, &v, shape, &scores)?;
        y.reshape((n, heads, d))?.narrow(2, 0, value)?.contiguous()?.reshape((n, heads * value))
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
        Ok((h + y)?)
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

    fn last(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        Ok(self.linear(half.last(), inner)?)
    }

    /// Which tokens go to which expert: the ones that the router gives the most weight (Shazeer et al. 2017, section 2.1, without
    /// noise, the softmax before the choice; DeepSeek-AI 2024, section 2.1.2, for sigmoids, groups and favours).
    /// `x`: the MLP's input, `[tokens, hidden]`; result: one route per expert.
    ///
    /// # Errors
    /// Shapes that do not fit, or a router whose scores are no numbers.
    pub fn routes(&self, x: &Tensor) -> Result<Vec<Route>> {
        let Some(experts) = self.frame.model.experts(self.index) else { return Ok(Vec::new()) };
        let scores = self.linear(Part::Router, x)?.to_vec2::<f32>()?;
        let favours: Vec<f32> = match self.tensors.get(&(Part::Favours, Kind::Weight)) {
            Some(favours) => favours.to_vec1()?,
            None => vec![0.0; experts.count],
        };
        let mut routes = vec![Route::default(); experts.count];
        for (token, scores) in scores.iter().enumerate() {
            let weights = weights(experts.scoring, scores);
            if weights.iter().any(|weight| !weight.is_finite()) {
                return Err(Error::new(format!("the router's scores of token {token} are no numbers")));
            }
            let merits: Vec<f32> = weights.iter().zip(&favours).map(|(weight, favour)| weight + favour).collect();
            let chosen = choose(&experts, &merits);
            let total: f32 = if experts.normed { chosen.iter().map(|&e| weights[e]).sum() } else { 1.0 };
            for &e in &chosen {
                routes[e].tokens.push(token as u32);
                routes[e].weights.push(weights[e] / total * experts.scale);
            }
        }
        Ok(routes)
    }

    /// What an expert's last layer reads. `x`: the rows of the MLP's input that go to it, `[tokens, hidden]`; `weight`: the
    /// expert's own matrices.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn expert_inner(&self, expert: usize, x: &Tensor, weight: &dyn Fn(Part) -> Result<Tensor>) -> Result<Tensor> {
        let of = |part: Part| self.expert_linear(part, expert, x, &weight(part)?);
        Ok(ops::gated(self.frame.model.form.mlp.activation, &of(Part::ExpertGates)?, &of(Part::ExpertUps)?)?)
    }

    fn expert_linear(&self, part: Part, expert: usize, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let y = ops::linear(x, weight)?;
        match self.bias(part) {
            Some(bias) => Ok(y.broadcast_add(&bias.get(expert)?)?),
            None => Ok(y),
        }
    }

    /// One expert's matrix, `[rows, columns]`.
    ///
    /// # Errors
    /// There is no such expert.
    pub fn expert(&self, part: Part, expert: usize) -> Result<Tensor> {
        Ok(self.weight(part).get(expert)?)
    }

    /// What all experts make of the MLP's input together, `[tokens, hidden]`. `weight`: a matrix of one of them.
    fn mixture(&self, x: &Tensor, weight: &dyn Fn(Part, usize) -> Result<Tensor>) -> Result<Tensor> {
        let mut y = x.zeros_like()?;
        for (expert, route) in self.routes(x)?.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
            let tokens = Tensor::from_slice(&route.tokens, route.tokens.len(), x.device())?;
            let inner = self.expert_inner(expert, &x.index_select(&tokens, 0)?, &|part| weight(part, expert))?;
            let own = self.expert_linear(Part::ExpertDowns, expert, &inner, &weight(Part::ExpertDowns, expert)?)?;
            let weights = Tensor::from_slice(&route.weights, (route.weights.len(), 1), x.device())?;
            y = y.index_add(&tokens, &own.broadcast_mul(&weights)?, 0)?;
        }
        if self.frame.model.mlp_width(self.index) > 0 {
            let mut shared = self.last(Half::Mlp, &self.inner(Half::Mlp, x)?)?;
            if self.tensors.contains_key(&(Part::SharedRouter, Kind::Weight)) {
                let open = (self.linear(Part::SharedRouter, x)?.neg()?.exp()? + 1.0)?.recip()?;
                shared = shared.broadcast_mul(&open)?;
            }
            y = (y + shared)?;
        }
        Ok(y)
    }

    /// What the half's last linear layer makes of a difference between two inners: the layer without its bias.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn difference(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(inner, self.weight(half.last()))?)
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
        weight: &dyn Fn(Part, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.input(half, h, before)?;
        let y = match half {
            Half::Mlp if self.frame.model.experts(self.index).is_some() => self.mixture(&x, weight)?,
            _ => self.last(half, &self.inner(half, &x)?)?,
        };
        self.added(half, h, y)
    }
}

/// The weights of all experts from a router's scores of a token.
fn weights(scoring: Scoring, scores: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
        Scoring::Softmax => {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f32 = powers.iter().sum();
            powers.iter().map(|power| power / total).collect()
        }
    }
}

/// The experts that a token goes to, by how much each of them merits it; of equal ones the first.
fn choose(experts: &Experts, merits: &[f32]) -> Vec<usize> {
    let mut open: Vec<usize> = (0..experts.count).collect();
    if let Some((groups, used)) = experts.groups {
        // A group is worth its two best.
        let each = experts.count / groups;
        let worth = |group: usize| {
            let mut own: Vec<f32> = merits[group * each..(group + 1) * each].to_vec();
            own.sort_by(|a, b| b.total_cmp(a));
            match experts.favours {
                true => own.iter().take(2).sum::<f32>(),
                false => own[0],
            }
        };
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)));
        let allowed = &order[..used.min(groups)];
        open.retain(|e| allowed.contains(&(e / each)));
    }
    open.sort_by(|&a, &b| merits[b].total_cmp(&merits[a]));
    open.truncate(experts.used);
    open
}
