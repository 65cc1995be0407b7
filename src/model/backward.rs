//! The backward pass, block by block: how a loss moves with the residual stream, and with the outputs of linear layers.
//!
//! A block is run again with its input, and something to be added to each layer's output, as variables ([`super::ops`] knows the
//! gradients of its operations), so that only one block's activations are there at a time.

use super::Model;
use super::block::Block;
use super::layers::Layers;
use super::part::Part;
use super::states::States;
use super::streams::Destination;
use crate::error::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var};

impl Model {
    /// Why gradients cannot be carried back through its blocks, if they cannot.
    pub fn obstacle_to_backward(&self) -> Option<&'static str> {
        let halves = || self.blocks.iter().flat_map(|block| &block.halves);
        if self.streams.is_some() || self.looped.is_some() {
            return Some("it has several residual streams");
        }
        if halves().any(|half| half.destination != Destination::Stream) {
            return Some("it has several residual streams");
        }
        halves().find_map(|half| half.mixer.obstacle_to_backward())
    }
}

impl Block<'_> {
    /// The gradients of a loss in front of the block, `[tokens, hidden]`, and at the outputs of some of its linear layers, `[tokens,
    /// rows]` each. `before`: what is in front of the block; `grad`: the gradient behind it, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a layer that the block does not use.
    pub fn backward(&self, before: &States, grad: &Tensor, parts: &[Part]) -> Result<(Tensor, Vec<Tensor>)> {
        let (tokens, device) = (before.h.dim(0)?, before.h.device());
        let h = Var::from_tensor(&before.h.detach())?;
        let zeros = |part: &Part| Var::zeros((tokens, self.weight(*part).dim(0)?), DType::F32, device);
        let added = parts.iter().map(zeros).collect::<candle_core::Result<Vec<Var>>>()?;
        let moved: Vec<(Part, &Tensor)> = parts.iter().copied().zip(added.iter().map(Var::as_tensor)).collect();
        let before = before.with(h.as_tensor().clone());
        let mut states = before.clone();
        for half in self.halves() {
            let layers = Layers { moved: &moved, ..self.layers(half) };
            states = self.run(&layers, &states, &before, None)?;
        }
        let mut grads = gradients(&states.h, grad)?;
        let mut of = |x: &Var, what: &str| {
            let found = grads.remove(x);
            found.ok_or_else(|| Error::new(format!("no gradient reaches {what} of block {}", self.index())))
        };
        let layers = parts.iter().zip(&added).map(|(part, added)| of(added, part.0)).collect::<Result<_>>()?;
        Ok((of(&h, "the stream in front")?, layers))
    }
}

/// The gradients of a loss at the variables that `y` comes of. `grad`: that at `y`, of its shape.
///
/// # Errors
/// Something on the way has no gradient.
pub fn gradients(y: &Tensor, grad: &Tensor) -> Result<GradStore> {
    if y.shape() != grad.shape() {
        return Err(Error::new(format!("a gradient {:?} at numbers {:?}", grad.shape(), y.shape())));
    }
    Ok(y.apply_op1(Seed(grad.clone()))?.backward()?)
}

/// A loss that is known by its gradient alone.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "llmq-seed"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
