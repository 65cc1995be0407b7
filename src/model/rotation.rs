//! Rotating a model without changing its function: which way each tensor turns.
//!
//! RMS norm without a gain commutes with a rotation of the residual stream, so a rotation `R` can be folded into what
//! writes to the stream and what reads it, once the norms' gains are folded into the layers behind them; and attention
//! mixes whole value vectors, so a rotation `R_v` within each head goes into what makes the values and what reads them. That
//! is QuaRot's section 4 without the rotations that a program would have to apply while it runs, or SpinQuant's R1 and R2
//! (Liu et al. 2024) with random instead of learned matrices. In the symbols of `x·Wᵀ`, with a gain `g`:
//!
//! ```text
//! embedding, output matrix          E' = E·R          (W∘g)·R
//! q, k, gate, up                    W' = (W∘g)·R                       b' = b
//! v                                 W' = (I⊗R_v)ᵀ·(W∘g)·R              b' = (I⊗R_v)ᵀ·b
//! o                                 W' = Rᵀ·W·(I⊗R_v)                  b' = Rᵀ·b
//! down                              W' = Rᵀ·W                          b' = Rᵀ·b
//! ```

use super::mixer::Place;
use super::orthogonal::Orthogonal;
use super::{Kind, Model, Norm, Part, Reads, TensorRole, TensorSpec};
use crate::error::{Error, Result};

/// What a rotation does to the tensors of a model.
pub struct Rotation {
    /// As the checkpoint has it.
    model: Model,
    seed: u64,
}

/// What the numbers along a dimension of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// The residual stream: turns with `R`, `[hidden, hidden]`.
    Stream,
    /// Heads of values: turns with `R_v`, `[head_dim, head_dim]`, the same in every head of every block.
    Values,
    /// Something else: does not turn.
    Still,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The gain of a norm becomes 1.
    Ones,
    /// First the gain, then the rotations.
    Folded {
        /// The norm whose gain goes into the columns.
        gain: Option<Gain>,
        /// Along the columns of a matrix; a bias has none.
        inputs: Along,
        /// Along the rows of a matrix, or along a bias.
        outputs: Along,
    },
}

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// That in front of the output matrix.
    Last,
    /// One of the same block.
    OfBlock(Part),
}

impl Rotation {
    /// Of a model as the checkpoint has it, with random signs that depend on `seed` alone.
    ///
    /// # Errors
    /// A family of models whose function a rotation would change.
    pub fn new(model: &Model, seed: u64) -> Result<Rotation> {
        if let Some(why) = obstacle(model) {
            let name = model.architecture.gguf();
            return Err(Error::usage(format!("--rotate cannot be used with the architecture '{name}': {why}"))
                .hint("leave --rotate out"));
        }
        Ok(Rotation { model: model.clone(), seed })
    }

    /// The rotated model. Its output matrix is its own: the last norm's gain goes into that, but not into the embedding.
    pub fn model(&self) -> Model {
        Model { tied: false, ..self.model.clone() }
    }

    /// The transform of the residual stream. It takes memory, so it is made when the sizes are known to be right.
    pub fn stream(&self) -> Orthogonal {
        Orthogonal::new(self.model.hidden, self.seed, 0)
    }

    /// The transform of the values of a head.
    pub fn values(&self) -> Orthogonal {
        let sizes = self.model.blocks.iter().flat_map(|block| block.mixers()).find_map(|mixer| mixer.rotated_values());
        Orthogonal::new(sizes.unwrap_or(1), self.seed, 1)
    }

    /// The tensor of the checkpoint that one of the rotated model is made from.
    pub fn stored(&self, spec: &TensorSpec) -> TensorSpec {
        match spec.role {
            TensorRole::Output => TensorSpec { source: self.model.output().source, ..spec.clone() },
            _ => spec.clone(),
        }
    }

    /// What becomes of a tensor.
    pub fn turn(&self, spec: &TensorSpec) -> Turn {
        let folded = |gain: Option<Gain>, inputs: Along, outputs: Along| Turn::Folded { gain, inputs, outputs };
        let half = spec.block.map(|block| &self.model.blocks[block].halves[spec.half]);
        let norm = half.and_then(|half| half.norm).map(|norm| norm.part);
        let values = if spec.values { Along::Values } else { Along::Still };
        match (spec.role, half) {
            (TensorRole::Norm(_), _) => Turn::Ones,
            (TensorRole::Block(part, _), _) if norm == Some(part) => Turn::Ones,
            (TensorRole::Embedding, _) => folded(None, Along::Stream, Along::Still),
            (TensorRole::Output, _) => folded(Some(Gain::Last), Along::Stream, Along::Still),
            (TensorRole::Block(part, kind), Some(half)) => {
                let is_last = half.mixer.last() == Some(part);
                match (kind, spec.reads) {
                    (Kind::Weight, Some(Reads::Site(Place::Input))) => {
                        folded(norm.map(Gain::OfBlock), Along::Stream, values)
                    }
                    (Kind::Weight, Some(Reads::Site(Place::Inner))) if is_last => folded(None, values, Along::Stream),
                    (Kind::Bias, _) if is_last => folded(None, Along::Still, Along::Stream),
                    (Kind::Bias, _) => folded(None, Along::Still, values),
                    // Norms of queries and keys stay; the others are not in any model that is rotated.
                    _ => folded(None, Along::Still, Along::Still),
                }
            }
            _ => folded(None, Along::Still, Along::Still),
        }
    }

    /// The gain that is folded into a tensor, as the checkpoint has it.
    pub fn gain(&self, spec: &TensorSpec) -> Option<TensorSpec> {
        match self.turn(spec) {
            Turn::Folded { gain: Some(Gain::Last), .. } => self.model.output_norm().into_iter().next(),
            Turn::Folded { gain: Some(Gain::OfBlock(norm)), .. } => {
                let block = self.model.block(spec.block?);
                block.into_iter().find(|other| other.weight_of() == Some(norm))
            }
            _ => None,
        }
    }
}

/// Why a rotation of the residual stream and of the values would change what a model computes, or cannot be done: norms that subtract
/// the mean, or any step but RMS norms and linear layers between the stream and a block's inside.
pub fn obstacle(model: &Model) -> Option<&'static str> {
    if let Some(why) = model.architecture.obstacle_to_rotation() {
        return Some(why);
    }
    if model.norm.kind == Norm::Layer {
        return Some("its norms subtract the mean, which a rotation does not keep");
    }
    if model.positions || model.per_layer.is_some() || model.embedding_norm.is_some() || model.looped.is_some() {
        return Some("more than the token embedding goes into the residual stream");
    }
    for half in model.blocks.iter().flat_map(|block| &block.halves) {
        match half.norm {
            Some(norm) if norm.kind == Norm::Layer => {
                return Some("its norms subtract the mean, which a rotation does not keep");
            }
            Some(_) if half.post_norm.is_none() => {}
            _ => {
                return Some("norms stand between its layers and the residual stream, and a rotation cannot pass them");
            }
        }
        if let Some(why) = half.mixer.obstacle_to_rotation() {
            return Some(why);
        }
    }
    let sizes = model.blocks.iter().flat_map(|block| block.mixers()).filter_map(|mixer| mixer.rotated_values());
    let mut sizes: Vec<usize> = sizes.collect();
    sizes.dedup();
    (sizes.len() > 1).then_some("its blocks have heads of several sizes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Decoder;

    fn model(decoder: Decoder) -> Model {
        Model::sample_of(Decoder { kv_heads: 1, heads: 3, head_dim: 6, hidden: 12, ffn: 10, ..decoder })
    }

    #[test]
    fn an_architecture_can_refuse() {
        let decoder = Decoder { norm: Norm::Layer, ..Decoder::PLAIN };
        let error = Rotation::new(&model(decoder), 0).err().expect("a refusal");
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        assert!(error.to_string().contains("'llama': its norms subtract the mean"), "{error}");
    }

    #[test]
    fn every_dimension_that_turns_has_the_size_for_it() {
        let rotation =
            Rotation::new(&model(Decoder { qkv_bias: true, o_bias: true, mlp_bias: true, ..Decoder::PLAIN }), 0)
                .unwrap();
        let rotated = rotation.model();
        assert!(!rotated.tied);
        for spec in rotated.tensors() {
            let Turn::Folded { inputs, outputs, .. } = rotation.turn(&spec) else {
                assert!(spec.gguf.contains("norm"), "{}", spec.gguf);
                continue;
            };
            let fits = |along: Along, n: usize| match along {
                Along::Stream => n == rotation.stream().size(),
                Along::Values => n.is_multiple_of(rotation.values().size()),
                Along::Still => true,
            };
            assert!(fits(outputs, spec.shape[0]) && fits(inputs, spec.columns()), "{}", spec.gguf);
            assert!(spec.shape.len() == 2 || inputs == Along::Still, "{}", spec.gguf);
            // What reads the stream through a norm takes its gain.
            let gain = rotation.gain(&spec).map(|gain| gain.gguf);
            let wanted = match spec.role {
                TensorRole::Output => Some("output_norm.weight".to_owned()),
                TensorRole::Block(Part::Q | Part::K | Part::V, Kind::Weight) => {
                    Some(format!("blk.{}.attn_norm.weight", spec.block.unwrap()))
                }
                TensorRole::Block(Part::GATE | Part::UP, Kind::Weight) => {
                    Some(format!("blk.{}.ffn_norm.weight", spec.block.unwrap()))
                }
                _ => None,
            };
            assert_eq!(gain, wanted, "{}", spec.gguf);
        }
        let stored = rotation.stored(&rotated.output());
        assert_eq!((stored.source.as_str(), stored.gguf.as_str()), ("model.embed_tokens.weight", "output.weight"));
    }
}
