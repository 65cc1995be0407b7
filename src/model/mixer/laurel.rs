//! A learned augmented residual layer (Menghani et al. 2025): two layers with a narrow vector between and nothing else.

use super::{At, Cost, Mix, Place};
use crate::error::Result;
use crate::model::layers::Layers;
use crate::model::part::{BlockTensor, Part, Reads};
use candle_core::Tensor;

impl Part {
    /// From the stream to the narrow vector.
    pub const LAUREL_L: Part = Part("laurel_l");
    /// And back.
    pub const LAUREL_R: Part = Part("laurel_r");
    /// The norm behind it.
    pub const LAUREL_POST_NORM: Part = Part("laurel_post_norm");
}

/// That of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laurel {
    /// Numbers of the narrow vector.
    pub rank: usize,
}

impl Mix for Laurel {
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let (input, inner) = (Reads::Site(Place::Input), Reads::Site(Place::Inner));
        vec![
            BlockTensor::linear(Part::LAUREL_L, "laurel.linear_left", &[self.rank, hidden], input),
            BlockTensor::linear(Part::LAUREL_R, "laurel.linear_right", &[hidden, self.rank], inner),
        ]
    }

    fn last(&self) -> Option<Part> {
        Some(Part::LAUREL_R)
    }

    fn inner(&self, layers: &Layers, x: &Tensor, _: &mut At) -> Result<Tensor> {
        layers.linear(Part::LAUREL_L, x)
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some("norms stand between its layers and the residual stream, and a rotation cannot pass them")
    }

    fn cost(&self) -> Cost {
        Cost { between: self.rank, inner: self.rank, ..Cost::default() }
    }
}
