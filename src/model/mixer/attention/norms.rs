//! Norms of queries and keys.

use super::{Attention, HeadNorms};
use crate::error::Result;
use crate::model::half::Norm;
use crate::model::layers::Layers;
use crate::model::ops;
use crate::model::part::Part;
use candle_core::Tensor;

impl Attention {
    /// Queries or keys, `[tokens, heads · head_dim]`, behind their norm.
    pub(super) fn head_norm(&self, layers: &Layers, part: Part, x: &Tensor) -> Result<Tensor> {
        if self.head_norms == HeadNorms::None {
            return Ok(x.clone());
        }
        if self.head_norms == HeadNorms::Bare {
            let rows = x.reshape(((), self.head_dim))?;
            let ones = rows.get(0)?.ones_like()?;
            return Ok(ops::norm(Norm::Rms, &rows, &ones, None, self.eps)?.reshape(x.shape())?);
        }
        let gain = layers.weight(part);
        // One gain for every row, and then one for each head.
        let centred = self.head_norms == HeadNorms::Centred;
        let shared = if centred { gain.get(0)?.ones_like()? } else { gain.clone() };
        let rows = x.reshape(((), shared.elem_count()))?;
        let kind = if centred { Norm::Layer } else { Norm::Rms };
        let y = ops::norm(kind, &rows, &shared, None, self.eps)?.reshape(x.shape())?;
        Ok(if centred { y.broadcast_mul(&gain.flatten_all()?)? } else { y })
    }
}
