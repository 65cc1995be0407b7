//! What all blocks of a model share while they run: windows, rotary tables, how exact products are.

use super::Model;
use super::mixer::Mixer;
use super::rope::Rope;
use crate::compute::{Compute, Products};
use crate::error::{Error, Result};
use candle_core::{D, Device, Tensor};
use llmq_kernels::elementwise::Pairing;
use llmq_kernels::gemm::Precision;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all blocks of a model share: sizes and rotary tables.
#[derive(Clone)]
pub struct Frame {
    pub(super) model: Model,
    pairing: Pairing,
    positions: usize,
    /// Each rotary embedding of the model with its cosines and sines, `[positions, rotary / 2]`.
    tables: Vec<(Rope, Tensor, Tensor)>,
    device: Device,
    products: Products,
    /// See [`Frame::multiplications`].
    multiplied: Arc<AtomicU64>,
}

impl Frame {
    /// For windows of `positions` tokens. `pairing` says in which order the rows of queries and keys come.
    ///
    /// # Errors
    /// The device has no room for the tables.
    pub fn new(model: &Model, pairing: Pairing, positions: usize, device: &Device) -> Result<Frame> {
        let mut tables: Vec<(Rope, Tensor, Tensor)> = Vec::new();
        let ropes = model.blocks.iter().flat_map(|block| block.mixers()).filter_map(|mixer| mixer.rope());
        for rope in ropes {
            if !tables.iter().any(|(known, ..)| known == rope) {
                let (cos, sin) = rope.tables(positions);
                let tensor = |x: Vec<f32>| Tensor::from_vec(x, (positions, rope.rotary / 2), device);
                tables.push((rope.clone(), tensor(cos)?, tensor(sin)?));
            }
        }
        let (model, device) = (model.clone(), device.clone());
        let (products, multiplied) = (Precision::Split.into(), Arc::default());
        Ok(Frame { model, pairing, positions, tables, device, products, multiplied })
    }

    /// The same with linear layers that need not be more exact than this.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Frame {
        Frame { products: Products { precision, ..self.products }, ..self }
    }

    /// The same with linear layers that are computed there.
    #[must_use]
    pub fn on(self, compute: &Arc<dyn Compute>) -> Frame {
        Frame { products: Products { on: compute.clone(), ..self.products }, ..self }
    }

    /// Tokens per window.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.model.hidden
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How linear layers are computed.
    pub fn products(&self) -> &Products {
        &self.products
    }

    /// Multiplications that linear layers of all blocks on this frame and its clones have done so far, each with its addition.
    pub fn multiplications(&self) -> u64 {
        self.multiplied.load(Ordering::Relaxed)
    }

    /// Counts those of a layer with inputs `x`, `[n, columns]`, and outputs `y`, `[n, rows]`.
    pub(super) fn count(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let done = x.elem_count() * y.dim(D::Minus1)?;
        self.multiplied.fetch_add(done as u64, Ordering::Relaxed);
        Ok(())
    }

    /// In which order the rows of queries and keys come.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// The mixer of a half of a block.
    pub fn mixer(&self, block: usize, half: usize) -> &Mixer {
        &self.model.blocks[block].halves[half].mixer
    }

    /// The rotary tables of some positions, `[positions, rotary / 2]` each.
    ///
    /// # Errors
    /// It is none of the model's, or there are more positions than the frame was made for.
    pub fn table(&self, rope: &Rope, positions: &Range<usize>) -> Result<(Tensor, Tensor)> {
        let table = self.tables.iter().find(|(known, ..)| known == rope);
        let (_, cos, sin) = table.ok_or_else(|| Error::new("a rotary embedding that the model does not have"))?;
        let of = |table: &Tensor| table.narrow(0, positions.start, positions.len());
        Ok((of(cos)?, of(sin)?))
    }
}
