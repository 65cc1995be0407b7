//! From residual streams to distributions: how far apart two of them are.

use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Model, ops};
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::log_sum_exp;
use llmq_kernels::gemm::Precision;
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of the output matrix that are decoded at once.
const PIECE: usize = 1 << 22;

/// What becomes of rows of a matrix, `[rows, columns]`.
pub type Rounding<'a> = Box<dyn Fn(&[f32]) -> Vec<f32> + 'a>;

/// A stream that something has moved, ready for the output matrix.
pub struct Moved<'a> {
    /// `[tokens, hidden]`, normed.
    pub states: Tensor,
    /// What becomes of rows of the output matrix, `[rows, hidden]`, if that is what moves the stream.
    pub output: Option<Rounding<'a>>,
}

/// The Kullback-Leibler divergence of the distributions of each stream from the clean ones, mean over tokens, in nats.
///
/// To second order, which is half the variance of the differences of logits under the clean distribution: free of the
/// cancellation that a difference of log-likelihoods suffers, and exactly what the scaling of losses assumes.
///
/// `clean`: `[tokens, hidden]`, normed; `rows` reads some of the output matrix of `model`, `[vocab, hidden]`.
///
/// # Errors
/// A matrix that cannot be read, or streams that hold NaN or infinity.
pub fn divergences(
    clean: &Tensor,
    moved: &[Moved],
    model: &Model,
    rows: &dyn Fn(Range<usize>) -> Result<Vec<f32>>,
) -> Result<Vec<f64>> {
    let (vocab, hidden, tokens) = (model.vocab, model.hidden, clean.dims2()?.0);
    let step = (PIECE / hidden).max(1);
    let pieces = || (0..vocab).step_by(step).map(|first| first..(first + step).min(vocab));
    let logits = |states: &Tensor, range: Range<usize>, piece: &Tensor| -> Result<Vec<f32>> {
        interrupt::check()?;
        let mut logits = ops::linear(Precision::Split, states, piece)?.flatten_all()?.to_vec1()?;
        model.finish_logits(&mut logits, range);
        Ok(logits)
    };
    let mut total = vec![f64::NEG_INFINITY; tokens];
    for range in pieces() {
        let n = range.len();
        let piece = Tensor::from_vec(rows(range.clone())?, (n, hidden), &Device::Cpu)?;
        let clean = logits(clean, range, &piece)?;
        total.par_iter_mut().zip(clean.par_chunks(n)).for_each(|(total, logits)| {
            let sum = log_sum_exp(logits);
            let (high, low) = if *total > sum { (*total, sum) } else { (sum, *total) };
            *total = high + (low - high).exp().ln_1p();
        });
    }
    // For each stream and token, the mean of the differences and of their squares.
    let mut moments = vec![vec![(0.0f64, 0.0f64); tokens]; moved.len()];
    for range in pieces() {
        let n = range.len();
        let numbers = rows(range.clone())?;
        let piece = Tensor::from_slice(&numbers, (n, hidden), &Device::Cpu)?;
        let clean = logits(clean, range.clone(), &piece)?;
        let mut chances = clean.clone();
        chances.par_chunks_mut(n).zip(&total).for_each(|(chances, &total)| {
            chances.iter_mut().for_each(|x| *x = (f64::from(*x) - total).exp() as f32);
        });
        for (moved, moments) in moved.iter().zip(&mut moments) {
            let own = moved.output.as_ref().map(|output| Tensor::from_vec(output(&numbers), (n, hidden), &Device::Cpu));
            let matrix = own.transpose()?.unwrap_or_else(|| piece.clone());
            let there = logits(&moved.states, range.clone(), &matrix)?;
            let tokens = chances.par_chunks(n).zip(clean.par_chunks(n).zip(there.par_chunks(n)));
            moments.par_iter_mut().zip(tokens).for_each(|(sums, (chances, (clean, there)))| {
                for ((p, clean), there) in chances.iter().zip(clean).zip(there) {
                    let (p, difference) = (f64::from(*p), f64::from(there - clean));
                    sums.0 += p * difference;
                    sums.1 += p * difference * difference;
                }
            });
        }
    }
    let divergences = moments.iter().map(|moments| {
        let variances = moments.iter().map(|(mean, square)| (square - mean * mean).max(0.0));
        variances.sum::<f64>() / 2.0 / tokens as f64
    });
    let divergences: Vec<f64> = divergences.collect();
    match divergences.iter().all(|x| x.is_finite()) && total.iter().all(|x| x.is_finite()) {
        true => Ok(divergences),
        false => Err(Error::new("the model's next-token distributions are not finite")
            .hint("the model overflows in its own forward pass: check it with `llmq eval --perplexity`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: usize, columns: usize, step: f32, scale: f32) -> Tensor {
        let numbers: Vec<f32> = (0..rows * columns).map(|i| scale * (i as f32 * step).sin()).collect();
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
    }

    /// `Σ p ln(p/q)` per token, in double precision.
    fn exact(clean: &Tensor, moved: &Tensor, output: [&[f32]; 2], hidden: usize) -> f64 {
        let logs = |states: &Tensor, output: &[f32]| -> Vec<Vec<f64>> {
            let of = |x: &Vec<f32>| {
                let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                let logits: Vec<f64> = output.chunks(hidden).map(dot).collect();
                let total = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
                logits.iter().map(|x| x - total).collect()
            };
            states.to_vec2::<f32>().unwrap().iter().map(of).collect()
        };
        let (p, q) = (logs(clean, output[0]), logs(moved, output[1]));
        let of = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        p.iter().zip(&q).map(of).sum::<f64>() / p.len() as f64
    }

    #[test]
    fn small_divergences_are_those_of_the_definition() {
        // More rows than a piece holds.
        let (hidden, vocab) = (2048, 3000);
        let clean = tensor(5, hidden, 0.37, 1.0);
        let output: Vec<f32> = tensor(vocab, hidden, 0.71, 0.05).flatten_all().unwrap().to_vec1().unwrap();
        let louder = |w: &[f32]| w.iter().map(|w| w * 1.02).collect::<Vec<f32>>();
        let there = (&clean + tensor(5, hidden, 0.93, 0.1)).unwrap();
        let moved = [
            Moved { states: clean.clone(), output: None },
            Moved { states: there.clone(), output: None },
            Moved { states: there.clone(), output: Some(Box::new(louder)) },
        ];
        let rows = |range: Range<usize>| Ok(output[range.start * hidden..range.end * hidden].to_vec());
        let got = divergences(&clean, &moved, &Model { vocab, hidden, ..Model::sample() }, &rows).unwrap();
        let rounded = louder(&output);
        let expected = [
            0.0,
            exact(&clean, &there, [&output, &output], hidden),
            exact(&clean, &there, [&output, &rounded], hidden),
        ];
        assert!(got[0] < 1e-12, "{got:?}");
        for (got, expected) in got.iter().zip(expected).skip(1) {
            assert!(expected > 1e-5 && (got / expected - 1.0).abs() < 0.05, "{got:e} instead of {expected:e}");
        }
    }
}
