//! What comes before the first block: embedded tokens.

use super::looped::Looped;
use super::per_layer::FileRows;
use super::states::States;
use super::streams::StreamLayers;
use super::{Model, Part};
use crate::error::Result;
use candle_core::{Device, Tensor};

/// From rows of the embedding to the residual stream in front of the first block.
pub struct Embedding<'a> {
    model: &'a Model,
    /// `[context, hidden]`.
    positions: Option<Vec<f32>>,
    streams: Option<StreamLayers>,
    /// What the low one of two stacks begins with, `[hidden]`.
    low: Option<Tensor>,
}

impl<'a> Embedding<'a> {
    /// Reads what it needs for windows of so many positions. `read`: rows of a tensor, decoded.
    ///
    /// # Errors
    /// The tensor is missing or damaged.
    pub fn new(model: &'a Model, positions: usize, read: &FileRows<'_>) -> Result<Embedding<'a>> {
        let spec = model.position_embedding();
        let positions = spec.map(|spec| read(&spec, 0..positions.min(spec.shape[0]))).transpose()?;
        let streams = StreamLayers::new(model, Part::ALTUP_PROJ, |spec| read(spec, 0..spec.rows()))?;
        let low = model.low_state().map(|spec| read(&spec, 0..1)).transpose()?;
        let low = low.map(|low| Tensor::from_vec(low, model.hidden, &Device::Cpu)).transpose()?;
        Ok(Embedding { model, positions, streams, low })
    }

    /// The states in front of the first block, without what is made for each block. `h`: the stream, `[windows · positions, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn states(&self, h: Tensor) -> Result<States> {
        if let Some(low) = &self.low {
            return Looped::start(h, low);
        }
        let others = self.streams.as_ref().map(|streams| streams.spread(&h)).transpose()?;
        Ok(States { others, ..States::new(h) })
    }

    /// Turns embedded tokens into the stream, in place. `x`: rows of the embedding, those of one window.
    pub fn apply(&self, x: &mut [f32]) {
        self.apply_from(0, x);
    }

    /// The same for the tokens of a window from position `first` on.
    pub fn apply_from(&self, first: usize, x: &mut [f32]) {
        if let Some(eps) = self.model.embedding_norm {
            for row in x.chunks_mut(self.model.hidden) {
                let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / row.len() as f64;
                let factor = (1.0 / (square + f64::from(eps)).sqrt()) as f32;
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        let scale = self.model.embedding_scale;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(positions) = &self.positions {
            x.iter_mut().zip(&positions[first * self.model.hidden..]).for_each(|(x, p)| *x += p);
        }
    }
}
