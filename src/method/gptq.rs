//! GPTQ: rounding with error feedback (Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training
//! Quantization for Generative Pre-trained Transformers"), on the grids that the file itself has.
//!
//! At each block of the format the scales are fitted to the weights *as the feedback has changed them so far*, weighted by
//! the Hessian's diagonal, and frozen as the file stores them; then each column is rounded onto them, and its error is
//! carried to all later columns. Blocks come in the order of their largest activations, and so do the columns of a block
//! (act-order, as far as a format without column indices allows it). [`polish`] then improves what came out.

use super::awq::{times, weighed};
use super::factor::{Damped, factored, inverse_factor};
use super::polish::{self, polish};
use super::quantized_matrix::{Part, QuantizedMatrix};
use super::{BAND, Method, Options, Rows, Site, Solution, Solved, at_once, rows_evenly};
use crate::error::Result;
use crate::grid::{Effort, F, GROUPS, Grid, LANES};
use llmq_kernels::gemm::{Old, Precision, View, product};
use llmq_kernels::memory::Spare;
use llmq_kernels::{codebook, column};
use rayon::prelude::*;
use std::sync::Arc;

/// Columns whose errors are collected before they reach the columns behind them (the paper's B, section 3.3, step 2).
pub(super) const B: usize = 128;

/// GPTQ.
pub struct Gptq;

impl Method for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn rows(&self, hessian: Vec<f32>, columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        Rows::fed(hessian, columns, grid, options)
    }

    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution> {
        let solver = site.solver(options);
        let layers = site.layers.iter().map(|layer| Solved {
            rounded: layer.round(solver, None, site.columns),
            method: if solver.is_plain() { "rtn" } else { self.name() },
        });
        Ok(Solution { scales: None, layers: layers.collect(), notes: solver.note().into_iter().collect() })
    }
}

/// A site's Hessian, ready for its layers.
pub struct Solver {
    hessian: Arc<Damped>,
    polish: polish::Effort,
    /// One for each [`Span`]; none if no damping made the Hessian positive definite.
    walks: Vec<Walk>,
}

/// What rounding has to know of each column.
struct Columns {
    /// By what it is multiplied before it is rounded: `[columns]`.
    s: Vec<f32>,
    /// The square of its input, which is divided by that: `[columns]`, in every lane.
    importance: Vec<F>,
}

/// Which columns have to stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Columns of a block.
    pub width: usize,
    /// Columns that are rounded together, and in the file's order where they are several.
    pub run: usize,
}

impl Span {
    /// That of a grid.
    pub fn of(grid: &dyn Grid) -> Span {
        Span { width: grid.width(), run: grid.run() }
    }
}

/// The order in which columns are rounded, and the factor of the inverse Hessian in that order.
struct Walk {
    span: Span,
    /// `[columns]`; those of a block are together, and so are those of a run.
    order: Vec<usize>,
    /// `U` of the inverse Hessian: `[columns, columns]`.
    u: Vec<f32>,
    /// `(U_BBᵀU_BB)⁻¹` of each run `B` of several columns, in which its error is measured: `‖E_B‖² = (w − q)(U_BBᵀU_BB)⁻¹(w − q)ᵀ`.
    /// `[columns / run, run, run]`.
    metrics: Vec<f32>,
}

impl Walk {
    /// Half the negative gradient of the objective, `H (W − Q)ᵀ`, in the order of the file, from the errors that were fed back.
    ///
    /// With `W − Q = EU` and `H⁻¹ = UᵀU` it is `U⁻¹Eᵀ`, half of the product that it would otherwise be.
    fn gradient(&self, precision: Precision, room: &mut Room) {
        let (n, Room { wt, g, .. }) = (self.order.len(), room);
        let padded = g.len() / n;
        let width = B.next_multiple_of(self.span.width).min(n);
        let mut tile = vec![F::ZERO; width];
        for first in (0..n).step_by(width).rev() {
            let last = (first + width).min(n);
            let tile = &mut tile[..last - first];
            let (before, own) = g.split_at_mut(first * padded);
            for lane in (0..padded).step_by(LANES) {
                for (x, row) in tile.iter_mut().zip(own.chunks(padded)) {
                    x.0.copy_from_slice(&row[lane..][..LANES]);
                }
                column::solve_upper(tile, &self.u[first * n + first..], n);
                for (x, row) in tile.iter().zip(own.chunks_mut(padded)) {
                    row[lane..][..LANES].copy_from_slice(&x.0);
                }
            }
            if first > 0 {
                // E_:,before −= G_tile · U_before,tile
                let u = View::new(&self.u[first..], first, last - first, n);
                let own = View::new(own, last - first, padded, padded);
                product(precision, before, padded, Old::Kept, -1.0, u, own);
            }
        }
        for (row, &j) in g.chunks(padded).zip(&self.order) {
            wt[j * padded..][..padded].copy_from_slice(row);
        }
        std::mem::swap(wt, g);
    }
}

impl Solver {
    /// Prepares layers whose grids have one of some `spans`.
    pub fn new(hessian: Arc<Damped>, spans: &[Span], options: &Options) -> Solver {
        let polish = polish::Effort { sweeps: options.sweeps, scales: options.scales, precision: options.feedback };
        let walks = |hessian: &Damped| {
            let (h, n) = (&hessian.h, hessian.columns());
            let walk = |&span: &Span| {
                let order = if options.order { by_activation(h, n, span) } else { (0..n).collect() };
                inverse_factor(h, &order).map(|u| Walk { span, order, metrics: metrics(&u, n, span.run), u })
            };
            spans.iter().map(walk).collect::<Option<Vec<Walk>>>()
        };
        let (hessian, walks) = factored(hessian, walks);
        Solver { hessian, polish, walks: walks.unwrap_or_default() }
    }

    fn width(&self) -> usize {
        self.hessian.columns()
    }

    /// What rounding has to know of columns that are multiplied by `scales` first.
    ///
    /// The inputs are divided by them, `H' = S⁻¹HS⁻¹`, so that `H'⁻¹ = (US)ᵀ(US)`; and with `W' = WS` all errors are those that the
    /// unscaled factor gives for `W`: only what a column is rounded to depends on its scale.
    fn columns(&self, scales: Option<&[f32]>) -> Columns {
        let s = scales.map_or_else(|| vec![1.0; self.width()], <[f32]>::to_vec);
        let importance = self.hessian.mended().iter().zip(&s).map(|(h, s)| F::splat(h / (s * s))).collect();
        Columns { s, importance }
    }

    /// `M·H⁻¹` with the damped Hessian, or `None` where that could not be factored. `m`: `[rows, columns]`.
    pub fn times_inverse(&self, m: Vec<f32>) -> Option<Vec<f32>> {
        let n = self.width();
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
                    1.0 / self.hessian.size,
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
        let (damping, asked) = self.hessian.damping();
        if self.is_plain() {
            return Some(format!(
                "the Hessian could not be factored even with damping of {damping}: rounded to nearest instead"
            ));
        }
        (damping > asked).then(|| format!("the Hessian needed damping of {damping} instead of {asked}"))
    }

    /// Rounds a layer whose columns are multiplied by `scales` first. `w`: `[rows, columns]`, without these.
    pub fn round(&self, w: &[f32], scales: Option<&[f32]>, grid: &dyn Grid) -> QuantizedMatrix {
        let n = self.width();
        let Some(walk) = self.walk(grid) else {
            let plain = weighed(&self.hessian.mended(), scales);
            return scales.map_or_else(|| plain.round(w, grid), |s| plain.round(&times(w, s), grid));
        };
        let columns = self.columns(scales);
        let mut out = QuantizedMatrix::new(w.len() / n, n, grid);
        let rows = w.len() / n;
        let each = rows_evenly(rows, rayon::current_num_threads());
        let spare = Spare::new();
        out.parts(each).zip(w.par_chunks(each * n)).for_each(|(mut part, w)| {
            spare.with(Room::default, |room| {
                transpose(w, walk.order.iter().copied(), n, &mut room.wt);
                self.rows(room, &|_| &columns, grid, walk, &mut part);
                if self.polish.sweeps > 0 {
                    walk.gradient(self.polish.precision, room);
                    polish(room, &columns.s, &mut part, &self.hessian.h, n, grid, self.polish);
                }
            });
        });
        out
    }

    /// The output's error, `tr((W−Q) H (W−Q)ᵀ)` with the damped Hessian, of some rows without polish, for each of some scales of their
    /// columns. `w`: `[rows, columns]`. None where the Hessian could not be factored.
    ///
    /// `W − Q = EU` with the errors `E` that are fed back, so that this is `‖E‖²`.
    pub fn drafts(&self, w: &[f32], scales: &[Option<Vec<f32>>], grid: &dyn Grid) -> Option<Vec<f64>> {
        let n = self.width();
        let walk = self.walk(grid)?;
        let lanes = (w.len() / n).div_ceil(LANES);
        let columns: Vec<Columns> = scales.iter().map(|s| self.columns(s.as_deref())).collect();
        let mut out = QuantizedMatrix::new(scales.len() * lanes * LANES, n, grid);
        // As many candidates side by side as make a wide product.
        let each = (at_once(scales.len() * lanes * LANES) / (lanes * LANES)).max(1);
        let mut one = Vec::new(); // [columns, lanes · LANES]
        transpose(w, walk.order.iter().copied(), n, &mut one);
        let spare = Spare::new();
        let losses = out.parts(each * lanes * LANES).zip(columns.par_chunks(each)).map(|(mut part, columns)| {
            let energies = spare.with(Room::default, |room| {
                room.wt.clear();
                let rows = one.chunks(lanes * LANES);
                rows.for_each(|row| (0..columns.len()).for_each(|_| room.wt.extend_from_slice(row)));
                self.rows(room, &|lane| &columns[lane / lanes], grid, walk, &mut part)
            });
            energies.chunks(lanes).map(|energies| energies.iter().sum()).collect::<Vec<f64>>()
        });
        Some(losses.collect::<Vec<_>>().concat())
    }

    /// That for the blocks of a grid.
    fn walk(&self, grid: &dyn Grid) -> Option<&Walk> {
        self.walks.iter().find(|walk| walk.span == Span::of(grid))
    }

    /// Algorithm 1 for some rows. `room`: their weights, `[columns, padded]`, in the walk's order, which are lost, and their errors `E` in
    /// the place of the gradient afterwards; `columns`: what is known of them for each sixteen rows. Returns `‖E‖²` of each sixteen
    /// rows.
    fn rows<'c>(
        &self,
        room: &mut Room,
        columns: &dyn Fn(usize) -> &'c Columns,
        grid: &dyn Grid,
        walk: &Walk,
        part: &mut Part<'_>,
    ) -> Vec<f64> {
        let n = self.width();
        let Room { wt, g: errors, .. } = room;
        let padded = wt.len() / n;
        let width = B.next_multiple_of(grid.width()).min(n);
        let mut energies = vec![0.0; padded / LANES];
        errors.resize(n * padded, 0.0);
        let mut tile = vec![F::ZERO; width];
        let mut e = vec![F::ZERO; width];
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            let (tile, e) = (&mut tile[..last - first], &mut e[..last - first]);
            for (lanes, energy) in energies.iter_mut().enumerate() {
                let lane = lanes * LANES;
                for (j, w) in tile.iter_mut().enumerate() {
                    w.0.copy_from_slice(&wt[(first + j) * padded + lane..][..LANES]);
                }
                let part = Part {
                    codes: &mut part.codes[lanes * n..(lanes + 1) * n],
                    steps: &mut part.steps[lanes * n / grid.width()..(lanes + 1) * n / grid.width()],
                };
                self.tile(first, tile, e, columns(lanes), grid, walk, part);
                let mut squares = F::ZERO;
                for (j, e) in e.iter().enumerate() {
                    squares = squares + *e * *e;
                    errors[(first + j) * padded + lane..][..LANES].copy_from_slice(&e.0);
                }
                *energy += squares.0.iter().map(|x| f64::from(*x)).sum::<f64>();
            }
            if last < n {
                // W_:,rest −= E · U_tile,rest
                let u = View::new(&walk.u[first * n + last..], last - first, n - last, n);
                let e = View::new(&errors[first * padded..], last - first, padded, padded);
                product(self.polish.precision, &mut wt[last * padded..], padded, Old::Kept, -1.0, u.t(), e);
            }
        }
        energies
    }

    /// The inner loop of algorithm 1 for sixteen rows: `w`: columns `first ..` of the walk; `e`: their errors.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        first: usize,
        w: &mut [F],
        e: &mut [F],
        columns: &Columns,
        grid: &dyn Grid,
        walk: &Walk,
        part: Part<'_>,
    ) {
        let (width, group, n) = (grid.width(), grid.group(), self.width());
        let corner = &walk.u[first * n + first..];
        let mut codes = vec![[0; LANES]; width]; // in the walk's order
        let mut groups = vec![0; width]; // likewise
        let mut scales = vec![0.0; width]; // likewise
        let mut stored = vec![F::ZERO; width]; // in the file's order
        let mut lines = [(F::ZERO, F::ZERO); GROUPS];
        for at in (0..w.len()).step_by(width) {
            let order = &walk.order[first + at..first + at + width];
            let block = order[0] / width * width;
            for (i, &j) in order.iter().enumerate() {
                scales[i] = columns.s[j];
                stored[j - block] = w[at + i] * F::splat(scales[i]);
                groups[i] = ((j - block) / group) as u8;
            }
            let steps = grid.fit(&stored, &columns.importance[block..block + width], Effort::Full);
            for (g, line) in lines[..width / group].iter_mut().enumerate() {
                *line = steps.step(g);
            }
            let e = &mut e[at..at + width];
            match grid.codebook() {
                None => column::feedback(w, at, corner, n, &lines, &groups, &scales, grid.levels(), &mut codes, e),
                Some(book) => {
                    let run = book.run();
                    let metrics = &walk.metrics[(first + at) * run..(first + at + width) * run];
                    codebook::feedback(w, at, corner, n, &lines, &groups, &scales, metrics, book, &mut codes, e);
                }
            }
            part.steps[block / width] = steps;
            for (codes, &j) in codes.iter().zip(order) {
                part.codes[j] = *codes;
            }
        }
    }
}

/// Blocks of columns in the order of their largest diagonal entry, the runs of each in that of theirs.
fn by_activation(h: &[f32], n: usize, Span { width, run }: Span) -> Vec<usize> {
    let largest = |at: usize, many: usize| (at..at + many).map(|j| h[j * n + j]).fold(0.0, f32::max);
    let sorted = |from: usize, to: usize, many: usize| {
        let mut all: Vec<usize> = (from..to).step_by(many).collect();
        all.sort_by(|&a, &b| largest(b, many).total_cmp(&largest(a, many)));
        all.into_iter()
    };
    let runs = sorted(0, n, width).flat_map(|block| sorted(block, block + width, run));
    runs.flat_map(|at| at..at + run).collect()
}

/// [`Walk::metrics`]. `u`: `[n, n]`, upper triangular.
fn metrics(u: &[f32], n: usize, run: usize) -> Vec<f32> {
    if run == 1 {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(n * run);
    for at in (0..n).step_by(run) {
        let u = |i: usize, j: usize| f64::from(u[(at + i) * n + at + j]);
        // V = U_BB⁻¹, column by column.
        let mut v = vec![0.0; run * run];
        for j in 0..run {
            v[j * run + j] = 1.0 / u(j, j);
            for i in (0..j).rev() {
                let sum: f64 = (i + 1..=j).map(|k| u(i, k) * v[k * run + j]).sum();
                v[i * run + j] = -sum / u(i, i);
            }
        }
        let dot = |i: usize, k: usize| (0..run).map(|j| v[i * run + j] * v[k * run + j]).sum::<f64>() as f32;
        out.extend((0..run * run).map(|at| dot(at / run, at % run)));
    }
    out
}

/// What some rows are rounded in, kept for the next ones.
#[derive(Default)]
pub(super) struct Room {
    /// Weights, transposed: `[columns, padded]`.
    pub wt: Vec<f32>,
    /// What they are rounded to: `[columns, padded]`.
    pub q: Vec<f32>,
    /// The errors that are fed back, then half the negative gradient: `[columns, padded]`.
    pub g: Vec<f32>,
    /// What moves in a tile of columns: `[tile, padded]`.
    pub moves: Vec<f32>,
}

/// Columns of `[rows, n]`, in a given order, as `[n, padded]`; the rows behind the last one are zero.
fn transpose(w: &[f32], order: impl Iterator<Item = usize>, n: usize, t: &mut Vec<f32>) {
    let padded = (w.len() / n).next_multiple_of(LANES);
    t.resize(n * padded, 0.0);
    if padded * n > w.len() {
        t.fill(0.0);
    }
    for (to, from) in order.enumerate() {
        for (r, row) in w.chunks(n).enumerate() {
            t[to * padded + r] = row[from];
        }
    }
}
