//! A checkpoint seen through a rotation: whoever reads it gets rotated weights, and the checkpoint stays as it is.

use super::plan::Planned;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::format::mix::Facts;
use crate::format::recipe::Recipe;
use crate::model::orthogonal::Orthogonal;
use crate::model::rotation::{Along, Rotation, Turn};
use crate::model::{Model, TensorRole, TensorSpec};
use crate::source::checkpoint::Checkpoint;
use llmq_kernels::elementwise::first_non_finite;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// The weights of a rotated model.
pub struct Rotated {
    source: Weights,
    rotation: Rotation,
    /// `[hidden, hidden]`.
    stream: Orthogonal,
    /// `[head_dim, head_dim]`.
    values: Orthogonal,
}

impl Rotated {
    /// A folder's weights, rotated.
    pub fn new(checkpoint: Checkpoint, rotation: Rotation) -> Rotated {
        let (stream, values) = (rotation.stream(), rotation.values());
        Rotated { source: Weights::Checkpoint(checkpoint), rotation, stream, values }
    }

    /// The weights as they are.
    pub fn source(&self) -> &Weights {
        &self.source
    }

    /// As [`Weights::check`], for a tensor of the rotated model.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, spec: &TensorSpec) -> Result<()> {
        self.source.check(&self.rotation.stored(spec))
    }

    /// Whether a part of a tensor's rows takes only these rows to be read: no rotation mixes them with others.
    pub fn has_rows_of_their_own(&self, spec: &TensorSpec) -> bool {
        !matches!(self.rotation.turn(spec), Turn::Folded { outputs: Along::Stream | Along::Values, .. })
    }

    /// As [`Weights::expect`], for a tensor of the rotated model.
    pub fn expect(&self, spec: &TensorSpec) {
        self.source.expect(&self.rotation.stored(spec));
    }

    /// As [`Weights::rows`], for a tensor of the rotated model. Besides them, one matrix is in memory at most.
    ///
    /// # Errors
    /// A tensor, or the gain that is folded into it, is missing, holds NaN or infinity, or overflows when it is rotated.
    pub fn rows(&self, spec: &TensorSpec, rows: Range<usize>) -> Result<Vec<f32>> {
        let Turn::Folded { inputs, outputs, .. } = self.rotation.turn(spec) else {
            return Ok(vec![1.0; rows.len() * spec.columns()]);
        };
        let (rotation, columns) = (&self.rotation, spec.columns());
        let all = 0..spec.rows();
        let read = if self.has_rows_of_their_own(spec) { rows.clone() } else { all };
        let stored = rotation.stored(spec);
        let mut x = self.source.rows(&stored, read.clone())?;
        if let Some(gain) = rotation.gain(spec) {
            let gain = self.source.read(&gain)?;
            x.par_chunks_mut(columns).for_each(|row| row.iter_mut().zip(&gain).for_each(|(x, gain)| *x *= gain));
        }
        if let Some(r) = self.transform(inputs) {
            r.turn_rows(&mut x);
        }
        if let Some(r) = self.transform(outputs) {
            // A bias is one column: its numbers are those of its weight's rows.
            r.turn_columns(&mut x, if spec.shape.len() < 2 { 1 } else { columns });
        }
        if let Some(at) = first_non_finite(&x) {
            let at = read.start * columns + at;
            return Err(Error::new(format!(
                "tensor '{}' overflows when it is rotated, at element {at}",
                stored.source
            ))
            .hint("leave --rotate out"));
        }
        if read == rows {
            return Ok(x);
        }
        Ok(x[rows.start * columns..rows.end * columns].to_vec())
    }

    fn transform(&self, along: Along) -> Option<&Orthogonal> {
        match along {
            Along::Stream => Some(&self.stream),
            Along::Values => Some(&self.values),
            Along::Still => None,
        }
    }
}

/// Refuses what cannot be rotated, whatever the model. `imatrix`: where an importance matrix came from.
///
/// # Errors
/// A GGUF, or any importance matrix.
pub fn check(path: &Path, imatrix: Option<&Path>) -> Result<()> {
    if path.is_file() {
        let what = format!("--rotate cannot be used with {}: only checkpoint folders are rotated", path.display());
        return Err(
            Error::usage(what).hint("start from the checkpoint that the GGUF was made from, or leave --rotate out")
        );
    }
    if let Some(from) = imatrix {
        let what = "it was measured on the model as it is, and a rotation mixes the columns that it weighs";
        return Err(Error::usage(format!("--rotate cannot be used with {}: {what}", from.display()))
            .hint("leave one of them out, or make a file with --rotate --type BF16, and measure and quantize that"));
    }
    Ok(())
}

/// What the user should know about a rotated file: what an output matrix of its own costs where the `original` model has
/// none, and what the embedding loses. `tensors`: all of the file; `recipe`: what chose their types.
pub fn notes(original: &Model, tensors: &[Planned], recipe: &mut Recipe, importance: bool) -> Vec<String> {
    if !original.tied {
        return Vec::new();
    }
    let end = |role: TensorRole| tensors.iter().find(|t| t.spec.role == role);
    let (Some(embedding), Some(output)) = (end(TensorRole::Embedding), end(TensorRole::Output)) else {
        return Vec::new();
    };
    let spec = &embedding.spec;
    let tied = recipe.choose(&spec.gguf, &spec.shape, &Facts::of(original, importance)).map(|choice| choice.kind);
    let tied = tied.unwrap_or(embedding.kind);
    let cost = i128::from(embedding.bytes() + output.bytes()) - i128::from(tied.size(spec.elements() as u64));
    let mut note = format!("rotating unties the output matrix from the embedding, which costs {cost} bytes");
    if tied != embedding.kind {
        let (kind, tied) = (embedding.kind.name(), tied.name());
        let more =
            format!("; {} gets {kind} instead of {tied}, unless --token-embedding-type says otherwise", spec.gguf);
        note.push_str(&more);
    }
    vec![note]
}
