//! Blocks that run several times (HRM-Text, a hierarchical reasoning model, Wang et al. 2025): two stacks of blocks take turns, the low
//! one several times for each time of the high one, each on the sum of what both have come to.
//!
//! ```text
//! z_H = embedded tokens, z_L = a learned vector
//! repeat H times:   L times z_L = norm(low(z_H + z_L)), then z_H = norm(high(z_H + z_L))
//! ```
//!
//! Here and in GGUF each run of a block is a block of its own, because it has its own keys and values; its weights are those of the first
//! run. While one of the two vectors is worked on as the stream, the other is in [`States::others`].

use super::part::{Part, TensorRole};
use super::states::States;
use super::{Model, TensorSpec, ops};
use crate::error::Result;
use candle_core::Tensor;

impl Part {
    /// What the low stack begins with, `[hidden]`.
    pub const HRM_Z_L_INIT: Part = Part("hrm.z_l_init");
}

/// The order in which blocks run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Looped {
    /// Blocks of each stack.
    pub layers: usize,
    /// How often the high stack runs.
    pub high: usize,
    /// How often the low stack runs for each time.
    pub low: usize,
    /// The ε of the norm behind each stack, which has no gain.
    pub eps: f32,
}

impl Looped {
    /// How often some block runs, all runs counted.
    pub fn runs(&self) -> usize {
        self.layers * self.high * (self.low + 1)
    }

    /// Whether a run is one of the low stack.
    pub fn is_low(&self, run: usize) -> bool {
        run / self.layers % (self.low + 1) < self.low
    }

    /// The first run of the same block.
    pub fn first(&self, run: usize) -> usize {
        run % self.layers + if self.is_low(run) { 0 } else { self.low * self.layers }
    }

    /// The number of its block in the file: those of the high stack follow those of the low one.
    pub fn in_file(&self, run: usize) -> usize {
        run % self.layers + if self.is_low(run) { 0 } else { self.layers }
    }

    /// What a run begins with. `states`: behind the run before it.
    pub(super) fn begun(&self, run: usize, states: &States) -> Result<States> {
        let Some(other) = states.others.as_ref().filter(|_| run > 0 && run.is_multiple_of(self.layers)) else {
            return Ok(states.clone());
        };
        let finished = ops::bare_norm(&states.h, self.eps)?;
        let h = ops::sum(&finished, other)?;
        // Where the stacks change, what has just been finished is the other one.
        let changes = self.is_low(run) != self.is_low(run - 1);
        Ok(States { others: Some(if changes { finished } else { other.clone() }), ..states.with(h) })
    }

    /// The states in front of the first run. `h`: embedded tokens, `[tokens, hidden]`; `low`: `[hidden]`.
    pub(super) fn start(h: Tensor, low: &Tensor) -> Result<States> {
        Ok(States { others: Some(h.clone()), ..States::new(h.broadcast_add(low)?) })
    }
}

impl Model {
    /// The first run of a block's weights, where a block is a later run of them.
    pub fn repeats(&self, block: usize) -> Option<usize> {
        self.looped.map(|looped| looped.first(block)).filter(|&first| first != block)
    }

    /// Blocks with weights of their own.
    pub fn own_blocks(&self) -> usize {
        (0..self.blocks.len()).filter(|&i| self.repeats(i).is_none()).count()
    }

    /// What the low stack begins with.
    pub fn low_state(&self) -> Option<TensorSpec> {
        let (source, gguf) = (self.named("model.z_L_init".into()), Part::HRM_Z_L_INIT.0.to_owned());
        let role = TensorRole::Streams(Part::HRM_Z_L_INIT);
        self.looped.map(|_| TensorSpec::plain(source, gguf, vec![self.hidden], role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_runs_have_the_weights_of_the_first() {
        let looped = Looped { layers: 2, high: 2, low: 3, eps: 1e-6 };
        assert_eq!(looped.runs(), 16);
        let of = |f: &dyn Fn(usize) -> usize| (0..16).map(f).collect::<Vec<_>>();
        assert_eq!(of(&|i| looped.in_file(i)), [0, 1, 0, 1, 0, 1, 2, 3, 0, 1, 0, 1, 0, 1, 2, 3]);
        assert_eq!(of(&|i| looped.first(i)), [0, 1, 0, 1, 0, 1, 6, 7, 0, 1, 0, 1, 0, 1, 6, 7]);
    }
}
