//! AWQ: activation-aware scaling (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and
//! Acceleration").
//!
//! Column `j` of every layer of a site is multiplied by `s_j`, and what makes the site's inputs divides them by `s_j`; then the
//! columns with large activations lose less to rounding. `s` is searched on the layers' own output error with the grid that
//! they will really have, `tr((Q(W·s)/s − W) H (Q(W·s)/s − W)ᵀ)`: the paper's objective (equation 4), without a forward pass for
//! each candidate.

use super::gptq::Solver;
use super::rtn::Plain;
use super::{Layer, Method, Options, Rows, Site, Solution, Solved, few};
use crate::error::Result;
use crate::grid::Grid;
use rayon::prelude::*;

/// AWQ with rounding to nearest, as in the paper.
pub struct Awq;

impl Method for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn scales(&self) -> bool {
        true
    }

    fn quantize(&self, site: &Site, _: &Options) -> Result<Solution> {
        let scales = plain_scales(site);
        let plain = weighed(&site.seen.diagonal, scales.as_deref());
        let layers = site.layers.iter().map(|layer| Solved {
            rounded: match &scales {
                Some(s) => plain.round(&times(layer.target(), s), layer.grid),
                None => plain.round(layer.target(), layer.grid),
            },
            method: if scales.is_some() { self.name() } else { "rtn" },
        });
        Ok(Solution { layers: layers.collect(), scales, notes: Vec::new() })
    }
}

/// AWQ's scales, searched for GPTQ's rounding, and that rounding.
pub struct AwqGptq;

impl Method for AwqGptq {
    fn name(&self) -> &'static str {
        "awq+gptq"
    }

    fn scales(&self) -> bool {
        true
    }

    fn rows(&self, hessian: Vec<f32>, columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        Rows::fed(hessian, columns, grid, options)
    }

    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution> {
        let solver = site.solver(options);
        let scales = scales_for(solver, site);
        let layers = site.layers.iter().map(|layer| Solved {
            rounded: layer.round(solver, scales.as_deref(), site.columns),
            method: match (scales.is_some(), solver.is_plain()) {
                (true, false) => self.name(),
                (false, false) => "gptq",
                (true, true) => "awq",
                (false, true) => "rtn",
            },
        });
        Ok(Solution { layers: layers.collect(), scales, notes: solver.note().into_iter().collect() })
    }
}

/// Rounding to nearest for columns of these mean squares, multiplied by `scales`.
pub fn weighed(squares: &[f32], scales: Option<&[f32]>) -> Plain {
    let importance: Vec<f32> = match scales {
        Some(s) => squares.iter().zip(s).map(|(h, s)| h / (s * s)).collect(),
        None => squares.to_vec(),
    };
    Plain::new(squares.len(), Some(&importance))
}

/// The scales that suit rounding to nearest best.
pub fn plain_scales(site: &Site) -> Option<Vec<f32>> {
    search(site, |layer, w, candidates| {
        let loss = |scales: &Option<Vec<f32>>| -> f64 {
            let plain = weighed(&site.seen.diagonal, scales.as_deref());
            let q = match scales {
                Some(s) => over(plain.round(&times(w, s), layer.grid).values(layer.grid), s),
                None => plain.round(w, layer.grid).values(layer.grid),
            };
            let error: Vec<f32> = w.iter().zip(&q).map(|(w, q)| w - q).collect();
            site.seen.energy(&error)
        };
        Some(candidates.par_iter().map(loss).collect())
    })
}

/// The scales that suit GPTQ's rounding best; none where the Hessian could not be factored.
pub fn scales_for(solver: &Solver, site: &Site) -> Option<Vec<f32>> {
    search(site, |layer, w, candidates| solver.drafts(w, candidates, layer.grid))
}

/// Each row of `w` times `scales`, column by column.
pub fn times(w: &[f32], scales: &[f32]) -> Vec<f32> {
    let mut out = w.to_vec();
    out.par_chunks_mut(scales.len()).for_each(|row| row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s));
    out
}

/// Undoes [`times`].
pub fn over(mut q: Vec<f32>, scales: &[f32]) -> Vec<f32> {
    q.par_chunks_mut(scales.len()).for_each(|row| row.iter_mut().zip(scales).for_each(|(q, s)| *q /= s));
    q
}

/// Rows of a layer that the search looks at.
pub const SAMPLE: usize = 64;

/// The exponents of the first round, of activations and of weights; a second one looks half as far around the best of them.
const ACTIVATION: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
const WEIGHT: [f32; 3] = [0.0, 0.5, 1.0];

/// How many pairs of exponents both rounds look at together.
pub const CANDIDATES: usize = ACTIVATION.len() * WEIGHT.len() + 8;

/// The best `s = x̄^α / w̄^β` (the released AWQ's search over both exponents), or none where no scaling is best. `losses`: the error
/// of a layer's output for given rows of it, with each of some scales; none if there is no telling.
fn search(site: &Site, losses: impl Fn(&Layer, &[f32], &[Option<Vec<f32>>]) -> Option<Vec<f64>>) -> Option<Vec<f32>> {
    let n = site.columns;
    let sizes = Sizes::of(site)?;
    let best_of = |candidates: Vec<(f32, f32)>, best: (f64, (f32, f32))| -> Option<(f64, (f32, f32))> {
        let scales: Vec<_> = candidates.iter().map(|e| (*e != (0.0, 0.0)).then(|| sizes.scales(*e))).collect();
        let mut sums = vec![0.0; candidates.len()];
        for layer in &site.layers {
            let w = few(layer.target(), n, SAMPLE);
            let times = layer.weight * layer.w.len() as f64 / w.len() as f64;
            sums.iter_mut().zip(losses(layer, &w, &scales)?).for_each(|(sum, loss)| *sum += times * loss);
        }
        Some(sums.into_iter().zip(candidates).fold(best, |best, new| if new.0 < best.0 { new } else { best }))
    };
    let first = ACTIVATION.into_iter().flat_map(|a| WEIGHT.map(|b| (a, b))).collect();
    let best = best_of(first, (f64::INFINITY, (0.0, 0.0)))?;
    let (a, b) = best.1;
    let around = [-0.125, 0.0, 0.125].into_iter().flat_map(|da| [-0.25, 0.0, 0.25].map(|db| (a + da, b + db)));
    let (_, exponents) = best_of(around.filter(|&e| e != (a, b)).collect(), best)?;
    (exponents != (0.0, 0.0)).then(|| sizes.scales(exponents))
}

/// How large the activations and the weights of each column are.
struct Sizes {
    /// `x̄`: `[columns]`.
    activations: Vec<f32>,
    /// `w̄`: `[columns]`.
    weights: Vec<f32>,
}

impl Sizes {
    /// None where nothing can absorb scales, or where there is nothing to scale by.
    fn of(site: &Site) -> Option<Sizes> {
        let (n, channels) = (site.columns, site.channels.as_ref()?);
        let mut weights = vec![0.0; n];
        let mut rows = 0;
        for layer in &site.layers {
            let group = layer.grid.group();
            for row in layer.w.chunks(n) {
                for (w, mean) in row.chunks(group).zip(weights.chunks_mut(group)) {
                    let largest = w.iter().fold(f32::MIN_POSITIVE, |a, w| a.max(w.abs()));
                    mean.iter_mut().zip(w).for_each(|(mean, w)| *mean += w.abs() / largest);
                }
                rows += 1;
            }
        }
        let weights: Vec<f32> = weights.iter().map(|w| w / rows.max(1) as f32).collect();
        let activations = per_channel(&site.seen.diagonal, channels).iter().map(|x| x.max(0.0).sqrt()).collect();
        Some(Sizes { activations, weights: per_channel(&weights, channels) })
    }

    /// `s = x̄^α / w̄^β`, centred on one. Where a column's activations or weights are all zero, nothing is scaled.
    fn scales(&self, (alpha, beta): (f32, f32)) -> Vec<f32> {
        let raw = self
            .activations
            .iter()
            .zip(&self.weights)
            .map(|(x, w)| if *x > 0.0 && *w > 0.0 { x.powf(alpha) * w.powf(-beta) } else { 0.0 });
        let raw: Vec<f32> = raw.collect();
        let live = || raw.iter().copied().filter(|&s| s > 0.0);
        let centre = live().fold(f32::INFINITY, f32::min).sqrt() * live().fold(0.0, f32::max).sqrt();
        raw.iter().map(|&s| if s > 0.0 { (s / centre).clamp(1e-2, 1e2) } else { 1.0 }).collect()
    }
}

/// The mean over the columns that each channel makes, at each of them.
fn per_channel(x: &[f32], channels: &[usize]) -> Vec<f32> {
    let count = channels.iter().max().map_or(0, |m| m + 1);
    let (mut sums, mut counts) = (vec![0.0; count], vec![0.0f32; count]);
    for (x, &c) in x.iter().zip(channels) {
        sums[c] += x;
        counts[c] += 1.0;
    }
    channels.iter().map(|&c| sums[c] / counts[c]).collect()
}
