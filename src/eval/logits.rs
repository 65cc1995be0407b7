//! Logits, a piece of the vocabulary at a time: no more than a piece of the output matrix is ever decoded, and no more
//! than a piece of the logits of a batch of tokens is there.

use crate::compute::Products;
use crate::error::Result;
use crate::interrupt;
use crate::model::ops;
use crate::pipeline::loaded_model::{BATCH, LoadedModel};
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::log_sum_exp;
use llmq_kernels::gemm::Precision;
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of the output matrix, and logits, that are there at once.
pub(super) const PIECE: usize = 1 << 24;

/// The rows of an output matrix of `vocab` rows and `columns` that are decoded at once: neither they nor the logits of
/// [`BATCH`] tokens have more than [`PIECE`] numbers.
pub(super) fn pieces(vocab: usize, columns: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / columns.max(BATCH)).max(1);
    (0..vocab).step_by(step).map(move |first| first..(first + step).min(vocab))
}

/// Rows of the output matrix: `[rows, hidden]`.
pub(super) fn output_rows(loaded: &LoadedModel, rows: Range<usize>) -> Result<Tensor> {
    let output = loaded.model.output();
    let shape = (rows.len(), output.shape[1]);
    Ok(Tensor::from_vec(loaded.rows(&output, rows)?, shape, &Device::Cpu)?)
}

/// The logits of `n` tokens from the `from`-th on, for these rows of the output matrix, `first` being the first of them: `n · rows`
/// numbers.
pub(super) fn logits(
    loaded: &LoadedModel,
    hidden: &Tensor,
    from: usize,
    n: usize,
    (first, rows): (usize, &Tensor),
) -> Result<Vec<f32>> {
    let how = Products { precision: Precision::Split, on: loaded.compute.clone() };
    let mut logits = ops::linear(how, &hidden.narrow(0, from, n)?, rows)?.flatten_all()?.to_vec1::<f32>()?;
    loaded.model.finish_logits(&mut logits, first..first + rows.dim(0)?);
    Ok(logits)
}

/// `ln(eᵃ + eᵇ)`.
pub(super) fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}

/// How likely one token was, while its logits come in piece by piece: exponentials in `f32`, sums in `f64`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Likelihood {
    /// `ln Σ exp(logit)` so far.
    pub total: f64,
    /// The token's own logit.
    pub chosen: f64,
}

impl Likelihood {
    /// Before the first piece.
    pub const UNSEEN: Likelihood = Likelihood { total: f64::NEG_INFINITY, chosen: f64::NEG_INFINITY };

    /// Takes in the logits of the tokens from `first` on, whose [`log_sum_exp`] is `sum`.
    pub fn add(&mut self, logits: &[f32], sum: f64, first: usize, target: u32) {
        self.total = log_add(self.total, sum);
        self.choose(logits, first, target);
    }

    /// Takes the token's own logit from those of the tokens from `first` on, if it is one of them.
    pub fn choose(&mut self, logits: &[f32], first: usize, target: u32) {
        if let Some(&own) = (target as usize).checked_sub(first).and_then(|i| logits.get(i)) {
            self.chosen = f64::from(own);
        }
    }

    /// `−ln p(target)`, in nats.
    pub fn loss(&self) -> f64 {
        self.total - self.chosen
    }
}

/// Shows the logits of every row of `hidden`, `[tokens, hidden]`, to what is known of it, a piece of the vocabulary at a
/// time: `add(known, row, logits, their log_sum_exp, first token)`.
pub fn each_row<T: Send>(
    loaded: &LoadedModel,
    hidden: &Tensor,
    known: &mut [T],
    add: impl Fn(&mut T, usize, &[f32], f64, usize) + Sync,
) -> Result<()> {
    for rows in pieces(loaded.model.vocab, loaded.model.hidden) {
        let first = rows.start;
        let matrix = output_rows(loaded, rows.clone())?;
        for from in (0..known.len()).step_by(BATCH) {
            interrupt::check()?;
            let n = BATCH.min(known.len() - from);
            let logits = logits(loaded, hidden, from, n, (rows.start, &matrix))?;
            known[from..from + n]
                .par_iter_mut()
                .zip(logits.par_chunks(rows.len()))
                .enumerate()
                .for_each(|(i, (known, logits))| add(known, from + i, logits, log_sum_exp(logits), first));
        }
    }
    Ok(())
}

/// The logits of all tokens of the vocabulary for every row of `hidden`, `[tokens, hidden]`, in batches: `each` gets those
/// of some tokens, `[tokens, vocab]`, one batch behind the other.
pub fn whole_rows(loaded: &LoadedModel, hidden: &Tensor, each: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let (tokens, vocab) = (hidden.dims2()?.0, loaded.model.vocab);
    // Every batch decodes the output matrix anew: larger batches than elsewhere are worth their memory.
    let batch = (4 * PIECE / vocab).clamp(1, BATCH);
    for from in (0..tokens).step_by(batch) {
        let n = batch.min(tokens - from);
        let mut all = vec![0.0; n * vocab];
        for rows in pieces(vocab, loaded.model.hidden) {
            interrupt::check()?;
            let matrix = output_rows(loaded, rows.clone())?;
            let piece = logits(loaded, hidden, from, n, (rows.start, &matrix))?;
            for (all, piece) in all.chunks_exact_mut(vocab).zip(piece.chunks_exact(rows.len())) {
                all[rows.clone()].copy_from_slice(piece);
            }
        }
        each(&all)?;
    }
    Ok(())
}
