//! How far the weights of a file are from those that it was made from, matrix by matrix.
//!
//! Activation-aware methods fold scales into a matrix and into what comes before it, which change no output: columns are
//! multiplied, and rows of the layer before are divided. So where scales of rows and columns explain most of a difference,
//! they are fitted first, and what is left counts.

use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::model::TensorSpec;
use crate::pipeline::loaded_model::LoadedModel;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// Numbers of a tensor that are there at once, of each model.
const PIECE: usize = 1 << 24;

/// Rows whose sums one thread makes.
const ROWS: usize = 64;

/// Rounds in which columns and rows are fitted in turn.
const ROUNDS: usize = 3;

/// Scales are taken for folded if they explain all but this part of a difference.
const EXPLAINED: f64 = 0.5;

/// The error of one matrix.
#[derive(Debug, Clone)]
pub struct TensorError {
    /// Its name in GGUF.
    pub name: String,
    /// Its type in the file.
    pub kind: String,
    /// The block that it belongs to.
    pub block: Option<usize>,
    /// Its name without the block and `.weight`: `attn_q`.
    pub part: String,
    /// `‖W − Q‖² / ‖W‖²`, with `W` the original's weights and `Q` the file's.
    pub error: f64,
    /// Whether scales of rows and columns were fitted first.
    pub rescaled: bool,
}

/// The errors of all matrices that both models have, in file order. `progress` is told the done and the whole work, in
/// numbers.
///
/// # Errors
/// A tensor cannot be read, or the models have no matrix of one shape in common.
pub fn errors(file: &LoadedModel, original: &LoadedModel, progress: &dyn Fn(u64, u64)) -> Result<Vec<TensorError>> {
    let theirs: HashMap<String, TensorSpec> = original.model.tensors().map(|spec| (spec.gguf.clone(), spec)).collect();
    let both = |spec: TensorSpec| {
        let other = theirs.get(&spec.gguf).filter(|other| other.shape == spec.shape && spec.shape.len() > 1)?;
        Some((spec, other))
    };
    let pairs: Vec<(TensorSpec, &TensorSpec)> = file.model.tensors().filter_map(both).collect();
    let total: u64 = pairs.iter().map(|(spec, _)| spec.elements() as u64).sum();
    if total == 0 {
        return Err(Error::new("the file has no matrix in common with the original").hint(super::divergence::HINT));
    }
    let mut done = 0;
    let mut errors = Vec::new();
    for (spec, other) in pairs {
        let (error, rescaled) =
            of((file, &spec), (original, other)).context(|| format!("comparing '{}'", spec.gguf))?;
        done += spec.elements() as u64;
        progress(done, total);
        let kind = file.weights().gguf_type(&spec).map_or("", |kind| kind.name());
        let part = spec.gguf.strip_suffix(".weight").unwrap_or(&spec.gguf);
        let part = spec.block.and_then(|i| part.strip_prefix(&format!("blk.{i}."))).unwrap_or(part);
        let (part, kind) = (part.to_owned(), kind.to_owned());
        errors.push(TensorError { name: spec.gguf.clone(), kind, block: spec.block, part, error, rescaled });
    }
    Ok(errors)
}

/// The error of one tensor, and whether it was rescaled.
fn of(file: (&LoadedModel, &TensorSpec), original: (&LoadedModel, &TensorSpec)) -> Result<(f64, bool)> {
    let (rows, columns) = (file.1.rows(), file.1.columns());
    let orders = [file, original].map(|(loaded, spec)| order(loaded, spec));
    let turned = orders.iter().any(Option::is_some);
    // Rows that change places are read with all others; these are matrices of attention, never the largest.
    let step = if turned { rows } else { (PIECE / columns.max(1)).max(1) };
    let (mut whole, mut raw, mut fitted) = (0.0, 0.0, 0.0);
    for first in (0..rows).step_by(step) {
        interrupt::check()?;
        let range = first..(first + step).min(rows);
        let q = in_order(file.0.rows(file.1, range.clone())?, orders[0].as_deref(), columns);
        let w = in_order(original.0.rows(original.1, range)?, orders[1].as_deref(), columns);
        whole += sum(&w, &w, columns, |w, _| w * w);
        raw += sum(&w, &q, columns, |w, q| (w - q) * (w - q));
        fitted += rescaled(&w, &q, columns);
    }
    let relative = |x: f64| if whole > 0.0 { x / whole } else { x };
    Ok(if fitted < EXPLAINED * raw { (relative(fitted), true) } else { (relative(raw), false) })
}

/// For each row in the order of a GGUF, where a checkpoint has it; none where that is the same.
fn order(loaded: &LoadedModel, spec: &TensorSpec) -> Option<Vec<usize>> {
    let is_checkpoint = loaded.weights().gguf().is_none();
    is_checkpoint.then(|| spec.order.sources(spec.rows())).flatten()
}

fn in_order(numbers: Vec<f32>, order: Option<&[usize]>, columns: usize) -> Vec<f32> {
    match order {
        None => numbers,
        Some(order) => order.iter().flat_map(|&row| &numbers[row * columns..(row + 1) * columns]).copied().collect(),
    }
}

/// The sum of `f` over all pairs of numbers; the same at any number of threads.
fn sum(w: &[f32], q: &[f32], columns: usize, f: impl Fn(f64, f64) -> f64 + Sync) -> f64 {
    let part = |(w, q): (&[f32], &[f32])| w.iter().zip(q).map(|(&w, &q)| f(w.into(), q.into())).sum::<f64>();
    let size = ROWS * columns;
    w.par_chunks(size).zip(q.par_chunks(size)).map(part).collect::<Vec<f64>>().iter().sum()
}

/// `Σ (w − r·q·c)²` with the scales of rows `r` and of columns `c` that make it small: least squares in turns. `w`, `q`:
/// `[rows, columns]`.
fn rescaled(w: &[f32], q: &[f32], columns: usize) -> f64 {
    let rows = w.len() / columns;
    let (mut r, mut c) = (vec![1.0f64; rows], vec![1.0f64; columns]);
    let row = |i: usize| {
        let range: Range<usize> = i * columns..(i + 1) * columns;
        w[range.clone()].iter().zip(&q[range]).map(|(&w, &q)| (f64::from(w), f64::from(q)))
    };
    let scale = |product: f64, square: f64| if square > 0.0 { product / square } else { 1.0 };
    for _ in 0..ROUNDS {
        let parts: Vec<Vec<(f64, f64)>> = (0..rows.div_ceil(ROWS))
            .into_par_iter()
            .map(|part| {
                let mut sums = vec![(0.0, 0.0); columns];
                for i in part * ROWS..((part + 1) * ROWS).min(rows) {
                    for ((w, q), sums) in row(i).zip(&mut sums) {
                        sums.0 += w * r[i] * q;
                        sums.1 += r[i] * q * r[i] * q;
                    }
                }
                sums
            })
            .collect();
        for j in 0..columns {
            let (product, square) = parts.iter().fold((0.0, 0.0), |(a, b), part| (a + part[j].0, b + part[j].1));
            c[j] = scale(product, square);
        }
        r = (0..rows)
            .into_par_iter()
            .map(|i| {
                let terms = row(i).zip(&c).map(|((w, q), c)| (w * c * q, c * q * c * q));
                let (product, square) = terms.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
                scale(product, square)
            })
            .collect();
    }
    let left = |i: usize| row(i).zip(&c).map(|((w, q), c)| (w - r[i] * q * c).powi(2)).sum::<f64>();
    (0..rows).into_par_iter().map(left).collect::<Vec<f64>>().iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between −1 and 1 without a pattern.
    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let hash = |i: u64| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..n as u64).map(|i| ((hash(hash(i) >> 7) >> 40) as f32 / (1 << 23) as f32) - 1.0).collect()
    }

    #[test]
    fn scales_of_rows_and_columns_are_no_error() {
        let (rows, columns) = (150, 32);
        let w = numbers(rows * columns, 1);
        let scaled = |i: usize, x: f32| x * (1.0 + (i / columns % 7) as f32) / (1.0 + (i % columns % 5) as f32);
        let q: Vec<f32> = w.iter().enumerate().map(|(i, &x)| scaled(i, x)).collect();
        // As near as a few rounds come to it.
        let whole = sum(&w, &w, columns, |w, _| w * w);
        assert!(rescaled(&w, &q, columns) < 1e-6 * whole);
    }

    #[test]
    fn errors_without_scales_are_nearly_what_they_are() {
        let (rows, columns) = (300, 64);
        let (w, noise) = (numbers(rows * columns, 1), numbers(rows * columns, 2));
        let q: Vec<f32> = w.iter().zip(&noise).map(|(w, e)| w + 0.1 * e).collect();
        let raw = sum(&w, &q, columns, |w, q| (w - q) * (w - q));
        let fitted = rescaled(&w, &q, columns);
        assert!(fitted <= raw && fitted > 0.9 * raw, "{fitted} of {raw}");
    }
}
