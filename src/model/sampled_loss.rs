//! The loss whose gradients' second moments are the Fisher information: `−ln p(t)` of tokens `t` that the model itself draws.
//!
//! Its Hessian and that of the Kullback-Leibler divergence from the model's own distribution are the same (Martens 2020, "New insights
//! and perspectives on the natural gradient method", section 9.2), so that `E[g gᵀ]/2` says how errors move that.

use super::{Model, ops};
use crate::error::Result;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::log_sum_exp;
use llmq_kernels::gemm::Precision;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of the output matrix that are there at once.
const PIECE: usize = 1 << 12;

/// The gradients of the loss at what the output matrix reads, `[tokens, hidden]` each. `x`: the normed hidden states, likewise; `rows`: those
/// of the output matrix, `[rows, hidden]`; `seed` decides about the tokens that are drawn.
///
/// # Errors
/// Rows that cannot be read.
pub fn gradients(
    model: &Model,
    precision: Precision,
    x: &[Tensor],
    seed: u64,
    rows: &dyn Fn(Range<usize>) -> Result<Vec<f32>>,
) -> Result<Vec<Tensor>> {
    let hidden = model.hidden;
    let pieces: Vec<Range<usize>> =
        (0..model.vocab).step_by(PIECE).map(|first| first..(first + PIECE).min(model.vocab)).collect();
    let matrix = |piece: &Range<usize>| -> Result<Tensor> {
        Ok(Tensor::from_vec(rows(piece.clone())?, (piece.len(), hidden), &Device::Cpu)?)
    };
    let logits = |x: &Tensor, w: &Tensor, piece: &Range<usize>| -> Result<Vec<f32>> {
        let mut logits = ops::linear(precision, x, w)?.flatten_all()?.to_vec1()?;
        model.finish_logits(&mut logits, piece.clone());
        Ok(logits)
    };
    // ln Σ exp of each piece's logits: `[tokens, pieces]` of each batch.
    let mut masses: Vec<Vec<Vec<f64>>> = Vec::new();
    for x in x {
        masses.push(vec![Vec::with_capacity(pieces.len()); x.dim(0)?]);
    }
    for piece in &pieces {
        let w = matrix(piece)?;
        for (x, masses) in x.iter().zip(&mut masses) {
            let logits = logits(x, &w, piece)?;
            let rows = masses.par_iter_mut().zip(logits.par_chunks(piece.len()));
            rows.for_each(|(masses, row)| masses.push(log_sum_exp(row)));
        }
    }
    let mut draws = ChaCha8Rng::seed_from_u64(seed);
    let drawn: Vec<Vec<Drawn>> =
        masses.iter().map(|masses| masses.iter().map(|own| Drawn::new(own, draws.random())).collect()).collect();
    let mut out = x.iter().map(Tensor::zeros_like).collect::<candle_core::Result<Vec<Tensor>>>()?;
    for (i, piece) in pieces.iter().enumerate() {
        let w = matrix(piece)?;
        for ((x, drawn), out) in x.iter().zip(&drawn).zip(&mut out) {
            let mut logits = logits(x, &w, piece)?;
            let rows = drawn.par_iter().zip(logits.par_chunks_mut(piece.len()));
            rows.for_each(|(drawn, row)| drawn.gradient(i, row, model.logit_scale, model.logit_cap));
            let grad = Tensor::from_vec(logits, (x.dim(0)?, piece.len()), &Device::Cpu)?;
            *out = ops::sum(out, &ops::linear_backward(precision, &grad, &w)?)?;
        }
    }
    Ok(out)
}

/// A token that is drawn.
struct Drawn {
    /// ln Σ exp of all logits.
    total: f64,
    /// The piece that it is in.
    piece: usize,
    /// Probability of that piece's tokens that are in front of it, and of a part of its own.
    rest: f64,
}

impl Drawn {
    /// `masses`: ln Σ exp of each piece; `draw`: from 0 to 1.
    fn new(masses: &[f64], draw: f64) -> Drawn {
        let most = masses.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let total = most + masses.iter().map(|mass| (mass - most).exp()).sum::<f64>().ln();
        let mut rest = draw;
        for (piece, mass) in masses.iter().enumerate() {
            let mass = (mass - total).exp();
            if rest < mass || piece + 1 == masses.len() {
                return Drawn { total, piece, rest };
            }
            rest -= mass;
        }
        Drawn { total, piece: 0, rest }
    }

    /// From a piece's logits to the gradient at the products that they come of.
    fn gradient(&self, piece: usize, logits: &mut [f32], scale: f32, cap: Option<f32>) {
        let (mut rest, mut drawn) = (self.rest, None);
        for (i, x) in logits.iter_mut().enumerate() {
            let p = (f64::from(*x) - self.total).exp();
            rest -= p;
            // p − 1 at the token that was drawn: the first whose probability reaches beyond what was drawn.
            let hit = self.piece == piece && drawn.is_none() && rest < 0.0;
            let slope = cap.map_or(scale, |cap| scale * (1.0 - (*x / cap).powi(2)));
            if hit {
                drawn = Some(i);
            }
            *x = (p - if hit { 1.0 } else { 0.0 }) as f32 * slope;
        }
        // Where rounding errors leave a part of the mass over, it is the last token's.
        if let (true, None, Some(last)) = (self.piece == piece, drawn, logits.last_mut()) {
            *last -= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the output matrix is the identity, the gradient shows which token was drawn: its entry alone is negative.
    #[test]
    fn tokens_are_drawn_from_the_model_and_gradients_are_those_of_small_differences() {
        // More tokens than a piece holds.
        let vocab = PIECE + 9;
        let likely = [5, 700, PIECE - 1, PIECE, vocab - 1];
        let logit = |i: usize| likely.iter().position(|l| *l == i).map_or(-9.0, |at| at as f32 * 0.5);
        let row: Vec<f32> = (0..vocab).map(logit).collect();
        let identity = |rows: Range<usize>| {
            let mut out = vec![0.0; rows.len() * vocab];
            rows.clone().for_each(|i| out[(i - rows.start) * vocab + i] = 1.0);
            Ok(out)
        };
        let tokens = 400;
        for (logit_scale, logit_cap) in [(1.0, None), (0.7, None), (1.3, Some(2.5))] {
            let model = Model { vocab, hidden: vocab, logit_scale, logit_cap, ..Model::sample() };
            let logits = |x: &[f32]| -> Vec<f32> {
                let mut logits = x.to_vec();
                model.finish_logits(&mut logits, 0..vocab);
                logits
            };
            let x = Tensor::from_vec(row.repeat(tokens), (tokens, vocab), &Device::Cpu).unwrap();
            let found = gradients(&model, Precision::Single, &[x], 7, &identity).unwrap().remove(0);
            let found = found.to_vec2::<f32>().unwrap();
            let mut counts = vec![0.0; vocab];
            for grad in &found {
                let negative: Vec<usize> = (0..vocab).filter(|i| grad[*i] < 0.0).collect();
                assert_eq!(negative.len(), 1, "one token is drawn");
                counts[negative[0]] += 1.0;
            }
            let total = log_sum_exp(&logits(&row));
            for &i in &likely {
                let p = (f64::from(logits(&row)[i]) - total).exp();
                let deviation = (tokens as f64 * p * (1.0 - p)).sqrt();
                assert!((counts[i] - tokens as f64 * p).abs() < 4.0 * deviation, "{i}: {} times, p = {p}", counts[i]);
            }
            let grad = &found[0];
            let drawn = (0..vocab).find(|i| grad[*i] < 0.0).unwrap();
            for &i in &likely {
                let loss = |by: f32| {
                    let mut x = row.clone();
                    x[i] += by;
                    log_sum_exp(&logits(&x)) - f64::from(logits(&x)[drawn])
                };
                let wanted = (loss(0.01) - loss(-0.01)) / 0.02;
                assert!((f64::from(grad[i]) - wanted).abs() < 1e-3, "{i}: {} instead of {wanted}", grad[i]);
            }
        }
    }
}
