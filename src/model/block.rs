//! The forward pass of one decoder block, cut at its sites.
//!
//! A block is two halves, attention and MLP. Each reads the residual stream `h` through a norm (its *input*), mixes it
//! into what its last linear layer reads (its *inner*), and adds that layer's result to `h` (its *output*).

use super::ops;
use super::{Kind, Model, Part, Role, Site, TensorSpec};
use crate::error::{Context, Error, Result};
use candle_core::{Device, Tensor};
use llmq_kernels::attention::Shape;
use llmq_kernels::elementwise::Pairing;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// The half of a block that a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Half {
    Attention,
    Mlp,
}

impl Half {
    /// In the order of the block.
    pub const ALL: [Half; 2] = [Half::Attention, Half::Mlp];

    /// The site that the half's first linear layers read.
    pub fn input(self) -> Site {
        match self {
            Half::Attention => Site::AttnIn,
            Half::Mlp => Site::FfnIn,
        }
    }

    fn last(self) -> Part {
        match self {
            Half::Attention => Part::O,
            Half::Mlp => Part::Down,
        }
    }

    /// The site that its last linear layer reads.
    pub fn inner(self) -> Site {
        match self {
            Half::Attention => Site::AttnOut,
            Half::Mlp => Site::FfnMid,
        }
    }
}

/// The size of the errors that [`Block::response`] probes with, against the outputs that they are added to: about that of four-bit
/// rounding.
const PROBE: f32 = 0.03;

/// What all blocks of a model share: sizes and rotary tables.
#[derive(Clone)]
pub struct Frame {
    model: Model,
    pairing: Pairing,
    positions: usize,
    cos: Tensor,
    sin: Tensor,
    device: Device,
}

impl Frame {
    /// For windows of `positions` tokens. `pairing` says in which order the rows of queries and keys come.
    ///
    /// # Errors
    /// The device has no room for the tables.
    pub fn new(model: &Model, pairing: Pairing, positions: usize, device: &Device) -> Result<Frame> {
        let half = model.head_dim / 2;
        let (cos, sin) = model.rope.tables(positions, model.head_dim);
        Ok(Frame {
            model: model.clone(),
            pairing,
            positions,
            cos: Tensor::from_vec(cos, (positions, half), device)?,
            sin: Tensor::from_vec(sin, (positions, half), device)?,
            device: device.clone(),
        })
    }

    /// Tokens per window.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// One block's weights in `f32`, and its forward pass. A clone shares them until one of the two gets others.
#[derive(Clone)]
pub struct Block<'a> {
    frame: &'a Frame,
    tensors: HashMap<(Part, Kind), Tensor>,
}

impl<'a> Block<'a> {
    /// A block without weights; [`Block::set`] brings them.
    pub fn new(frame: &'a Frame) -> Block<'a> {
        Block { frame, tensors: HashMap::new() }
    }

    /// Replaces a tensor's numbers, in the shape that its description has.
    ///
    /// # Errors
    /// It is not a block's tensor, or the device has no room.
    pub fn set(&mut self, spec: &TensorSpec, numbers: Vec<f32>) -> Result<()> {
        let Role::Block(part, kind) = spec.role else {
            return Err(Error::new(format!("{} is not a tensor of a block", spec.gguf)));
        };
        let tensor = Tensor::from_vec(numbers, spec.shape.as_slice(), &self.frame.device)
            .context(|| format!("tensor '{}' of shape {:?}", spec.source, spec.shape))?;
        self.tensors.insert((part, kind), tensor);
        Ok(())
    }

    /// A tensor's numbers.
    ///
    /// # Errors
    /// It was never set.
    pub fn numbers(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tensor = match spec.role {
            Role::Block(part, kind) => self.tensors.get(&(part, kind)),
            _ => None,
        };
        let tensor = tensor.ok_or_else(|| Error::new(format!("the block has no '{}'", spec.gguf)))?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    fn weight(&self, part: Part) -> &Tensor {
        self.tensors.get(&(part, Kind::Weight)).expect("every part of a block has a weight")
    }

    fn linear(&self, part: Part, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = ops::linear(x, self.weight(part))?;
        match self.tensors.get(&(part, Kind::Bias)) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// What the first linear layers of a half read. `h`: `[windows · positions, hidden]`; result: the same.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn input(&self, half: Half, h: &Tensor) -> Result<Tensor> {
        let norm = match half {
            Half::Attention => Part::AttnNorm,
            Half::Mlp => Part::FfnNorm,
        };
        Ok(ops::rms_norm(h, self.weight(norm), self.frame.model.norm_eps)?)
    }

    /// What the last linear layer of a half reads. `x`: the half's input; result: `[windows · positions, columns]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn inner(&self, half: Half, x: &Tensor) -> Result<Tensor> {
        self.inner_moved(half, x, None)
    }

    /// The same with something added to the output of one of the half's first linear layers.
    fn inner_moved(&self, half: Half, x: &Tensor, moved: Option<(Part, &Tensor)>) -> Result<Tensor> {
        let linear = |part: Part| -> candle_core::Result<Tensor> {
            let y = self.linear(part, x)?;
            match moved {
                Some((of, by)) if of == part => y + by,
                _ => Ok(y),
            }
        };
        let Frame { model, pairing, positions, cos, sin, .. } = self.frame;
        let y = match half {
            Half::Attention => {
                let q = ops::rope(&linear(Part::Q)?, cos, sin, model.head_dim, *pairing)?;
                let k = ops::rope(&linear(Part::K)?, cos, sin, model.head_dim, *pairing)?;
                let v = linear(Part::V)?;
                let (heads, kv_heads, d) = (model.heads, model.kv_heads, model.head_dim);
                ops::attention(&q, &k, &v, Shape { positions: *positions, heads, kv_heads, d })?
            }
            Half::Mlp => ops::swiglu(&linear(Part::Gate)?, &linear(Part::Up)?)?,
        };
        Ok(y)
    }

    /// The residual stream after a half: `h` plus its last linear layer of `inner`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn output(&self, half: Half, h: &Tensor, inner: &Tensor) -> Result<Tensor> {
        Ok((h + self.last(half, inner)?)?)
    }

    fn last(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        Ok(self.linear(half.last(), inner)?)
    }

    /// What the half's last linear layer makes of a difference between two inners: the layer without its bias.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn difference(&self, half: Half, inner: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(inner, self.weight(half.last()))?)
    }

    /// How much an error of one of a half's first linear layers moves what the half adds to the residual stream: the mean of
    /// the diagonal of the output-side Hessian of that layer, per token.
    ///
    /// Measured with one random error for all of its outputs at once: independent signs, so that the products of different
    /// ones cancel (Hutchinson's estimator of a trace). `x`: the half's input, `[windows · positions, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or a block without the part.
    pub fn response(&self, half: Half, x: &Tensor, part: Part) -> Result<f64> {
        let weight = self.weight(part);
        let y = self.linear(part, x)?;
        let size = y.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt() * PROBE;
        if size == 0.0 {
            return Ok(0.0);
        }
        let (tokens, rows) = y.dims2()?;
        let mut signs = ChaCha8Rng::seed_from_u64(tokens as u64);
        let noise: Vec<f32> = (0..tokens * rows).map(|_| if signs.random() { size } else { -size }).collect();
        let noise = Tensor::from_vec(noise, (tokens, rows), weight.device())?;
        let moved = self.last(half, &self.inner_moved(half, x, Some((part, &noise)))?)?;
        let difference = (moved - self.last(half, &self.inner(half, x)?)?)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(difference) / (tokens * rows) as f64 / f64::from(size * size))
    }

    /// The whole block.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let mut h = h.clone();
        for half in Half::ALL {
            let inner = self.inner(half, &self.input(half, &h)?)?;
            h = self.output(half, &h, &inner)?;
        }
        Ok(h)
    }
}
