//! Asymmetric calibration: what a layer's output should be when its inputs already carry the errors of the layers before it.
//!
//! The layer sees `x` where the original model sees `x̃`, so what counts is `‖W x̃ + r − Q x‖²` instead of `‖W x − Q x‖²` (GPTAQ:
//! Li et al. 2025, equation 4). `r` is zero for a layer inside a block; for one that writes to the residual stream it is by how
//! much that is off already, which this layer may as well mend. Both are linear in `x`, so the best unrounded weights are
//! `W* = W + M·H⁻¹` with `M = E[(W(x̃ − x) + r) xᵀ]`, and `‖…‖² = tr((W*−Q) H (W*−Q)ᵀ)` up to a constant: any method rounds
//! `W*` as it would round `W`. GPTAQ's own update does the same step by step.

use super::{JUDGED, at_once, energies, few, inner};
use llmq_kernels::gemm::{Old, Precision, View, product};
use llmq_kernels::memory::unwritten;
use rayon::prelude::*;

/// What a layer should compute.
pub struct Target {
    /// The best unrounded weights, `[rows, columns]`.
    pub w: Vec<f32>,
    /// `M` over the windows that were held out, of the rows that [`few`] picks: the objective there is `tr(E H Eᵀ) + 2·tr(E Mᵀ)` with
    /// `E = W − Q`.
    pub pull: Vec<f32>,
    /// Which part of the step to `W*` was taken.
    pub alpha: f64,
}

/// `M = W·D` of a layer that writes to no residual stream, or whatever else comes of its weights and a square matrix. `w`: `[rows,
/// columns]`; `drift`: `D = E[(x̃ − x) xᵀ]`, `[columns, columns]`; result: `[rows, columns]`.
pub fn pull(precision: Precision, w: &[f32], columns: usize, drift: &[f32]) -> Vec<f32> {
    let n = columns;
    let mut m = unwritten(w.len());
    let d = View::new(drift, n, n, n);
    let each = at_once(w.len() / n) * n;
    m.par_chunks_mut(each).zip(w.par_chunks(each)).for_each(|(m, w)| {
        product(precision, m, n, Old::Replaced, 1.0, View::new(w, w.len() / n, n, n), d);
    });
    m
}

impl Target {
    /// The target of a layer that can go all of a `step`, `[rows, columns]`. `w`: `[rows, columns]`; `pull`: `M` over the windows that
    /// were held out, of the rows that [`few`] picks, and `held` their Hessian, `[columns, columns]`.
    ///
    /// How far to go is what the windows held out say, between nowhere and all the way.
    pub fn new(w: &[f32], columns: usize, step: &[f32], pull: Vec<f32>, held: &[f32]) -> Target {
        let some = few(step, columns, JUDGED);
        let along: f64 = some.chunks(columns).zip(pull.chunks(columns)).map(|(a, m)| inner(a, m)).sum();
        let curvature: f64 = energies(&some, columns, held).iter().sum();
        let alpha = if curvature > 0.0 { (along / curvature).clamp(0.0, 1.0) } else { 0.0 };
        // Where sums left single precision, there is nothing to go by.
        let alpha = if alpha > 0.0 { alpha } else { 0.0 };
        let w = match alpha > 0.0 {
            true => w.iter().zip(step).map(|(w, a)| w + alpha as f32 * a).collect(),
            false => w.to_vec(),
        };
        Target { w, pull, alpha }
    }
}
