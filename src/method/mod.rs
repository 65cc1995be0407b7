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

/// The relative error of a layer's output, `tr((W−Q) H (W−Q)ᵀ) / tr(W H Wᵀ)`; without a Hessian, that of its weights,
/// `‖W−Q‖² / ‖W‖²`. Zero for a layer whose output is zero.
///
/// `w`, `q`: `[rows, columns]`; `hessian`: `[columns, columns]`.
pub fn relative_error(w: &[f32], q: &[f32], columns: usize, hessian: Option<&[f32]>) -> f64 {
    const ROWS: usize = 64;
    let energy = |x: &[f32]| -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        match hessian {
            None => dot(x, x),
            Some(h) => {
                let mut y = vec![0.0; x.len()]; // [rows, columns]
                let h = View::new(h, columns, columns, columns);
                product(&mut y, columns, Old::Replaced, 1.0, View::new(x, x.len() / columns, columns, columns), h);
                dot(x, &y)
            }
        }
    };
    let parts: Vec<(f64, f64)> = w
        .par_chunks(ROWS * columns)
        .zip(q.par_chunks(ROWS * columns))
        .map(|(w, q)| {
            let error: Vec<f32> = w.iter().zip(q).map(|(w, q)| w - q).collect();
            (energy(&error), energy(w))
        })
        .collect();
    let (error, whole) = parts.iter().fold((0.0, 0.0), |(a, b), (e, w)| (a + e, b + w));
    if whole > 0.0 { error / whole } else { 0.0 }
}

#[cfg(test)]
mod tests;
