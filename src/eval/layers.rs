//! Which block loses most.
//!
//! Both models are run side by side, one block at a time, and for each block a third stream branches off the original's:
//! that block is the file's, and all blocks behind it are the original's again. What is in front of it is shared, so that
//! a model of `n` blocks costs about `n / 2` forward passes, and its weights are read once.

use super::divergence::{HINT, Original, all, check_tokens};
use super::perplexity::{STREAM, targets};
use super::statistics::Mean;
use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::block::Block;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::states::States;
use crate::pipeline::loaded_model::LoadedModel;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Where two embeddings differ by more than this, they do not describe tokens in the same directions.
const OTHER: f64 = 0.5;

/// What one part of a file costs.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Which part.
    pub place: Place,
    /// The error of the residual stream behind it, with everything in front of it quantized, too: `‖h′ − h‖² / ‖h‖²`, mean over
    /// the tokens. None behind the last block.
    pub stream: Option<f64>,
    /// `KL(original ‖ original with only this part of the file)`, in nats, over the scored tokens.
    pub alone: Mean,
}

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// What tokens are turned into.
    Embedding,
    /// One block.
    Block(usize),
    /// The last norm and the output matrix.
    Output,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Embedding => f.write_str("embedding"),
            Place::Block(i) => write!(f, "block {i}"),
            Place::Output => f.write_str("output"),
        }
    }
}

/// What every part of a file costs, over windows whose tokens behind position `first` are scored. `progress` is told the
/// done and the whole work.
///
/// # Errors
/// Models that do not belong together, a tensor that cannot be read, or a forward pass that overflows.
pub fn layers(
    file: &LoadedModel,
    original: &LoadedModel,
    windows: &[Vec<u32>],
    first: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Layer>> {
    check(file, original)?;
    let blocks = original.model.blocks.len();
    let context = windows.first().map_or(0, Vec::len);
    // As many streams as blocks, and four more: both models', the embedding's, and the one that is being made.
    let group = (STREAM / (4 * context * original.model.hidden * (blocks + 4)).max(1)).max(1);
    // One step for each stream that goes through a block, and as many for the logits.
    let of_group = blocks * (blocks + 7) / 2 + blocks + 2;
    let whole = windows.len().div_ceil(group) * of_group;
    let mut streams = vec![Vec::new(); blocks + 1];
    let mut alone = vec![Vec::new(); blocks + 2];
    for (g, windows) in windows.chunks(group).enumerate() {
        let mut done = g * of_group;
        let mut step = |n: usize| {
            done += n;
            progress(done, whole);
        };
        let mut run = Side::new(file, original, windows)?;
        streams[0].extend(errors(&run.own, &run.clean)?);
        let mean = streams[0].iter().sum::<f64>() / streams[0].len() as f64;
        if mean > OTHER {
            let what = format!("its embedding is not the original's: they differ by {:.0}%", 100.0 * mean.sqrt());
            return Err(Error::new(what)
                .hint("blocks of rotated models (--rotate) cannot be exchanged with those of their original"));
        }
        for i in 0..blocks {
            run.block(i).context(|| format!("block {i}"))?;
            streams[i + 1].extend(errors(&run.own, &run.clean)?);
            step(i + 4);
        }
        for (all, divergences) in alone.iter_mut().zip(run.divergences(windows, first)?) {
            all.extend(divergences);
        }
        step(blocks + 2);
    }
    let places = [Place::Embedding].into_iter().chain((0..blocks).map(Place::Block)).chain([Place::Output]);
    let layers = places.zip(alone).enumerate().map(|(at, (place, alone))| Layer {
        place,
        stream: streams.get(at).map(|errors| errors.iter().sum::<f64>() / errors.len() as f64),
        alone: Mean::of(&alone),
    });
    let layers: Vec<Layer> = layers.collect();
    match layers.iter().find(|l| !l.alone.value.is_finite() || l.stream.is_some_and(|x| !x.is_finite())) {
        None => Ok(layers),
        Some(layer) => Err(Error::new(format!("{}: the divergence is {}", layer.place, layer.alone.value))
            .hint("the model overflows in its own forward pass; the file is probably damaged")),
    }
}

/// # Errors
/// The blocks of one model cannot stand in for those of the other.
fn check(file: &LoadedModel, original: &LoadedModel) -> Result<()> {
    let sizes = |loaded: &LoadedModel| [loaded.model.blocks.len(), loaded.model.hidden, loaded.model.vocab];
    let (own, theirs) = (sizes(file), sizes(original));
    if own != theirs {
        let shown =
            |[blocks, hidden, vocab]: [usize; 3]| format!("{blocks} blocks of width {hidden} and {vocab} tokens");
        return Err(Error::new(format!("it has {}, the original {}", shown(own), shown(theirs))).hint(HINT));
    }
    check_tokens(file, original)
}

/// Streams of residuals, in batches: `[windows · positions, hidden]` each.
type Stream = Vec<States>;

/// Two models side by side.
struct Side<'a> {
    models: [&'a LoadedModel; 2],
    frames: [Frame; 2],
    /// The file's own stream.
    own: Stream,
    /// The original's.
    clean: Stream,
    /// The embedding's and, of each block so far, the stream in which it alone is the file's.
    branches: Vec<Stream>,
}

impl<'a> Side<'a> {
    fn new(file: &'a LoadedModel, original: &'a LoadedModel, windows: &[Vec<u32>]) -> Result<Side<'a>> {
        let models = [file, original];
        let positions = windows[0].len();
        let frame = |loaded: &LoadedModel| -> Result<Frame> {
            Ok(Frame::new(&loaded.model, loaded.pairing(), positions, &Device::Cpu)?.on(&loaded.compute))
        };
        let (own, clean) = (file.embed(windows, &Device::Cpu)?, original.embed(windows, &Device::Cpu)?);
        let branches = vec![own.clone()];
        Ok(Side { models, frames: [frame(file)?, frame(original)?], own, clean, branches })
    }

    /// Takes all streams through block `i`.
    fn block(&mut self, i: usize) -> Result<()> {
        let load = |side: usize| -> Result<Block<'_>> {
            let mut block = Block::new(&self.frames[side], i);
            for spec in self.models[side].model.block(i) {
                block.set(&spec, self.models[side].read(&spec)?)?;
            }
            Ok(block)
        };
        let (file, original) = (load(0)?, load(1)?);
        let branch = through(&file, &self.clean)?;
        self.own = through(&file, &self.own)?;
        self.clean = through(&original, &self.clean)?;
        for stream in &mut self.branches {
            *stream = through(&original, stream)?;
        }
        self.branches.push(branch);
        Ok(())
    }

    /// Of each branch, and of the file's output matrix alone, the divergences of the scored tokens.
    fn divergences(&self, windows: &[Vec<u32>], first: usize) -> Result<Vec<Vec<f64>>> {
        let [file, original] = self.models;
        let normed = |loaded: &LoadedModel, stream: &Stream| -> Result<Tensor> {
            let norm = LastNorm::new(&loaded.model, |spec| loaded.read(spec))?;
            let context = windows[0].len();
            let scored = stream
                .iter()
                .map(|states| Ok(States::new(norm.apply(states)?).narrow(context, first, context - 1 - first)?.h));
            Ok(Tensor::cat(&scored.collect::<Result<Vec<_>>>()?, 0)?)
        };
        let clean = Original::Hidden(original, normed(original, &self.clean)?);
        let branches = self.branches.iter().map(|stream| Ok((original, normed(original, stream)?)));
        let mut states = branches.collect::<Result<Vec<_>>>()?;
        states.push((file, normed(file, &self.clean)?));
        let scored = all(&clean, &states, &targets(windows, first))?;
        Ok(scored.iter().map(|tokens| tokens.iter().map(|token| token.divergence).collect()).collect())
    }
}

fn through(block: &Block, stream: &Stream) -> Result<Stream> {
    let forward = |states: &States| {
        interrupt::check()?;
        block.forward(states)
    };
    stream.iter().map(forward).collect()
}

/// `‖h′ − h‖² / ‖h‖²` of each token.
fn errors(own: &Stream, clean: &Stream) -> Result<Vec<f64>> {
    let mut errors = Vec::new();
    for (own, clean) in own.iter().zip(clean) {
        let width = clean.h.dims2()?.1;
        let [a, b] = [own, clean].map(|states| states.h.flatten_all()?.to_vec1::<f32>());
        let (a, b) = (a?, b?);
        let of = |(a, b): (&[f32], &[f32])| {
            let squares = a.iter().zip(b).map(|(&a, &b)| ((f64::from(a) - f64::from(b)).powi(2), f64::from(b).powi(2)));
            let (gap, whole) = squares.fold((0.0, 0.0), |(x, y), (a, b)| (x + a, y + b));
            if whole > 0.0 { gap / whole } else { gap }
        };
        errors.extend(a.par_chunks(width).zip(b.par_chunks(width)).map(of).collect::<Vec<f64>>());
    }
    Ok(errors)
}
