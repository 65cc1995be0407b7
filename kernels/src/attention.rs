//! Causal attention.

use crate::elementwise::softmax;
use crate::gemm::{Old, View, product};
use rayon::prelude::*;

/// Queries that one task handles. A constant, so that results do not depend on the number of threads.
const TILE: usize = 64;

/// The shape of a batch of attention windows.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Positions of a window; every window starts afresh.
    pub positions: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub d: usize,
}

/// `softmax(scale·QKᵀ + causal mask)·V` per window and head, on all threads (Vaswani et al. 2017, equation 1).
///
/// `q`, `out`: `[windows · positions, heads · d]`; `k`, `v`: `[windows · positions, kv_heads · d]`. Only scores on or
/// below the diagonal (to the width of a tile) are computed.
///
/// # Panics
/// If the lengths do not fit.
pub fn causal(q: &[f32], k: &[f32], v: &[f32], shape: Shape, scale: f32, out: &mut [f32]) {
    let Shape { positions, heads, kv_heads, d } = shape;
    let (width, kv_width) = (heads * d, kv_heads * d);
    let windows = q.len() / (positions * width);
    assert_eq!(q.len(), windows * positions * width, "queries");
    assert_eq!(
        (k.len(), v.len(), out.len()),
        (windows * positions * kv_width, k.len(), q.len()),
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
        let seen = first + rows;
        let q = &q[(w * positions + first) * width..];
        let (k, v) = (&k[w * positions * kv_width..], &v[w * positions * kv_width..]);
        let mut scores = vec![0.0; rows * seen]; // [rows, seen]
        for h in 0..heads {
            let kv = h / (heads / kv_heads) * d;
            let queries = View::new(&q[h * d..], rows, d, width);
            let keys = View::new(&k[kv..], seen, d, kv_width);
            let values = View::new(&v[kv..], seen, d, kv_width);
            product(&mut scores, seen, Old::Replaced, 1.0, queries, keys.t());
            for (i, row) in scores.chunks_mut(seen).enumerate() {
                let (past, future) = row.split_at_mut(first + i + 1);
                softmax(past, scale);
                future.fill(0.0);
            }
            product(&mut out[h * d..], width, Old::Replaced, 1.0, View::new(&scores, rows, seen, seen), values);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_equals_the_formula() {
        for (windows, positions, heads, kv_heads, d) in [(1, 1, 1, 1, 2), (2, 7, 4, 2, 8), (1, 150, 3, 1, 16)] {
            let n = windows * positions;
            let make = |len: usize, s: f32| -> Vec<f32> { (0..len).map(|i| (i as f32 * s).sin()).collect() };
            let (q, k, v) = (make(n * heads * d, 0.7), make(n * kv_heads * d, 1.3), make(n * kv_heads * d, 0.9));
            let mut out = vec![f32::NAN; q.len()];
            let shape = Shape { positions, heads, kv_heads, d };
            causal(&q, &k, &v, shape, 0.4, &mut out);
            for w in 0..windows {
                for t in 0..positions {
                    for h in 0..heads {
                        let kv = h / (heads / kv_heads);
                        let at = |u: usize| ((w * positions + u) * kv_heads + kv) * d;
                        let query = &q[((w * positions + t) * heads + h) * d..][..d];
                        let scores: Vec<f64> = (0..=t)
                            .map(|u| {
                                let dot: f32 = query.iter().zip(&k[at(u)..]).map(|(a, b)| a * b).sum();
                                f64::from(0.4 * dot).exp()
                            })
                            .collect();
                        let total: f64 = scores.iter().sum();
                        for i in 0..d {
                            let want: f64 = (0..=t).map(|u| scores[u] / total * f64::from(v[at(u) + i])).sum();
                            let got = f64::from(out[((w * positions + t) * heads + h) * d + i]);
                            assert!((got - want).abs() < 1e-5, "window {w}, position {t}, head {h}");
                        }
                    }
                }
            }
        }
    }
}
