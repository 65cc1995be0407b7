//! The forward pass of a window that grows: keys and values of its earlier positions are kept.

use super::Model;
use super::block::{Block, Half};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// Keys and values of the positions that a block has seen of one window.
pub struct Cache {
    /// `[capacity, kv_heads · head_dim]` each; for latent attention, as wide as all heads.
    keys: Tensor,
    values: Tensor,
    seen: usize,
}

impl Cache {
    /// For windows of up to `capacity` positions.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(model: &Model, capacity: usize, device: &Device) -> Result<Cache> {
        let heads = if model.form.latent.is_some() { model.heads } else { model.kv_heads };
        let zeros = || Tensor::zeros((capacity, heads * model.head_dim), DType::F32, device);
        Ok(Cache { keys: zeros()?, values: zeros()?, seen: 0 })
    }

    /// Positions that are in it.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.seen = 0;
    }
}

/// Keys and values with those of the earlier positions before them, which they are added to; without a cache, as they are.
pub(super) fn extended(cache: Option<&mut Cache>, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
    let Some(cache) = cache else { return Ok((keys, values)) };
    let seen = cache.seen + keys.dim(0)?;
    let capacity = cache.keys.dim(0)?;
    if seen > capacity {
        return Err(Error::new(format!("position {seen} of a window that was to have {capacity} at most")));
    }
    cache.keys.slice_set(&keys, 0, cache.seen)?;
    cache.values.slice_set(&values, 0, cache.seen)?;
    cache.seen = seen;
    Ok((cache.keys.narrow(0, 0, seen)?, cache.values.narrow(0, 0, seen)?))
}

impl Block<'_> {
    /// Which positions of their window the rows of `x` have: all of them, or those behind the ones in a cache.
    pub(super) fn positions(&self, x: &Tensor, cache: Option<&Cache>) -> Range<usize> {
        match cache {
            Some(cache) => cache.seen..cache.seen + x.dims()[0],
            None => 0..self.frame.positions,
        }
    }

    /// The rotary tables of some positions, `[positions, rotary / 2]` each; none where nothing is turned. `local`: of a block that
    /// does not see everything.
    pub(super) fn tables(&self, local: bool, positions: &Range<usize>) -> Result<Option<(Tensor, Tensor)>> {
        let Some(tables) = self.frame.tables.as_ref().filter(|_| self.frame.model.turns(self.index)) else {
            return Ok(None);
        };
        let (cos, sin) = &tables[usize::from(local)];
        let of = |table: &Tensor| table.narrow(0, positions.start, positions.len());
        Ok(Some((of(cos)?, of(sin)?)))
    }

    /// The stream behind the block for positions that follow those in the cache, to which they are added.
    /// `before`: the stream in front of it, `[positions, hidden]`.
    ///
    /// # Errors
    /// More positions than the frame or the cache were made for.
    pub fn forward_behind(&self, before: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let x = self.input(Half::Attention, before, before)?;
        let inner = self.attention(|part| self.linear(part, &x), Some(cache))?;
        let h = self.output(Half::Attention, before, &inner)?;
        self.half(Half::Mlp, &h, before)
    }
}
