//! GPTQ where a row has one step and that is settled: the 8 bits of integer kernels, with a symmetric scale for each output
//! channel (Frantar et al. 2022, algorithm 1, with the scales taken as given).

use super::at_once;
use super::factor::{Damped, factored, inverse_factor};
use super::gptq::B;
use llmq_kernels::gemm::{Old, Precision, View, product};
use rayon::prelude::*;
use std::sync::Arc;

/// The damping of the Hessian, as a part of its mean diagonal.
const DAMP: f64 = 0.01;

/// A Hessian, ready for the rows that it is of.
pub struct GptqInt8 {
    /// The columns with the largest activations first.
    order: Vec<usize>,
    /// `U` of the inverse Hessian in that order: `[columns, columns]`.
    u: Vec<f32>,
}

impl GptqInt8 {
    /// Factors a Hessian, `[columns, columns]`; none where no damping makes it positive definite.
    pub fn new(hessian: &[f32], columns: usize) -> Option<GptqInt8> {
        let n = columns;
        let damped = Arc::new(Damped::new(hessian.to_vec(), n, DAMP));
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| damped.h[b * n + b].total_cmp(&damped.h[a * n + a]));
        let u = factored(damped, |damped| inverse_factor(&damped.h, &order)).1?;
        Some(GptqInt8 { order, u })
    }

    /// Rounds rows to multiples of their scales, `largest` times at most. `w`: `[rows, columns]`; `scales`: `[rows]`; result:
    /// `[rows, columns]`.
    pub fn round(&self, w: &[f32], scales: &[f32], largest: i8) -> Vec<i8> {
        let n = self.order.len();
        let mut codes = vec![0; w.len()];
        let each = at_once(scales.len());
        let parts = codes.par_chunks_mut(each * n).zip(w.par_chunks(each * n)).zip(scales.par_chunks(each));
        parts.for_each(|((codes, w), scales)| self.part(w, scales, f32::from(largest), codes));
        codes
    }

    fn part(&self, w: &[f32], scales: &[f32], largest: f32, codes: &mut [i8]) {
        let n = self.order.len();
        let mut w: Vec<f32> = w.chunks(n).flat_map(|row| self.order.iter().map(|&j| row[j])).collect(); // [rows, columns]
        let mut errors = vec![0.0; scales.len() * B.min(n)]; // [rows, width]
        for first in (0..n).step_by(B) {
            let last = (first + B).min(n);
            let width = last - first;
            for (r, &scale) in scales.iter().enumerate() {
                let (row, errors) = (&mut w[r * n..][first..last], &mut errors[r * width..][..width]);
                for j in 0..width {
                    let code = (row[j] / scale).round_ties_even().clamp(-largest, largest);
                    codes[r * n + self.order[first + j]] = code as i8;
                    let u = &self.u[(first + j) * n..][first..last];
                    let error = (row[j] - code * scale) / u[j];
                    row[j + 1..].iter_mut().zip(&u[j + 1..]).for_each(|(w, u)| *w -= error * u);
                    errors[j] = error;
                }
            }
            if last < n {
                // W_:,rest −= E · U_tile,rest
                let u = View::new(&self.u[first * n + last..], width, n - last, n);
                let e = View::new(&errors, scales.len(), width, width);
                product(Precision::Single, &mut w[last..], n, Old::Kept, -1.0, e, u);
            }
        }
    }
}
