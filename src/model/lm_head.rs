//! What comes behind the last block: the last norm, logits.

use super::states::States;
use super::streams::StreamLayers;
use super::{Kind, Model, NormConfig, Part, TensorRole, TensorSpec, ops};
use crate::error::Result;
use crate::source::checkpoint::Checkpoint;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::softcap;
use rayon::prelude::*;
use std::ops::Range;

/// What is added to the output matrix's products, one number for each token.
pub const OUTPUT_BIAS: &str = "output.bias";

/// The norm behind the last block.
pub struct LastNorm {
    config: NormConfig,
    gain: Tensor,
    bias: Option<Tensor>,
    streams: Option<StreamLayers>,
}

impl LastNorm {
    /// Reads it. `read`: a tensor, decoded.
    ///
    /// # Errors
    /// The tensor is missing or damaged.
    pub fn new(model: &Model, mut read: impl FnMut(&TensorSpec) -> Result<Vec<f32>>) -> Result<LastNorm> {
        let (mut gain, mut bias) = (vec![1.0; model.hidden], None);
        for spec in model.output_norm() {
            match spec.role {
                TensorRole::Norm(Kind::Bias) => bias = Some(read(&spec)?),
                _ => gain = read(&spec)?,
            }
        }
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, model.hidden, &Device::Cpu);
        let bias = bias.map(tensor).transpose()?;
        let streams = StreamLayers::new(model, Part::ALTUP_UNEMBD_PROJ, read)?;
        Ok(LastNorm { config: model.norm, gain: tensor(gain)?, bias, streams })
    }

    /// The normed stream, `[n, hidden]`; where the model has several, their mean.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(&self, states: &States) -> Result<Tensor> {
        let merged = self.streams.as_ref().map(|streams| streams.merged(states)).transpose()?;
        let h = merged.as_ref().unwrap_or(&states.h);
        Ok(ops::norm(self.config.kind, h, &self.gain, self.bias.as_ref(), self.config.eps)?)
    }
}

impl Model {
    /// What is added to the output matrix's products, if something is.
    pub fn output_bias(&self) -> Option<&[f32]> {
        self.vectors.iter().find(|(name, _)| *name == OUTPUT_BIAS).map(|(_, numbers)| numbers.as_slice())
    }

    /// Takes what a checkpoint has beside its output matrix, zeros where it has nothing: for families whose loader asks for it.
    /// Returns the tensor's name.
    ///
    /// # Errors
    /// It has another shape, or holds NaN or infinity.
    pub(super) fn settle_output_bias(&mut self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let plain = format!("{}.bias", self.architecture.outside().output);
        let found = [self.named(plain.clone()), plain].into_iter().find(|name| checkpoint.contains(name));
        let numbers = match &found {
            Some(name) => {
                checkpoint.check(name, &[self.vocab])?;
                checkpoint.read(name, &[self.vocab])?
            }
            None => vec![0.0; self.vocab],
        };
        self.vectors.push((OUTPUT_BIAS, numbers));
        Ok(found.into_iter().collect())
    }

    /// What an output matrix gives, and what its products become: logits, in place. `rows`: which of its rows they are of, for each
    /// token.
    pub fn finish_logits(&self, logits: &mut [f32], rows: Range<usize>) {
        const PART: usize = 1 << 14;
        if let Some(bias) = self.output_bias() {
            let bias = &bias[rows];
            let add = |token: &mut [f32]| token.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            logits.par_chunks_mut(bias.len().max(1)).for_each(add);
        }
        let scale = self.logit_scale;
        match self.logit_cap {
            Some(cap) => logits.par_chunks_mut(PART).for_each(|x| softcap(x, scale, cap)),
            None if scale != 1.0 => logits.par_chunks_mut(PART).for_each(|x| x.iter_mut().for_each(|x| *x *= scale)),
            None => {}
        }
    }
}
