//! What each block adds for each token by itself: a gate of the stream on an embedding of the token for that block (Gemma 4 E2B and
//! E4B, after Gemma 3n).

use super::{At, Cost, Mix, Place};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::{BlockTensor, Part, Reads};
use candle_core::Tensor;
use llmq_kernels::elementwise::Activation;

impl Part {
    /// From the stream to the gate.
    pub const INP_GATE: Part = Part("inp_gate");
    /// From the gated embedding to the stream.
    pub const PROJ: Part = Part("proj");
    /// The norm behind it.
    pub const PER_LAYER_POST_NORM: Part = Part("post_norm");
}

/// The gate of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerLayerGate {
    /// Which block of the model it is in.
    pub block: usize,
    /// Numbers of the embedding of a token for a block.
    pub width: usize,
    /// The gate's function.
    pub activation: Activation,
}

impl Mix for PerLayerGate {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (input, inner) = (Reads::Site(Place::Input), Reads::Site(Place::Inner));
        vec![
            BlockTensor::linear(Part::INP_GATE, "per_layer_input_gate", &[self.width, hidden], input),
            BlockTensor::linear(Part::PROJ, "per_layer_projection", &[hidden, self.width], inner),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::PROJ)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let (inputs, tokens) =
            at.states.per_layer.as_ref().ok_or_else(|| layers.missing("the embeddings of tokens for each block"))?;
        let own = Tensor::from_vec(inputs.rows(self.block, tokens)?, (tokens.len(), self.width), x.device())?;
        Ok(ops::gated(self.activation, &layers.linear(Part::INP_GATE, x)?, &own)?)
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some("norms stand between its layers and the residual stream, and a rotation cannot pass them")
    }

    fn cost(&self) -> Cost {
        Cost { between: 2 * self.width, inner: self.width, elementwise: self.width as f64, ..Cost::default() }
    }
}
