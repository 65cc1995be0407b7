//! The layers of a half, as its mixer sees them.

use super::block::{Block, ExpertMatrices};
use super::frame::Frame;
use super::matrix::Matrix;
use super::mixer::At;
use super::ops;
use super::part::{Kind, Part};
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::ops::Range;

/// The layers of a half, for its mixer.
pub struct Layers<'b, 'a> {
    pub(super) block: &'b Block<'a>,
    pub(super) half: usize,
    /// What is added to the outputs of some layers.
    pub(super) moved: &'b [(Part, &'b Tensor)],
    /// Where matrices of experts come from, if not from the block.
    pub(super) experts: Option<&'b ExpertMatrices<'b, 'a>>,
}

impl Layers<'_, '_> {
    /// What all blocks share.
    pub fn frame(&self) -> &Frame {
        self.block.frame()
    }

    /// A tensor.
    ///
    /// # Panics
    /// It was never set: whoever runs a half sets all of its tensors.
    pub fn weight(&self, part: Part) -> &Tensor {
        self.block.weight(part)
    }

    /// A tensor, if the half has it.
    pub fn maybe(&self, part: Part) -> Option<&Tensor> {
        self.block.tensor(part, Kind::Weight)
    }

    /// What stands beside a tensor to be added, if the half has it.
    pub fn bias(&self, part: Part) -> Option<&Tensor> {
        self.block.tensor(part, Kind::Bias)
    }

    /// `x·wᵀ + bias`. `x`: `[n, columns]`, result: `[n, rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn linear(&self, part: Part, x: &Tensor) -> Result<Tensor> {
        let y = self.block.linear(part, x)?;
        match self.moved.iter().find(|(of, _)| *of == part) {
            Some((_, by)) => Ok(ops::sum(&y, by)?),
            None => Ok(y),
        }
    }

    /// What the half's last linear layer makes of what it reads.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn last(&self, inner: &Tensor) -> Result<Tensor> {
        let last = self.frame().mixer(self.block.index(), self.half).last();
        self.linear(last.ok_or_else(|| self.missing("a last layer"))?, inner)
    }

    /// One expert's matrix, `[rows, columns]`.
    ///
    /// # Errors
    /// There is no such expert, or it cannot be read.
    pub fn expert(&self, part: Part, expert: usize) -> Result<Matrix<'_>> {
        match self.experts {
            Some(weight) => weight(part, expert),
            None => self.block.expert(self.half, part, expert),
        }
    }

    /// A layer of an expert with its bias. `x`: `[tokens, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or rows that cannot be read.
    pub fn expert_linear(&self, part: Part, expert: usize, x: &Tensor, weight: &Matrix<'_>) -> Result<Tensor> {
        let y = weight.linear(self.frame().products(), x)?;
        self.frame().count(x, &y)?;
        match self.block.tensor(part, Kind::Bias) {
            Some(bias) => Ok(y.broadcast_add(&bias.get(expert)?)?),
            None => Ok(y),
        }
    }

    /// Which positions of their window `rows` rows have: all of them, or those behind the ones in a state.
    pub fn positions(&self, rows: usize, at: &At) -> Range<usize> {
        match &at.state {
            Some(state) => state.seen..state.seen + rows,
            None => 0..self.frame().positions(),
        }
    }

    /// An error: the half was run without something that it needs.
    pub fn missing(&self, what: &str) -> Error {
        Error::new(format!("half {} of block {} was run without {what}", self.half, self.block.index()))
    }
}
