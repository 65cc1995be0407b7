//! Attention whose keys and values come out of one narrow vector per token.

use super::block::{Block, Frame};
use super::cache::{Cache, extended};
use super::form::Latent;
use super::{Part, ops};
use crate::error::Result;
use candle_core::Tensor;
use llmq_kernels::attention::{Scores, Shape};

impl Block<'_> {
    /// Attention whose keys and values come out of one narrow vector per token; the part of a key that is turned is the same for
    /// all heads (DeepSeek-AI 2024, section 2.1).
    pub(super) fn latent_attention(
        &self,
        Latent { latent, turned, value, .. }: Latent,
        linear: impl Fn(Part) -> Result<Tensor>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let Frame { model, pairing, .. } = self.frame;
        let (heads, d) = (model.heads, model.head_dim);
        let still = d - turned;
        let q = match self.frame.model.form.latent.and_then(|latent| latent.query) {
            None => linear(Part::Q)?,
            Some(_) => self.linear(Part::QB, &self.norm(Part::QANorm, &linear(Part::QA)?)?)?,
        };
        let both = linear(Part::KvA)?; // [n, latent + turned]
        let n = both.dim(0)?;
        let c = self.norm(Part::KvANorm, &both.narrow(1, 0, latent)?.contiguous()?)?;
        let q = q.reshape((n, heads, d))?;
        let mut q_turned = q.narrow(2, still, turned)?.contiguous()?.reshape((n, heads * turned))?;
        let mut k_turned = both.narrow(1, latent, turned)?.contiguous()?;
        let positions = self.positions(&both, cache.as_deref());
        if let Some((cos, sin)) = self.tables(false, &positions)? {
            q_turned = ops::rope(&q_turned, &cos, &sin, turned, *pairing)?;
            k_turned = ops::rope(&k_turned, &cos, &sin, turned, *pairing)?;
        }
        let q = Tensor::cat(&[q.narrow(2, 0, still)?, q_turned.reshape((n, heads, turned))?], 2)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let padding = Tensor::zeros((n, d - value.min(d)), q.dtype(), q.device())?;
        for head in 0..heads {
            // [latent, still] and [value, latent]
            let (k, v) = (self.weight(Part::KB).get(head)?, self.weight(Part::VB).get(head)?);
            keys.push(Tensor::cat(
                &[ops::linear(self.frame.precision, &c, &k.t()?.contiguous()?)?, k_turned.clone()],
                1,
            )?);
            // Values are as wide as keys for the kernel.
            values.push(Tensor::cat(&[ops::linear(self.frame.precision, &c, &v)?, padding.clone()], 1)?);
        }
        let (k, v) = extended(cache, Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?)?;
        let scores =
            Scores { scale: model.form.attention_scale.unwrap_or(1.0 / (d as f32).sqrt()), ..Scores::default() };
        let shape = Shape { positions: positions.len(), past: positions.start, heads, kv_heads: heads, d };
        let y = ops::attention(&q.reshape((n, heads * d))?.contiguous()?, &k, &v, shape, &scores)?;
        Ok(y.reshape((n, heads, d))?.narrow(2, 0, value)?.contiguous()?.reshape((n, heads * value))?)
    }
}
