//! Asymmetric calibration: what a layer's output should be when its inputs already carry the errors of the layers before it.
//!
//! The layer sees `x` where the original model sees `x̃`, so what counts is `‖W x̃ + r − Q x‖²` instead of `‖W x − Q x‖²` (GPTAQ:
//! Li et al. 2025, equation 4). `r` is zero for a layer inside a block; for one that writes to the residual stream it is by how
//! much that is off already, which this layer may as well mend. Both are linear in `x`, so the best unrounded weights are
//! `W* = W + M·H⁻¹` with `M = E[(W(x̃ − x) + r) xᵀ]`, and `‖…‖² = tr((W*−Q) H (W*−Q)ᵀ)` up to a constant: any method rounds
//! `W*` as it would round `W`. GPTAQ's own update does the same step by step.

use super::{energy, inner};
use llmq_kernels::gemm::{self, Old, View, product};
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

/// How the inputs of a layer, and what it adds to, differ from those of the original model.
#[derive(Debug, Clone, Copy)]
pub struct Drift<'a> {
    /// `E[(x̃ − x) xᵀ]`: `[columns, columns]`.
    pub inputs: &'a [f32],
    /// `E[r xᵀ]`: `[rows, columns]`, for a layer that writes to the residual stream.
    pub residual: Option<&'a [f32]>,
}

impl Drift<'_> {
    /// `M`: `[rows, columns]`.
    fn pull(&self, w: &[f32], columns: usize) -> Vec<f32> {
        let n = columns;
        let mut m = self.residual.map_or_else(|| vec![0.0; w.len()], <[f32]>::to_vec);
        let d = View::new(self.inputs, n, n, n);
        m.par_chunks_mut(super::PART * n).zip(w.par_chunks(super::PART * n)).for_each(|(m, w)| {
            product(m, n, Old::Kept, 1.0, View::new(w, w.len() / n, n, n), d);
        });
        m
    }
}

impl Target {
    /// The target of a layer. `w`: `[rows, columns]`; `inverse`: the inverse of the damped Hessian, `[columns, columns]`;
    /// `held`: the Hessian of the windows that were held out.
    ///
    /// How far to go is what these windows say, between nowhere and all the way.
    pub fn new(w: &[f32], columns: usize, seen: Drift, held: Drift, inverse: &[f32], held_hessian: &[f32]) -> Target {
        let pull = held.pull(w, columns);
        let m = seen.pull(w, columns);
        let mut step = vec![0.0; w.len()]; // M·H⁻¹, the inverse being symmetric
        gemm::linear(&m, inverse, columns, &mut step);
        let parts: Vec<(f64, f64)> = step
            .par_chunks(super::PART * columns)
            .zip(pull.par_chunks(super::PART * columns))
            .map(|(a, m)| (inner(a, m), energy(a, columns, held_hessian)))
            .collect();
        let (along, curvature) = parts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        let alpha = if curvature > 0.0 { (along / curvature).clamp(0.0, 1.0) } else { 0.0 };
        // Where sums left single precision, there is nothing to go by.
        let alpha = if alpha > 0.0 { alpha } else { 0.0 };
        let w = match alpha > 0.0 {
            true => w.iter().zip(&step).map(|(w, a)| w + alpha as f32 * a).collect(),
            false => w.to_vec(),
        };
        Target { w, pull, alpha }
    }
}
