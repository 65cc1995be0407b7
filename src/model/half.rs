//! What a block is: a list of halves, each with a norm, a mixer, and its way back to the residual stream.

use super::mixer::{Mixer, Place};
use super::part::{Absorber, BlockTensor, Part, Site};
use super::streams::{Destination, Streams};

/// A kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) · gain`.
    Rms,
    /// `(x − mean(x)) / deviation(x) · gain + bias`.
    Layer,
    /// `x · gain`.
    Gain,
    /// `x / rms(x)`.
    Bare,
}

/// A norm of the residual stream, or of what is added to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    /// Its gain.
    pub part: Part,
    /// What most checkpoints call it.
    pub source: &'static str,
    /// What kind of norm it is.
    pub kind: Norm,
    /// Whether it has a bias.
    pub bias: bool,
    /// Its ε.
    pub eps: f32,
}

/// One decoder block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockConfig {
    /// What it does to the residual stream, one after the other.
    pub halves: Vec<HalfConfig>,
}

/// A part of a block: it reads the residual stream `h` through a norm (its *input*), mixes that into what its last linear layer
/// reads (its *inner*), and adds the layer's result to `h` (its *output*).
#[derive(Debug, Clone, PartialEq)]
pub struct HalfConfig {
    /// The norm in front; without one it reads the stream itself.
    pub norm: Option<NormConfig>,
    /// It reads what was in front of the block, as the half before it does.
    pub parallel: bool,
    /// What is between.
    pub mixer: Mixer,
    /// The norm behind its last layer.
    pub post_norm: Option<NormConfig>,
    /// By what its result is multiplied before it is added to the stream.
    pub residual_scale: f32,
    /// Its input is added to the stream, too.
    pub adds_input: bool,
    /// By what the stream is multiplied behind it, one number.
    pub output_scale: Option<Part>,
    /// The same where it is no tensor.
    pub stream_scale: f32,
    /// Where its result goes.
    pub destination: Destination,
}

impl HalfConfig {
    /// The plainest.
    pub fn new(norm: Option<NormConfig>, mixer: impl Into<Mixer>) -> HalfConfig {
        HalfConfig {
            norm,
            parallel: false,
            mixer: mixer.into(),
            post_norm: None,
            residual_scale: 1.0,
            adds_input: false,
            output_scale: None,
            stream_scale: 1.0,
            destination: Destination::Stream,
        }
    }

    /// Its tensors, in file order. A norm that an earlier half has, too, is among them.
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor> {
        let norm = |norm: &NormConfig| BlockTensor::new(norm.part, norm.source, &[hidden]).bias(norm.bias);
        let mut tensors: Vec<BlockTensor> = self.norm.iter().filter(|norm| norm.kind != Norm::Bare).map(norm).collect();
        tensors.extend(self.mixer.tensors(hidden));
        tensors.extend(self.post_norm.iter().map(norm));
        tensors.extend(self.output_scale.map(|part| BlockTensor::new(part, "layer_scalar", &[1]).bare("weight")));
        tensors
    }

    /// Whether it reads the stream through a norm.
    fn reads_through(&self, part: Part) -> bool {
        self.norm.is_some_and(|norm| norm.part == part)
    }

    /// Whether the numbers of a tensor of another half are needed to run it.
    pub fn needs(&self, part: Part) -> bool {
        self.reads_through(part) || Streams::has(part)
    }

    /// Whether what was in front of the block goes into its result, besides the stream.
    pub fn looks_back(&self) -> bool {
        self.parallel || self.destination == Destination::Corrected
    }
}

impl BlockConfig {
    /// Its tensors with their halves, in file order.
    pub fn tensors(&self, hidden: usize) -> Vec<(usize, BlockTensor)> {
        let mut all: Vec<(usize, BlockTensor)> = Vec::new();
        for (i, half) in self.halves.iter().enumerate() {
            for tensor in half.tensors(hidden) {
                // Halves may share a norm.
                if !all.iter().any(|(_, other)| other.part == tensor.part) {
                    all.push((i, tensor));
                }
            }
        }
        all
    }

    /// Its sites, in the order in which a token reaches them.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        (0..self.halves.len()).flat_map(|half| Place::ALL.map(|place| Site { half, place }))
    }

    /// What can absorb factors of a site's channels; none where nothing can. `hidden`: the width of the stream.
    pub fn absorber(&self, site: Site, hidden: usize) -> Option<Absorber> {
        let half = self.halves.get(site.half)?;
        match site.place {
            Place::Inner => half.mixer.absorber(),
            Place::Input => {
                // The layers of two halves would have to agree on a norm's factors.
                let norm = half.norm.filter(|norm| norm.kind != Norm::Bare)?.part;
                let readers = self.halves.iter().filter(|half| half.reads_through(norm)).count();
                (readers == 1 && half.mixer.may_scale_input() && !half.adds_input)
                    .then(|| Absorber::of(norm, 0..hidden))
            }
        }
    }

    /// The mixers.
    pub fn mixers(&self) -> impl Iterator<Item = &Mixer> {
        self.halves.iter().map(|half| &half.mixer)
    }
}
