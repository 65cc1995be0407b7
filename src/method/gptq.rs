//! GPTQ: rounding with error feedback (Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training
//! Quantization for Generative Pre-trained Transformers"), on the grids that the file itself has.
//!
//! The columns of `W` are rounded in storage order. At each block of the format the scales are fitted to the weights *as
//! the feedback has changed them so far*, weighted by the Hessian's diagonal, and frozen as the file stores them; then
//! each column is rounded onto them, and its error is carried to all later columns.

use super::factor::inverse_factor;
use super::rtn::{Plain, scatter};
use super::{Method, Options, Prepared, diagonal};
use crate::error::Result;
use crate::grid::{Effort, F, Grid, LANES};
use llmq_kernels::column;
use llmq_kernels::gemm::{Old, View, product};
use rayon::prelude::*;

/// Columns whose errors are collected before they reach the columns behind them (the paper's B, section 3.3, step 2).
const B: usize = 128;

/// Rows that one task quantizes. A constant, so that results do not depend on the number of threads.
const ROWS: usize = 128;

/// By how much damping grows when the Hessian is not positive definite, and how often.
const LADDER: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];

/// GPTQ.
pub struct Gptq;

impl Method for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn calibrated(&self) -> bool {
        true
    }

    fn prepare(&self, hessian: &[f32], columns: usize, options: &Options) -> Result<Box<dyn Prepared>> {
        let n = columns;
        let mut h = hessian.to_vec(); // [n, n]
        let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
        // An input that is always zero says nothing about its weight: it is rounded by itself.
        for j in 0..n {
            if h[j * n + j] <= 0.0 {
                h[j * n + j] = if mean > 0.0 { mean as f32 } else { 1.0 };
            }
        }
        let unit = if mean > 0.0 { options.damp * mean } else { 0.0 };
        for (rung, factor) in LADDER.into_iter().enumerate() {
            if let Some(u) = inverse_factor(&h, n, unit * factor) {
                let note = (rung > 0).then(|| {
                    format!("the Hessian needed damping of {} instead of {}", options.damp * factor, options.damp)
                });
                let importance = (0..n).map(|j| F::splat(h[j * n + j])).collect();
                return Ok(Box::new(Feedback { u, importance, columns, note }));
            }
        }
        Ok(Box::new(Unfactorable { plain: Plain::new(columns, Some(&diagonal(hessian, columns))), damp: options.damp }))
    }
}

/// A site whose Hessian could be factored.
struct Feedback {
    /// `U` of the inverse Hessian: `[columns, columns]`.
    u: Vec<f32>,
    /// The Hessian's diagonal, in every lane: `[columns]`.
    importance: Vec<F>,
    columns: usize,
    note: Option<String>,
}

impl Prepared for Feedback {
    fn quantize(&self, w: &[f32], grid: &dyn Grid) -> Vec<u8> {
        let row_bytes = self.columns / grid.width() * grid.bytes();
        let mut out = vec![0; w.len() / self.columns * row_bytes];
        out.par_chunks_mut(ROWS * row_bytes)
            .zip(w.par_chunks(ROWS * self.columns))
            .for_each(|(out, w)| self.rows(w, grid, out));
        out
    }

    fn note(&self) -> Option<String> {
        self.note.clone()
    }
}

impl Feedback {
    /// Algorithm 1 for up to [`ROWS`] rows. `w`: `[rows, columns]`, `out`: their blocks.
    fn rows(&self, w: &[f32], grid: &dyn Grid, out: &mut [u8]) {
        let n = self.columns;
        let rows = w.len() / n;
        let padded = rows.next_multiple_of(LANES);
        let row_bytes = out.len() / rows;
        let mut wt = transposed(w, rows, n, padded); // [columns, padded]
        let width = B.next_multiple_of(grid.width()).min(n);
        let mut errors = vec![0.0; width * padded]; // [block, padded]
        let mut block = vec![F::ZERO; width];
        let mut e = vec![F::ZERO; width];
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            let (block, e) = (&mut block[..last - first], &mut e[..last - first]);
            for lane in (0..padded).step_by(LANES) {
                for (j, w) in block.iter_mut().enumerate() {
                    w.0.copy_from_slice(&wt[(first + j) * padded + lane..][..LANES]);
                }
                let out = &mut out[lane * row_bytes..((lane + LANES).min(rows)) * row_bytes];
                self.block(first, block, e, grid, row_bytes, out);
                for (j, e) in e.iter().enumerate() {
                    errors[j * padded + lane..][..LANES].copy_from_slice(&e.0);
                }
            }
            if last < n {
                // W_:,rest −= E · U_block,rest
                let u = View::new(&self.u[first * n + last..], last - first, n - last, n);
                let e = View::new(&errors, last - first, padded, padded);
                product(&mut wt[last * padded..], padded, Old::Kept, -1.0, u.t(), e);
            }
        }
    }

    /// The inner loop of algorithm 1 for sixteen rows: `w`: columns `first ..` of them; `e`: their errors.
    fn block(&self, first: usize, w: &mut [F], e: &mut [F], grid: &dyn Grid, row_bytes: usize, out: &mut [u8]) {
        let (width, group, n) = (grid.width(), grid.group(), self.columns);
        let corner = &self.u[first * n + first..];
        let mut codes = vec![[0; LANES]; width];
        let mut blocks = vec![0; LANES * grid.bytes()];
        for at in (0..w.len()).step_by(width) {
            let importance = &self.importance[first + at..first + at + width];
            let steps = grid.fit(&w[at..at + width], importance, Effort::Full);
            for (g, codes) in codes.chunks_mut(group).enumerate() {
                let (scale, offset) = steps.step(g);
                let j = at + g * group;
                column::feedback(w, j, corner, n, scale, offset, grid.levels(), codes, &mut e[j..j + group]);
            }
            grid.store(&steps, &codes, &mut blocks);
            scatter(&blocks, grid.bytes(), (first + at) / width, row_bytes, out);
        }
    }
}

/// `[rows, n]` as `[n, padded]`, the rows behind the last one zero.
fn transposed(w: &[f32], rows: usize, n: usize, padded: usize) -> Vec<f32> {
    let mut t = vec![0.0; n * padded];
    for (r, row) in w.chunks(n).enumerate().take(rows) {
        for (j, &x) in row.iter().enumerate() {
            t[j * padded + r] = x;
        }
    }
    t
}

/// A site whose Hessian stays indefinite at every damping: the last rung is plain rounding.
struct Unfactorable {
    plain: Plain,
    damp: f64,
}

impl Prepared for Unfactorable {
    fn quantize(&self, w: &[f32], grid: &dyn Grid) -> Vec<u8> {
        self.plain.quantize(w, grid)
    }

    fn note(&self) -> Option<String> {
        let worst = self.damp * LADDER[LADDER.len() - 1];
        Some(format!("the Hessian could not be factored even with damping of {worst}: rounded to nearest instead"))
    }
}
