//! Sums of outer products: `H += XᵀX` and `C += AᵀB`.

use crate::micro::{Micro, Tile};
use crate::pack::{Out, View, packed};
use rayon::prelude::*;

/// Rows of `H` that one task computes, in tiles. A constant, so that results do not depend on the number of threads.
const TILES: usize = 8;

/// Rows of `X` that are added at once.
const DEPTH: usize = 512;

/// Adds `XᵀX` to the lower triangle of `H` (the diagonal included), on all threads.
///
/// `x`: `[n, k]`, `h`: `[k, k]`. What lies above the diagonal is left undefined until [`mirror`].
///
/// # Panics
/// If the lengths do not fit.
pub fn syrk(x: &[f32], k: usize, h: &mut [f32]) {
    assert_eq!((x.len(), h.len()), (x.len() / k * k, k * k), "shapes of a sum of outer products");
    sums(x, k, x, k, h, true);
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
    sums(a, m, b, n, c, false);
}

/// Adds `AᵀB` to `C`; if only the lower triangle is wanted, without the tiles above it.
fn sums(a: &[f32], m: usize, b: &[f32], n: usize, c: &mut [f32], lower: bool) {
    let micro = Micro::best();
    for (a, b) in a.chunks(DEPTH * m).zip(b.chunks(DEPTH * n)) {
        let depth = b.len() / n;
        let packed = |x: &[f32], columns: usize, width: usize| {
            let mut out = vec![0.0; packed(columns, depth, width)];
            let x = View::new(x, depth, columns, columns).t();
            out.par_chunks_mut(depth * width).enumerate().for_each(|(p, out)| x.pack_panel(p, width, out));
            out
        };
        let (left, right) = (packed(a, m, micro.rows), packed(b, n, micro.columns));
        let rows = TILES * micro.rows;
        c.par_chunks_mut(rows * n).zip(left.par_chunks(rows * depth)).enumerate().for_each(|(p, (c, left))| {
            let mut out = Out::new(c, c.len() / n, n, n);
            let mut tile = Tile::default();
            for (j, right) in right.chunks_exact(depth * micro.columns).enumerate() {
                for (i, left) in left.chunks_exact(depth * micro.rows).enumerate() {
                    let last = p * rows + (i + 1) * micro.rows - 1;
                    if lower && j * micro.columns > last {
                        continue;
                    }
                    micro.run(left, right, &mut tile);
                    out.put((i * micro.rows, j * micro.columns), &tile, micro.columns, 1.0, true);
                }
            }
        });
    }
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
