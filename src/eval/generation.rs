//! A model that reads and continues one window: each position goes through the blocks once, and its keys and values are kept.
//!
//! Matrices stay as they are in their files and are decoded on the way, so what is held is the cache and a few vectors.

use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame};
use crate::model::cache::Cache;
use crate::model::ends::{LastNorm, Start};
use crate::model::matrix::Matrix;
use crate::pipeline::subject::{BATCH, Subject};
use candle_core::Tensor;
use llmq_kernels::gemm::Precision;

/// One window that grows.
pub struct Generation<'a> {
    subject: &'a Subject,
    frame: &'a Frame,
    start: Start<'a>,
    blocks: Vec<(Block<'a>, Cache)>,
    norm: LastNorm,
    output: Matrix<'a>,
}

impl<'a> Generation<'a> {
    /// An empty window, of up to as many tokens as the frame has positions.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn new(subject: &'a Subject, frame: &'a Frame) -> Result<Generation<'a>> {
        let (model, positions) = (&subject.model, frame.positions());
        let block = |i: usize| {
            let own = subject.block(frame, i).context(|| format!("block {i}"))?;
            Ok((own, Cache::new(model, positions, frame.device())?))
        };
        Ok(Generation {
            subject,
            frame,
            start: Start::new(model, positions, |spec, rows| subject.rows(spec, rows))?,
            blocks: (0..model.blocks).map(block).collect::<Result<_>>()?,
            norm: LastNorm::new(model, |spec| subject.read(spec))?,
            output: subject.output()?,
        })
    }

    /// Tokens that it has read.
    pub fn len(&self) -> usize {
        self.blocks.first().map_or(0, |(_, cache)| cache.seen())
    }

    /// Whether it has read none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all that it has read.
    pub fn clear(&mut self) {
        self.blocks.iter_mut().for_each(|(_, cache)| cache.clear());
    }

    /// Reads on, and gives the logits of what may come next: `[vocab]`.
    ///
    /// # Errors
    /// No tokens, more than there is room for, or a tensor that cannot be read.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (room, len) = (self.frame.positions(), self.len());
        if tokens.is_empty() || tokens.len() > room - len {
            let n = tokens.len();
            return Err(Error::new(format!("{n} tokens behind {len} do not fit a window of {room}")));
        }
        let mut last = None;
        for tokens in tokens.chunks(BATCH) {
            last = Some(self.behind_blocks(tokens)?);
        }
        let h = last.ok_or_else(|| Error::new("no tokens"))?;
        let h = h.narrow(0, h.dim(0)? - 1, 1)?.contiguous()?;
        let mut logits = self.output.linear(Precision::Single, &self.norm.apply(&h)?)?.flatten_all()?.to_vec1()?;
        self.subject.model.finish_logits(&mut logits);
        Ok(logits)
    }

    /// The stream behind the last block, `[tokens, hidden]`.
    fn behind_blocks(&mut self, tokens: &[u32]) -> Result<Tensor> {
        let model = &self.subject.model;
        let embedding = model.embedding();
        let mut x = Vec::with_capacity(tokens.len() * model.hidden);
        for &token in tokens {
            x.extend(self.subject.rows(&embedding, token as usize..token as usize + 1)?);
        }
        self.start.apply_from(self.len(), &mut x);
        let mut h = Tensor::from_vec(x, (tokens.len(), model.hidden), self.frame.device())?;
        for (i, (block, cache)) in self.blocks.iter_mut().enumerate() {
            interrupt::check()?;
            h = block.forward_behind(&h, cache).context(|| format!("block {i}"))?;
        }
        Ok(h)
    }
}

/// The token of the largest logit; of equal ones the first.
pub fn likeliest(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}
