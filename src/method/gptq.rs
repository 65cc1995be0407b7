//! GPTQ: rounding with error feedback (Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training
//! Quantization for Generative Pre-trained Transformers"), on the grids that the file itself has.
//!
//! At each block of the format the scales are fitted to the weights *as the feedback has changed them so far*, weighted by
//! the Hessian's diagonal, and frozen as the file stores them; then each column is rounded onto them, and its error is
//! carried to all later columns. Blocks come in the order of their largest activations, and so do the columns of a block
//! (act-order, as far as a format without column indices allows it). [`polish`] then improves what came out.

use super::factor::{LADDER, inverse_factor, mended, size};
use super::polish::{self, polish};
use super::rounded::{Part, Rounded};
use super::rtn::Plain;
use super::{BAND, Method, Options, Rows, Site, Solution, Solved, at_once, diagonal};
use crate::error::Result;
use crate::grid::{Effort, F, GROUPS, Grid, LANES};
use llmq_kernels::column;
use llmq_kernels::gemm::{Old, Precision, View, product};
use rayon::prelude::*;

/// Columns whose errors are collected before they reach the columns behind them (the paper's B, section 3.3, step 2).
pub(super) const B: usize = 128;

/// GPTQ.
pub struct Gptq;

impl Method for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn rows(&self, hessian: &[f32], columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        Rows::fed(hessian, columns, grid, options)
    }

    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution> {
        let solver = site.solver(options);
        let layers = site.layers.iter().map(|layer| Solved {
            rounded: solver.round(layer.target(), layer.grid),
            method: if solver.is_plain() { "rtn" } else { self.name() },
        });
        Ok(Solution { scales: None, layers: layers.collect(), notes: solver.note().into_iter().collect() })
    }
}

/// A site's Hessian, ready for its layers.
pub struct Solver {
    columns: usize,
    damp: f64,
    /// By what the Hessian was divided.
    size: f32,
    polish: polish::Effort,
    /// The Hessian with dead inputs mended and damped: `[columns, columns]`.
    h: Vec<f32>,
    /// The square of each input: `[columns]`, in every lane.
    importance: Vec<F>,
    /// One for each width of blocks; none if no damping made the Hessian positive definite.
    walks: Vec<Walk>,
    /// How much more damping than asked for it needed.
    factor: f64,
    /// The last rung.
    plain: Plain,
}

/// The order in which columns are rounded, and the factor of the inverse Hessian in that order.
struct Walk {
    /// Columns of a block.
    width: usize,
    /// `[columns]`; those of a block are together.
    order: Vec<usize>,
    /// `U` of the inverse Hessian: `[columns, columns]`.
    u: Vec<f32>,
}

impl Solver {
    /// Prepares layers whose blocks have one of some `widths`. `hessian`: `[columns, columns]`.
    pub fn new(hessian: &[f32], columns: usize, widths: &[usize], options: &Options) -> Solver {
        let n = columns;
        let plain = Plain::new(n, Some(&diagonal(hessian, n)));
        let (mut h, unit) = mended(hessian, n, options.damp);
        let walks = |lambda: f64| {
            let walk = |&width: &usize| {
                let order = if options.order { by_activation(&h, n, width) } else { (0..n).collect() };
                inverse_factor(&h, &order, lambda).map(|u| Walk { width, order, u })
            };
            widths.iter().map(walk).collect::<Option<Vec<Walk>>>()
        };
        let found = LADDER.into_iter().find_map(|factor| walks(unit * factor).map(|walks| (factor, walks)));
        let importance = (0..n).map(|j| F::splat(h[j * n + j])).collect();
        let (factor, walks) = found.unwrap_or((LADDER[LADDER.len() - 1], Vec::new()));
        (0..n).for_each(|j| h[j * n + j] += (unit * factor) as f32);
        let polish = polish::Effort { sweeps: options.sweeps, scales: options.scales };
        let size = size(hessian, n);
        Solver { columns: n, damp: options.damp, size, polish, h, importance, walks, factor, plain }
    }

    /// The same site with every input divided by `scales`: `[columns]`.
    ///
    /// `H' = S⁻¹HS⁻¹`, so that `H'⁻¹ = (US)ᵀ(US)`: nothing has to be factored again.
    pub fn scaled(&self, scales: &[f32]) -> Solver {
        let n = self.columns;
        let mut h = self.h.clone();
        for (row, s) in h.chunks_mut(n).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(h, t)| *h /= s * t);
        }
        let walk = |walk: &Walk| {
            let mut u = walk.u.clone();
            for row in u.chunks_mut(n) {
                row.iter_mut().zip(&walk.order).for_each(|(u, &j)| *u *= scales[j]);
            }
            Walk { width: walk.width, order: walk.order.clone(), u }
        };
        let importance: Vec<F> = self.importance.iter().zip(scales).map(|(h, s)| h.map(|h| h / (s * s))).collect();
        let plain = Plain::new(n, Some(&importance.iter().map(|h| h.0[0]).collect::<Vec<_>>()));
        Solver { h, walks: self.walks.iter().map(walk).collect(), importance, plain, ..*self }
    }

    /// `M·H⁻¹` with the damped Hessian, or `None` where that could not be factored. `m`: `[rows, columns]`.
    pub fn times_inverse(&self, m: Vec<f32>) -> Option<Vec<f32>> {
        let n = self.columns;
        let Walk { order, u, .. } = self.walks.first()?;
        let mut out = m;
        let each = at_once(out.len() / n);
        out.par_chunks_mut(each * n).for_each(|m| {
            let rows = m.len() / n;
            let mut a: Vec<f32> = m.chunks(n).flat_map(|row| order.iter().map(|&j| row[j])).collect(); // in the walk's order
            let mut b = vec![0.0; a.len()];
            // M·UᵀU, of which no column needs what is zero in U.
            for first in (0..n).step_by(BAND) {
                let width = BAND.min(n - first);
                let u = View::new(&u[first * n + first..], width, n - first, n);
                let a = View::new(&a[first..], rows, n - first, n);
                product(Precision::Single, &mut b[first..], n, Old::Replaced, 1.0, a, u.t());
            }
            for first in (0..n).step_by(BAND) {
                let width = BAND.min(n - first);
                let u = View::new(&u[first..], first + width, width, n);
                product(
                    Precision::Single,
                    &mut a[first..],
                    n,
                    Old::Replaced,
                    1.0 / self.size,
                    View::new(&b, rows, first + width, n),
                    u,
                );
            }
            for (row, a) in m.chunks_mut(n).zip(a.chunks(n)) {
                order.iter().zip(a).for_each(|(&j, &a)| row[j] = a);
            }
        });
        Some(out)
    }

    /// Whether the Hessian could not be factored, so that weights are rounded to nearest.
    pub fn is_plain(&self) -> bool {
        self.walks.is_empty()
    }

    /// What the user should know about this Hessian.
    pub fn note(&self) -> Option<String> {
        let damping = self.damp * self.factor;
        if self.is_plain() {
            return Some(format!(
                "the Hessian could not be factored even with damping of {damping}: rounded to nearest instead"
            ));
        }
        let asked = self.damp;
        (self.factor > 1.0).then(|| format!("the Hessian needed damping of {damping} instead of {asked}"))
    }

    /// Rounds a layer. `w`: `[rows, columns]`.
    pub fn round(&self, w: &[f32], grid: &dyn Grid) -> Rounded {
        self.with(w, grid, self.polish)
    }

    /// The same without polish.
    pub fn draft(&self, w: &[f32], grid: &dyn Grid) -> Rounded {
        self.with(w, grid, polish::Effort { sweeps: 0, scales: false })
    }

    fn with(&self, w: &[f32], grid: &dyn Grid, effort: polish::Effort) -> Rounded {
        let n = self.columns;
        let Some(walk) = self.walks.iter().find(|walk| walk.width == grid.width()) else {
            return self.plain.round(w, grid);
        };
        let mut out = Rounded::new(w.len() / n, n, grid);
        let each = at_once(w.len() / n);
        out.parts(each).zip(w.par_chunks(each * n)).for_each(|(mut part, w)| {
            self.rows(w, grid, walk, &mut part);
            if effort.sweeps > 0 {
                polish(&transposed(w, 0..n, n), &mut part, &self.h, n, grid, effort);
            }
        });
        out
    }

    /// Algorithm 1 for some rows. `w`: `[rows, columns]`.
    fn rows(&self, w: &[f32], grid: &dyn Grid, walk: &Walk, part: &mut Part<'_>) {
        let n = self.columns;
        let mut wt = transposed(w, walk.order.iter().copied(), n); // [columns, padded], in the walk's order
        let padded = wt.len() / n;
        let width = B.next_multiple_of(grid.width()).min(n);
        let mut errors = vec![0.0; width * padded]; // [tile, padded]
        let mut tile = vec![F::ZERO; width];
        let mut e = vec![F::ZERO; width];
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            let (tile, e) = (&mut tile[..last - first], &mut e[..last - first]);
            for lane in (0..padded).step_by(LANES) {
                for (j, w) in tile.iter_mut().enumerate() {
                    w.0.copy_from_slice(&wt[(first + j) * padded + lane..][..LANES]);
                }
                let lanes = lane / LANES;
                let part = Part {
                    codes: &mut part.codes[lanes * n..(lanes + 1) * n],
                    steps: &mut part.steps[lanes * n / walk.width..(lanes + 1) * n / walk.width],
                };
                self.tile(first, tile, e, grid, walk, part);
                for (j, e) in e.iter().enumerate() {
                    errors[j * padded + lane..][..LANES].copy_from_slice(&e.0);
                }
            }
            if last < n {
                // W_:,rest −= E · U_tile,rest
                let u = View::new(&walk.u[first * n + last..], last - first, n - last, n);
                let e = View::new(&errors, last - first, padded, padded);
                product(Precision::Single, &mut wt[last * padded..], padded, Old::Kept, -1.0, u.t(), e);
            }
        }
    }

    /// The inner loop of algorithm 1 for sixteen rows: `w`: columns `first ..` of the walk; `e`: their errors.
    fn tile(&self, first: usize, w: &mut [F], e: &mut [F], grid: &dyn Grid, walk: &Walk, part: Part<'_>) {
        let (width, group, n) = (grid.width(), grid.group(), self.columns);
        let corner = &walk.u[first * n + first..];
        let mut codes = vec![[0; LANES]; width]; // in the walk's order
        let mut groups = vec![0; width]; // likewise
        let mut stored = vec![F::ZERO; width]; // in the file's order
        let mut lines = [(F::ZERO, F::ZERO); GROUPS];
        for at in (0..w.len()).step_by(width) {
            let order = &walk.order[first + at..first + at + width];
            let block = order[0] / width * width;
            for (i, &j) in order.iter().enumerate() {
                stored[j - block] = w[at + i];
                groups[i] = ((j - block) / group) as u8;
            }
            let steps = grid.fit(&stored, &self.importance[block..block + width], Effort::Full);
            for (g, line) in lines[..width / group].iter_mut().enumerate() {
                *line = steps.step(g);
            }
            let levels = grid.levels();
            column::feedback(w, at, corner, n, &lines, &groups, levels, &mut codes, &mut e[at..at + width]);
            part.steps[block / width] = steps;
            for (codes, &j) in codes.iter().zip(order) {
                part.codes[j] = *codes;
            }
        }
    }
}

/// Blocks of `width` columns in the order of their largest diagonal entry, the columns of each in that of their own.
fn by_activation(h: &[f32], n: usize, width: usize) -> Vec<usize> {
    let size = |j: usize| h[j * n + j];
    let largest = |block: &usize| (block * width..(block + 1) * width).map(size).fold(0.0, f32::max);
    let mut blocks: Vec<usize> = (0..n / width).collect();
    blocks.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
    let columns = blocks.into_iter().flat_map(|block| {
        let mut columns: Vec<usize> = (block * width..(block + 1) * width).collect();
        columns.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
        columns
    });
    columns.collect()
}

/// Columns of `[rows, n]`, in a given order, as `[n, padded]`; the rows behind the last one are zero.
fn transposed(w: &[f32], order: impl Iterator<Item = usize>, n: usize) -> Vec<f32> {
    let padded = (w.len() / n).next_multiple_of(LANES);
    let mut t = vec![0.0; n * padded];
    for (to, from) in order.enumerate() {
        for (r, row) in w.chunks(n).enumerate() {
            t[to * padded + r] = row[from];
        }
    }
    t
}
