//! Attention, causal or both ways.

use crate::elementwise::{log_sum_exp, softcap, softmax};
use crate::gemm::{Old, Precision, View, product};
use rayon::prelude::*;

/// Queries that one task handles. A constant, so that results do not depend on the number of threads.
const TILE: usize = 64;

/// The shape of a batch of attention windows.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Positions of a window that have queries; every window starts afresh.
    pub positions: usize,
    /// Positions in front of these, of which there are keys and values only.
    pub past: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub d: usize,
}

/// What becomes of the scores on their way to weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// They are multiplied by this.
    pub scale: f32,
    /// Then they are kept below this by [`softcap`].
    pub cap: Option<f32>,
    /// A position sees itself and so many less one before it.
    pub window: Option<usize>,
    /// A position sees those behind it, too; and a window has half of it on each side.
    pub both_ways: bool,
    /// For each query head the score of nothing: it takes a share of the weights, and adds no value (gpt-oss).
    pub sinks: Vec<f32>,
}

impl Scores {
    /// The positions that a position sees, of `all`.
    pub fn seen(&self, position: usize, all: usize) -> std::ops::Range<usize> {
        let (before, behind) = match (self.both_ways, self.window) {
            (false, window) => (window.map_or(position, |window| window.saturating_sub(1)), 0),
            (true, None) => (position, all),
            (true, Some(window)) => (window / 2, window / 2),
        };
        position.saturating_sub(before)..all.min(position.saturating_add(behind + 1))
    }
}

/// `softmax(scale·QKᵀ + causal mask)·V` per window and head, on all threads (Vaswani et al. 2017, equation 1).
///
/// `q`, `out`: `[windows · positions, heads · d]`; `k`, `v`: `[windows · (past + positions), kv_heads · d]`. Only scores on
/// or below the diagonal (to the width of a tile) are computed. Products are of [`Precision::Split`].
///
/// # Panics
/// If the lengths do not fit.
pub fn causal(q: &[f32], k: &[f32], v: &[f32], shape: Shape, how: &Scores, out: &mut [f32]) {
    let Shape { positions, past, heads, kv_heads, d } = shape;
    let (width, kv_width) = (heads * d, kv_heads * d);
    let windows = q.len() / (positions * width);
    assert_eq!(q.len(), windows * positions * width, "queries");
    assert_eq!(
        (k.len(), v.len(), out.len()),
        (windows * (past + positions) * kv_width, k.len(), q.len()),
        "keys, values, output"
    );
    assert_eq!(heads % kv_heads, 0, "query heads per key head");
    let tiles: Vec<(usize, usize, &mut [f32])> = out
        .chunks_mut(positions * width)
        .enumerate()
        .flat_map(|(w, out)| out.chunks_mut(TILE * width).enumerate().map(move |(t, out)| (w, t * TILE, out)))
        .collect();
    tiles.into_par_iter().for_each(|(w, first, out)| {
        let rows = out.len() / width;
        let all = past + positions;
        let seen = if how.both_ways { all } else { past + first + rows };
        let q = &q[(w * positions + first) * width..];
        let own = w * (past + positions) * kv_width;
        let (k, v) = (&k[own..], &v[own..]);
        let mut scores = vec![0.0; rows * seen]; // [rows, seen]
        for h in 0..heads {
            let kv = h / (heads / kv_heads) * d;
            let queries = View::new(&q[h * d..], rows, d, width);
            let keys = View::new(&k[kv..], seen, d, kv_width);
            let values = View::new(&v[kv..], seen, d, kv_width);
            product(Precision::Split, &mut scores, seen, Old::Replaced, 1.0, queries, keys.t());
            for (i, row) in scores.chunks_mut(seen).enumerate() {
                let own = how.seen(past + first + i, all);
                row[own.end..].fill(0.0);
                row[..own.start].fill(0.0);
                weigh(&mut row[own], how, how.sinks.get(h));
            }
            let weights = View::new(&scores, rows, seen, seen);
            product(Precision::Split, &mut out[h * d..], width, Old::Replaced, 1.0, weights, values);
        }
    });
}

/// From scores to weights.
fn weigh(scores: &mut [f32], how: &Scores, sink: Option<&f32>) {
    let mut scale = how.scale;
    if let Some(cap) = how.cap {
        softcap(scores, scale, cap);
        scale = 1.0;
    }
    let Some(&sink) = sink else { return softmax(scores, scale) };
    scores.iter_mut().for_each(|score| *score *= scale);
    let share = 1.0 / (1.0 + (f64::from(sink) - log_sum_exp(scores)).exp());
    softmax(scores, 1.0);
    scores.iter_mut().for_each(|weight| *weight *= share as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_equals_the_formula() {
        let plain = Scores { scale: 0.4, ..Scores::default() };
        for (windows, positions, heads, kv_heads, d) in [(1, 1, 1, 1, 2), (2, 7, 4, 2, 8), (1, 150, 3, 1, 16)] {
            for how in [
                plain.clone(),
                Scores { cap: Some(0.9), ..plain.clone() },
                Scores { window: Some(5), ..plain.clone() },
                Scores { both_ways: true, ..plain.clone() },
                Scores { both_ways: true, window: Some(6), ..plain.clone() },
                Scores { sinks: (0..heads).map(|h| h as f32 * 0.5 - 0.7).collect(), ..plain.clone() },
            ] {
                for past in [0, 3] {
                    check(windows, Shape { positions, past, heads, kv_heads, d }, &how);
                }
            }
        }
    }

    fn check(windows: usize, shape: Shape, how: &Scores) {
        let Shape { positions, past, heads, kv_heads, d } = shape;
        let (n, all) = (windows * positions, windows * (past + positions));
        let make = |len: usize, s: f32| -> Vec<f32> { (0..len).map(|i| (i as f32 * s).sin()).collect() };
        let (q, k, v) = (make(n * heads * d, 0.7), make(all * kv_heads * d, 1.3), make(all * kv_heads * d, 0.9));
        let mut out = vec![f32::NAN; q.len()];
        causal(&q, &k, &v, shape, how, &mut out);
        for w in 0..windows {
            for t in 0..positions {
                for h in 0..heads {
                    let kv = h / (heads / kv_heads);
                    let at = |u: usize| ((w * (past + positions) + u) * kv_heads + kv) * d;
                    let query = &q[((w * positions + t) * heads + h) * d..][..d];
                    let now = past + t;
                    let hidden = |u: usize| match how.both_ways {
                        false => u > now || how.window.is_some_and(|window| now - u >= window),
                        true => how.window.is_some_and(|window| now.abs_diff(u) > window / 2),
                    };
                    let scores: Vec<f64> = (0..past + positions)
                        .map(|u| {
                            let dot: f32 = query.iter().zip(&k[at(u)..]).map(|(a, b)| a * b).sum();
                            let score = f64::from(how.scale * dot);
                            let score = how.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                            if hidden(u) { 0.0 } else { score.exp() }
                        })
                        .collect();
                    let nothing = how.sinks.get(h).map_or(0.0, |&sink| f64::from(sink).exp());
                    let total = scores.iter().sum::<f64>() + nothing;
                    for i in 0..d {
                        let want: f64 =
                            (0..past + positions).map(|u| scores[u] / total * f64::from(v[at(u) + i])).sum();
                        let got = f64::from(out[((w * positions + t) * heads + h) * d + i]);
                        assert!((got - want).abs() < 1e-5, "{how:?}: window {w}, position {t}, head {h}");
                    }
                }
            }
        }
    }
}
