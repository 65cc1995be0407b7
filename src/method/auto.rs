//! The best of all methods, site by site, by the error of the layers' outputs on windows that no Hessian has seen.
//!
//! What the others would do is among the candidates, so by this measure no site does worse than with one of these.

use super::awq::{over, plain_scales, scales_for, times, weighed};
use super::gptq::Solver;
use super::{Layer, Method, Options, Rounded, Rows, Site, Solution, Solved, diagonal};
use crate::error::Result;
use crate::grid::Grid;

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

    fn rows(&self, hessian: &[f32], columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        Rows::fed(hessian, columns, grid, options)
    }

    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution> {
        let solver = site.solver(options);
        let mut chosen = (best(site, Some(solver), None), None);
        let mut against = |candidate: Candidate, scales: Vec<f32>| {
            if candidate.loss < chosen.0.loss {
                chosen = (candidate, Some(scales));
            }
        };
        let fed_back = scales_for(solver, site);
        let plain = plain_scales(site).filter(|s| fed_back.as_ref() != Some(s));
        if let Some(s) = fed_back {
            against(best(site, Some(&solver.scaled(&s)), Some(&s)), s);
        }
        if let Some(s) = plain {
            against(best(site, None, Some(&s)), s);
        }
        let (chosen, scales) = chosen;
        Ok(Solution { scales, layers: chosen.layers, notes: solver.note().into_iter().collect() })
    }
}

/// A site's layers and their loss together.
struct Candidate {
    loss: f64,
    layers: Vec<Solved>,
}

/// Each layer by the method that suits it best, with its columns multiplied by `scales`. Without a `solver`, rounding to
/// nearest is all there is.
fn best(site: &Site, solver: Option<&Solver>, scales: Option<&[f32]>) -> Candidate {
    let plain = weighed(&diagonal(site.seen.hessian, site.columns), scales);
    let (fed_back, rounded) = if scales.is_some() { ("awq+gptq", "awq") } else { ("gptq", "rtn") };
    let mut candidate = Candidate { loss: 0.0, layers: Vec::new() };
    for layer in &site.layers {
        let of = |w: &[f32], round: &dyn Fn(&[f32], &dyn Grid) -> Rounded| match scales {
            Some(s) => round(&times(w, s), layer.grid),
            None => round(w, layer.grid),
        };
        let mut found = Vec::new();
        if let Some(solver) = solver.filter(|solver| !solver.is_plain()) {
            found.push((fed_back, of(layer.target(), &|w, grid| solver.round(w, grid))));
        }
        if layer.target.is_some() {
            found.push((rounded, of(layer.target(), &|w, grid| plain.round(w, grid))));
        }
        found.push((rounded, of(layer.w, &|w, grid| plain.round(w, grid))));
        let found = found.into_iter().map(|(method, rounded)| (loss(layer, &rounded, site, scales), method, rounded));
        // The first of equals. What has no loss at all is no match for anything.
        let order = |loss: f64| if loss.is_nan() { f64::INFINITY } else { loss };
        let (loss, method, rounded) = found
            .reduce(|best, new| if order(new.0) < order(best.0) { new } else { best })
            .expect("rounding to nearest is always there");
        candidate.loss += layer.weight * loss;
        candidate.layers.push(Solved { rounded, method });
    }
    candidate
}

fn loss(layer: &Layer, rounded: &Rounded, site: &Site, scales: Option<&[f32]>) -> f64 {
    let q = rounded.values(layer.grid);
    let q = match scales {
        Some(s) => over(q, s),
        None => q,
    };
    layer.loss(&q, site)
}
