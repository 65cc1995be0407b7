//! Asymmetric calibration: what a layer's output should be when its inputs already carry the errors of the layers before it.
//!
//! The layer sees `x` where the original model sees `x̃`, so what counts is `‖W x̃ + r − Q x‖²` instead of `‖W x − Q x‖²` (GPTAQ:
//! Li et al. 2025, equation 4). `r` is zero for a layer inside a block; for one that writes to the residual stream it is by how
//! much that is off already, which this layer may as well mend. Both are linear in `x`, so the best unrounded weights are
//! `W* = W + M·H⁻¹` with `M = E[(W(x̃ − x) + r) xᵀ]`, and `‖…‖² = tr((W*−Q) H (W*−Q)ᵀ)` up to a constant: any method rounds
//! `W*` as it would round `W`. GPTAQ's own update does the same step by step.

use super::gptq::Solver;
use super::{PART, at_once, energies, inner};
use llmq_kernels::gemm::{Old, Precision, View, product};
use rayon::prelude::*;

/// What a layer should compute.
pub struct Target {
    /// The best unrounded weights, `[rows, columns]`.
    pub w: Vec<f32>,
    /// `M` over the windows that were held out, `[rows, columns]`: the objective there is `tr(E H Eᵀ) + 2·tr(E Mᵀ)` with
    /// `E = W − Q`.
    pub pull: Vec<f32>,
    /// Which part of the step to `W*` was taken.
    pub alpha: f64,
}

/// `M = W·D` of a layer that writes to no residual stream. `w`: `[rows, columns]`; `drift`: `D = E[(x̃ − x) xᵀ]`, `[columns,
/// columns]`; result: `[rows, columns]`.
pub fn pull(w: &[f32], columns: usize, drift: &[f32]) -> Vec<f32> {
    let n = columns;
    let mut m = vec![0.0; w.len()];
    let d = View::new(drift, n, n, n);
    let each = at_once(w.len() / n) * n;
    m.par_chunks_mut(each).zip(w.par_chunks(each)).for_each(|(m, w)| {
        product(Precision::Single, m, n, Old::Replaced, 1.0, View::new(w, w.len() / n, n, n), d);
    });
    m
}

impl Target {
    /// The target of a layer, or `None` where the Hessian could not be factored. `w`: `[rows, columns]`; `m`: `M` over the
    /// calibration windows, `[rows, columns]`; `pull`: the same over the windows that were held out, and `held` their Hessian,
    /// `[columns, columns]`; `solver`: knows the inverse of the calibration windows' Hessian.
    ///
    /// How far to go is what the windows held out say, between nowhere and all the way.
    pub fn new(
        w: &[f32],
        columns: usize,
        m: Vec<f32>,
        pull: Vec<f32>,
        solver: &Solver,
        held: &[f32],
    ) -> Option<Target> {
        let step = solver.times_inverse(m)?;
        let each = at_once(step.len() / columns) * columns;
        let parts = step.par_chunks(each).zip(pull.par_chunks(each)).map(|(a, m)| {
            let along = a.chunks(PART * columns).zip(m.chunks(PART * columns)).map(|(a, m)| inner(a, m));
            along.zip(energies(a, columns, held)).collect()
        });
        let parts: Vec<Vec<(f64, f64)>> = parts.collect();
        let (along, curvature) = parts.iter().flatten().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        let alpha = if curvature > 0.0 { (along / curvature).clamp(0.0, 1.0) } else { 0.0 };
        // Where sums left single precision, there is nothing to go by.
        let alpha = if alpha > 0.0 { alpha } else { 0.0 };
        let w = match alpha > 0.0 {
            true => w.iter().zip(&step).map(|(w, a)| w + alpha as f32 * a).collect(),
            false => w.to_vec(),
        };
        Some(Target { w, pull, alpha })
    }
}
