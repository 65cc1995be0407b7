//! One block of a calibrated run: statistics, rounding, and the quantized outputs that feed what comes next.

use super::plan::{Plan, Planned};
use super::solve::Pending;
use super::subject::{BATCH, pairing};
use super::{Finished, Run};
use crate::calib::evidence::{Evidence, Known};
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::{Block, Frame, Half};
use crate::model::{Role, Site};
use crate::source::imatrix::Entry;
use candle_core::{Device, Tensor};
use std::collections::HashMap;

/// Inner activations up to this many bytes are kept from the statistics to the output of a half; larger ones are computed
/// twice. The results are the same.
pub(super) const KEEP: usize = 512 << 20;

/// One window in so many is kept out of every Hessian, where a method has to choose.
pub(super) const HELD: usize = 8;

/// One batch in so many, of those that are not held out, also goes through the original model: how activations drift is a
/// smooth thing, and running two models is twice the work.
pub(super) const COMPARED: usize = 4;

/// The residual stream of all calibration windows: what lives from block to block.
pub struct Stream {
    frame: Frame,
    batches: Vec<Batch>,
    tokens: usize,
}

/// Some windows.
struct Batch {
    /// The stream behind the blocks as the file has them: `[windows · positions, hidden]`.
    h: Tensor,
    /// The same in the original model, where a method compares the two.
    original: Option<Tensor>,
    /// Kept out of every Hessian.
    held: bool,
}

/// What goes into a layer of both models.
struct Inputs {
    x: Tensor,
    original: Option<Tensor>,
}

/// What the windows say about a site.
pub(super) struct Statistics {
    /// The calibration windows.
    pub seen: Known,
    /// Those that were held out, if some were.
    pub held: Option<Known>,
}

impl Stream {
    /// Starts with the embedded tokens. `rows`: the embedding's rows of the `known` tokens (sorted), as the source and as the
    /// file has them, one after the other. `hold`: keep some windows out of every Hessian. `compare`: run the original model,
    /// too.
    pub fn new(
        plan: &Plan,
        windows: &[Vec<u32>],
        positions: usize,
        known: &[u32],
        rows: &EmbeddedRows,
        hold: bool,
        compare: bool,
    ) -> Result<Stream> {
        let (device, model) = (Device::Cpu, plan.model()?);
        let hidden = model.hidden;
        let frame = Frame::new(model, pairing(&plan.source, model), positions, &device)?;
        let held = if hold { windows.len() / HELD } else { 0 };
        let embed = |windows: &[Vec<u32>], rows: &[f32]| {
            let mut x = Vec::with_capacity(windows.len() * positions * hidden);
            for token in windows.iter().flatten() {
                let at = known.binary_search(token).expect("every token's row was kept") * hidden;
                x.extend_from_slice(&rows[at..at + hidden]);
            }
            Ok::<_, crate::error::Error>(Tensor::from_vec(x, (windows.len() * positions, hidden), &device)?)
        };
        let (out, seen) = windows.split_at(held);
        let mut batches = Vec::new();
        for (windows, held) in [(seen, false), (out, true)] {
            for (i, windows) in windows.chunks((BATCH / positions).max(1)).enumerate() {
                let compared = compare && (held || i % COMPARED == 0);
                let original = if compared { Some(embed(windows, &rows.original)?) } else { None };
                batches.push(Batch { h: embed(windows, &rows.quantized)?, original, held });
            }
        }
        Ok(Stream { frame, batches, tokens: windows.len() * positions })
    }
}

impl Stream {
    /// Where every window is now: `[windows · positions, hidden]` each.
    pub fn states(&self) -> impl Iterator<Item = &Tensor> {
        self.batches.iter().map(|batch| &batch.h)
    }
}

/// Rows of the embedding.
#[derive(Default)]
pub struct EmbeddedRows {
    /// As the source has them.
    pub original: Vec<f32>,
    /// As the file has them.
    pub quantized: Vec<f32>,
}

impl Run<'_> {
    /// Quantizes and writes block `i`; afterwards the stream is that behind the quantized block.
    pub(super) fn calibrated_block(&mut self, i: usize, tensors: &[Planned], stream: &mut Stream) -> Result<()> {
        let Stream { frame, batches, tokens } = stream;
        let mut finished: HashMap<&str, Finished> = HashMap::new();
        let mut block = Block::new(frame);
        for tensor in tensors {
            if is_grid(tensor) {
                block.set(&tensor.spec, self.read(&tensor.spec)?)?;
            } else {
                let done = self.whole(tensor)?;
                if tensor.spec.role != Role::Other {
                    block.set(&tensor.spec, tensor.kind.decode_all(&done.bytes))?;
                }
                finished.insert(&tensor.spec.gguf, done);
            }
        }
        let original = block.clone();
        let last = i + 1 == self.plan.blocks().len();
        for half in Half::ALL {
            let work = work(tensors, half) * *tokens as u64;
            let unit = work / 2 / batches.len() as u64;
            let mut done = 0;
            let mut pending: HashMap<&str, Pending> = HashMap::new();
            // Both sites of the half in turn; the second sees what the first has become.
            let mut inner = None;
            for site in [half.input(), half.inner()] {
                let place = || format!("block {i}, input of {}", readers(tensors, site).join(", "));
                let is_inner = site == half.inner();
                let keep = is_inner && *tokens * width(tensors, site) * 4 <= KEEP;
                let kept = self.see(site, half, tensors, &block, &original, batches, keep).context(place)?;
                let Some((statistics, mut kept)) = kept else { continue };
                let weights = match is_inner {
                    true => vec![1.0],
                    false => responses(half, tensors, &block, &batches[0], frame.positions())?,
                };
                let scales =
                    self.solve(site, &statistics, &weights, tensors, &mut block, &mut finished, &mut pending)?;
                if let (Some(scales), true) = (scales, keep) {
                    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
                    let inverse = Tensor::from_vec(inverse, scales.len(), frame.device())?;
                    for inputs in &mut kept {
                        inputs.x = inputs.x.broadcast_mul(&inverse)?;
                    }
                }
                inner = keep.then_some(kept);
            }
            for (name, pending) in pending {
                let tensor = tensors.iter().find(|t| t.spec.gguf == name).expect("it was solved as one of these");
                finished.insert(name, self.finish(tensor, &pending)?);
            }
            // Behind the last block only an output matrix reads the stream.
            if !(last && half == Half::Mlp) || self.plan.tail().iter().any(|t| self.calibrates_output(t)) {
                let mut kept = inner.into_iter().flatten();
                for batch in batches.iter_mut() {
                    interrupt::check()?;
                    let inputs = match kept.next() {
                        Some(inputs) => inputs,
                        None => self.inputs(half.inner(), half, &block, &original, batch)?,
                    };
                    let started = self.clock.start();
                    batch.h = block.output(half, &batch.h, &inputs.x)?;
                    if let (Some(h), Some(x)) = (&mut batch.original, &inputs.original) {
                        *h = original.output(half, h, x)?;
                    }
                    self.clock.forward += started.elapsed();
                    self.observer.advance(unit);
                    done += unit;
                }
            }
            self.observer.advance(work - done);
        }
        for tensor in tensors {
            let done = finished.remove(tensor.spec.gguf.as_str()).expect("every tensor of the block was quantized");
            self.write(tensor, done)?;
        }
        Ok(())
    }

    /// Collects what the windows say about a site that a method has something to do at, and returns its inputs if they are to
    /// be kept.
    #[allow(clippy::too_many_arguments)]
    fn see(
        &mut self,
        site: Site,
        half: Half,
        tensors: &[Planned],
        block: &Block<'_>,
        original: &Block<'_>,
        batches: &[Batch],
        keep: bool,
    ) -> Result<Option<(Statistics, Vec<Inputs>)>> {
        let columns = width(tensors, site);
        let method = tensors.iter().any(|t| t.spec.site() == Some(site) && is_grid(t));
        if !method && !self.rounding.keep_statistics {
            return Ok(None);
        }
        let compare = batches.iter().any(|batch| batch.original.is_some());
        let residual = (site == half.inner()).then(|| batches[0].h.dims2().map(|(_, hidden)| hidden)).transpose()?;
        let evidence = || Evidence::new(columns, compare, residual);
        let (mut seen, mut held) = (evidence(), evidence());
        let mut squares = Squares::new(columns);
        let mut kept = Vec::new();
        for batch in batches {
            interrupt::check()?;
            let inputs = self.inputs(site, half, block, original, batch)?;
            let started = self.clock.start();
            if method {
                let sums = if batch.held { &mut held } else { &mut seen };
                let stream = batch.original.as_ref().map(|original| (original, &batch.h));
                sums.add(&inputs.x, inputs.original.as_ref(), stream)?;
            }
            if self.rounding.keep_statistics {
                squares.add(&inputs.x)?;
            }
            self.clock.hessian += started.elapsed();
            if keep {
                kept.push(inputs);
            }
        }
        if self.rounding.keep_statistics {
            self.keep(tensors, site, squares.sums(), squares.tokens());
        }
        if !method {
            return Ok(None);
        }
        let held = (held.tokens() > 0).then(|| held.finish()).transpose()?;
        Ok(Some((Statistics { seen: seen.finish()?, held }, kept)))
    }

    /// What a batch brings to a site.
    fn inputs(
        &mut self,
        site: Site,
        half: Half,
        block: &Block<'_>,
        original: &Block<'_>,
        batch: &Batch,
    ) -> Result<Inputs> {
        let started = self.clock.start();
        let of = |block: &Block<'_>, h: &Tensor| {
            let x = block.input(half, h)?;
            if site == half.inner() { block.inner(half, &x) } else { Ok(x) }
        };
        let x = of(block, &batch.h)?;
        let original = batch.original.as_ref().map(|h| of(original, h)).transpose()?;
        self.clock.forward += started.elapsed();
        Ok(Inputs { x, original })
    }

    /// Keeps what a site saw, for every layer that reads it.
    fn keep(&mut self, tensors: &[Planned], site: Site, sums: Vec<f32>, tokens: usize) {
        for tensor in tensors.iter().filter(|t| t.spec.site() == Some(site)) {
            let entry = Entry { sums: sums.clone(), counts: vec![tokens as f32] };
            self.statistics.entries.insert(tensor.spec.gguf.clone(), entry);
        }
    }
}

/// How much an error of each rounded layer that reads a half's input counts, measured on one window.
fn responses(half: Half, tensors: &[Planned], block: &Block<'_>, batch: &Batch, positions: usize) -> Result<Vec<f64>> {
    let x = block.input(half, &batch.h.narrow(0, 0, positions)?)?;
    let layers = tensors.iter().filter(|t| t.spec.site() == Some(half.input()) && is_grid(t));
    layers
        .map(|t| match t.spec.role {
            Role::Block(part, _) => block.response(half, &x, part),
            _ => Ok(1.0),
        })
        .collect()
}

/// Whether a method chooses this tensor's codes from statistics.
pub(super) fn is_grid(tensor: &Planned) -> bool {
    tensor.spec.site().is_some() && tensor.is_rounded()
}

fn readers(tensors: &[Planned], site: Site) -> Vec<&str> {
    tensors.iter().filter(|t| t.spec.site() == Some(site)).map(|t| t.spec.source.as_str()).collect()
}

/// Multiplications per token in the linear layers of a half.
fn work(tensors: &[Planned], half: Half) -> u64 {
    let sites = [half.input(), half.inner()];
    let layers = tensors.iter().filter(|t| t.spec.site().is_some_and(|s| sites.contains(&s)));
    layers.map(|t| t.spec.elements() as u64).sum()
}

fn width(tensors: &[Planned], site: Site) -> usize {
    tensors.iter().find(|t| t.spec.site() == Some(site)).map_or(0, |t| t.spec.shape[1])
}
