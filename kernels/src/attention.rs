//! Attention, causal or both ways.

mod backward;

use crate::elementwise::{log_sum_exp, softcap, softmax};
use crate::gemm::{Old, Precision, View, product};
pub use backward::causal_backward;
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
    /// Which positions each position sees of those that it could, `[windows · positions, past + positions]`; all where it is empty.
    pub chosen: Vec<bool>,
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
/// If the lengths do not fit, or nothing is chosen for a position.
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
    assert!(how.chosen.is_empty() || how.chosen.len() == windows * positions * (past + positions), "chosen positions");
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
                match how.chosen.get((w * positions + first + i) * all..) {
                    None | Some([]) => weigh_seen(row, past + first + i, all, how, h),
                    Some(chosen) => {
                        let own = how.seen(past + first + i, all);
                        row[own.end..].fill(0.0);
                        row[..own.start].fill(0.0);
                        let mut few: Vec<f32> = own.clone().filter(|&u| chosen[u]).map(|u| row[u]).collect();
                        weigh(&mut few, how, how.sinks.get(h));
                        let mut few = few.into_iter();
                        own.for_each(|u| row[u] = if chosen[u] { few.next().unwrap_or_default() } else { 0.0 });
                    }
                }
            }
            let weights = View::new(&scores, rows, seen, seen);
            product(Precision::Split, &mut out[h * d..], width, Old::Replaced, 1.0, weights, values);
        }
    });
}

/// The positions that sparse attention sees, `[windows · positions, past + positions]`: of a position itself and those before it the `top`
/// with the largest `Σₕ wₕ·relu(qₕ·k)`, of equal ones the first (DeepSeek-AI 2025, "DeepSeek-V3.2", equations 1 and 2).
///
/// `q`: `[windows · positions, heads · d]`; `k`: `[windows · (past + positions), d]`, one head for all; `weights`:
/// `[windows · positions, heads]`. All threads; products are of [`Precision::Single`], as a choice knows no small errors.
///
/// # Panics
/// If the lengths do not fit.
pub fn choose(q: &[f32], k: &[f32], weights: &[f32], shape: Shape, top: usize) -> Vec<bool> {
    let Shape { positions, past, heads, kv_heads, d } = shape;
    let (all, n) = (past + positions, weights.len() / heads);
    let windows = n / positions;
    assert_eq!((q.len(), k.len(), kv_heads), (n * heads * d, windows * all * d, 1), "queries, keys, heads of keys");
    assert_eq!(weights.len(), windows * positions * heads, "weights");
    let mut chosen = vec![false; n * all];
    let tiles: Vec<(usize, usize, &mut [bool])> = chosen
        .chunks_mut(positions * all)
        .enumerate()
        .flat_map(|(w, out)| out.chunks_mut(TILE * all).enumerate().map(move |(t, out)| (w, t * TILE, out)))
        .collect();
    tiles.into_par_iter().for_each(|(w, first, out)| {
        let (rows, row) = (out.len() / all, w * positions + first);
        let seen = past + first + rows;
        let keys = View::new(&k[w * all * d..], seen, d, d);
        let mut scores = vec![0.0; rows * seen]; // [rows, seen]
        let mut sums = vec![0.0; rows * seen]; // [rows, seen]
        for h in 0..heads {
            let queries = View::new(&q[(row * heads + h) * d..], rows, d, heads * d);
            product(Precision::Single, &mut scores, seen, Old::Replaced, 1.0, queries, keys.t());
            for (i, (sums, scores)) in sums.chunks_mut(seen).zip(scores.chunks(seen)).enumerate() {
                let weight = weights[(row + i) * heads + h];
                sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score.max(0.0));
            }
        }
        for (i, (out, sums)) in out.chunks_mut(all).zip(sums.chunks(seen)).enumerate() {
            let own = past + first + i + 1;
            let mut order: Vec<usize> = (0..own).collect();
            if own > top {
                order.select_nth_unstable_by(top, |&a, &b| sums[b].total_cmp(&sums[a]).then(a.cmp(&b)));
                order.truncate(top);
            }
            order.into_iter().for_each(|u| out[u] = true);
        }
    });
    chosen
}

/// From the scores of a position to its weights, in head `h`: of those that it sees, and zeros elsewhere.
fn weigh_seen(row: &mut [f32], position: usize, all: usize, how: &Scores, h: usize) {
    let own = how.seen(position, all);
    row[own.end..].fill(0.0);
    row[..own.start].fill(0.0);
    weigh(&mut row[own], how, how.sinks.get(h));
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
            for past in [0, 3] {
                // Each sees itself, and about a third of the others.
                let all = past + positions;
                let sees = |i: usize| i % all == past + i / all % positions || i % 3 == 1;
                let chosen = (0..windows * positions * all).map(sees).collect();
                check(windows, Shape { positions, past, heads, kv_heads, d }, &Scores { chosen, ..plain.clone() });
            }
        }
    }

    #[test]
    fn the_positions_with_the_largest_scores_are_chosen() {
        let make = |len: usize, s: f32| -> Vec<f32> { (0..len).map(|i| (i as f32 * s).sin()).collect() };
        for (windows, positions, past, heads, d, top) in [(2, 7, 0, 3, 4, 2), (1, 150, 5, 4, 8, 40), (1, 1, 9, 1, 2, 4)]
        {
            let (n, all) = (windows * positions, past + positions);
            let (q, k, weights) = (make(n * heads * d, 0.7), make(windows * all * d, 1.3), make(n * heads, 0.4));
            let chosen = choose(&q, &k, &weights, Shape { positions, past, heads, kv_heads: 1, d }, top);
            for (row, chosen) in chosen.chunks(all).enumerate() {
                let (w, now) = (row / positions, past + row % positions);
                let score = |u: usize| -> f64 {
                    let of_head = |h: usize| {
                        let key = &k[(w * all + u) * d..][..d];
                        let dot: f64 = q[(row * heads + h) * d..].iter().zip(key).map(|(a, b)| f64::from(a * b)).sum();
                        f64::from(weights[row * heads + h]) * dot.max(0.0)
                    };
                    (0..heads).map(of_head).sum()
                };
                let (seen, left): (Vec<usize>, Vec<usize>) = (0..=now).partition(|&u| chosen[u]);
                assert_eq!((seen.len(), chosen[now + 1..].contains(&true)), (top.min(now + 1), false), "row {row}");
                let least = seen.into_iter().map(score).fold(f64::INFINITY, f64::min);
                assert!(left.into_iter().all(|u| score(u) <= least + 1e-5), "row {row}");
            }
        }
        // No head has anything to say of any.
        let nothing = choose(
            &[1.0; 3],
            &[-1.0, -2.0, -3.0],
            &[1.0; 3],
            Shape { positions: 3, past: 0, heads: 1, kv_heads: 1, d: 1 },
            2,
        );
        assert_eq!(nothing, [true, false, false, true, true, false, true, true, false]);
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
                    let left_out =
                        |u: usize| !how.chosen.is_empty() && !how.chosen[(w * positions + t) * (past + positions) + u];
                    let hidden = |u: usize| match how.both_ways {
                        _ if left_out(u) => true,
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
