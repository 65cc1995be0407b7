//! One block of a calibrated run: statistics, rounding, and the quantized outputs that feed what comes next.

use super::kept::Kept;
use super::plan::Planned;
use super::solve::Pending;
use super::stream::{Position, Stream};
use super::{Finished, Run};
use crate::calib::activation_stats::{ActivationStats, FinishedStats};
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::interrupt;
use crate::model::block::Block;
use crate::model::mixer::Place;
use crate::model::ops;
use crate::model::{Site, TensorRole};
use crate::source::imatrix::Entry;
use candle_core::Tensor;
use std::collections::HashMap;

/// What goes into a layer of both models.
struct Inputs {
    x: Tensor,
    original: Option<Tensor>,
}

/// What the windows say about a site.
pub(super) struct Statistics {
    /// The calibration windows.
    pub seen: FinishedStats,
    /// Those that were held out, if some were.
    pub held: Option<FinishedStats>,
}

impl Run<'_> {
    /// Quantizes and writes block `i`; afterwards the stream is that behind the quantized block.
    pub(super) fn calibrated_block(&mut self, i: usize, tensors: &[Planned], stream: &mut Stream) -> Result<()> {
        let tokens = stream.tokens();
        let frame = stream.frame().clone();
        let mut finished: HashMap<&str, Finished> = HashMap::new();
        for tensor in tensors.iter().filter(|t| t.spec.role == TensorRole::Other) {
            finished.insert(&tensor.spec.gguf, self.whole(tensor)?);
        }
        let last = i + 1 == self.plan.blocks().len();
        let last_half = self.plan.model()?.blocks[i].halves.len() - 1;
        for half in 0..self.plan.model()?.blocks[i].halves.len() {
            let work = self.work_of(tensors, half) * tokens as u64;
            // Batches go through a half for each of its two sites, and once more for its output; the rest is rounding.
            let unit = work / 4 / stream.batches().len() as u64;
            let mut done = 0;
            // Only one half's weights are there at a time.
            let mut block = Block::new(&frame, i);
            self.load(i, half, tensors, &mut block, &mut finished)?;
            let mut original = block.clone();
            let mut pending: HashMap<&str, Pending> = HashMap::new();
            let routed = block.experts(half).is_some();
            // Behind the last block only an output matrix reads the stream.
            let goes_on = !(last && half == last_half) || self.plan.tail().iter().any(|t| self.calibrates_output(t));
            // Both sites of the half in turn; the second sees what the first has become.
            let mut inner = None;
            for site in Place::ALL.map(|place| Site { half, place }) {
                let place = || format!("block {i}, input of {}", readers(tensors, site).join(", "));
                let is_inner = site.is_inner();
                let what = layers(tensors, site).join(", ");
                self.phase(Some(i), &format!("calibrating {what}"));
                let keep = is_inner && goes_on && !routed;
                let keep = keep.then(|| stream.keep(width(tensors, site), self.rounding.keep)).transpose()?;
                let kept = self.see(site, tensors, &block, &original, stream, keep, (unit, &mut done));
                let Some((statistics, kept)) = kept.context(place)? else { continue };
                if kept.is_some() {
                    // What goes into its last layer stays what it is.
                    block.keep_last(half, tensors.iter().map(|t| &t.spec));
                    original.keep_last(half, tensors.iter().map(|t| &t.spec));
                }
                let weights = match is_inner {
                    true => vec![1.0],
                    false => responses(half, tensors, &block, &stream.get(0)?, frame.positions())?,
                };
                self.phase(Some(i), &format!("rounding {what}"));
                let scales =
                    self.solve(site, statistics, &weights, tensors, &mut block, &mut finished, &mut pending)?;
                inner = kept.map(|kept| (kept, scales));
            }
            for (name, pending) in pending {
                let tensor = tensors.iter().find(|t| t.spec.gguf == name).expect("it was solved as one of these");
                finished.insert(name, self.finish(tensor, &pending)?);
            }
            if routed {
                self.phase(Some(i), "calibrating and rounding experts");
                self.experts(i, half, tensors, (&block, &original), stream, &mut finished)?;
                if half == last_half {
                    stream.end_of_block()
                } else {
                    stream.end_of_half()
                }
                self.observer.advance(work.saturating_sub(done));
                continue;
            }
            if goes_on {
                self.phase(Some(i), "running what was rounded");
                for batch in 0..stream.batches().len() {
                    interrupt::check()?;
                    let mut position = stream.get(batch)?;
                    let inputs = match &mut inner {
                        Some((kept, scales)) => {
                            let (x, original) = kept.take(batch)?;
                            Inputs { x: divided(x, scales.as_deref())?, original }
                        }
                        None => self.inputs(Site { half, place: Place::Inner }, &block, &original, &position)?,
                    };
                    let started = self.clock.start();
                    let own = block.output(half, &position.states, position.before(), &inputs.x)?;
                    if let (Some(states), Some(x)) = (&position.original, &inputs.original) {
                        let other = original.output(half, states, position.original_before(states), x)?;
                        position.original = Some(other);
                    }
                    position.states = own;
                    self.clock.forward += started.elapsed();
                    stream.put(batch, &position)?;
                    self.observer.advance(unit);
                    done += unit;
                }
                if half == last_half { stream.end_of_block() } else { stream.end_of_half() }
            }
            self.observer.advance(work.saturating_sub(done));
        }
        for tensor in tensors {
            let done = finished.remove(tensor.spec.gguf.as_str()).expect("every tensor of the block was quantized");
            self.write(tensor, done)?;
        }
        Ok(())
    }

    /// Reads the weights of a half: those that will be rounded as they are in the source, others as the file will have them.
    fn load<'t>(
        &mut self,
        i: usize,
        half: usize,
        tensors: &'t [Planned],
        block: &mut Block<'_>,
        finished: &mut HashMap<&'t str, Finished>,
    ) -> Result<()> {
        let config = &self.plan.model()?.blocks[i].halves[half];
        for tensor in tensors {
            match tensor.spec.role {
                // Experts are read one by one.
                TensorRole::Block(..) if tensor.spec.is_of_experts() => continue,
                // A norm may be shared with an earlier half, which has finished it.
                TensorRole::Block(part, _) if tensor.spec.half == half || config.needs(part) => {}
                _ => continue,
            }
            if let Some(done) = finished.get(tensor.spec.gguf.as_str()) {
                block.set(&tensor.spec, tensor.kind.decode_all(&done.bytes))?;
                continue;
            }
            if is_grid(tensor) {
                block.set(&tensor.spec, self.read(&tensor.spec)?)?;
            } else {
                let done = self.whole(tensor)?;
                block.set(&tensor.spec, tensor.kind.decode_all(&done.bytes))?;
                finished.insert(&tensor.spec.gguf, done);
            }
        }
        Ok(())
    }

    /// Collects what the windows say about a site that a method has something to do at. `keep`: where its inputs are kept, if they are;
    /// `done` grows by the work of a `unit` with each batch.
    #[allow(clippy::too_many_arguments)]
    fn see(
        &mut self,
        site: Site,
        tensors: &[Planned],
        block: &Block<'_>,
        original: &Block<'_>,
        stream: &Stream,
        mut keep: Option<Kept>,
        (unit, done): (u64, &mut u64),
    ) -> Result<Option<(Statistics, Option<Kept>)>> {
        let columns = width(tensors, site);
        let method = tensors.iter().any(|t| t.spec.site() == Some(site) && is_grid(t));
        let keeps = self.rounding.keep_statistics && columns > 0;
        if !method && !keeps {
            return Ok(None);
        }
        let compare = stream.batches().iter().any(|batch| batch.compared);
        // What is off: the inputs of a half's first layers; where its last one adds to the residual stream, that sum.
        let off = if site.is_inner() { self.plan.model()?.hidden } else { columns };
        let drift = compare.then_some(off);
        let mut seen = ActivationStats::new(self.products(), columns, drift);
        let mut held = ActivationStats::triangle(self.products(), columns, drift);
        let mut squares = Squares::new(columns);
        for (i, batch) in stream.batches().iter().enumerate() {
            interrupt::check()?;
            let position = stream.get(i)?;
            let inputs = self.inputs(site, block, original, &position)?;
            let started = self.clock.start();
            if method {
                let sums = if batch.held { &mut held } else { &mut seen };
                let off = match (&inputs.original, &position.original) {
                    (Some(x), Some(_)) if !site.is_inner() => Some(ops::difference(x, &inputs.x)?),
                    (Some(x), Some(other)) => {
                        let own = block.difference(site.half, &ops::difference(x, &inputs.x)?)?;
                        match block.owed(site.half, ops::difference(&other.h, &position.states.h)?)? {
                            Some(owed) => Some(ops::sum(&own, &owed)?),
                            None => Some(own),
                        }
                    }
                    _ => None,
                };
                sums.add(&inputs.x, off.as_ref())?;
            }
            if keeps {
                squares.add(&inputs.x)?;
            }
            self.clock.hessian += started.elapsed();
            if let Some(keep) = &mut keep {
                keep.push(i, &inputs.x, inputs.original.as_ref())?;
            }
            self.observer.advance(unit);
            *done += unit;
        }
        if keeps {
            self.keep(tensors, site, squares.sums(), squares.tokens());
        }
        if !method {
            return Ok(None);
        }
        let held = (held.tokens() > 0).then(|| held.finish()).transpose()?;
        Ok(Some((Statistics { seen: seen.finish()?, held }, keep)))
    }

    /// What a batch brings to a site.
    fn inputs(&mut self, site: Site, block: &Block<'_>, original: &Block<'_>, position: &Position) -> Result<Inputs> {
        let started = self.clock.start();
        let x = block.at(site.place, site.half, &position.states, position.before())?;
        let other = position.original.as_ref();
        let of = |states| original.at(site.place, site.half, states, position.original_before(states));
        let original = other.map(of).transpose()?;
        self.clock.forward += started.elapsed();
        Ok(Inputs { x, original })
    }

    /// Multiplications per token in the layers of a half.
    fn work_of(&self, tensors: &[Planned], half: usize) -> u64 {
        let here = |t: &&Planned| matches!(t.spec.role, TensorRole::Block(..)) && t.spec.half == half;
        self.plan.work(tensors.iter().filter(here))
    }

    /// Keeps what a site saw, for every layer that reads it.
    fn keep(&mut self, tensors: &[Planned], site: Site, sums: Vec<f32>, tokens: usize) {
        for tensor in tensors.iter().filter(|t| t.spec.site() == Some(site)) {
            let entry = Entry { sums: sums.clone(), counts: vec![tokens as f32] };
            self.statistics.entries.insert(tensor.spec.gguf.clone(), entry);
        }
    }
}

/// Inner activations, `[tokens, columns]`, whose channels come divided from what makes them now. What that has rounded its channels'
/// scales to in the file, a thousandth of one at most, is left out.
fn divided(x: Tensor, scales: Option<&[f32]>) -> Result<Tensor> {
    let Some(scales) = scales else { return Ok(x) };
    Ok(ops::divide_columns(&x, scales)?)
}

/// How much an error of each rounded layer that reads a half's input counts, measured on one window.
fn responses(half: usize, tensors: &[Planned], block: &Block<'_>, at: &Position, positions: usize) -> Result<Vec<f64>> {
    let (states, before) = (at.states.first(positions)?, at.before().first(positions)?);
    let x = block.input(half, &states, &before)?;
    let site = Site { half, place: Place::Input };
    let layers = tensors.iter().filter(|t| t.spec.site() == Some(site) && is_grid(t));
    layers.filter_map(|t| t.spec.weight_of()).map(|part| block.response(half, &x, &states, part)).collect()
}

/// Whether a method chooses this tensor's codes from statistics.
pub(super) fn is_grid(tensor: &Planned) -> bool {
    tensor.spec.site().is_some() && tensor.is_rounded()
}

fn readers(tensors: &[Planned], site: Site) -> Vec<&str> {
    tensors.iter().filter(|t| t.spec.site() == Some(site)).map(|t| t.spec.source.as_str()).collect()
}

/// The parts of a block that read a site, as GGUF calls them.
fn layers(tensors: &[Planned], site: Site) -> Vec<&str> {
    let short = |t: &Planned| {
        let name = t.spec.gguf.strip_suffix(".weight").unwrap_or(&t.spec.gguf);
        name.rfind('.').map_or(0, |dot| dot + 1)..name.len()
    };
    tensors.iter().filter(|t| t.spec.site() == Some(site)).map(|t| &t.spec.gguf[short(t)]).collect()
}

fn width(tensors: &[Planned], site: Site) -> usize {
    tensors.iter().find(|t| t.spec.site() == Some(site)).map_or(0, |t| t.spec.shape[1])
}
