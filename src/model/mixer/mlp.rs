//! Two layers, or three with a gate, and a function between (Shazeer 2020).

use super::{At, Cost, Mix, Place};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::{Absorber, BlockTensor, Part, Reads};
use candle_core::Tensor;
use llmq_kernels::elementwise::Activation;

impl Part {
    /// The gate.
    pub const GATE: Part = Part("ffn_gate");
    /// Up; with a gate in front of it where the two are one layer.
    pub const UP: Part = Part("ffn_up");
    /// Down.
    pub const DOWN: Part = Part("ffn_down");
    /// The same of the expert that every token goes to.
    pub const SHARED_GATE: Part = Part("ffn_gate_shexp");
    /// Up, there.
    pub const SHARED_UP: Part = Part("ffn_up_shexp");
    /// Down, there.
    pub const SHARED_DOWN: Part = Part("ffn_down_shexp");
}

/// An MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mlp {
    /// Width inside.
    pub width: usize,
    /// The function between its layers.
    pub activation: Activation,
    /// How they are arranged.
    pub layers: MlpLayers,
    /// Biases on them.
    pub bias: bool,
    /// It is the expert of a mixture that every token goes to.
    pub shared: bool,
    /// Of the gate only what is above its mean by so many of its standard deviations is left, less that (Gemma 3n).
    pub cutoff: Option<f32>,
}

/// How the layers of an MLP are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpLayers {
    /// `down(f(gate(x)) · up(x))`.
    Gated,
    /// The same, gate and up being one layer, gate first.
    Fused,
    /// `down(f(up(x)))`.
    Plain,
}

impl MlpLayers {
    /// Matrices of the width inside in front of the last layer.
    pub fn first(self) -> usize {
        if self == MlpLayers::Plain { 1 } else { 2 }
    }
}

impl Mlp {
    /// Llama's.
    pub fn gated(width: usize, activation: Activation) -> Mlp {
        Mlp { width, activation, layers: MlpLayers::Gated, bias: false, shared: false, cutoff: None }
    }

    fn parts(&self) -> [(Part, &'static str); 3] {
        match self.shared {
            false => [(Part::GATE, "mlp.gate_proj"), (Part::UP, "mlp.up_proj"), (Part::DOWN, "mlp.down_proj")],
            true => [
                (Part::SHARED_GATE, "mlp.shared_expert.gate_proj"),
                (Part::SHARED_UP, "mlp.shared_expert.up_proj"),
                (Part::SHARED_DOWN, "mlp.shared_expert.down_proj"),
            ],
        }
    }

    /// What its layers make of the activations of their first ones, gate and up side by side where they are one layer.
    pub(super) fn between(&self, gate: Option<&Tensor>, up: &Tensor) -> Result<Tensor> {
        Ok(match (self.layers, gate) {
            (MlpLayers::Fused, _) => {
                let width = up.dim(1)? / 2;
                let part = |i: usize| up.narrow(1, i * width, width)?.contiguous();
                ops::gated(self.activation, &part(0)?, &part(1)?)?
            }
            (_, Some(gate)) => ops::gated(self.activation, gate, up)?,
            (_, None) => ops::activate(self.activation, up)?,
        })
    }
}

impl Mix for Mlp {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let [gate, up, down] = self.parts();
        let layer = |(part, source), rows: usize| {
            BlockTensor::linear(part, source, &[rows, hidden], Reads::Site(Place::Input)).bias(self.bias)
        };
        let mut tensors = match self.layers {
            MlpLayers::Gated => vec![layer(gate, self.width), layer(up, self.width)],
            MlpLayers::Fused => vec![layer((up.0, "mlp.gate_up_proj"), 2 * self.width)],
            MlpLayers::Plain => vec![layer(up, self.width)],
        };
        let inner = Reads::Site(Place::Inner);
        tensors.push(BlockTensor::linear(down.0, down.1, &[hidden, self.width], inner).bias(self.bias));
        tensors
    }

    fn last(&self) -> Option<Part> {
        Some(self.parts()[2].0)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, _: &mut At) -> Result<Tensor> {
        let [gate, up, _] = self.parts();
        let mut gate = (self.layers == MlpLayers::Gated).then(|| layers.linear(gate.0, x)).transpose()?;
        if let (Some(gate), Some(cutoff)) = (&mut gate, self.cutoff) {
            *gate = ops::above(gate, cutoff)?;
        }
        self.between(gate.as_ref(), &layers.linear(up.0, x)?)
    }

    fn absorber(&self) -> Option<Absorber> {
        let up = self.parts()[1].0;
        match self.layers {
            MlpLayers::Gated => Some(Absorber::of(up, 0..self.width)),
            MlpLayers::Fused => Some(Absorber::of(up, self.width..2 * self.width)),
            // relu(√s·x)² = s·relu(x)²
            MlpLayers::Plain if self.activation == Activation::ReluSquared => {
                Some(Absorber { squared: true, ..Absorber::of(up, 0..self.width) })
            }
            // Another activation stands between.
            MlpLayers::Plain => None,
        }
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        (self.layers == MlpLayers::Fused).then_some("it has several layers in one tensor")
    }

    fn obstacle_to_backward(&self) -> Option<&'static str> {
        None
    }

    fn cost(&self) -> Cost {
        Cost { between: 2 * self.width, inner: self.width, elementwise: self.width as f64, ..Cost::default() }
    }
}
