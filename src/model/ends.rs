//! What comes before the first block and behind the last: embedded tokens, the last norm, logits.

use super::{Kind, Model, Norm, Role, TensorSpec, ops};
use crate::error::Result;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::softcap;
use rayon::prelude::*;

/// From rows of the embedding to the residual stream in front of the first block.
pub struct Start<'a> {
    model: &'a Model,
    /// `[context, hidden]`.
    positions: Option<Vec<f32>>,
}

impl<'a> Start<'a> {
    /// Reads what it needs for windows of so many positions. `read`: rows of a tensor, decoded.
    ///
    /// # Errors
    /// The tensor is missing or damaged.
    pub fn new(
        model: &'a Model,
        positions: usize,
        read: impl FnOnce(&TensorSpec, std::ops::Range<usize>) -> Result<Vec<f32>>,
    ) -> Result<Start<'a>> {
        let spec = model.positions();
        let positions = spec.map(|spec| read(&spec, 0..positions.min(spec.shape[0]))).transpose()?;
        Ok(Start { model, positions })
    }

    /// Turns embedded tokens into the stream, in place. `x`: rows of the embedding, those of one window.
    pub fn apply(&self, x: &mut [f32]) {
        self.apply_from(0, x);
    }

    /// The same for the tokens of a window from position `first` on.
    pub fn apply_from(&self, first: usize, x: &mut [f32]) {
        let scale = self.model.form.embedding_scale;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(positions) = &self.positions {
            x.iter_mut().zip(&positions[first * self.model.hidden..]).for_each(|(x, p)| *x += p);
        }
    }
}

/// The norm behind the last block.
pub struct LastNorm {
    kind: Norm,
    gain: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

impl LastNorm {
    /// Reads it. `read`: a tensor, decoded.
    ///
    /// # Errors
    /// The tensor is missing or damaged.
    pub fn new(model: &Model, mut read: impl FnMut(&TensorSpec) -> Result<Vec<f32>>) -> Result<LastNorm> {
        let (mut gain, mut bias) = (Vec::new(), None);
        for spec in model.output_norm() {
            match spec.role {
                Role::Norm(Kind::Bias) => bias = Some(read(&spec)?),
                _ => gain = read(&spec)?,
            }
        }
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, model.hidden, &Device::Cpu);
        let bias = bias.map(tensor).transpose()?;
        Ok(LastNorm { kind: model.form.norm, gain: tensor(gain)?, bias, eps: model.norm_eps })
    }

    /// The normed stream. `h`: `[n, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(&self, h: &Tensor) -> Result<Tensor> {
        Ok(ops::norm(self.kind, h, &self.gain, self.bias.as_ref(), self.eps)?)
    }
}

impl Model {
    /// What an output matrix gives, and what its products become: logits, in place.
    pub fn finish_logits(&self, logits: &mut [f32]) {
        const PART: usize = 1 << 14;
        let scale = self.form.logit_scale;
        match self.form.logit_cap {
            Some(cap) => logits.par_chunks_mut(PART).for_each(|x| softcap(x, scale, cap)),
            None if scale != 1.0 => logits.par_chunks_mut(PART).for_each(|x| x.iter_mut().for_each(|x| *x *= scale)),
            None => {}
        }
    }
}
