//! Sums of outer products: `H += XᵀX` and `C += AᵀB`.

use crate::gemm::{Old, View, product};
use rayon::prelude::*;

/// Rows of `H` that one task computes. A constant, so that results do not depend on the number of threads.
const PANEL: usize = 64;

/// Adds `XᵀX` to the lower triangle of `H` (the diagonal included), on all threads.
///
/// `x`: `[n, k]`, `h`: `[k, k]`. What lies above the diagonal is left undefined until [`mirror`].
///
/// # Panics
/// If the lengths do not fit.
pub fn syrk(x: &[f32], k: usize, h: &mut [f32]) {
    let n = x.len() / k;
    assert_eq!((x.len(), h.len()), (n * k, k * k), "shapes of a sum of outer products");
    h.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
        let first = p * PANEL;
        let rows = panel.len() / k;
        let left = View::new(&x[first..], n, rows, k); // [n, rows]
        let right = View::new(x, n, first + rows, k); // [n, first + rows]
        product(panel, k, Old::Kept, 1.0, left.t(), right);
    });
}

/// Adds `AᵀB` to `C`, on all threads.
///
/// `a`: `[t, m]`, `b`: `[t, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn outer(a: &[f32], m: usize, b: &[f32], n: usize, c: &mut [f32]) {
    let t = b.len() / n;
    assert_eq!((a.len(), b.len(), c.len()), (t * m, t * n, m * n), "shapes of a sum of outer products");
    c.par_chunks_mut(PANEL * n).enumerate().for_each(|(p, panel)| {
        let rows = panel.len() / n;
        let left = View::new(&a[p * PANEL..], t, rows, m); // [t, rows]
        product(panel, n, Old::Kept, 1.0, left.t(), View::new(b, t, n, n));
    });
}

/// Copies the lower triangle of `h` (`[k, k]`) to the upper one.
pub fn mirror(k: usize, h: &mut [f32]) {
    for i in 0..k {
        for j in i + 1..k {
            h[i * k + j] = h[j * k + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_equals_the_sum_of_outer_products() {
        for (n, k) in [(1, 1), (5, 3), (40, 65), (17, 200)] {
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 7919 % 1009) as f32 / 500.0) - 1.0).collect();
            let mut h = vec![0.5; k * k];
            syrk(&x, k, &mut h);
            mirror(k, &mut h);
            for i in 0..k {
                for j in 0..k {
                    let want: f32 = 0.5 + (0..n).map(|t| x[t * k + i] * x[t * k + j]).sum::<f32>();
                    assert!((h[i * k + j] - want).abs() < 1e-4, "{n} {k} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn outer_products_of_two_matrices_add_up() {
        for (t, m, n) in [(1, 1, 1), (5, 3, 2), (40, 65, 70), (17, 200, 3)] {
            let of = |rows: usize, seed: usize| -> Vec<f32> {
                (0..t * rows).map(|i| ((i * 7919 + seed) % 1009) as f32 / 500.0 - 1.0).collect()
            };
            let (a, b) = (of(m, 1), of(n, 2));
            let mut c = vec![0.5; m * n];
            outer(&a, m, &b, n, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = 0.5 + (0..t).map(|k| a[k * m + i] * b[k * n + j]).sum::<f32>();
                    assert!((c[i * n + j] - want).abs() < 1e-4, "{t} {m} {n} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let x: Vec<f32> = (0..100 * 150).map(|i| (i as f32 * 0.37).sin()).collect();
        let on = |threads| {
            let mut h = vec![0.0; 150 * 150];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| syrk(&x, 150, &mut h));
            h
        };
        assert_eq!(on(1), on(4));
    }
}
