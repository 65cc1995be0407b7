//! A mixture of experts: each is calibrated on the tokens that the router sends to it.
//!
//! Every expert has Hessians of its own, of the inputs that it gets, each weighed with the router's weight for it: that is what an
//! error of its output counts. An expert that few tokens go to knows little of how its inputs go together, so its Hessian shrinks
//! towards its diagonal; one that hardly any go to is rounded by how large the inputs of all experts are.

use super::plan::Planned;
use super::report::Clock;
use super::stream::{PRECISION, Position, Stream};
use super::{Finished, Run, check_range};
use crate::calib::hessian::Hessian;
use crate::calib::squares::Squares;
use crate::error::{Context, Result};
use crate::format::Encoding;
use crate::grid::Grid;
use crate::interrupt;
use crate::method::{self, Layer, Sample, Site as Layers};
use crate::model::block::{Block, Half};
use crate::model::matrix::Matrix;
use crate::model::routing::Route;
use crate::model::{Kind, Part, Role};
use crate::source::imatrix::Entry;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// Bytes of the Hessians that are collected in one walk over the stream.
pub(super) const MEMORY: usize = 512 << 20;

/// Experts that fewer tokens go to are not calibrated on them.
const FEW: usize = 32;

/// What the tokens of one expert say about one of its two sites.
struct Evidence {
    seen: Hessian,
    held: Hessian,
}

impl Evidence {
    fn new(columns: usize) -> Evidence {
        Evidence { seen: Hessian::new(PRECISION, columns), held: Hessian::new(PRECISION, columns) }
    }

    fn of(&mut self, held: bool) -> &mut Hessian {
        if held { &mut self.held } else { &mut self.seen }
    }

    /// The Hessians of the calibration windows and of those held out, shrunk towards their diagonals as far as few tokens
    /// demand. `others`: the mean squares of the inputs of all experts, `[columns]`.
    fn finish(self, others: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (n, tokens, of_held) = (self.seen.columns(), self.seen.tokens(), self.held.tokens());
        if tokens < FEW {
            let mut diagonal = vec![0.0; n * n];
            (0..n).for_each(|j| diagonal[j * n + j] = others[j]);
            return (diagonal.clone(), diagonal);
        }
        let mut seen = self.seen.finish();
        shrink(&mut seen, n, tokens);
        let mut held = if of_held < FEW { seen.clone() } else { self.held.finish() };
        if of_held >= FEW {
            shrink(&mut held, n, of_held);
        }
        (seen, held)
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

/// The three tensors of a block's experts.
#[derive(Clone, Copy)]
struct Stacks<'t> {
    gates: &'t Planned,
    ups: &'t Planned,
    downs: &'t Planned,
}

impl<'t> Stacks<'t> {
    fn of(tensors: &'t [Planned]) -> Option<Stacks<'t>> {
        let find = |part: Part| tensors.iter().find(|t| t.spec.role == Role::Block(part, Kind::Weight));
        Some(Stacks { gates: find(Part::ExpertGates)?, ups: find(Part::ExpertUps)?, downs: find(Part::ExpertDowns)? })
    }

    fn part(&self, part: Part) -> &'t Planned {
        match part {
            Part::ExpertGates => self.gates,
            Part::ExpertUps => self.ups,
            _ => self.downs,
        }
    }

    fn all(&self) -> [&'t Planned; 3] {
        [self.gates, self.ups, self.downs]
    }
}

/// What has been made of a stack so far, expert by expert.
#[derive(Default)]
struct Made {
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
        tensors: &'t [Planned],
        block: &Block<'_>,
        original: &Block<'_>,
        stream: &mut Stream,
        finished: &mut HashMap<&'t str, Finished>,
    ) -> Result<()> {
        let Some(stacks) = Stacks::of(tensors) else { return Ok(()) };
        let place = || format!("block {i}, experts");
        let count = stacks.gates.spec.shape[0];
        let mut made: [Made; 3] = Default::default();
        let mut tokens = Vec::new();
        // The mean squares of what all experts get and of what is inside them, for those that see nothing themselves.
        let hidden = stacks.gates.spec.columns();
        let ffn = stacks.downs.spec.columns();
        let at_once = (MEMORY / (8 * (hidden * hidden + ffn * ffn))).clamp(1, count);
        let mut everywhere: Option<Vec<f32>> = None;
        let mut routes = Vec::new();
        for first in (0..count).step_by(at_once) {
            let group = first..(first + at_once).min(count);
            let mut inputs: Vec<Evidence> = group.clone().map(|_| Evidence::new(hidden)).collect();
            let mut squares = Squares::new(hidden);
            self.walk(block, stream, &mut routes, &mut |clock, held, x, routes| {
                let started = clock.start();
                if everywhere.is_none() {
                    squares.add(x)?;
                }
                for (evidence, route) in inputs.iter_mut().zip(&routes[group.clone()]) {
                    if !route.tokens.is_empty() {
                        evidence.of(held).add(&route.weigh(&route.select(x)?)?)?;
                    }
                }
                clock.hessian += started.elapsed();
                Ok(())
            })
            .context(place)?;
            let everywhere = everywhere.get_or_insert_with(|| squares.means());
            tokens.extend(inputs.iter().map(|evidence| evidence.seen.tokens()));
            if self.rounding.keep_statistics {
                self.keep_experts(&[stacks.gates, stacks.ups], &inputs, count);
            }
            for (expert, evidence) in group.clone().zip(inputs) {
                let (seen, held) = evidence.finish(everywhere);
                self.round_experts(expert, &[(stacks.gates, 0), (stacks.ups, 1)], &seen, &held, &mut made)
                    .context(place)?;
            }
            let mut inners: Vec<Evidence> = group.clone().map(|_| Evidence::new(ffn)).collect();
            let quantized = |part: Part, expert: usize| {
                let tensor = stacks.part(part);
                let each = rows(tensor, 0).len() * tensor.kind.size(tensor.spec.columns() as u64) as usize;
                let at = if part == Part::ExpertGates { 0 } else { 1 };
                matrix(tensor, tensor.kind.decode_all(&made[at].bytes[expert * each..(expert + 1) * each]))
            };
            self.walk(block, stream, &mut routes, &mut |clock, held, x, routes| {
                for (expert, evidence) in group.clone().zip(&mut inners) {
                    let route = &routes[expert];
                    if !route.tokens.is_empty() {
                        let started = clock.start();
                        let inner = block.expert_inner(expert, &route.select(x)?, &|part| quantized(part, expert))?;
                        clock.forward += started.elapsed();
                        let started = clock.start();
                        evidence.of(held).add(&route.weigh(&inner)?)?;
                        clock.hessian += started.elapsed();
                    }
                }
                Ok(())
            })
            .context(place)?;
            if self.rounding.keep_statistics {
                self.keep_experts(&[stacks.downs], &inners, count);
            }
            let unknown = vec![1.0; ffn];
            for (expert, evidence) in group.zip(inners) {
                let (seen, held) = evidence.finish(&unknown);
                self.round_experts(expert, &[(stacks.downs, 2)], &seen, &held, &mut made).context(place)?;
            }
        }
        self.report_coverage(i, &tokens);
        for (tensor, made) in stacks.all().into_iter().zip(made) {
            let error = (!made.errors.is_empty()).then(|| made.errors.iter().sum::<f64>() / made.errors.len() as f64);
            let report = super::report::TensorReport { method: made.method, ..tensor.report(error) };
            finished.insert(&tensor.spec.gguf, Finished { bytes: made.bytes, report });
        }
        self.behind_experts(stacks, block, original, stream, finished)
    }

    /// Goes over the stream and tells what the MLP reads and where the router sends it. `routes`: those of each batch, found the
    /// first time.
    fn walk(
        &mut self,
        block: &Block<'_>,
        stream: &Stream,
        routes: &mut Vec<Vec<Route>>,
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        for (i, batch) in stream.batches().iter().enumerate() {
            interrupt::check()?;
            let position = stream.get(i)?;
            let started = self.clock.start();
            let x = block.input(Half::Mlp, &position.h, position.before())?;
            if i == routes.len() {
                routes.push(block.routes(&x)?);
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
        seen: &[f32],
        held: &[f32],
        made: &mut [Made; 3],
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
            seen: Sample { hessian: seen },
            held: Sample { hessian: held },
            layers: owned.iter().map(|(w, grid)| Layer { w, grid: *grid, weight: 1.0, target: None }).collect(),
            channels: None,
            factored: OnceLock::new(),
        };
        let solution = self.rounding.method.quantize(&site, &self.rounding.options)?;
        for ((w, grid, at), solved) in rounded.iter().zip(solution.layers) {
            let values = solved.rounded.values(*grid);
            made[*at].errors.push(method::relative(method::output_error(w, &values, columns, seen)));
            made[*at].bytes.extend(solved.rounded.store(*grid));
            made[*at].method = Some(solved.method);
            self.observer.advance(w.len() as u64 * super::report::PER_WEIGHT);
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
        stacks: Stacks<'_>,
        block: &Block<'_>,
        original: &Block<'_>,
        stream: &mut Stream,
        finished: &HashMap<&str, Finished>,
    ) -> Result<()> {
        let quantized = |part: Part, expert: usize| {
            let tensor = stacks.part(part);
            let bytes = &finished[tensor.spec.gguf.as_str()].bytes;
            let each = bytes.len() / tensor.spec.shape[0];
            matrix(tensor, tensor.kind.decode_all(&bytes[expert * each..(expert + 1) * each]))
        };
        let source = &self.plan.source;
        let as_it_was = |part: Part, expert: usize| {
            let tensor = stacks.part(part);
            matrix(tensor, source.rows(&tensor.spec, rows(tensor, expert))?)
        };
        for batch in 0..stream.batches().len() {
            interrupt::check()?;
            let started = self.clock.start();
            let Position { h, original: other, before } = stream.get(batch)?;
            let (before, other_before) = before.unwrap_or_else(|| (h.clone(), other.clone()));
            let h = block.half_of(Half::Mlp, &h, &before, &quantized)?;
            let other = match (other, other_before) {
                (Some(h), Some(before)) => Some(original.half_of(Half::Mlp, &h, &before, &as_it_was)?),
                _ => None,
            };
            self.clock.forward += started.elapsed();
            stream.put(batch, &Position { h, original: other, before: None })?;
        }
        Ok(())
    }

    /// Keeps what experts saw for an importance matrix: one column of counts for each expert.
    fn keep_experts(&mut self, tensors: &[&Planned], evidence: &[Evidence], count: usize) {
        for tensor in tensors {
            let entry = self.statistics.entries.entry(tensor.spec.gguf.clone());
            let entry = entry.or_insert_with(|| Entry { sums: Vec::new(), counts: Vec::new() });
            for evidence in evidence {
                entry.sums.extend(evidence.seen.squares());
                entry.counts.push(evidence.seen.tokens() as f32);
            }
            debug_assert!(entry.counts.len() <= count);
        }
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
        let evidence = Evidence::new(2);
        let (seen, held) = evidence.finish(&[3.0, 5.0]);
        assert_eq!(seen, [3.0, 0.0, 0.0, 5.0]);
        assert_eq!(seen, held);
    }
}
