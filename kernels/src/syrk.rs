//! Sums of outer products: `H += XᵀX` and `C += AᵀB`.

use crate::blocks::{Packed, multiply};
use crate::gemm::{Precision, with_micro};
use crate::memory::Spare;
use crate::micro::{Element, Micro};
use crate::pack::{Operand, Out, View};
use rayon::prelude::*;

/// Rows of `H` that one task computes, in tiles. A constant, so that results do not depend on the number of threads.
const TILES: usize = 8;

/// Adds `XᵀX` to the lower triangle of `H` (the diagonal included), on all threads.
///
/// `x`: `[n, k]`, `h`: `[k, k]`. What lies above the diagonal is left undefined until [`mirror`].
///
/// # Panics
/// If the lengths do not fit.
pub fn syrk(precision: Precision, x: &[f32], k: usize, h: &mut [f32]) {
    assert_eq!((x.len(), h.len()), (x.len() / k * k, k * k), "shapes of a sum of outer products");
    sums(precision, (x, k), (x, k), h, true);
}

/// Adds `AᵀB` to `C`, on all threads.
///
/// `a`: `[t, m]`, `b`: `[t, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn outer(precision: Precision, a: &[f32], m: usize, b: &[f32], n: usize, c: &mut [f32]) {
    let t = b.len() / n;
    assert_eq!((a.len(), b.len(), c.len()), (t * m, t * n, m * n), "shapes of a sum of outer products");
    sums(precision, (a, m), (b, n), c, false);
}

/// Adds `AᵀB` to `C`; if only the lower triangle is wanted, without the tiles above it.
fn sums(precision: Precision, a: (&[f32], usize), b: (&[f32], usize), c: &mut [f32], lower: bool) {
    with_micro!(precision, micro => sums_of(micro, a, b, c, lower))
}

/// `a`: `[t, m]`, with `m`; `b`: `[t, n]`, with `n`; `c`: `[m, n]`.
fn sums_of<E: Element>(micro: Micro<E>, (a, m): (&[f32], usize), (b, n): (&[f32], usize), c: &mut [f32], lower: bool) {
    let most = E::SIZES.chunk * E::NUMBERS;
    let spare = Spare::new();
    for (a, b) in a.chunks(most * m).zip(b.chunks(most * n)) {
        let packed = |operand: Operand, x: &[f32], columns: usize| {
            let x = View::new(x, x.len() / columns, columns, columns).t();
            Packed::on_all(micro, operand, x, E::SIZES.outer)
        };
        let (left, right) = (packed(Operand::Left, a, m), packed(Operand::Right, b, n));
        let rows = TILES * micro.rows;
        c.par_chunks_mut(rows * n).enumerate().for_each(|(p, c)| {
            let last = |row: usize| if lower { p * rows + row } else { usize::MAX };
            let mut out = Out::new(c, c.len() / n, n, n);
            spare.with(Vec::new, |tiles| multiply(micro, (&left, p * rows), &right, true, last, tiles, &mut out));
        });
    }
}

/// Copies the lower triangle of `h` (`[k, k]`) to the upper one, on all threads.
pub fn mirror(k: usize, h: &mut [f32]) {
    /// Rows that are filled at once, and those of them that one task fills: what it reads of a row below is one line of the caches.
    const BAND: usize = 128;
    const TASK: usize = 16;
    for first in (0..k).step_by(BAND) {
        let last = (first + BAND).min(k);
        for (i, j) in (first..last).flat_map(|i| (i + 1..last).map(move |j| (i, j))) {
            h[i * k + j] = h[j * k + i];
        }
        let (above, below) = h.split_at_mut(last * k);
        above[first * k..].par_chunks_mut(TASK * k).enumerate().for_each(|(task, rows)| {
            let from = first + task * TASK;
            for (j, row) in (last..).zip(below.chunks(k)) {
                rows.chunks_mut(k).zip(&row[from..]).for_each(|(to, x)| to[j] = *x);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::amx::{Register, Split};
    use crate::micro::Pair;

    #[test]
    fn it_equals_the_sum_of_outer_products() {
        for (n, k) in [(1, 1), (5, 3), (40, 65), (17, 200)] {
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 7919 % 1009) as f32 / 500.0) - 1.0).collect();
            let mut h = vec![0.5; k * k];
            syrk(Precision::Single, &x, k, &mut h);
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
    fn the_upper_triangle_becomes_the_lower_one() {
        for k in [0, 1, 2, 17, 128, 129, 300] {
            let lower = |i: usize, j: usize| (i * 1000 + j) as f32;
            let mut h: Vec<f32> =
                (0..k * k).map(|at| if at % k <= at / k { lower(at / k, at % k) } else { f32::NAN }).collect();
            mirror(k, &mut h);
            (0..k * k).for_each(|at| assert_eq!(h[at], lower((at / k).max(at % k), (at / k).min(at % k)), "{k} {at}"));
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
            outer(Precision::Single, &a, m, &b, n, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = 0.5 + (0..t).map(|k| a[k * m + i] * b[k * n + j]).sum::<f32>();
                    assert!((c[i * n + j] - want).abs() < 1e-4, "{t} {m} {n} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_sums_products_of_rounded_numbers() {
        for isa in Isa::available() {
            outer_products(Micro::<Pair>::on(isa), |x| f64::from(half::bf16::from_f32(x)));
            outer_products(Micro::<Register>::on(isa), |x| f64::from(half::bf16::from_f32(x)));
            outer_products(Micro::<Split>::on(isa), f64::from);
        }
    }

    /// Sums of products of what `kept` is of each number, whole and below the diagonal.
    fn outer_products<E: Element + std::fmt::Debug>(micro: Micro<E>, kept: impl Fn(f32) -> f64) {
        for (t, m, n) in
            [(1, 1, 1), (5, 3, 2), (41, 65, 70), (1029, 20, 33), (2100, 34, 2), (40, 600, 300), (33, 300, 300)]
        {
            let of = |rows: usize| -> Vec<f32> { (0..t * rows).map(|i| (i as f32 * 0.37).sin()).collect() };
            let (a, b) = (of(m), of(n));
            for lower in [false, true] {
                let mut c = vec![0.5; m * n];
                sums_of(micro, (&a, m), (&b, n), &mut c, lower);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|(i, j)| !lower || j <= i) {
                    let sum: f64 = (0..t).map(|k| kept(a[k * m + i]) * kept(b[k * n + j])).sum();
                    let off = (f64::from(c[i * n + j]) - 0.5 - sum).abs();
                    assert!(off < 2e-5 * (t as f64).sqrt().max(10.0), "{micro:?}, {t} {m} {n} at {i} {j}: {off}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let x: Vec<f32> = (0..100 * 150).map(|i| (i as f32 * 0.37).sin()).collect();
        let on = |precision, threads| {
            let mut h = vec![0.0; 150 * 150];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| syrk(precision, &x, 150, &mut h));
            h
        };
        for precision in [Precision::Single, Precision::Split, Precision::Bf16] {
            assert_eq!(on(precision, 1), on(precision, 4));
        }
    }
}
