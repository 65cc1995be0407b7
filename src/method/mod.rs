//! How weights are rounded onto a grid.
//!
//! A [`Method`] sees a whole [`Site`]: the layers that read the same activations, and what is known of these. To add one,
//! write one file and add it to [`METHODS`].

mod auto;
mod awq;
mod factor;
mod gptaq;
mod gptq;
mod gptq_int8;
mod output_feedback;
mod polish;
mod quantized_matrix;
mod rtn;

use crate::calib::hessian::BAND;
use crate::error::{Error, Result};
use crate::grid::{Grid, LANES};
pub use awq::{CANDIDATES, SAMPLE, over, times};
pub use factor::Damped;
pub use gptq::{Solver, Span};
pub use gptq_int8::GptqInt8;
use llmq_kernels::gemm::{Old, Precision, View, product};
use llmq_kernels::squares;
pub use output_feedback::OutputFeedback;
pub use quantized_matrix::QuantizedMatrix;
use rayon::prelude::*;
use std::borrow::Cow;

pub use gptaq::{Target, pull};
pub use rtn::Plain;
use std::sync::{Arc, OnceLock};

/// Every method.
pub static METHODS: &[&dyn Method] = &[&auto::Auto, &gptq::Gptq, &awq::AwqGptq, &awq::Awq, &rtn::Rtn];

/// What a method may be told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What is added to the Hessian's diagonal, as a fraction of its mean.
    pub damp: f64,
    /// Round the columns with the largest activations first, as far as the format allows.
    pub order: bool,
    /// Sweeps of coordinate descent over the codes; none leaves those of GPTQ.
    pub sweeps: usize,
    /// Whether these sweeps move the scales, too.
    pub scales: bool,
    /// Carry the error of a row on to others, by how the outputs of a layer move the model's predictions.
    pub outputs: bool,
    /// How exact it is what errors do to the columns behind them, and moves to the gradient. Both only steer the choice of codes: with
    /// operands that are rounded to bfloat16 the error of a layer's output changes by 0.3% at most (`eval/results/bench.md`).
    pub feedback: Precision,
}

impl Default for Options {
    fn default() -> Self {
        Options { damp: 0.01, order: true, sweeps: 3, scales: true, outputs: false, feedback: Precision::Bf16 }
    }
}

/// A layer that is to be rounded.
pub struct Layer<'a> {
    /// Its weights, `[rows, columns]`, all finite.
    pub w: &'a [f32],
    /// What they are rounded onto.
    pub grid: &'a dyn Grid,
    /// How much a squared error of this layer's output counts against one of the site's other layers.
    pub weight: f64,
    /// What its output should be instead of its own one, where that is known.
    pub target: Option<Target>,
    /// How the errors of its rows are carried on, where that is known.
    pub outputs: Option<OutputFeedback>,
}

impl Layer<'_> {
    /// The weights whose output is nearest to what it should be: `[rows, columns]`.
    pub fn target(&self) -> &[f32] {
        self.target.as_ref().map_or(self.w, |target| &target.w)
    }

    /// Rounds all of it with error feedback, towards its target, its columns multiplied by `scales` first.
    pub fn round(&self, solver: &Solver, scales: Option<&[f32]>, columns: usize) -> QuantizedMatrix {
        match &self.outputs {
            Some(outputs) if !solver.is_plain() => outputs.round(solver, self.target(), columns, scales, self.grid),
            _ => solver.round(self.target(), scales, self.grid),
        }
    }

    /// The squared error of the layer's output over the windows that were held out, up to a constant, per token, as the rows that
    /// [`few`] picks tell it.
    ///
    /// `q`: these rows, rounded.
    pub fn loss(&self, q: &[f32], site: &Site) -> f64 {
        let w = few(self.w, site.columns, JUDGED);
        let pull = self.target.as_ref().map_or(&[][..], |target| &target.pull);
        let error = energy_of_difference(&w, q, site.columns, site.held.unwrap_or(&site.seen.h));
        let pulled = pull.iter().zip(&*w).zip(q).map(|((p, w), q)| f64::from(*p) * f64::from(w - q)).sum::<f64>();
        (error + 2.0 * pulled) * self.w.len() as f64 / w.len() as f64
    }
}

/// Layers that read the same activations.
pub struct Site<'a> {
    /// Numbers that each layer reads.
    pub columns: usize,
    /// What the calibration windows say: the Hessian of the layers' output error, ready to be factored.
    pub seen: Arc<Damped>,
    /// `E[x xᵀ]` over the windows that were kept out of that, its lower triangle at least, and squares of 512 columns along the diagonal: choices are made by these.
    /// `[columns, columns]`; none where no window was.
    pub held: Option<&'a [f32]>,
    /// The layers.
    pub layers: Vec<Layer<'a>>,
    /// Which channel of the tensor before the site makes each column, if that tensor can absorb a factor per channel.
    pub channels: Option<Vec<usize>>,
    /// See [`Site::solver`].
    pub factored: OnceLock<Solver>,
}

impl Site<'_> {
    /// The calibration windows' Hessian, factored by whoever asks first.
    pub fn solver(&self, options: &Options) -> &Solver {
        self.factored.get_or_init(|| {
            let mut spans: Vec<Span> = self.layers.iter().map(|layer| Span::of(layer.grid)).collect();
            spans.sort_unstable();
            spans.dedup();
            Solver::new(self.seen.clone(), &spans, options)
        })
    }
}

/// What a method has found for a site.
pub struct Solution {
    /// By what each column of every layer was multiplied before rounding; its input has to be divided by that.
    pub scales: Option<Vec<f32>>,
    /// The layers, in the site's order.
    pub layers: Vec<Solved>,
    /// What went other than planned.
    pub notes: Vec<String>,
}

/// A rounded layer.
pub struct Solved {
    /// Its codes and scales.
    pub rounded: QuantizedMatrix,
    /// Which method they are of.
    pub method: &'static str,
}

/// A way of choosing codes.
pub trait Method: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether it needs the Hessian of a site, and so calibration text.
    fn calibrated(&self) -> bool {
        true
    }

    /// Whether it chooses between several ways, and so wants windows that none of them has seen.
    fn chooses(&self) -> bool {
        false
    }

    /// Whether it may scale the inputs of a site, and so ask the tensor before it to take the scales in.
    fn scales(&self) -> bool {
        false
    }

    /// How it rounds the rows of a matrix that comes in pieces, and what the user should know about that.
    fn rows(&self, hessian: Vec<f32>, columns: usize, _: &dyn Grid, _: &Options) -> (Rows, Option<String>) {
        (Rows::Plain(Plain::new(columns, Some(&diagonal(&hessian, columns)))), None)
    }

    /// Rounds the layers of a site.
    ///
    /// # Errors
    /// A Hessian that is no Hessian.
    fn quantize(&self, site: &Site, options: &Options) -> Result<Solution>;
}

/// Rounding of rows, each by itself.
pub enum Rows {
    /// To the nearest value.
    Plain(Plain),
    /// With error feedback.
    Fed(Box<Solver>),
}

impl Rows {
    /// With error feedback on a given Hessian, and what the user should know about that.
    fn fed(hessian: Vec<f32>, columns: usize, grid: &dyn Grid, options: &Options) -> (Rows, Option<String>) {
        let hessian = Arc::new(Damped::new(hessian, columns, options.damp));
        let solver = Solver::new(hessian, &[Span::of(grid)], options);
        let note = solver.note();
        (Rows::Fed(Box::new(solver)), note)
    }

    /// Rounds rows, `[rows, columns]`. Equal rows come out equal, however they are handed over, as long as each time but the
    /// last there are a multiple of [`PART`].
    pub fn round(&self, w: &[f32], grid: &dyn Grid) -> QuantizedMatrix {
        match self {
            Rows::Plain(plain) => plain.round(w, grid),
            Rows::Fed(solver) => solver.round(w, None, grid),
        }
    }
}

/// The method of a name.
///
/// # Errors
/// An unknown name; the hint lists those that exist.
pub fn by_name(name: &str) -> Result<&'static dyn Method> {
    METHODS.iter().copied().find(|m| m.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<_> = METHODS.iter().map(|m| m.name()).collect();
        Error::unknown("method", name, &known)
    })
}

/// Rounding to nearest for rows of `columns` numbers, for what no method has a Hessian of. `importance`: the mean square of
/// each column's input, where it is known. `recognize`: look for rows that are on the grid already, so that they stay what
/// they are.
pub fn plain(columns: usize, importance: Option<&[f32]>, recognize: bool) -> Plain {
    Plain::new(columns, importance).recognizing(recognize)
}

/// The diagonal of a square matrix.
pub fn diagonal(h: &[f32], columns: usize) -> Vec<f32> {
    h.iter().step_by(columns + 1).copied().collect()
}

/// Rows of a layer by which methods are compared.
pub const JUDGED: usize = 128;

/// Rows of a layer by which its error is reported.
pub const REPORTED: usize = 512;

/// Evenly spaced rows of a matrix, `most` at most.
pub fn few(w: &[f32], columns: usize, most: usize) -> Cow<'_, [f32]> {
    let rows = w.len() / columns;
    if rows <= most {
        return w.into();
    }
    (0..most).flat_map(|i| w[i * rows / most * columns..][..columns].iter().copied()).collect()
}

/// A sum of squared errors as a part of the whole; zero where the whole is.
pub fn relative((error, whole): (f64, f64)) -> f64 {
    if whole > 0.0 { error / whole } else { 0.0 }
}

/// The error of a layer's output and what it is measured against, `tr((W−Q) H (W−Q)ᵀ)` and `tr(W H Wᵀ)`.
///
/// `w`, `q`: `[rows, columns]`; `hessian`: `[columns, columns]`.
pub fn output_error(w: &[f32], q: &[f32], columns: usize, hessian: &[f32]) -> (f64, f64) {
    let parts = w.par_chunks(at_once(w.len() / columns) * columns).map(|w| energies(w, columns, hessian));
    (energy_of_difference(w, q, columns, hessian), sum(&parts.collect::<Vec<_>>()))
}

/// `tr((W−Q) H (W−Q)ᵀ)`. `w`, `q`: `[rows, columns]`; `hessian`: `[columns, columns]`.
fn energy_of_difference(w: &[f32], q: &[f32], columns: usize, hessian: &[f32]) -> f64 {
    let each = at_once(w.len() / columns) * columns;
    let parts = w.par_chunks(each).zip(q.par_chunks(each)).map(|(w, q)| {
        let error: Vec<f32> = w.iter().zip(q).map(|(w, q)| w - q).collect();
        energies(&error, columns, hessian)
    });
    sum(&parts.collect::<Vec<_>>())
}

/// In order, so that the sum does not depend on who computed what.
fn sum(parts: &[Vec<f64>]) -> f64 {
    parts.iter().flatten().sum()
}

/// `tr(X H Xᵀ)` of each [`PART`] rows. `x`: `[rows, columns]`; `hessian`: `[columns, columns]`, symmetric, so that what lies below its
/// diagonal blocks of [`BAND`] columns is multiplied once and counts twice, and what lies above them is not read.
fn energies(x: &[f32], columns: usize, hessian: &[f32]) -> Vec<f64> {
    let (n, rows) = (columns, x.len() / columns);
    let mut y = vec![0.0; rows * BAND.min(n)]; // [rows, width]
    let mut sums = vec![0.0; rows.div_ceil(PART)];
    for first in (0..n).step_by(BAND) {
        let last = (first + BAND).min(n);
        let width = last - first;
        for (from, to, times) in [(first, last, 1.0), (last, n, 2.0)] {
            if from < to {
                let h = View::new(&hessian[from * n + first..], to - from, width, n);
                product(
                    Precision::Single,
                    &mut y,
                    width,
                    Old::Replaced,
                    1.0,
                    View::new(&x[from..], rows, to - from, n),
                    h,
                );
                for (sum, (x, y)) in sums.iter_mut().zip(x.chunks(PART * n).zip(y.chunks(PART * width))) {
                    let own = x.chunks(n).map(|row| &row[first..last]).zip(y.chunks(width));
                    *sum += times * own.map(|(x, y)| inner(x, y)).sum::<f64>();
                }
            }
        }
    }
    sums
}

/// The sum of the products of numbers in the same place.
fn inner(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Rows whose errors are added up together.
pub const PART: usize = 128;

/// Rows of a matrix that one of some threads multiplies with a Hessian at once, a multiple of [`PART`]: each time it reads and packs all
/// of the Hessian, so the more the better, as long as all threads have some and what they hold stays small. No result depends on it.
pub fn rows_at_once(rows: usize, threads: usize) -> usize {
    /// Of all threads together.
    const MOST: usize = 2048;
    let most = (MOST / threads).clamp(PART, 4 * PART);
    let rounds = rows.div_ceil(threads * most).max(1);
    rows.div_ceil(rounds * threads).next_multiple_of(PART).max(PART)
}

/// The same where no sum depends on it: multiples of [`LANES`] that leave no thread without.
pub fn rows_evenly(rows: usize, threads: usize) -> usize {
    let parts = rows.div_ceil(rows_at_once(rows, threads)).max(1).next_multiple_of(threads);
    rows.div_ceil(parts).next_multiple_of(LANES).max(LANES)
}

/// The same for the threads that there are.
fn at_once(rows: usize) -> usize {
    rows_at_once(rows, rayon::current_num_threads())
}

/// The same with the diagonal of a Hessian, or with none at all: `Σ h·(w−q)²` and `Σ h·w²`, added to `sums`.
///
/// The result does not depend on how rows are handed over, as long as each time but the last there are a multiple of
/// [`PART`].
pub fn weight_error(sums: (f64, f64), w: &[f32], q: &[f32], columns: usize, importance: Option<&[f32]>) -> (f64, f64) {
    sum_over_parts(sums, w, q, PART * columns, |w, q| {
        let rows = w.chunks(columns).zip(q.chunks(columns));
        rows.map(|(w, q)| squares::errors(w, q, importance)).fold((0.0, 0.0), |(a, b), (e, w)| (a + e, b + w))
    })
}

/// Adds up parts of a fixed size in order, so that the sum does not depend on the number of threads.
fn sum_over_parts(
    sums: (f64, f64),
    w: &[f32],
    q: &[f32],
    part: usize,
    of: impl Fn(&[f32], &[f32]) -> (f64, f64) + Sync,
) -> (f64, f64) {
    let parts: Vec<(f64, f64)> = w.par_chunks(part).zip(q.par_chunks(part)).map(|(w, q)| of(w, q)).collect();
    parts.iter().fold(sums, |(a, b), (e, w)| (a + e, b + w))
}

#[cfg(test)]
mod tests;
