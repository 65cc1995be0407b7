//! Output-side feedback: the error of a row is carried on to the rows behind it, as that of a column is (Tseng, Sun, Hou, De Sa 2025,
//! "Model-Preserving Adaptive Rounding", YAQA).
//!
//! The objective is `tr(G (W−Q) H (W−Q)ᵀ)`, with `G` the second moment of the loss's gradient at the layer's outputs, in chunks of rows
//! along its diagonal. With `G⁻¹ = VᵀV` and `W − Q = VᵀF` it is `tr(F H Fᵀ)`. So row `r` of a chunk, once the rows before it are
//! rounded, does best to aim at `T_r = W_r − Σ_s V_sr·F_s`, `F_s = (T_s − Q_s)/V_ss`, whatever rounds it, and what that leaves counts as
//! `(T_r − Q_r) H (T_r − Q_r)ᵀ`: the paper's update, a row at a time. All chunks' rows of the same turn are rounded together, by
//! [`Solver`], with its polish.

use super::awq::over;
use super::factor::inverse_factor;
use super::gptq::Solver;
use super::quantized_matrix::QuantizedMatrix;
use crate::calib::output_hessian::CHUNK;
use crate::grid::Grid;
use rayon::prelude::*;

/// What is added to the diagonal of `G`, as a fraction of a chunk's mean: by far more than to that of `H`, as `G` is measured on fewer
/// tokens, and describes the model as it is before anything is rounded.
const DAMP: f32 = 0.1;

/// Along what the rows of a layer are rounded.
pub struct OutputFeedback {
    chunks: Vec<Chunk>,
}

/// Rows whose errors are seen together.
struct Chunk {
    /// Its rows in the order in which they are rounded: those with the largest gradients first.
    order: Vec<usize>,
    /// `V`, upper triangular, in that order: `[rows, rows]`.
    v: Vec<f32>,
}

impl Chunk {
    /// `g`: `[CHUNK, CHUNK]`, of which the first `n` rows and columns count.
    fn new(g: &[f32], n: usize) -> Chunk {
        let diagonal = |i: usize| g[i * (CHUNK + 1)];
        let mean = (0..n).map(diagonal).sum::<f32>() / n as f32;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)));
        let mut own: Vec<f32> = (0..n * n).map(|at| g[at / n * CHUNK + at % n] / mean).collect(); // [n, n]
        (0..n).for_each(|i| own[i * (n + 1)] += DAMP);
        let unit = || (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        // Where no gradient comes to, or its squares leave single precision, there is nothing to carry on.
        let v = inverse_factor(&own, &order).unwrap_or_else(unit);
        Chunk { order, v }
    }

    /// Carries the error of the row of a turn on to those behind it. `target`: `T`, `[rows, columns]`; `q`: what the row has become.
    fn carry(&self, turn: usize, target: &mut [f32], q: &[f32]) {
        let (rows, n) = (self.order.len(), q.len());
        let own = self.v[turn * (rows + 1)];
        let t = &target[self.order[turn] * n..][..n];
        let f: Vec<f32> = t.iter().zip(q).map(|(t, q)| (t - q) / own).collect();
        for (r, by) in (turn + 1..rows).map(|r| (self.order[r], self.v[turn * rows + r])) {
            target[r * n..][..n].iter_mut().zip(&f).for_each(|(t, f)| *t -= by * f);
        }
    }
}

impl OutputFeedback {
    /// For a layer of so many rows. `g`: `[⌈rows / CHUNK⌉, CHUNK, CHUNK]`.
    pub fn new(g: &[f32], rows: usize) -> OutputFeedback {
        let chunks = g.par_chunks(CHUNK * CHUNK).enumerate();
        OutputFeedback { chunks: chunks.map(|(c, g)| Chunk::new(g, CHUNK.min(rows - c * CHUNK))).collect() }
    }

    /// Rounds a layer whose columns are multiplied by `scales` first. `w`: `[rows, n]`, without these.
    pub(super) fn round(
        &self,
        solver: &Solver,
        w: &[f32],
        n: usize,
        scales: Option<&[f32]>,
        grid: &dyn Grid,
    ) -> QuantizedMatrix {
        let mut target = w.to_vec(); // [rows, n]
        let mut out = QuantizedMatrix::new(w.len() / n, n, grid);
        for turn in 0..CHUNK {
            // Only the last chunk may have fewer rows.
            let rows: Vec<usize> =
                self.chunks.iter().enumerate().filter_map(|(c, own)| Some(c * CHUNK + own.order.get(turn)?)).collect();
            let t: Vec<f32> = rows.iter().flat_map(|r| &target[r * n..][..n]).copied().collect(); // [rows.len(), n]
            let rounded = solver.round(&t, scales, grid);
            out.set_rows(&rows, &rounded);
            let q = rounded.values(grid);
            let q = if let Some(s) = scales { over(q, s) } else { q };
            let chunks = target.par_chunks_mut(CHUNK * n).zip(&self.chunks).zip(q.par_chunks(n));
            chunks.for_each(|((target, chunk), q)| chunk.carry(turn, target, q));
        }
        out
    }
}
