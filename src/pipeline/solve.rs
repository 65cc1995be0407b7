//! A site's layers, rounded together; and scales folded into what comes before them.

use super::block_step::{Statistics, is_grid};
use super::plan::Planned;
use super::stream::PRECISION;
use super::tensor_step::{check_range, convert};
use super::{Finished, Run};
use crate::error::Result;
use crate::format::Encoding;
use crate::grid::{Grid, Supers};
use crate::interrupt;
use crate::method::{
    self, Damped, JUDGED, Layer, OutputFeedback, QuantizedMatrix, REPORTED, Solver, Target, few, over, pull, times,
};
use crate::model::block::Block;
use crate::model::part::Absorber;
use crate::model::{Kind, Part, Site, TensorRole};
use llmq_kernels::gemm::Precision;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// A rounded tensor whose rows may still be divided by what the next site asks for.
pub(super) struct Pending {
    rounded: QuantizedMatrix,
    grid: &'static dyn Grid,
    error: f64,
    method: &'static str,
}

impl Run<'_> {
    /// Quantizes every layer that reads a site and puts what the file will hold in its place. Returns by what the site's
    /// inputs are divided from now on. `weights`: how much an error of each of these layers counts.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn solve<'t>(
        &mut self,
        site: Site,
        statistics: Statistics,
        weights: &[f64],
        tensors: &'t [Planned],
        block: &mut Block<'_>,
        finished: &mut HashMap<&'t str, Finished>,
        pending: &mut HashMap<&'t str, Pending>,
    ) -> Result<Option<Vec<f32>>> {
        let started = self.clock.start();
        let readers: Vec<&Planned> = tensors.iter().filter(|t| t.spec.site() == Some(site)).collect();
        let solved: Vec<&Planned> = readers.iter().copied().filter(|t| is_grid(t)).collect();
        let columns = solved[0].spec.columns();
        let originals = solved.iter().map(|t| block.numbers(&t.spec)).collect::<Result<Vec<_>>>()?;
        let Statistics { mut seen, mut held } = statistics;
        // Without windows that were held out nobody can say how far a layer should go to mend what is off.
        let drifts = held.as_mut().and_then(|held| seen.drift.take().zip(held.drift.take()));
        let held = held.as_ref().map(|held| held.hessian.as_slice());
        let options = &self.rounding.options;
        let mut layers = Vec::new();
        for ((tensor, w), &weight) in solved.iter().zip(&originals).zip(weights) {
            let Encoding::Grid(grid) = tensor.kind.encoding() else { unreachable!("it is rounded to codes") };
            check_range(tensor, w)?;
            let g = self.outputs.as_ref().map(|all| all.get(&tensor.spec.gguf)).transpose()?.flatten();
            let outputs = g.map(|g| OutputFeedback::new(&g, tensor.spec.rows()));
            layers.push(Layer { w, grid, weight, target: None, outputs });
        }
        let mut site_of_method = method::Site {
            columns,
            seen: Arc::new(Damped::new(seen.hessian, columns, options.damp)),
            held,
            layers,
            channels: self.channels(site, tensors, pending)?,
            factored: OnceLock::new(),
        };
        if let (Some(drifts), Some(held)) = (drifts, held) {
            let targets = targets(site, &originals, drifts, site_of_method.solver(options), columns, held);
            let layers = site_of_method.layers.iter_mut();
            layers.zip(targets.into_iter().flatten()).for_each(|(layer, target)| layer.target = Some(target));
        }
        let mut solution = self.rounding.method.quantize(&site_of_method, options)?;
        if let (Some(scales), Some(absorber)) = (&solution.scales, self.absorber(site, tensors)?) {
            let own = find(tensors, absorber.part, Kind::Weight).and_then(|t| pending.get(t.spec.gguf.as_str()));
            let holds = |p: &Pending| p.rounded.can_scale_rows(&absorber.factors(scales), &p.grid.freedom());
            if !own.is_none_or(holds) {
                // As if nothing could be scaled.
                site_of_method.channels = None;
                solution = self.rounding.method.quantize(&site_of_method, options)?;
            }
        }
        let method::Site { layers, seen, .. } = site_of_method;
        for ((tensor, layer), solved) in solved.iter().zip(&layers).zip(solution.layers) {
            interrupt::check()?;
            let values = solved.rounded.values(layer.grid);
            let own = few(&values, columns, REPORTED);
            let own = match &solution.scales {
                Some(s) => over(own.into_owned(), s).into(),
                None => own,
            };
            let wanted = few(layer.target(), columns, REPORTED);
            let error = method::relative(seen.output_error(&wanted, &own));
            // Another solution may take the place of this one.
            self.vanished.remove(&tensor.spec.gguf);
            self.count_vanished(tensor, layer.w, &values);
            block.set(&tensor.spec, values)?;
            let Encoding::Grid(grid) = tensor.kind.encoding() else { unreachable!("it is rounded to codes") };
            let found = Pending { rounded: solved.rounded, grid, error, method: solved.method };
            pending.insert(&tensor.spec.gguf, found);
            for note in &solution.notes {
                self.note(format!("{}: {note}", tensor.spec.gguf));
            }
            self.observer.advance(layer.w.len() as u64 * super::report::PER_WEIGHT);
        }
        if let Some(scales) = &solution.scales {
            for tensor in readers.iter().filter(|t| !is_grid(t)) {
                let scaled = times(&self.read(&tensor.spec)?, scales);
                self.replace(tensor, &scaled, block, finished)?;
            }
            self.absorb(site, scales, tensors, block, finished, pending)?;
        }
        self.clock.method += started.elapsed();
        Ok(solution.scales)
    }

    /// Which channel of the tensor before a site makes each of its columns; none if that tensor, or one of the layers, cannot
    /// be scaled.
    fn channels(
        &self,
        site: Site,
        tensors: &[Planned],
        pending: &HashMap<&str, Pending>,
    ) -> Result<Option<Vec<usize>>> {
        let Some(Absorber { part, channels, .. }) = self.absorber(site, tensors)? else { return Ok(None) };
        let absorbs = |t: &Planned| match pending.get(t.spec.gguf.as_str()) {
            Some(pending) => pending.grid.freedom().supers == Supers::Half,
            None => !t.kind.is_quantized(),
        };
        let scales = |t: &&Planned| t.spec.site() != Some(site) || is_grid(t) || !t.kind.is_quantized();
        let possible = find(tensors, part, Kind::Weight).is_some_and(absorbs) && tensors.iter().all(|t| scales(&t));
        Ok(possible.then_some(channels))
    }

    /// What can absorb factors of a site's channels.
    fn absorber(&self, site: Site, tensors: &[Planned]) -> Result<Option<Absorber>> {
        let model = self.plan.model()?;
        Ok(place_of(tensors).and_then(|block| model.blocks[block].absorber(site, model.hidden)))
    }

    /// Divides the channels of the tensor before a site by its scales.
    fn absorb<'t>(
        &mut self,
        site: Site,
        scales: &[f32],
        tensors: &'t [Planned],
        block: &mut Block<'_>,
        finished: &mut HashMap<&'t str, Finished>,
        pending: &mut HashMap<&'t str, Pending>,
    ) -> Result<()> {
        let Some(absorber) = self.absorber(site, tensors)? else { return Ok(()) };
        let part = absorber.part;
        let Some(own) = find(tensors, part, Kind::Weight) else { return Ok(()) };
        let mut factors = absorber.factors(scales);
        // Channels of a layer are its rows, those of a norm its numbers.
        factors.resize(if own.spec.reads.is_some() { own.spec.shape[0] } else { own.spec.elements() }, 1.0);
        for kind in [Kind::Weight, Kind::Bias] {
            let Some(tensor) = find(tensors, part, kind) else { continue };
            if let Some(pending) = pending.get_mut(tensor.spec.gguf.as_str()) {
                pending.rounded.scale_rows(&factors, &pending.grid.freedom());
                block.set(&tensor.spec, pending.rounded.values(pending.grid))?;
                continue;
            }
            let mut numbers = self.read(&tensor.spec)?;
            let row = numbers.len() / factors.len();
            for (row, factor) in numbers.chunks_mut(row).zip(&factors) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
            self.replace(tensor, &numbers, block, finished)?;
        }
        Ok(())
    }

    /// Puts other numbers in the place of a tensor that is not rounded to codes.
    fn replace<'t>(
        &mut self,
        tensor: &'t Planned,
        numbers: &[f32],
        block: &mut Block<'_>,
        finished: &mut HashMap<&'t str, Finished>,
    ) -> Result<()> {
        let bytes = convert(tensor, numbers)?;
        let values = tensor.kind.decode_all(&bytes);
        self.vanished.remove(&tensor.spec.gguf);
        self.count_vanished(tensor, numbers, &values);
        block.set(&tensor.spec, values)?;
        finished.insert(&tensor.spec.gguf, Finished { bytes, report: tensor.report(None) });
        Ok(())
    }

    /// The bytes of a rounded tensor.
    pub(super) fn finish(&mut self, tensor: &Planned, pending: &Pending) -> Result<Finished> {
        let started = self.clock.start();
        let bytes = pending.rounded.store(pending.grid);
        self.clock.method += started.elapsed();
        let report = super::report::TensorReport { method: Some(pending.method), ..tensor.report(Some(pending.error)) };
        Ok(Finished { bytes, report })
    }
}

/// What each layer should compute; none where the Hessian could not be factored. `drifts`: by how much the inputs of a half's first
/// layers are off, or what its last one adds to, over the calibration windows and over those that were held out.
fn targets(
    site: Site,
    originals: &[Vec<f32>],
    drifts: (Vec<f32>, Vec<f32>),
    solver: &Solver,
    columns: usize,
    held: &[f32],
) -> Option<Vec<Target>> {
    let (seen, of_held) = drifts;
    // M·H⁻¹, or D·H⁻¹, of which W makes that for each layer.
    let step = solver.times_inverse(seen)?;
    let target = |w: &Vec<f32>| match site.is_inner() {
        true => Target::new(w, columns, &step, few(&of_held, columns, JUDGED).into_owned(), held),
        false => {
            let of_held = pull(Precision::Single, &few(w, columns, JUDGED), columns, &of_held);
            Target::new(w, columns, &pull(PRECISION, w, columns, &step), of_held, held)
        }
    };
    Some(originals.iter().map(target).collect())
}

/// Which block tensors are of.
fn place_of(tensors: &[Planned]) -> Option<usize> {
    tensors.first().and_then(|t| t.spec.block)
}

fn find(tensors: &[Planned], part: Part, kind: Kind) -> Option<&Planned> {
    tensors.iter().find(|t| t.spec.role == TensorRole::Block(part, kind))
}
