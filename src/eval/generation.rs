//! A model that reads and continues one window: each position goes through the blocks once, and its keys and values are kept.
//!
//! Matrices stay as they are in their files and are decoded on the way, so what is held is the cache and a few vectors.

use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::TensorSpec;
use crate::model::block::Block;
use crate::model::embedding::Embedding;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::matrix::Matrix;
use crate::model::per_layer::PerLayerInputs;
use crate::model::states::{MixerState, States};
use crate::pipeline::loaded_model::{BATCH, LoadedModel};
use candle_core::Tensor;
use llmq_kernels::gemm::Precision;
use std::sync::Arc;

/// One window that grows.
pub struct Generation<'a> {
    loaded: &'a LoadedModel,
    frame: &'a Frame,
    start: Embedding<'a>,
    blocks: Vec<(Block<'a>, Vec<MixerState>)>,
    len: usize,
    norm: LastNorm,
    output: Matrix<'a>,
}

impl<'a> Generation<'a> {
    /// An empty window, of up to as many tokens as the frame has positions.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn new(loaded: &'a LoadedModel, frame: &'a Frame) -> Result<Generation<'a>> {
        let (model, positions) = (&loaded.model, frame.positions());
        let block = |i: usize| {
            let own = loaded.block(frame, i).context(|| format!("block {i}"))?;
            let state = own.new_state(positions)?;
            Ok((own, state))
        };
        Ok(Generation {
            loaded,
            frame,
            start: Embedding::new(model, positions, &|spec, rows| loaded.rows(spec, rows))?,
            blocks: (0..model.blocks.len()).map(block).collect::<Result<_>>()?,
            len: 0,
            norm: LastNorm::new(model, |spec| loaded.read(spec))?,
            output: loaded.output()?,
        })
    }

    /// Tokens that it has read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has read none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all that it has read.
    pub fn clear(&mut self) {
        self.blocks.iter_mut().flat_map(|(_, states)| states).for_each(MixerState::clear);
        self.len = 0;
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
        let states = last.ok_or_else(|| Error::new("no tokens"))?;
        let n = states.h.dim(0)?;
        let states = states.narrow(n, n - 1, 1)?;
        let mut logits = self.output.linear(Precision::Single, &self.norm.apply(&states)?)?.flatten_all()?.to_vec1()?;
        let rows = 0..logits.len();
        self.loaded.model.finish_logits(&mut logits, rows);
        Ok(logits)
    }

    /// The states behind the last block.
    fn behind_blocks(&mut self, tokens: &[u32]) -> Result<States> {
        let model = &self.loaded.model;
        let embedding = model.embedding();
        let mut x = Vec::with_capacity(tokens.len() * model.hidden);
        for &token in tokens {
            x.extend(self.loaded.rows(&embedding, token as usize..token as usize + 1)?);
        }
        self.start.apply_from(self.len(), &mut x);
        let h = Tensor::from_vec(x, (tokens.len(), model.hidden), self.frame.device())?;
        let read = |spec: &TensorSpec, rows| self.loaded.rows(spec, rows);
        let per_layer = PerLayerInputs::new(model, tokens.iter().copied(), &read)?;
        let per_layer = per_layer.map(|inputs| (inputs, Arc::new(tokens.to_vec())));
        let mut states = States { per_layer, ..self.start.states(h)? };
        for (i, (block, own)) in self.blocks.iter_mut().enumerate() {
            interrupt::check()?;
            states = block.forward_behind(&states, own).context(|| format!("block {i}"))?;
        }
        self.len += tokens.len();
        Ok(states)
    }
}

/// The token of the largest logit; of equal ones the first.
pub fn likeliest(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}
