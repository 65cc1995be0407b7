//! How weights are rounded onto a grid.
//!
//! A [`Method`] prepares a site once (its Hessian is shared by the layers that read it) and then quantizes each layer. To
//! add one, write one file and add it to [`METHODS`].

mod factor;
mod gptq;
mod rtn;

use crate::error::{Error, Result};
use crate::grid::Grid;
use llmq_kernels::gemm::{Old, View, product};
use llmq_kernels::squares;
use rayon::prelude::*;

/// Every method.
pub static METHODS: &[&dyn Method] = &[&gptq::Gptq, &rtn::Rtn];

/// What a method may be told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What is added to the Hessian's diagonal, as a fraction of its mean.
    pub damp: f64,
}

/// A way of choosing codes.
pub trait Method: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Whether it needs the Hessian of a site, and so calibration text.
    fn calibrated(&self) -> bool;

    /// Prepares the layers of a site. `hessian`: `[columns, columns]`, there if [`Method::calibrated`].
    ///
    /// # Errors
    /// A Hessian that is no Hessian.
    fn prepare(&self, hessian: &[f32], columns: usize, options: &Options) -> Result<Box<dyn Prepared>>;
}

/// A site's method, ready for its layers.
pub trait Prepared: Sync {
    /// The blocks of a weight matrix, row by row. `w`: `[rows, columns]`, all finite.
    fn quantize(&self, w: &[f32], grid: &dyn Grid) -> Vec<u8>;

    /// What the user should know about this site, if anything went other than planned.
    fn note(&self) -> Option<String> {
        None
    }
}

/// The method of a name.
///
/// # Errors
/// An unknown name; the hint lists those that exist.
pub fn by_name(name: &str) -> Result<&'static dyn Method> {
    METHODS.iter().copied().find(|m| m.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<_> = METHODS.iter().map(|m| m.name()).collect();
        Error::usage(format!("unknown method '{name}'")).hint(format!("the methods are {}", known.join(", ")))
    })
}

/// Rounding to nearest for rows of `columns` numbers, for what no method has a Hessian of. `importance`: the mean square of
/// each column's input, where it is known. `recognize`: look for rows that are on the grid already, so that they stay what
/// they are.
pub fn plain(columns: usize, importance: Option<&[f32]>, recognize: bool) -> Box<dyn Prepared> {
    Box::new(rtn::Plain::new(columns, importance).recognizing(recognize))
}

/// The diagonal of a square matrix.
pub fn diagonal(h: &[f32], columns: usize) -> Vec<f32> {
    h.iter().step_by(columns + 1).copied().collect()
}

/// A sum of squared errors as a part of the whole; zero where the whole is.
pub fn relative((error, whole): (f64, f64)) -> f64 {
    if whole > 0.0 { error / whole } else { 0.0 }
}

/// The error of a layer's output and what it is measured against, `tr((W−Q) H (W−Q)ᵀ)` and `tr(W H Wᵀ)`.
///
/// `w`, `q`: `[rows, columns]`; `hessian`: `[columns, columns]`.
pub fn output_error(w: &[f32], q: &[f32], columns: usize, hessian: &[f32]) -> (f64, f64) {
    let energy = |x: &[f32]| -> f64 {
        let mut y = vec![0.0; x.len()]; // [rows, columns]
        let h = View::new(hessian, columns, columns, columns);
        product(&mut y, columns, Old::Replaced, 1.0, View::new(x, x.len() / columns, columns, columns), h);
        x.iter().zip(&y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    sum_over_parts((0.0, 0.0), w, q, PART * columns, |w, q| {
        let error: Vec<f32> = w.iter().zip(q).map(|(w, q)| w - q).collect();
        (energy(&error), energy(w))
    })
}

/// Rows whose errors are added up together.
pub const PART: usize = 64;

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
