//! The backward pass of attention: the weights are computed again, as nothing else is kept.

use super::{Scores, Shape, TILE, weigh_seen};
use crate::elementwise::softcap;
use crate::gemm::{Old, Precision, View, product};
use rayon::prelude::*;

/// The gradients of a loss at the queries, keys and values that [`causal`](super::causal) reads, `[dq, dk, dv]`, each of its input's shape.
/// `grad`: that at its output.
///
/// With the weights `P = softmax(S)` and `dP = dO·Vᵀ`: `dS = P ∘ (dP − rowsum(P ∘ dP))`, `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`,
/// `dV = Pᵀ·dO` (Dao et al. 2022, "FlashAttention", appendix B.2); below a cap, `dS` is also multiplied by `1 − (S/cap)²`. What a sink
/// takes is in `P`, and nothing flows back to it. All threads; products are of [`Precision::Split`].
///
/// # Panics
/// If the lengths do not fit, or positions were chosen.
pub fn causal_backward(q: &[f32], k: &[f32], v: &[f32], grad: &[f32], shape: Shape, how: &Scores) -> [Vec<f32>; 3] {
    let Shape { positions, past, heads, kv_heads, d } = shape;
    let (all, shared) = (past + positions, heads / kv_heads);
    let (width, kv_width) = (heads * d, kv_heads * d);
    let windows = q.len() / (positions * width);
    assert_eq!((grad.len(), q.len()), (q.len(), windows * positions * width), "queries, gradient");
    assert_eq!((k.len(), v.len()), (windows * all * kv_width, k.len()), "keys, values");
    assert!(how.chosen.is_empty(), "chosen positions");
    // One task for each head of keys, as all of its queries add to it.
    let of_head = |task: usize| -> [Vec<f32>; 3] {
        let (w, kv) = (task / kv_heads, task % kv_heads);
        let (first_q, first_k) = (w * positions * width + kv * shared * d, w * all * kv_width + kv * d);
        let mut dq = vec![0.0; positions * shared * d]; // [positions, shared · d]
        let mut dk = vec![0.0; all * d]; // [all, d]
        let mut dv = vec![0.0; all * d]; // [all, d]
        let mut weights = vec![0.0; TILE * all]; // [rows, seen]
        let mut ds = vec![0.0; TILE * all]; // [rows, seen]
        for (first, h) in (0..positions).step_by(TILE).flat_map(|first| (0..shared).map(move |h| (first, h))) {
            let rows = TILE.min(positions - first);
            let seen = if how.both_ways { all } else { past + first + rows };
            let at = first_q + first * width + h * d;
            let (queries, own) = (View::new(&q[at..], rows, d, width), View::new(&grad[at..], rows, d, width));
            let (keys, values) =
                (View::new(&k[first_k..], seen, d, kv_width), View::new(&v[first_k..], seen, d, kv_width));
            let (weights, ds) = (&mut weights[..rows * seen], &mut ds[..rows * seen]);
            product(Precision::Split, weights, seen, Old::Replaced, 1.0, queries, keys.t());
            let capped = how.cap.map(|cap| {
                let mut capped = weights.to_vec();
                softcap(&mut capped, how.scale, cap);
                capped
            });
            for (i, row) in weights.chunks_mut(seen).enumerate() {
                weigh_seen(row, past + first + i, all, how, kv * shared + h);
            }
            product(Precision::Split, ds, seen, Old::Replaced, 1.0, own, values.t());
            for (ds, p) in ds.chunks_mut(seen).zip(weights.chunks(seen)) {
                let mean = p.iter().zip(&*ds).map(|(p, dp)| p * dp).sum::<f32>();
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean));
            }
            if let (Some(capped), Some(cap)) = (&capped, how.cap) {
                ds.iter_mut().zip(capped).for_each(|(ds, s)| *ds *= 1.0 - (s / cap).powi(2));
            }
            let (weights, ds) = (View::new(weights, rows, seen, seen), View::new(ds, rows, seen, seen));
            let to = &mut dq[first * shared * d + h * d..];
            product(Precision::Split, to, shared * d, Old::Replaced, how.scale, ds, keys);
            product(Precision::Split, &mut dk, d, Old::Kept, how.scale, ds.t(), queries);
            product(Precision::Split, &mut dv, d, Old::Kept, 1.0, weights.t(), own);
        }
        [dq, dk, dv]
    };
    let parts: Vec<[Vec<f32>; 3]> = (0..windows * kv_heads).into_par_iter().map(of_head).collect();
    let joined = |which: usize, count: usize, each: usize| {
        let mut out = vec![0.0; windows * count * kv_heads * each]; // [windows · count, kv_heads · each]
        for (task, parts) in parts.iter().enumerate() {
            let (w, kv) = (task / kv_heads, task % kv_heads);
            for (i, row) in parts[which].chunks(each).enumerate() {
                out[((w * count + i) * kv_heads + kv) * each..][..each].copy_from_slice(row);
            }
        }
        out
    };
    [joined(0, positions, shared * d), joined(1, all, d), joined(2, all, d)]
}

#[cfg(test)]
mod tests {
    use super::super::causal;
    use super::*;

    /// A loss that is linear in the output: its change along a direction against the gradient's product with that.
    #[test]
    fn gradients_are_those_of_small_differences() {
        let make = |len: usize, s: f32| -> Vec<f32> { (0..len).map(|i| (i as f32 * s).sin()).collect() };
        let plain = Scores { scale: 0.4, ..Scores::default() };
        for (windows, positions, past, heads, kv_heads, d) in
            [(2, 7, 0, 4, 2, 8), (1, 70, 0, 3, 1, 4), (2, 5, 3, 2, 2, 6)]
        {
            let shape = Shape { positions, past, heads, kv_heads, d };
            let (n, m) = (windows * positions * heads * d, windows * (past + positions) * kv_heads * d);
            let inputs = [make(n, 0.7), make(m, 1.3), make(m, 0.37)];
            let grad = make(n, 0.9);
            for how in [
                plain.clone(),
                Scores { cap: Some(0.9), ..plain.clone() },
                Scores { window: Some(5), ..plain.clone() },
                Scores { both_ways: true, window: Some(6), ..plain.clone() },
                Scores { sinks: (0..heads).map(|h| h as f32 * 0.5 - 0.7).collect(), ..plain.clone() },
            ] {
                let loss = |[q, k, v]: &[Vec<f32>; 3]| -> f64 {
                    let mut out = vec![0.0; n];
                    causal(q, k, v, shape, &how, &mut out);
                    out.iter().zip(&grad).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let [q, k, v] = &inputs;
                let found = causal_backward(q, k, v, &grad, shape, &how);
                for which in 0..3 {
                    let direction = make(inputs[which].len(), 2.1);
                    let moved = |by: f32| {
                        let mut inputs = inputs.clone();
                        inputs[which].iter_mut().zip(&direction).for_each(|(x, u)| *x += by * u);
                        loss(&inputs)
                    };
                    let wanted = (moved(0.02) - moved(-0.02)) / 0.04;
                    let got: f64 = found[which].iter().zip(&direction).map(|(g, u)| f64::from(g * u)).sum();
                    let size = found[which].iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
                    let norm = direction.iter().map(|u| f64::from(u * u)).sum::<f64>().sqrt();
                    assert!(
                        size > 0.0 && (got - wanted).abs() < 1e-3 * size * norm,
                        "{which}: {got} instead of {wanted}"
                    );
                }
            }
        }
    }
}
