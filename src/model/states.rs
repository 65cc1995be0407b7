//! What flows from block to block: the residual stream of some windows, and what goes along with it.

use super::per_layer::PerLayerInputs;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// The residual stream of some windows, and what later blocks need besides.
#[derive(Debug, Clone)]
pub struct States {
    /// The residual stream, `[windows · positions, hidden]`.
    pub h: Tensor,
    /// The other streams of a model that has several, `[windows · positions, (streams − 1) · hidden]`.
    pub others: Option<Tensor>,
    /// Keys and values that later blocks share, `[windows · positions, columns]`.
    pub kept: Option<Tensor>,
    /// What each block adds for each token, where the model has that.
    pub per_layer: Option<(Arc<PerLayerInputs>, Arc<Vec<u32>>)>,
}

impl States {
    /// A stream alone.
    pub fn new(h: Tensor) -> States {
        States { h, others: None, kept: None, per_layer: None }
    }

    /// Several, one behind the other.
    ///
    /// # Errors
    /// There are none, or they do not fit.
    pub fn cat(all: &[States]) -> Result<States> {
        let first = all.first().ok_or_else(|| Error::new("no windows"))?;
        let joined = |of: fn(&States) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Option<Vec<&Tensor>> = all.iter().map(of).collect();
            Ok(parts.map(|parts| Tensor::cat(&parts, 0)).transpose()?)
        };
        let tokens = all.iter().filter_map(|states| states.per_layer.as_ref()).flat_map(|(_, tokens)| tokens.iter());
        let tokens: Arc<Vec<u32>> = Arc::new(tokens.copied().collect());
        Ok(States {
            h: Tensor::cat(&all.iter().map(|states| &states.h).collect::<Vec<_>>(), 0)?,
            others: joined(|states| states.others.as_ref())?,
            kept: joined(|states| states.kept.as_ref())?,
            per_layer: first.per_layer.as_ref().map(|(inputs, _)| (inputs.clone(), tokens)),
        })
    }

    /// The same with another stream.
    #[must_use]
    pub fn with(&self, h: Tensor) -> States {
        States { h, ..self.clone() }
    }

    /// All streams side by side, `[windows · positions, streams · hidden]`.
    ///
    /// # Errors
    /// The device has no room.
    pub fn streams(&self) -> Result<Tensor> {
        match &self.others {
            Some(others) => Ok(Tensor::cat(&[&self.h, others], 1)?),
            None => Ok(self.h.clone()),
        }
    }

    /// The same with all streams from such a tensor.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn with_streams(&self, all: Tensor, hidden: usize) -> Result<States> {
        let part = |first: usize, count: usize| all.narrow(1, first, count)?.contiguous();
        let others = part(hidden, all.dim(1)? - hidden)?;
        Ok(States { h: part(0, hidden)?, others: Some(others), ..self.clone() })
    }

    /// The same with something added to each of the other streams. `y`: `[windows · positions, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn with_others(&self, y: &Tensor) -> Result<States> {
        let Some(others) = &self.others else { return Ok(self.clone()) };
        let (tokens, hidden) = y.dims2()?;
        let sum = others.reshape((tokens, (), hidden))?.broadcast_add(&y.unsqueeze(1)?)?;
        Ok(States { others: Some(sum.reshape(others.shape())?), ..self.clone() })
    }

    /// Those of the first `n` tokens.
    ///
    /// # Errors
    /// There are fewer.
    pub fn first(&self, n: usize) -> Result<States> {
        self.narrow(self.h.dim(0)?, 0, n)
    }

    /// Positions `first .. first + count` of each of its windows of `positions`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn narrow(&self, positions: usize, first: usize, count: usize) -> Result<States> {
        let cut = |x: &Tensor| -> Result<Tensor> {
            let (n, width) = x.dims2()?;
            let windows = n / positions;
            let x = x.reshape((windows, positions, width))?.narrow(1, first, count)?;
            Ok(x.reshape((windows * count, width))?)
        };
        let tokens = |tokens: &[u32]| {
            let windows = tokens.chunks(positions);
            Arc::new(windows.flat_map(|window| &window[first..first + count]).copied().collect())
        };
        Ok(States {
            h: cut(&self.h)?,
            others: self.others.as_ref().map(cut).transpose()?,
            kept: self.kept.as_ref().map(cut).transpose()?,
            per_layer: self.per_layer.as_ref().map(|(inputs, own)| (inputs.clone(), tokens(own))),
        })
    }
}

/// What a mixer remembers of a window's earlier positions.
#[derive(Debug, Default)]
pub struct MixerState {
    /// Positions that are in it.
    pub seen: usize,
    /// Keys and values, `[capacity, columns]` each.
    pub keys_values: Option<(Tensor, Tensor)>,
    /// States of scans and convolutions.
    pub numbers: Vec<Vec<f32>>,
}

impl MixerState {
    /// Keys and values of up to `capacity` positions, of so many numbers each.
    ///
    /// # Errors
    /// The device has no room.
    pub fn keys_values(capacity: usize, columns: usize, device: &Device) -> Result<MixerState> {
        let zeros = || Tensor::zeros((capacity, columns), DType::F32, device);
        Ok(MixerState { keys_values: Some((zeros()?, zeros()?)), ..MixerState::default() })
    }

    /// Zeros of these sizes.
    pub fn zeros(sizes: &[usize]) -> MixerState {
        MixerState { numbers: sizes.iter().map(|&n| vec![0.0; n]).collect(), ..MixerState::default() }
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.seen = 0;
        self.numbers.iter_mut().for_each(|numbers| numbers.fill(0.0));
    }

    /// Keys and values with those of the earlier positions before them, which they are added to.
    ///
    /// # Errors
    /// More positions than there is room for.
    pub fn extended(&mut self, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let Some((all_keys, all_values)) = &self.keys_values else { return Ok((keys, values)) };
        let (seen, capacity) = (self.seen + keys.dim(0)?, all_keys.dim(0)?);
        if seen > capacity {
            return Err(Error::new(format!("position {seen} of a window that was to have {capacity} at most")));
        }
        all_keys.slice_set(&keys, 0, self.seen)?;
        all_values.slice_set(&values, 0, self.seen)?;
        self.seen = seen;
        Ok((all_keys.narrow(0, 0, seen)?, all_values.narrow(0, 0, seen)?))
    }
}
