//! Cholesky factorization and the inverse of its factor, in double precision, on all threads.
//!
//! Tiles have a fixed size, so that the result does not depend on the number of threads. What happens inside a tile is faer's.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

/// Columns that are factored before the rest of the matrix follows.
const PANEL: usize = 128;

/// Rows that one task handles.
const ROWS: usize = 64;

/// Replaces the lower triangle of `A` (the diagonal included) by `L` with `A = LLᵀ`. Gives false where `A` is not positive
/// definite; then what is left there means nothing.
///
/// `a`: `[n, n]`, row-major; what lies above the diagonal is neither read nor kept.
///
/// # Panics
/// If the length does not fit.
pub fn cholesky(a: &mut [f64], n: usize) -> bool {
    assert_eq!(a.len(), n * n, "shape of a square matrix");
    for first in (0..n).step_by(PANEL) {
        let last = (first + PANEL).min(n);
        let width = last - first;
        let (above, below) = a.split_at_mut(last * n);
        let corner = &mut above[first * n + first..];
        let view = MatRef::from_row_major_slice_with_stride(&corner[..(width - 1) * n + width], width, width, n);
        let Ok(factor) = view.llt(Side::Lower) else { return false };
        for i in 0..width {
            for j in 0..=i {
                corner[i * n + j] = factor.L()[(i, j)];
            }
        }
        let l = factor.L();
        // L21 = A21·L11⁻ᵀ
        below.par_chunks_mut(ROWS * n).for_each(|rows| {
            let count = rows_in(rows.len(), n);
            let panel = transposed(rows, n).submatrix_mut(first, 0, width, count);
            solve_lower_triangular_in_place(l, panel, Par::Seq);
        });
        let rest = n - last;
        let mut panel = vec![0.0; rest * width]; // [rest, width]
        for (to, row) in panel.chunks_mut(width).zip(below.chunks(n)) {
            to.copy_from_slice(&row[first..last]);
        }
        // A22 −= L21·L21ᵀ
        below.par_chunks_mut(ROWS * n).enumerate().for_each(|(i, rows)| {
            let count = rows_in(rows.len(), n);
            let end = i * ROWS + count;
            let left = MatRef::from_row_major_slice(&panel[..end * width], end, width);
            let right = MatRef::from_row_major_slice(&panel[i * ROWS * width..end * width], count, width);
            let out = transposed(rows, n).submatrix_mut(last, 0, end, count);
            matmul(out, Accum::Add, left, right.transpose(), -1.0, Par::Seq);
        });
    }
    true
}

/// `U = P·L⁻¹·P` in single precision, `P` being the reversal of all rows: an upper triangular matrix, zero below its diagonal.
///
/// `l`: `[n, n]`, row-major; what lies above the diagonal is not read. `u`: `[n, n]`, zeros, of which those below the diagonal are not
/// written to.
///
/// # Panics
/// If the lengths do not fit.
pub fn reversed_inverse(l: &[f64], n: usize, u: &mut [f32]) {
    assert_eq!((l.len(), u.len()), (n * n, n * n), "shapes of square matrices");
    u.par_chunks_mut(ROWS * n).enumerate().for_each(|(i, rows)| {
        let count = rows_in(rows.len(), n);
        // Rows `end − count .. end` of X = L⁻¹, of which nothing lies behind column `end`: X·L = I.
        let end = n - i * ROWS;
        let mut x = vec![0.0; count * end]; // [count, end]
        (0..count).for_each(|r| x[r * end + end - count + r] = 1.0);
        let upper = MatRef::from_row_major_slice_with_stride(&l[..(end - 1) * n + end], end, end, n).transpose();
        let solved = MatMut::from_column_major_slice_mut(&mut x, end, count);
        solve_upper_triangular_in_place(upper, solved, Par::Seq);
        for (row, x) in rows.chunks_mut(n).zip(x.chunks(end).rev()) {
            let values = &mut row[n - end..];
            values.iter_mut().zip(x.iter().rev()).for_each(|(u, &x)| *u = x as f32);
        }
    });
}

fn rows_in(numbers: usize, n: usize) -> usize {
    numbers / n
}

/// Whole rows, `[rows, n]`, as `[n, rows]`.
fn transposed(rows: &mut [f64], n: usize) -> MatMut<'_, f64> {
    let count = rows_in(rows.len(), n);
    MatMut::from_column_major_slice_mut(rows, n, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix with ones and more on its diagonal and products of waves elsewhere.
    fn positive(n: usize) -> Vec<f64> {
        let x: Vec<f64> = (0..n * n).map(|i| (i as f64 * 0.713).sin()).collect();
        let dot = |i: usize, j: usize| (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum::<f64>() / n as f64;
        (0..n * n).map(|at| dot(at / n, at % n) + if at / n == at % n { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn the_factor_times_itself_is_the_matrix_and_its_inverse_is_one() {
        for n in [1, 2, 63, 64, 65, 128, 200, 300] {
            let whole = positive(n);
            let mut l = whole.clone();
            // Nothing above the diagonal may matter.
            (0..n).for_each(|i| l[i * n + i + 1..(i + 1) * n].fill(f64::NAN));
            assert!(cholesky(&mut l, n));
            let mut u: Vec<f32> = (0..n * n).map(|at| if at % n < at / n { 0.0 } else { f32::NAN }).collect();
            reversed_inverse(&l, n, &mut u);
            for i in 0..n {
                for j in 0..=i {
                    let product: f64 = (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((product - whole[i * n + j]).abs() < 1e-12, "{n} at {i} {j}");
                    let inverse = |i: usize, k: usize| f64::from(u[(n - 1 - i) * n + n - 1 - k]);
                    let one: f64 = (j..=i).map(|k| inverse(i, k) * l[k * n + j]).sum();
                    assert!((one - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5, "{n} at {i} {j}: {one}");
                    assert!(i == j || u[i * n + j] == 0.0, "below the diagonal");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused_wherever_that_shows() {
        for n in [1, 130, 260] {
            for at in [0, n / 2, n - 1] {
                for bad in [-1.0, 0.0, f64::NAN] {
                    let mut a = positive(n);
                    a[at * n + at] = bad;
                    assert!(!cholesky(&mut a, n), "{bad} at {at} of {n}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let n = 333;
        let on = |threads| {
            let (mut l, mut u) = (positive(n), vec![0.0; n * n]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                cholesky(&mut l, n);
                reversed_inverse(&l, n, &mut u);
            });
            (0..n).for_each(|i| l[i * n + i + 1..(i + 1) * n].fill(0.0));
            (l, u)
        };
        assert_eq!(on(1), on(4));
    }
}
