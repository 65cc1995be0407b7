//! The best of all methods, site by site, by the error of the layers' outputs on windows that no Hessian has seen.
//!
//! What the others would do is among the candidates, so by this measure no site does worse than with one of these. A few rows of each
//! layer decide; all rows are rounded once, in the way that won.

use super::awq::{over, plain_scales, scales_for, times, weighed};
use super::gptq::Solver;
use super::{JUDGED, Layer, Method, Options, QuantizedMatrix, Rows, Site, Solution, Solved, few};
use crate::error::Result;
use crate::grid::Grid;
use rayon::prelude::*;

/// The default.
pub struct Auto;

impl Method for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn chooses(&self) -> bool {
        true
    }

    fn scales(&self) -> bool {
        true
    }

    fn rows(&self, hessian: Vec<f32>, columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        Rows::fed(hessian, columns, grid, options)
    }

    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution> {
        let solver = site.solver(options);
        let mut best = judged(site, solver, None, true);
        if let Some(s) = scales_for(solver, site) {
            best = best.or(judged(site, solver, Some(s), true));
        }
        // Scales that suit rounding to nearest are worth a look only where that does best.
        if best.ways.iter().any(|(way, _)| !way.fed_back)
            && let Some(s) = plain_scales(site).filter(|s| best.scales.as_ref() != Some(s))
        {
            best = best.or(judged(site, solver, Some(s), false));
        }
        let Candidate { ways, scales, .. } = best;
        let layers = site.layers.iter().zip(ways).map(|(layer, (way, rounded))| {
            let w = if way.target { layer.target() } else { layer.w };
            let rounded = match layer.w.len() / site.columns <= JUDGED {
                _ if way.fed_back && layer.outputs.is_some() => layer.round(solver, scales.as_deref(), site.columns),
                true => rounded,
                false => way.round(w, layer.grid, site, solver, scales.as_deref()),
            };
            let method = match (way.fed_back, scales.is_some()) {
                (true, true) => "awq+gptq",
                (true, false) => "gptq",
                (false, true) => "awq",
                (false, false) => "rtn",
            };
            Solved { rounded, method }
        });
        Ok(Solution { layers: layers.collect(), scales, notes: solver.note().into_iter().collect() })
    }
}

/// A way to round a layer.
#[derive(Clone, Copy)]
struct Way {
    /// With error feedback, instead of to the nearest.
    fed_back: bool,
    /// Towards the layer's target, instead of its weights.
    target: bool,
}

impl Way {
    /// Rounds rows of a layer. `w`: `[rows, columns]`.
    fn round(
        self,
        w: &[f32],
        grid: &dyn Grid,
        site: &Site,
        solver: &Solver,
        scales: Option<&[f32]>,
    ) -> QuantizedMatrix {
        if self.fed_back {
            return solver.round(w, scales, grid);
        }
        let plain = weighed(&site.seen.diagonal, scales);
        scales.map_or_else(|| plain.round(w, grid), |s| plain.round(&times(w, s), grid))
    }
}

/// One way for each of a site's layers, and what they lose together.
struct Candidate {
    loss: f64,
    scales: Option<Vec<f32>>,
    /// With the rows that they are judged by.
    ways: Vec<(Way, QuantizedMatrix)>,
}

impl Candidate {
    /// The better of two, the first of equals.
    fn or(self, other: Candidate) -> Candidate {
        if other.loss < self.loss { other } else { self }
    }
}

/// Each layer by the way that suits it best, with its columns multiplied by `scales`, as a few rows tell it. `fed_back`:
/// error feedback is among the ways.
fn judged(site: &Site, solver: &Solver, scales: Option<Vec<f32>>, fed_back: bool) -> Candidate {
    let fed_back = (fed_back && !solver.is_plain()).then_some(Way { fed_back: true, target: true });
    let best = |layer: &Layer| {
        let targeted = layer.target.is_some().then_some(Way { fed_back: false, target: true });
        let ways: Vec<Way> =
            fed_back.into_iter().chain(targeted).chain([Way { fed_back: false, target: false }]).collect();
        let tried = ways.into_par_iter().map(|way| {
            let w = few(if way.target { layer.target() } else { layer.w }, site.columns, JUDGED);
            let rounded = way.round(&w, layer.grid, site, solver, scales.as_deref());
            let q = rounded.values(layer.grid);
            let q = if let Some(s) = &scales { over(q, s) } else { q };
            (layer.loss(&q, site), way, rounded)
        });
        // The first of equals. What has no loss at all is no match for anything.
        let order = |loss: f64| if loss.is_nan() { f64::INFINITY } else { loss };
        let tried: Vec<_> = tried.collect();
        let best = tried.into_iter().reduce(|best, new| if order(new.0) < order(best.0) { new } else { best });
        best.expect("rounding to nearest is always there")
    };
    let found: Vec<_> = site.layers.par_iter().map(best).collect();
    let loss = site.layers.iter().zip(&found).map(|(layer, (loss, ..))| layer.weight * loss).sum();
    Candidate { loss, scales, ways: found.into_iter().map(|(_, way, rounded)| (way, rounded)).collect() }
}
