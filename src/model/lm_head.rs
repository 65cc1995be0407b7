//! What comes behind the last block: the last norm, logits.

use super::{Kind, Model, NormConfig, TensorRole, TensorSpec, ops};
use crate::error::Result;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::softcap;
use rayon::prelude::*;

/// The norm behind the last block.
pub struct LastNorm {
    config: NormConfig,
    gain: Tensor,
    bias: Option<Tensor>,
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
                TensorRole::Norm(Kind::Bias) => bias = Some(read(&spec)?),
                _ => gain = read(&spec)?,
            }
        }
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, model.hidden, &Device::Cpu);
        let bias = bias.map(tensor).transpose()?;
        Ok(LastNorm { config: model.norm, gain: tensor(gain)?, bias })
    }

    /// The normed stream. `h`: `[n, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(&self, h: &Tensor) -> Result<Tensor> {
        Ok(ops::norm(self.config.kind, h, &self.gain, self.bias.as_ref(), self.config.eps)?)
    }
}

impl Model {
    /// What an output matrix gives, and what its products become: logits, in place.
    pub fn finish_logits(&self, logits: &mut [f32]) {
        const PART: usize = 1 << 14;
        let scale = self.logit_scale;
        match self.logit_cap {
            Some(cap) => logits.par_chunks_mut(PART).for_each(|x| softcap(x, scale, cap)),
            None if scale != 1.0 => logits.par_chunks_mut(PART).for_each(|x| x.iter_mut().for_each(|x| *x *= scale)),
            None => {}
        }
    }
}
