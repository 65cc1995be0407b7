//! A mixture of experts: each is calibrated on the tokens that the router sends to it.
//!
//! Every expert has Hessians of its own, of the inputs that it gets, each weighed with the router's weight for it: that is what an
//! error of its output counts. An expert that few tokens go to knows little of how its inputs go together, so its Hessian shrinks
//! towards its diagonal; one that hardly any go to is rounded by how large the inputs of all experts are.

use super::plan::Planned;
use super::report::Clock;
use super::stream::{Position, Stream};
use super::tensor_step::check_range;
use super::{Finished, Run};
use crate::calib::hessian::Hessian;
use crate::calib::squares::Squares;
use crate::compute::Products;
use crate::error::{Context, Error, Result};
use crate::format::Encoding;
use crate::grid::Grid;
use crate::interrupt;
use crate::method::{self, Damped, Layer, REPORTED, Site as Layers, few};
use crate::model::block::Block;
use crate::model::matrix::Matrix;
use crate::model::mixer::experts::Routed;
use crate::model::mixer::routing::Route;
use crate::model::{Part, Reads};
use crate::source::imatrix::Entry;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Bytes of the Hessians that are collected in one walk over the stream.
pub(super) const MEMORY: usize = 512 << 20;

/// Experts that fewer tokens go to are not calibrated on them.
const FEW: usize = 32;

/// What the tokens of one expert say about one of its two sites.
struct ActivationStats {
    seen: Hessian,
    held: Hessian,
}

impl ActivationStats {
    fn new(products: &Products, columns: usize) -> ActivationStats {
        ActivationStats { seen: Hessian::new(products, columns), held: Hessian::new(products, columns) }
    }

    fn of(&mut self, held: bool) -> &mut Hessian {
        if held { &mut self.held } else { &mut self.seen }
    }

    /// The Hessians of the calibration windows and of those held out, shrunk towards their diagonals as far as few tokens
    /// demand. `others`: the mean squares of the inputs of all experts, `[columns]`.
    ///
    /// # Errors
    /// What computes them fails.
    fn finish(self, others: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (n, tokens, of_held) = (self.seen.columns(), self.seen.tokens(), self.held.tokens());
        if tokens < FEW {
            let mut diagonal = vec![0.0; n * n];
            (0..n).for_each(|j| diagonal[j * n + j] = others[j]);
            return Ok((diagonal.clone(), diagonal));
        }
        let mut seen = self.seen.finish()?;
        shrink(&mut seen, n, tokens);
        let mut held = if of_held < FEW { seen.clone() } else { self.held.finish()? };
        if of_held >= FEW {
            shrink(&mut held, n, of_held);
        }
        Ok((seen, held))
    }
}

/// Moves a Hessian of `n` columns towards its diagonal: from `tokens` inputs, products of different columns are known the worse
/// the fewer there are of them (Ledoit and Wolf 2004: the weight of the target falls as 1/tokens).
fn shrink(hessian: &mut [f32], n: usize, tokens: usize) {
    let keep = tokens as f32 / (tokens + n / 8) as f32;
    for (j, row) in hessian.chunks_mut(n).enumerate() {
        let diagonal = row[j];
        row.iter_mut().for_each(|x| *x *= keep);
        row[j] = diagonal;
    }
}

/// Is told of a batch whether it is held out, what the MLP reads there, and where the router sends it; books its time.
type Tell<'a> = dyn FnMut(&mut Clock, bool, &Tensor, &[Route]) -> Result<()> + 'a;

/// The tensors of a block's experts: those of their first layers, and that of their last.
#[derive(Clone)]
struct Stacks<'t> {
    all: Vec<&'t Planned>,
}

impl<'t> Stacks<'t> {
    fn of(tensors: &'t [Planned], half: usize) -> Option<Stacks<'t>> {
        let read = |reads| tensors.iter().filter(move |t| t.spec.half == half && t.spec.reads == Some(reads));
        let last = read(Reads::RoutedInner).next()?;
        Some(Stacks { all: read(Reads::Routed).chain([last]).collect() })
    }

    /// Those of the first layers.
    fn firsts(&self) -> &[&'t Planned] {
        &self.all[..self.all.len() - 1]
    }

    fn last(&self) -> &'t Planned {
        self.all[self.all.len() - 1]
    }

    /// The place of a part.
    fn place(&self, part: Part) -> Result<usize> {
        let at = self.all.iter().position(|t| t.spec.weight_of() == Some(part));
        at.ok_or_else(|| Error::new(format!("the experts have no '{}'", part.0)))
    }
}

/// What has been made of a stack so far, expert by expert.
#[derive(Default)]
struct Rounded {
    bytes: Vec<u8>,
    errors: Vec<f64>,
    method: Option<&'static str>,
}

/// The rows of one expert in a stack.
fn rows(tensor: &Planned, expert: usize) -> Range<usize> {
    let each = tensor.spec.shape[1];
    expert * each..(expert + 1) * each
}

fn matrix<'a>(tensor: &Planned, numbers: Vec<f32>) -> Result<Matrix<'a>> {
    Ok(Tensor::from_vec(numbers, (tensor.spec.shape[1], tensor.spec.shape[2]), &Device::Cpu)?.into())
}

impl Run<'_> {
    /// Quantizes the experts of block `i` and moves the stream behind its MLP. `block`: the other layers of that half, as the
    /// file will have them; `original`: as the source has them.
    pub(super) fn experts<'t>(
        &mut self,
        i: usize,
        half: usize,
        tensors: &'t [Planned],
        (block, original): (&Block<'_>, &Block<'_>),
        stream: &mut Stream,
        finished: &mut HashMap<&'t str, Finished>,
    ) -> Result<()> {
        let Some(stacks) = Stacks::of(tensors, half) else { return Ok(()) };
        let place = || format!("block {i}, experts");
        let count = stacks.last().spec.shape[0];
        let mut made: Vec<Rounded> = stacks.all.iter().map(|_| Rounded::default()).collect();
        let mut tokens = Vec::new();
        // The mean squares of what all experts get and of what is inside them, for those that see nothing themselves.
        let hidden = stacks.all[0].spec.columns();
        let ffn = stacks.last().spec.columns();
        let at_once = (MEMORY / (8 * (hidden * hidden + ffn * ffn))).clamp(1, count);
        let mut everywhere: Option<Vec<f32>> = None;
        let products = self.products();
        let mut routes = Vec::new();
        for first in (0..count).step_by(at_once) {
            let group = first..(first + at_once).min(count);
            let mut inputs: Vec<ActivationStats> =
                group.clone().map(|_| ActivationStats::new(&products, hidden)).collect();
            let mut squares = Squares::new(hidden);
            self.walk(half, block, stream, &mut routes, &mut |clock, held, x, routes| {
                let started = clock.start();
                if everywhere.is_none() {
                    squares.add(x)?;
                }
                for (stats, route) in inputs.iter_mut().zip(&routes[group.clone()]) {
                    if !route.tokens.is_empty() {
                        stats.of(held).add(&route.weigh(&route.select(x)?)?)?;
                    }
                }
                clock.hessian += started.elapsed();
                Ok(())
            })
            .context(place)?;
            let everywhere = everywhere.get_or_insert_with(|| squares.means());
            tokens.extend(inputs.iter().map(|stats| stats.seen.tokens()));
            if self.rounding.keep_statistics {
                self.keep_experts(stacks.firsts(), &inputs, count)?;
            }
            for (expert, stats) in group.clone().zip(inputs) {
                let (seen, held) = stats.finish(everywhere)?;
                let firsts: Vec<_> = stacks.firsts().iter().copied().zip(0..).collect();
                self.round_experts(expert, &firsts, seen, &held, &mut made).context(place)?;
            }
            let mut inners: Vec<ActivationStats> =
                group.clone().map(|_| ActivationStats::new(&products, ffn)).collect();
            let quantized = |part: Part, expert: usize| {
                let at = stacks.place(part)?;
                let tensor = stacks.all[at];
                let each = rows(tensor, 0).len() * tensor.kind.size(tensor.spec.columns() as u64) as usize;
                matrix(tensor, tensor.kind.decode_all(&made[at].bytes[expert * each..(expert + 1) * each]))
            };
            self.walk(half, block, stream, &mut routes, &mut |clock, held, x, routes| {
                for (expert, stats) in group.clone().zip(&mut inners) {
                    let route = &routes[expert];
                    if !route.tokens.is_empty() {
                        let started = clock.start();
                        let own = route.select(x)?;
                        let inner = block.expert_inner(half, expert, &own, &|part| quantized(part, expert))?;
                        clock.forward += started.elapsed();
                        let started = clock.start();
                        stats.of(held).add(&route.weigh(&inner)?)?;
                        clock.hessian += started.elapsed();
                    }
                }
                Ok(())
            })
            .context(place)?;
            if self.rounding.keep_statistics {
                self.keep_experts(&[stacks.last()], &inners, count)?;
            }
            let unknown = vec![1.0; ffn];
            for (expert, stats) in group.zip(inners) {
                let (seen, held) = stats.finish(&unknown)?;
                let last = [(stacks.last(), stacks.all.len() - 1)];
                self.round_experts(expert, &last, seen, &held, &mut made).context(place)?;
            }
        }
        self.report_coverage(i, &tokens);
        for (tensor, made) in stacks.all.iter().zip(made) {
            let error = (!made.errors.is_empty()).then(|| made.errors.iter().sum::<f64>() / made.errors.len() as f64);
            let report = super::report::TensorReport { method: made.method, ..tensor.report(error) };
            finished.insert(&tensor.spec.gguf, Finished { bytes: made.bytes, report });
        }
        self.behind_experts(half, &stacks, block, original, stream, finished)
    }

    /// Goes over the stream and tells what the MLP reads and where the router sends it. `routes`: those of each batch, found the
    /// first time.
    fn walk(
        &mut self,
        half: usize,
        block: &Block<'_>,
        stream: &Stream,
        routes: &mut Vec<Vec<Route>>,
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        for (i, batch) in stream.batches().iter().enumerate() {
            interrupt::check()?;
            let position = stream.get(i)?;
            let started = self.clock.start();
            let x = block.input(half, &position.states, position.before())?;
            let Some(Routed { x, routes: own }) = block.routed(half, &x, &position.states)? else { return Ok(()) };
            if i == routes.len() {
                routes.push(own);
            }
            self.clock.forward += started.elapsed();
            tell(&mut self.clock, batch.held, &x, &routes[i])?;
        }
        Ok(())
    }

    /// Rounds layers of one expert that read the same, and appends them to their stacks.
    fn round_experts(
        &mut self,
        expert: usize,
        layers: &[(&Planned, usize)],
        seen: Vec<f32>,
        held: &[f32],
        made: &mut [Rounded],
    ) -> Result<()> {
        interrupt::check()?;
        let mut rounded = Vec::new();
        for &(tensor, at) in layers {
            let started = self.clock.start();
            let w = self.plan.source.rows(&tensor.spec, rows(tensor, expert))?;
            self.clock.reading += started.elapsed();
            match tensor.kind.encoding() {
                // What comes from the same type is on its grid already.
                Encoding::Grid(grid) if tensor.is_rounded() && tensor.from != tensor.kind.name() => {
                    check_range(tensor, &w)?;
                    rounded.push((w, grid, at));
                }
                _ => {
                    let (_, bytes, _) = self.piece(tensor, rows(tensor, expert), None, None)?;
                    made[at].bytes.extend(bytes);
                }
            }
        }
        if rounded.is_empty() {
            return Ok(());
        }
        let started = self.clock.start();
        let columns = layers[0].0.spec.columns();
        let layer = |(w, grid, _): &'_ (Vec<f32>, &'static dyn Grid, usize)| (w.clone(), *grid);
        let owned: Vec<_> = rounded.iter().map(layer).collect();
        let site = Layers {
            columns,
            seen: Arc::new(Damped::new(seen, columns, self.rounding.options.damp)),
            held: Some(held),
            layers: owned
                .iter()
                .map(|(w, grid)| Layer { w, grid: *grid, weight: 1.0, target: None, outputs: None })
                .collect(),
            channels: None,
            factored: OnceLock::new(),
        };
        let solution = self.rounding.method.quantize(&site, &self.rounding.options)?;
        for ((w, grid, at), solved) in rounded.iter().zip(solution.layers) {
            let values = solved.rounded.values(*grid);
            if let Some((tensor, _)) = layers.iter().find(|(_, own)| own == at) {
                self.count_vanished(tensor, w, &values);
            }
            let [w, q] = [w, &values].map(|w| few(w, columns, REPORTED));
            made[*at].errors.push(method::relative(site.seen.output_error(&w, &q)));
            made[*at].bytes.extend(solved.rounded.store(*grid));
            made[*at].method = Some(solved.method);
            self.observer.advance(values.len() as u64 * super::report::PER_WEIGHT);
        }
        for note in &solution.notes {
            let names: Vec<&str> = layers.iter().map(|(tensor, _)| tensor.spec.gguf.as_str()).collect();
            self.note(format!("{}, expert {expert}: {note}", names.join(" and ")));
        }
        self.clock.method += started.elapsed();
        Ok(())
    }

    /// Moves the stream behind the MLP.
    fn behind_experts(
        &mut self,
        half: usize,
        stacks: &Stacks<'_>,
        block: &Block<'_>,
        original: &Block<'_>,
        stream: &mut Stream,
        finished: &HashMap<&str, Finished>,
    ) -> Result<()> {
        let quantized = |part: Part, expert: usize| {
            let tensor = stacks.all[stacks.place(part)?];
            let bytes = &finished[tensor.spec.gguf.as_str()].bytes;
            let each = bytes.len() / tensor.spec.shape[0];
            matrix(tensor, tensor.kind.decode_all(&bytes[expert * each..(expert + 1) * each]))
        };
        let source = &self.plan.source;
        let as_it_was = |part: Part, expert: usize| {
            let tensor = stacks.all[stacks.place(part)?];
            matrix(tensor, source.rows(&tensor.spec, rows(tensor, expert))?)
        };
        for batch in 0..stream.batches().len() {
            interrupt::check()?;
            let started = self.clock.start();
            let position = stream.get(batch)?;
            let states = block.half_of(half, &position.states, position.before(), &quantized)?;
            let other = position.original.as_ref();
            let of = |states| original.half_of(half, states, position.original_before(states), &as_it_was);
            let other = other.map(of).transpose()?;
            self.clock.forward += started.elapsed();
            stream.put(batch, &Position { states, original: other, before: None })?;
        }
        Ok(())
    }

    /// Keeps what experts saw for an importance matrix: one column of counts for each expert.
    fn keep_experts(&mut self, tensors: &[&Planned], stats: &[ActivationStats], count: usize) -> Result<()> {
        for tensor in tensors {
            let entry = self.statistics.entries.entry(tensor.spec.gguf.clone());
            let entry = entry.or_insert_with(|| Entry { sums: Vec::new(), counts: Vec::new() });
            for stats in stats {
                entry.sums.extend(stats.seen.squares()?);
                entry.counts.push(stats.seen.tokens() as f32);
            }
            debug_assert!(entry.counts.len() <= count);
        }
        Ok(())
    }

    /// Says how many tokens experts have seen, where some have seen few.
    fn report_coverage(&mut self, i: usize, tokens: &[usize]) {
        let few = tokens.iter().filter(|&&n| n < FEW).count();
        if few == 0 {
            return;
        }
        let mut sorted = tokens.to_vec();
        sorted.sort_unstable();
        let (least, middle, most) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        self.note(format!(
            "blk.{i}: {few} of {} experts saw fewer than {FEW} tokens and are rounded by what all experts see \
             (least {least}, median {middle}, most {most}); more --samples help",
            tokens.len()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_leave_the_diagonal() {
        let mut hessian = vec![2.0, 1.0, 1.0, 4.0];
        shrink(&mut hessian, 2, 1000);
        assert_eq!((hessian[0], hessian[3]), (2.0, 4.0));
        assert_eq!(hessian[1], 1.0);
        let n = 64;
        let mut wide = vec![1.0; n * n];
        shrink(&mut wide, n, 8);
        assert_eq!((wide[0], wide[1]), (1.0, 0.5));
        let stats = ActivationStats::new(&Products::from(crate::pipeline::PRECISION), 2);
        let (seen, held) = stats.finish(&[3.0, 5.0]).unwrap();
        assert_eq!(seen, [3.0, 0.0, 0.0, 5.0]);
        assert_eq!(seen, held);
    }
}
