//! The forward pass of one decoder block, half by half, cut at its sites.

use super::TensorSpec;
use super::frame::Frame;
use super::half::{HalfConfig, Norm, NormConfig};
use super::layers::Layers;
use super::matrix::{Matrix, OnTheFly, Rows};
use super::mixer::experts::{Experts, Routed};
use super::mixer::{At, Place};
use super::ops;
use super::part::{Kind, Part, TensorRole};
use super::states::{MixerState, States};
use super::streams::Destination;
use crate::error::{Context, Error, Result};
use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The size of the errors that [`Block::response`] probes with, against the outputs that they are added to: about that of four-bit
/// rounding.
const PROBE: f32 = 0.03;

/// Gives one expert's matrix, `[rows, columns]`.
pub type ExpertMatrices<'f, 'a> = dyn Fn(Part, usize) -> Result<Matrix<'a>> + 'f;

/// One block's weights, in `f32` or dequantized on the fly, and its forward pass. A clone shares them until one of the two gets others.
#[derive(Clone)]
pub struct Block<'a> {
    frame: &'a Frame,
    index: usize,
    tensors: HashMap<(Part, Kind), Tensor>,
    on_the_fly: HashMap<Part, OnTheFly<'a>>,
}

impl<'a> Block<'a> {
    /// Block `index` without weights; [`Block::set`] brings them.
    pub fn new(frame: &'a Frame, index: usize) -> Block<'a> {
        Block { frame, index, tensors: HashMap::new(), on_the_fly: HashMap::new() }
    }

    pub(super) fn frame(&self) -> &'a Frame {
        self.frame
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// A tensor, if it was set.
    pub(super) fn tensor(&self, part: Part, kind: Kind) -> Option<&Tensor> {
        self.tensors.get(&(part, kind))
    }

    /// How many halves it has.
    pub fn halves(&self) -> Range<usize> {
        0..self.frame.model.blocks[self.index].halves.len()
    }

    fn config(&self, half: usize) -> &'a HalfConfig {
        &self.frame.model.blocks[self.index].halves[half]
    }

    /// Replaces a tensor's numbers, in the shape that its description has.
    ///
    /// # Errors
    /// It is not a block's tensor, or the device has no room.
    pub fn set(&mut self, spec: &TensorSpec, numbers: Vec<f32>) -> Result<()> {
        let TensorRole::Block(part, kind) = spec.role else {
            return Err(Error::new(format!("{} is not a tensor of a block", spec.gguf)));
        };
        let tensor = Tensor::from_vec(numbers, spec.shape.as_slice(), self.frame.device())
            .context(|| format!("tensor '{}' of shape {:?}", spec.source, spec.shape))?;
        self.tensors.insert((part, kind), tensor);
        Ok(())
    }

    /// Takes a matrix whose rows are dequantized on the fly, in the place of numbers. False if it is one that is used otherwise
    /// than by multiplying with it.
    #[must_use]
    pub fn set_on_the_fly(&mut self, spec: &TensorSpec, source: &Arc<dyn Rows + 'a>) -> bool {
        let TensorRole::Block(part, Kind::Weight) = spec.role else { return false };
        if spec.only_multiplied {
            self.on_the_fly.insert(part, OnTheFly::new(source.clone(), spec.rows(), spec.columns()));
        }
        spec.only_multiplied
    }

    /// Drops the matrices that a half's [`output`](Self::output) does not need: all but its last, unless later blocks share what others
    /// give. `specs`: those of the block.
    pub fn keep_last<'s>(&mut self, half: usize, specs: impl Iterator<Item = &'s TensorSpec>) {
        let mixer = &self.config(half).mixer;
        if mixer.kept_columns() > 0 {
            return;
        }
        let last = mixer.last();
        for spec in specs.filter(|spec| spec.half == half && spec.reads.is_some()) {
            if let TensorRole::Block(part, Kind::Weight) = spec.role
                && Some(part) != last
            {
                self.tensors.remove(&(part, Kind::Weight));
                self.on_the_fly.remove(&part);
            }
        }
    }

    /// A tensor's numbers.
    ///
    /// # Errors
    /// It was never set.
    pub fn numbers(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tensor = match spec.role {
            TensorRole::Block(part, kind) => self.tensors.get(&(part, kind)),
            _ => None,
        };
        let tensor = tensor.ok_or_else(|| Error::new(format!("the block has no '{}'", spec.gguf)))?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    pub(super) fn weight(&self, part: Part) -> &Tensor {
        let set = self.tensors.get(&(part, Kind::Weight));
        set.unwrap_or_else(|| panic!("'{}' of block {} was never set", part.0, self.index))
    }

    pub(super) fn linear(&self, part: Part, x: &Tensor) -> Result<Tensor> {
        let products = self.frame.products();
        let y = match self.on_the_fly.get(&part) {
            Some(weight) => weight.linear(products, x)?,
            None => ops::linear(products, x, self.weight(part))?,
        };
        self.frame.count(x, &y)?;
        match self.tensors.get(&(part, Kind::Bias)) {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// One expert's matrix, `[rows, columns]`.
    ///
    /// # Errors
    /// There is no such expert.
    pub fn expert(&self, half: usize, part: Part, expert: usize) -> Result<Matrix<'a>> {
        let count = self.experts(half).map_or(0, |experts| experts.count);
        match self.on_the_fly.get(&part) {
            Some(stack) => Ok(Matrix::OnTheFly(stack.get(expert, count)?)),
            None => Ok(Matrix::Held(self.weight(part).get(expert)?)),
        }
    }

    /// The experts of a half, if it has some.
    pub fn experts(&self, half: usize) -> Option<&'a Experts> {
        self.config(half).mixer.experts()
    }

    /// Whether one linear layer writes what a half adds to the stream, for every token.
    pub fn has_last(&self, half: usize) -> bool {
        self.config(half).mixer.last().is_some()
    }

    pub(super) fn layers(&self, half: usize) -> Layers<'_, 'a> {
        Layers { block: self, half, moved: &[], experts: None }
    }

    fn norm(&self, norm: &NormConfig, x: &Tensor) -> Result<Tensor> {
        if norm.kind == Norm::Bare {
            return Ok(ops::bare_norm(x, norm.eps)?);
        }
        let bias = self.tensors.get(&(norm.part, Kind::Bias));
        Ok(ops::norm(norm.kind, x, self.weight(norm.part), bias, norm.eps)?)
    }

    /// What the first linear layers of a half read, `[windows · positions, hidden]`. `states`: in front of the half; `before`: in
    /// front of the block, which is the same for the first half.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn input(&self, half: usize, states: &States, before: &States) -> Result<Tensor> {
        let (states, before) = self.begun(half, states, before)?;
        self.input_of(half, &states, &before)
    }

    fn input_of(&self, half: usize, states: &States, before: &States) -> Result<Tensor> {
        let config = self.config(half);
        let h = if config.parallel { &before.h } else { &states.h };
        match &config.norm {
            Some(norm) => self.norm(norm, h),
            None => Ok(h.clone()),
        }
    }

    /// What is in front of a half and of the block, as the halves of the block see it: the block begins by predicting its streams where
    /// the model has several, and by adding what two stacks have come to where these take turns.
    fn begun(&self, half: usize, states: &States, before: &States) -> Result<(States, States)> {
        if let (Some(looped), 0) = (&self.frame.model.looped, half) {
            let begun = looped.begun(self.index, states)?;
            return Ok((begun.clone(), begun));
        }
        match &self.frame.model.streams {
            Some(streams) if half == 0 || self.config(half).looks_back() => {
                let before = streams.predicted(self, before)?;
                Ok((if half == 0 { before.clone() } else { states.clone() }, before))
            }
            _ => Ok((states.clone(), before.clone())),
        }
    }

    /// What the last linear layer of a half reads. `x`: the half's input; `states`: in front of the half; result:
    /// `[windows · positions, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn inner(&self, half: usize, x: &Tensor, states: &States) -> Result<Tensor> {
        self.config(half).mixer.inner(&self.layers(half), x, &mut At { states, state: None })
    }

    /// The activations at a place of a half.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn at(&self, place: Place, half: usize, states: &States, before: &States) -> Result<Tensor> {
        let x = self.input(half, states, before)?;
        match place {
            Place::Input => Ok(x),
            Place::Inner => self.inner(half, &x, states),
        }
    }

    /// The states after a half: the stream plus its last linear layer of `inner`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn output(&self, half: usize, states: &States, before: &States, inner: &Tensor) -> Result<States> {
        let (states, before) = self.begun(half, states, before)?;
        let y = self.last(half, inner)?;
        if self.config(half).mixer.kept_columns() == 0 {
            return self.added(half, states, &before, y);
        }
        let x = self.input_of(half, &states, &before)?;
        let kept = self.keeping(half, &x, &mut At { states: &states, state: None })?;
        self.added(half, kept, &before, y)
    }

    /// The states in front of a half with what it keeps for later blocks.
    fn keeping(&self, half: usize, x: &Tensor, at: &mut At) -> Result<States> {
        let mixer = &self.config(half).mixer;
        let own = if mixer.kept_columns() > 0 { mixer.kept(&self.layers(half), x, at)? } else { None };
        let kept = match (&at.states.kept, own) {
            (Some(kept), Some(own)) => Some(Tensor::cat(&[kept, &own], 1)?),
            (kept, own) => own.or_else(|| kept.clone()),
        };
        Ok(States { kept, ..at.states.clone() })
    }

    /// The states behind a half. `states`: in front of it; `y`: what comes out of its last layer, `[windows · positions, hidden]`.
    fn added(&self, half: usize, states: States, before: &States, mut y: Tensor) -> Result<States> {
        let config = self.config(half);
        if let Some(norm) = &config.post_norm {
            y = self.norm(norm, &y)?;
        }
        if config.residual_scale != 1.0 {
            y = (y * f64::from(config.residual_scale))?;
        }
        if config.adds_input {
            y = ops::sum(&y, &self.input_of(half, &states, before)?)?;
        }
        if config.destination == Destination::Others {
            return states.with_others(&y);
        }
        let mut sum = ops::sum(&states.h, &y)?;
        if let Some(part) = config.output_scale {
            sum = sum.broadcast_mul(self.weight(part))?;
        }
        if config.stream_scale != 1.0 {
            sum = (sum * f64::from(config.stream_scale))?;
        }
        let states = states.with(sum);
        match &self.frame.model.streams {
            Some(streams) if config.destination == Destination::Corrected => streams.corrected(self, before, &states),
            _ => Ok(states),
        }
    }

    /// What a half's last linear layer would have to add, so that the stream in front of it moves by `gap`, `[tokens, hidden]`; none
    /// where more than a factor stands between.
    ///
    /// # Errors
    /// The device has no room.
    pub fn owed(&self, half: usize, gap: Tensor) -> Result<Option<Tensor>> {
        let config = self.config(half);
        match config.residual_scale {
            // What the shared expert adds depends on the token, and the others add to it.
            _ if config.post_norm.is_some() || config.mixer.experts().is_some() => Ok(None),
            1.0 => Ok(Some(gap)),
            scale => Ok(Some((gap / f64::from(scale))?)),
        }
    }

    pub(super) fn last(&self, half: usize, inner: &Tensor) -> Result<Tensor> {
        let last = self.config(half).mixer.last();
        self.linear(last.ok_or_else(|| self.layers(half).missing("a last layer"))?, inner)
    }

    /// What the half's last linear layer makes of a difference between two inners: the layer without its bias.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn difference(&self, half: usize, inner: &Tensor) -> Result<Tensor> {
        let last = self.config(half).mixer.last().ok_or_else(|| self.layers(half).missing("a last layer"))?;
        let y = ops::linear(self.frame.products(), inner, self.weight(last))?;
        self.frame.count(inner, &y)?;
        Ok(y)
    }

    /// What goes to the experts of a half, and which of it to which. `x`: the half's input; none without experts.
    ///
    /// # Errors
    /// Shapes that do not fit, or a router whose scores are no numbers.
    pub fn routed(&self, half: usize, x: &Tensor, states: &States) -> Result<Option<Routed>> {
        let experts = self.experts(half);
        experts.map(|experts| experts.routed(&self.layers(half), x, &At { states, state: None })).transpose()
    }

    /// What the last layer of an expert reads. `x`: the rows of [`Routed::x`] that go to it; `weight`: its own matrices.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn expert_inner(
        &self,
        half: usize,
        expert: usize,
        x: &Tensor,
        weight: &dyn Fn(Part) -> Result<Matrix<'a>>,
    ) -> Result<Tensor> {
        let experts = self.experts(half).ok_or_else(|| self.layers(half).missing("experts"))?;
        experts.expert_inner(&self.layers(half), expert, x, weight)
    }

    /// How much an error of one of a half's first linear layers moves what the half adds to the residual stream: the mean of
    /// the diagonal of the output-side Hessian of that layer, per token.
    ///
    /// Measured with one random error for all of its outputs at once: independent signs, so that the products of different
    /// ones cancel (Hutchinson's estimator of a trace). `x`: the half's input, `[windows · positions, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a block without the part.
    pub fn response(&self, half: usize, x: &Tensor, states: &States, part: Part) -> Result<f64> {
        let config = self.config(half);
        let y = self.linear(part, x)?;
        let size = y.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt() * PROBE;
        if size == 0.0 || config.mixer.last().is_none() {
            return Ok(0.0);
        }
        let (tokens, rows) = y.dims2()?;
        let mut signs = ChaCha8Rng::seed_from_u64(tokens as u64);
        let noise: Vec<f32> = (0..tokens * rows).map(|_| if signs.random() { size } else { -size }).collect();
        let noise = Tensor::from_vec(noise, (tokens, rows), x.device())?;
        let inner = |moved: &[(Part, &Tensor)]| {
            let layers = Layers { moved, ..self.layers(half) };
            config.mixer.inner(&layers, x, &mut At { states, state: None })
        };
        let moved = self.last(half, &inner(&[(part, &noise)])?)?;
        let difference = (moved - self.last(half, &inner(&[])?)?)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(difference) / (tokens * rows) as f64 / f64::from(size * size))
    }

    /// The whole block.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, before: &States) -> Result<States> {
        let mut states = before.clone();
        for half in self.halves() {
            states = self.half(half, &states, before)?;
        }
        Ok(states)
    }

    /// A half of it. `states`: in front of the half; `before`: in front of the block.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn half(&self, half: usize, states: &States, before: &States) -> Result<States> {
        self.run(&self.layers(half), states, before, None)
    }

    /// The same with matrices of experts from elsewhere.
    ///
    /// # Errors
    /// Shapes that do not fit, or a matrix that cannot be read.
    pub fn half_of(
        &self,
        half: usize,
        states: &States,
        before: &States,
        experts: &ExpertMatrices<'_, 'a>,
    ) -> Result<States> {
        self.run(&Layers { experts: Some(experts), ..self.layers(half) }, states, before, None)
    }

    pub(super) fn run(
        &self,
        layers: &Layers<'_, 'a>,
        states: &States,
        before: &States,
        state: Option<&mut MixerState>,
    ) -> Result<States> {
        let (half, mixer) = (layers.half, &self.config(layers.half).mixer);
        let (states, before) = self.begun(half, states, before)?;
        let x = self.input_of(half, &states, &before)?;
        let mut at = At { states: &states, state };
        // Before a state moves on.
        let kept = self.keeping(half, &x, &mut at)?;
        let y = mixer.output(layers, &x, &mut at)?;
        self.added(half, kept, &before, y)
    }

    /// What each half needs to go on with windows of up to `capacity` positions.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new_state(&self, capacity: usize) -> Result<Vec<MixerState>> {
        self.halves().map(|half| self.config(half).mixer.state(capacity, self.frame.device())).collect()
    }

    /// The states behind the block for positions that follow those in `own`, one state for each half.
    /// `before`: in front of it, `[positions, hidden]`.
    ///
    /// # Errors
    /// More positions than the frame or the states were made for.
    pub fn forward_behind(&self, before: &States, own: &mut [MixerState]) -> Result<States> {
        let mut states = before.clone();
        for (half, own) in self.halves().zip(own) {
            states = self.run(&self.layers(half), &states, before, Some(own))?;
        }
        Ok(states)
    }
}
