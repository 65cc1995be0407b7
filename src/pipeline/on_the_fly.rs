//! Matrices that stay as they are in their files, decoded a few rows at a time whenever a layer multiplies with them.

use super::weights::{Weights, byte_range, info, non_finite};
use crate::error::{Error, Result};
use crate::format::{self, Type};
use crate::model::TensorSpec;
use crate::model::matrix::Rows;
use crate::source::checkpoint::Checkpoint;
use crate::source::gguf::{Gguf, TensorInfo};
use llmq_kernels::elementwise::first_non_finite;
use std::ops::Range;
use std::sync::Arc;

impl Weights {
    /// The rows of a matrix, or of a stack of them; none where they cannot be had one by one at little cost.
    ///
    /// # Errors
    /// The tensor is missing, or its type is not known.
    pub fn on_the_fly<'a>(&'a self, spec: &TensorSpec) -> Result<Option<Arc<dyn Rows + 'a>>> {
        Ok(match self {
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                let kind = format::by_id(info.type_id);
                let kind = kind.ok_or_else(|| Error::new(format!("unknown type {}", info.type_id)))?;
                Some(Arc::new(Blocks { file, info, kind }))
            }
            Weights::Checkpoint(checkpoint) if spec.has_rows_of_their_own() && spec.shape.len() == 2 => {
                Some(Arc::new(Stored { checkpoint, spec: spec.clone() }))
            }
            Weights::Checkpoint(_) | Weights::Rotated(_) => None,
        })
    }
}

/// A tensor of a GGUF. Its pages are given back when nobody needs it any more.
struct Blocks<'a> {
    file: &'a Gguf,
    info: &'a TensorInfo,
    kind: Type,
}

impl Rows for Blocks<'_> {
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let first = rows.start * (out.len() / rows.len().max(1));
        self.kind.decode_blocks(&self.file.data(self.info)[byte_range(self.info, rows)], out);
        match first_non_finite(out) {
            None => Ok(()),
            Some(at) => Err(non_finite(self.file, &self.info.name, out[at], first + at)),
        }
    }
}

impl Drop for Blocks<'_> {
    fn drop(&mut self) {
        self.file.release(self.info, 0..self.info.bytes as usize);
    }
}

/// A matrix of a checkpoint.
struct Stored<'a> {
    checkpoint: &'a Checkpoint,
    spec: TensorSpec,
}

impl Rows for Stored<'_> {
    fn decode(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.spec.read_rows(self.checkpoint, rows)?);
        Ok(())
    }
}
