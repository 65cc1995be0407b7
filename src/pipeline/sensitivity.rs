//! Measuring what each type would cost at each tensor: how much it moves the model's next-token distributions.
//!
//! One pass over the float model, which needs one block's weights at a time, measures three things:
//!
//! - How large the errors of a tensor's weights would be for every type, weighed by how large the inputs are; on some rows.
//! - How much an error moves the distributions. For one type, the *probe*, the tensor alone is rounded to the nearest, and a
//!   *probed stream* carries what that does to a few windows through all later blocks to the logits.
//! - How much of the error a calibrated method leaves (`feedback`).
//!
//! The Kullback-Leibler divergence of two near distributions is quadratic in the difference of their logits, which is linear
//! in the error of a layer: so one probe fixes by what factor errors count. Losses of several tensors add up, as far as their
//! errors are independent.

mod divergence;
mod extent;
mod feedback;
mod inputs;

use super::loaded_model::{embed, pairing};
use super::plan::{Plan, Planned};
use super::tensor_step::check_range;
use super::{Calibration, Rounding};
use crate::calib::squares::Squares;
use crate::error::{Context, Error, Result};
use crate::format::budget::{Cost, candidates};
use crate::format::{Encoding, Type};
use crate::interrupt;
use crate::method::{Plain, plain, relative, weight_error};
use crate::model::block::Block;
use crate::model::embedding::Embedding;
use crate::model::frame::Frame;
use crate::model::lm_head::LastNorm;
use crate::model::per_layer::PerLayerInputs;
use crate::model::states::States;
use crate::model::{Model, Part, Reads, TensorRole, TensorSpec};
use candle_core::{Device, Tensor};
use divergence::{Moved, divergences};
use extent::Extent;
use inputs::{Inputs, observe};
use std::ops::Range;

/// Rows of a tensor that errors are measured on.
const ROWS: usize = 1 << 6;

/// The relative error of a good probe: far above the noise of the arithmetic, and small enough for divergences to be
/// quadratic.
const PROBE: f64 = 0.01;

/// What types would cost at one tensor.
#[derive(Debug, Clone)]
pub struct Sensitivity {
    /// Its place in [`Plan::tensors`].
    pub tensor: usize,
    /// The types that it may get, and what they cost: bytes, and the Kullback-Leibler divergence per token, in nats.
    pub options: Vec<(Type, Cost)>,
}

/// Measures every tensor of a plan that `free` names and that the forward pass uses. `progress` is told the done and the
/// whole work, in blocks.
///
/// # Errors
/// A model that llmq cannot run, text that is too short, or a forward pass that overflows.
pub fn measure(
    plan: &Plan,
    rounding: &Rounding,
    calibration: &Calibration,
    free: &dyn Fn(&Planned) -> bool,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Sensitivity>> {
    let model = plan.model()?;
    let wanted = |t: &Planned| free(t) && t.spec.role != TensorRole::Other && !candidates(t.spec.columns()).is_empty();
    let all = plan.tensors.iter().enumerate().filter(|(_, t)| wanted(t)).map(|(at, _)| at);
    let all: Vec<usize> = all.collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let extent = Extent::new(calibration, all.len(), model.hidden);
    let windows = plan.with_tokenizer(|tokenizer| {
        calibration.corpus.windows(tokenizer, extent.windows, extent.length, calibration.seed)
    })?;
    let frame = Frame::new(model, pairing(&plan.source, model), extent.length, &Device::Cpu)?.on(&rounding.compute);
    let mut walk =
        Walk { plan, rounding, model, all, tokens: windows.concat(), length: extent.length, probes: Vec::new() };
    let mut batches = embed(&plan.source, model, &windows, &Device::Cpu)?;
    let mut clean = States::cat(&batches)?.first(extent.probed * extent.length)?;
    walk.probe_embedding(&clean)?;
    walk.probe_per_layer(&clean)?;
    for i in 0..model.blocks.len() {
        let mut block = Block::new(&frame, i);
        for spec in model.block(i) {
            block.set(&spec, plan.source.read(&spec)?)?;
        }
        walk.block(&mut block, i, &mut clean, &mut batches).context(|| format!("block {i}"))?;
        progress(i + 1, model.blocks.len() + 1);
    }
    walk.probe_output(&batches, &clean)?;
    let sensitivities = walk.finish(&clean)?;
    progress(model.blocks.len() + 1, model.blocks.len() + 1);
    Ok(sensitivities)
}

/// The errors of a tensor's weights.
struct Errors {
    /// Those of each type, relative to the tensor.
    of: Vec<(Type, f64)>,
    /// The type to probe with, and the error of the probe.
    probe: (Type, f64),
}

/// A tensor whose rounding is followed through the model.
struct Probe {
    /// Its place in [`Plan::tensors`].
    tensor: usize,
    errors: Errors,
    /// What the method leaves of the error of rounding to nearest.
    left: f64,
    /// What the probe leads to.
    states: States,
}

impl Probe {
    /// The tensor's options. `divergence`: what its probe has moved.
    fn sensitivity(&self, tensor: &Planned, divergence: f64) -> Result<Sensitivity> {
        // What no type changes costs nothing.
        let factor = if self.errors.probe.1 > 0.0 { divergence / self.errors.probe.1 } else { 0.0 };
        let elements = tensor.spec.elements() as u64;
        let options = self.errors.of.iter().map(|&(kind, error)| {
            let loss = factor * error * self.left;
            match loss.is_finite() {
                true => Ok((kind, Cost { bytes: kind.size(elements), loss })),
                false => {
                    let (kind, name) = (kind.name(), &tensor.spec.source);
                    Err(Error::new(format!("the loss of {kind} at '{name}' is {loss}"))
                        .hint("give this tensor a type yourself, with --tensor-type"))
                }
            }
        });
        Ok(Sensitivity { tensor: self.tensor, options: options.collect::<Result<_>>()? })
    }
}

/// A measurement under way.
struct Walk<'a> {
    plan: &'a Plan,
    rounding: &'a Rounding<'a>,
    model: &'a Model,
    /// The places of the tensors that are measured.
    all: Vec<usize>,
    /// All windows, one behind the other.
    tokens: Vec<u32>,
    /// Tokens per window.
    length: usize,
    probes: Vec<Probe>,
}

impl<'a> Walk<'a> {
    /// The rows of tokens in a matrix that has one for each: `[tokens, columns]`.
    fn rows_of_tokens(&self, spec: &TensorSpec, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(tokens.len() * spec.columns());
        for &token in tokens {
            rows.extend(self.plan.source.rows(spec, token as usize..token as usize + 1)?);
        }
        Ok(rows)
    }

    /// The place of a tensor, if it is to be measured.
    fn place(&self, spec: &TensorSpec) -> Option<usize> {
        self.all.iter().copied().find(|&at| self.plan.tensors[at].spec.gguf == spec.gguf)
    }

    /// Takes everything through block `i` and probes its tensors. `clean`: what is probed, `[probed tokens, hidden]`;
    /// `batches`: all windows.
    fn block(&mut self, block: &mut Block, i: usize, clean: &mut States, batches: &mut [States]) -> Result<()> {
        for probe in &mut self.probes {
            interrupt::check()?;
            probe.states = block.forward(&probe.states)?;
        }
        let (before, all_before) = (clean.clone(), batches.to_vec());
        for half in block.halves() {
            let tensors = &self.plan.tensors;
            let is_here = |&at: &usize| tensors[at].spec.block == Some(i) && tensors[at].spec.half == half;
            let here: Vec<usize> = self.all.iter().copied().filter(is_here).collect();
            let calibrated = self.rounding.method.calibrated();
            let read = |at: usize| self.plan.tensors[at].spec.reads;
            let mut all = Vec::new();
            for reads in inputs::ALL {
                if let Some(&first) = here.iter().find(|&&at| read(at) == Some(reads)) {
                    // What nobody looks at has no feedback.
                    let fed = calibrated && reads != Reads::Between;
                    all.push(Inputs::new(reads, self.plan.tensors[first].spec.columns(), fed)?);
                }
            }
            for (states, before) in batches.iter_mut().zip(&all_before) {
                interrupt::check()?;
                *states = observe(block, half, states, before, &mut all)?;
            }
            for inputs in all {
                let reads = inputs.reads;
                let (squares, left) = inputs.finish()?;
                for &at in here.iter().filter(|&&at| read(at) == Some(reads)) {
                    interrupt::check()?;
                    let tensor = &self.plan.tensors[at];
                    let w = block.numbers(&tensor.spec)?;
                    let importance = if calibrated { squares.clone() } else { self.importance(tensor) };
                    let prepared = self.plain(tensor, importance.as_deref());
                    let rows = some_rows(&w, tensor.spec.columns());
                    let errors = self.errors(tensor, &rows, &prepared, squares.as_deref())?;
                    let rounded = self.rounded(tensor, errors.probe.0, &w, &self.plain(tensor, None));
                    block.set(&tensor.spec, rounded)?;
                    let states = through(block, half..block.halves().end, clean, &before)?;
                    block.set(&tensor.spec, w)?;
                    self.probes.push(Probe { tensor: at, errors, left, states });
                }
            }
            *clean = through(block, half..half + 1, clean, &before)?;
        }
        Ok(())
    }

    /// The embedding, rounded; if it is the output matrix, too, [`Walk::finish`] does the rest. `clean`: the embedded tokens.
    ///
    /// Rows count as often as their tokens come: that is how often an embedding is used, and how often it is predicted.
    fn probe_embedding(&mut self, clean: &States) -> Result<()> {
        let Some(at) = self.place(&self.model.embedding()) else { return Ok(()) };
        let tensor = &self.plan.tensors[at];
        let prepared = self.plain(tensor, self.importance(tensor).as_deref());
        let errors = self.errors(tensor, &self.some_tokens(&tensor.spec)?, &prepared, None)?;
        let probed = clean.h.dims2()?;
        let rows = self.rows_of_tokens(&tensor.spec, &self.tokens[..probed.0])?;
        let mut rounded = self.rounded(tensor, errors.probe.0, &rows, &self.plain(tensor, None));
        let start = Embedding::new(self.model, self.length, &|spec, rows| self.plan.source.rows(spec, rows))?;
        rounded.chunks_mut(self.length * probed.1).for_each(|window| start.apply(window));
        let own = start.states(Tensor::from_vec(rounded, probed, &Device::Cpu)?)?;
        let states = States { per_layer: clean.per_layer.clone(), ..own };
        self.probes.push(Probe { tensor: at, errors, left: 1.0, states });
        Ok(())
    }

    /// The embedding of tokens for each block, where the model has one. `clean`: the embedded tokens.
    fn probe_per_layer(&mut self, clean: &States) -> Result<()> {
        let is_embedding = |spec: &TensorSpec| spec.role == TensorRole::PerLayer(Part::PER_LAYER_TOKEN_EMBD);
        let spec = self.model.per_layer_tensors().into_iter().find(is_embedding);
        let Some((at, (_, tokens))) = spec.and_then(|spec| self.place(&spec)).zip(clean.per_layer.clone()) else {
            return Ok(());
        };
        let tensor = &self.plan.tensors[at];
        let prepared = self.plain(tensor, self.importance(tensor).as_deref());
        let errors = self.errors(tensor, &self.some_tokens(&tensor.spec)?, &prepared, None)?;
        let plain = self.plain(tensor, None);
        let read = |spec: &TensorSpec, rows| {
            let rows = self.plan.source.rows(spec, rows)?;
            Ok(if is_embedding(spec) { self.rounded(tensor, errors.probe.0, &rows, &plain) } else { rows })
        };
        let inputs = PerLayerInputs::new(self.model, tokens.iter().copied(), &read)?;
        let states = States { per_layer: inputs.map(|inputs| (inputs, tokens)), ..clean.clone() };
        self.probes.push(Probe { tensor: at, errors, left: 1.0, states });
        Ok(())
    }

    /// The output matrix of a model that has one of its own. `batches`, `clean`: the last residual stream.
    fn probe_output(&mut self, batches: &[States], clean: &States) -> Result<()> {
        let Some(at) = self.place(&self.model.output()).filter(|_| !self.model.tied) else { return Ok(()) };
        let tensor = &self.plan.tensors[at];
        let mut squares = Squares::new(tensor.spec.columns());
        for states in batches {
            interrupt::check()?;
            squares.add(&self.normed(states)?).context(|| "the last norm".into())?;
        }
        let prepared = self.plain(tensor, self.importance(tensor).as_deref());
        let errors = self.errors(tensor, &self.some_tokens(&tensor.spec)?, &prepared, Some(&squares.sums()))?;
        self.probes.push(Probe { tensor: at, errors, left: 1.0, states: clean.clone() });
        Ok(())
    }

    /// From the last residual streams to what types cost.
    fn finish(mut self, clean: &States) -> Result<Vec<Sensitivity>> {
        self.probes.sort_by_key(|probe| probe.tensor);
        let output = self.model.output();
        let moved = self.probes.iter().map(|probe| {
            let tensor = &self.plan.tensors[probe.tensor];
            let states = self.normed(&probe.states)?;
            if tensor.spec.gguf != output.gguf {
                return Ok(Moved { states, output: None });
            }
            let (walk, kind) = (&self, probe.errors.probe.0);
            let prepared = self.plain(tensor, None);
            let rounded = move |rows: &[f32]| walk.rounded(tensor, kind, rows, &prepared);
            Ok(Moved { states, output: Some(Box::new(rounded)) })
        });
        let moved = moved.collect::<Result<Vec<_>>>()?;
        let rows = |range| self.plan.source.rows(&output, range);
        let found = divergences(&self.normed(clean)?, &moved, self.model, &rows)?;
        let probes = self.probes.iter().zip(found);
        probes.map(|(probe, found)| probe.sensitivity(&self.plan.tensors[probe.tensor], found)).collect()
    }

    /// What the last norm makes of the last states, `[n, hidden]`.
    fn normed(&self, states: &States) -> Result<Tensor> {
        LastNorm::new(self.model, |spec| self.plan.source.read(spec))?.apply(states)
    }

    /// The rows of some tokens, as often as the text has them.
    fn some_tokens(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tokens: Vec<u32> = evenly(self.tokens.len(), 16 * ROWS).map(|i| self.tokens[i]).collect();
        self.rows_of_tokens(spec, &tokens)
    }

    /// The errors of some rows of a tensor. `squares`: how large its inputs are.
    fn errors(&self, tensor: &Planned, rows: &[f32], prepared: &Plain, squares: Option<&[f32]>) -> Result<Errors> {
        check_range(tensor, rows)?;
        let columns = tensor.spec.columns();
        let mut of = Vec::new();
        for kind in candidates(columns) {
            let q = self.rounded(tensor, kind, rows, prepared);
            of.push((kind, relative(weight_error((0.0, 0.0), rows, &q, columns, squares))));
        }
        let far = |error: f64| (error.max(1e-12) / PROBE).ln().abs();
        let (probe, _) = *of.iter().min_by(|a, b| far(a.1).total_cmp(&far(b.1))).expect("there are candidates");
        // The whole tensor is rounded to that, without the long search that importances are worth.
        let q = self.rounded(tensor, probe, rows, &self.plain(tensor, None));
        Ok(Errors { of, probe: (probe, relative(weight_error((0.0, 0.0), rows, &q, columns, squares))) })
    }

    /// What rows of a tensor decode to once they are rounded.
    fn rounded(&self, tensor: &Planned, kind: Type, rows: &[f32], prepared: &Plain) -> Vec<f32> {
        match kind.encoding() {
            // Its bytes would be copied.
            _ if self.plan.source.gguf_type(&tensor.spec) == Some(kind) => rows.to_vec(),
            Encoding::Grid(grid) => kind.decode_all(&prepared.quantize(rows, grid)),
            Encoding::Each(_) | Encoding::ReadOnly => rows.to_vec(),
        }
    }

    /// Rounding to nearest, as the run does it.
    fn plain(&self, tensor: &Planned, importance: Option<&[f32]>) -> Plain {
        plain(tensor.spec.columns(), importance, self.plan.may_be_on_a_grid(tensor))
    }

    fn importance(&self, tensor: &Planned) -> Option<Vec<f32>> {
        let entry = self.rounding.imatrix?.entries.get(&tensor.spec.gguf)?;
        // Experts have one each, of which none stands for the others.
        if entry.counts.len() == 1 { entry.means(0) } else { None }
    }
}

/// What is behind some halves of a block.
fn through(block: &Block, halves: Range<usize>, states: &States, before: &States) -> Result<States> {
    let mut states = states.clone();
    for half in halves {
        interrupt::check()?;
        states = block.half(half, &states, before)?;
    }
    Ok(states)
}

fn some_rows(w: &[f32], columns: usize) -> Vec<f32> {
    evenly(w.len() / columns, ROWS).flat_map(|row| &w[row * columns..(row + 1) * columns]).copied().collect()
}

/// `most` of `count` places at most, evenly spread.
fn evenly(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let n = count.min(most);
    (0..n).map(move |i| i * count / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_evenly_spread() {
        assert_eq!(evenly(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(evenly(3, 4).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(0, 4).count(), 0);
    }
}
