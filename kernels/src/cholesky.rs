//! Cholesky factorization and the inverse of its factor, on all threads.
//!
//! Tiles have a fixed size, so that the result does not depend on the number of threads. What happens inside a tile is faer's.
//!
//! In single precision a factor of the Hessian of real activations loses its pivots: a few channels are a thousand times as large as the
//! others and can nearly be told from them, and what remains of their diagonal is below the rounding errors of what was there. Relative
//! to `√(a_ii·a_jj)` the entries of all others are exact enough (Higham 2002, "Accuracy and Stability of Numerical Algorithms", theorem
//! 10.3), so that only rows and columns of the heavy ones are kept in double precision, and their equations hold for the factor as it is
//! stored.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Columns that are factored before the rest of the matrix follows.
const PANEL: usize = 128;

/// Rows that one task handles.
const ROWS: usize = 128;

/// What a matrix is stored in.
pub trait Real: RealField + Copy + Default + Send + Sync + 'static {
    /// The nearest number.
    fn of(x: f64) -> Self;

    /// The same number.
    fn exact(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }

    fn exact(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }

    fn exact(self) -> f64 {
        self
    }
}

/// Rows and columns of some indices of a symmetric matrix in double precision.
struct Heavy {
    n: usize,
    /// Ascending.
    indices: Vec<usize>,
    /// `[indices, n]`: what is left of the matrix, and of the factor what is done.
    rows: Vec<f64>,
}

impl Heavy {
    fn new<T: Real>(a: &[T], n: usize, indices: Vec<usize>) -> Heavy {
        let entry = |i: usize, j: usize| a[i.max(j) * n + i.min(j)].exact();
        let rows = indices.par_iter().flat_map_iter(|&i| (0..n).map(move |j| entry(i, j))).collect();
        Heavy { n, indices, rows }
    }

    fn row(&self, index: usize) -> Option<&[f64]> {
        self.indices.binary_search(&index).ok().map(|s| &self.rows[s * self.n..(s + 1) * self.n])
    }

    /// Row `i` of a panel, whose columns begin at `first`, as exact as it is known.
    fn panel<T: Real>(&self, i: usize, first: usize, row: &[T], out: &mut [f64]) {
        if let Some(own) = self.row(i) {
            return out.copy_from_slice(&own[first..first + out.len()]);
        }
        out.iter_mut().zip(row).for_each(|(to, x)| *to = x.exact());
        for (j, column) in self.within(first, out.len()) {
            out[j] = column[i];
        }
    }

    /// Those of some columns: where each is behind the first one, and what is left of it.
    fn within(&self, first: usize, width: usize) -> impl Iterator<Item = (usize, &[f64])> {
        let range = self.indices.partition_point(|j| *j < first)..self.indices.partition_point(|j| *j < first + width);
        range.map(move |s| (self.indices[s] - first, &self.rows[s * self.n..(s + 1) * self.n]))
    }
}

/// Replaces the lower triangle of `A` (the diagonal included) by `L` with `A = LLᵀ`. Gives false where `A` is not positive
/// definite; then what is left there means nothing.
///
/// `a`: `[n, n]`, row-major; what lies above the diagonal is neither read nor kept. `heavy`: the indices that are computed in double
/// precision, ascending.
///
/// # Panics
/// If the length does not fit.
pub fn cholesky<T: Real>(a: &mut [T], n: usize, heavy: Vec<usize>) -> bool {
    assert_eq!(a.len(), n * n, "shape of a square matrix");
    let mut heavy = Heavy::new(a, n, heavy);
    for first in (0..n).step_by(PANEL) {
        let last = (first + PANEL).min(n);
        let width = last - first;
        let (above, below) = a.split_at_mut(last * n);
        let corner = &mut above[first * n..];
        let mut l = vec![0.0; width * width]; // [width, width]
        for (i, (l, row)) in l.chunks_mut(width).zip(corner.chunks(n)).enumerate() {
            heavy.panel(first + i, first, &row[first..=first + i], &mut l[..=i]);
        }
        if !factor::<T>(&mut l, width, |i| heavy.row(first + i).is_some()) {
            return false;
        }
        // L21 = A21·L11⁻ᵀ
        let mut panel = vec![0.0; (n - last) * width]; // [rest, width]
        panel.par_chunks_mut(ROWS * width).zip(below.par_chunks_mut(ROWS * n)).enumerate().for_each(
            |(task, (panel, rows))| {
                let from = last + task * ROWS;
                for (i, (panel, row)) in panel.chunks_mut(width).zip(rows.chunks(n)).enumerate() {
                    heavy.panel(from + i, first, &row[first..last], panel);
                }
                let count = rows.len() / n;
                let triangle = MatRef::from_row_major_slice(&l, width, width);
                solve_lower_triangular_in_place(
                    triangle,
                    MatMut::from_column_major_slice_mut(panel, width, count),
                    Par::Seq,
                );
                for (i, (panel, row)) in panel.chunks_mut(width).zip(rows.chunks_mut(n)).enumerate() {
                    if heavy.row(from + i).is_none() {
                        panel.iter_mut().for_each(|x| *x = T::of(*x).exact());
                        // What is stored is off by more than their equations may be.
                        for (j, column) in heavy.within(first, width) {
                            let own = &l[j * width..=j * width + j];
                            panel[j] = T::of((column[from + i] - dot(&panel[..j], &own[..j])) / own[j]).exact();
                        }
                    }
                    row[first..last].iter_mut().zip(panel).for_each(|(to, x)| *to = T::of(*x));
                }
            },
        );
        for (i, (l, row)) in l.chunks(width).zip(corner.chunks_mut(n)).enumerate() {
            row[first..=first + i].iter_mut().zip(l).for_each(|(to, x)| *to = T::of(*x));
        }
        // A22 −= L21·L21ᵀ
        let stored: Vec<T> = panel.iter().map(|x| T::of(*x)).collect();
        below.par_chunks_mut(ROWS * n).enumerate().for_each(|(i, rows)| {
            let count = rows.len() / n;
            let end = i * ROWS + count;
            let left = MatRef::from_row_major_slice(&stored[..end * width], end, width);
            let right = MatRef::from_row_major_slice(&stored[i * ROWS * width..end * width], count, width);
            let out = MatMut::from_column_major_slice_mut(rows, n, count).submatrix_mut(last, 0, end, count);
            matmul(out, Accum::Add, left, right.transpose(), T::of(-1.0), Par::Seq);
        });
        let from = heavy.indices.partition_point(|j| *j < last);
        let (indices, rows) = (&heavy.indices, &mut heavy.rows);
        rows[from * n..].par_chunks_mut(n).zip(&indices[from..]).for_each(|(row, j)| {
            let own = &panel[(j - last) * width..][..width];
            let (done, rest) = row.split_at_mut(last);
            done[first..].copy_from_slice(own);
            let rest = MatMut::from_column_major_slice_mut(rest, n - last, 1);
            let own = MatRef::from_column_major_slice(own, width, 1);
            matmul(rest, Accum::Add, MatRef::from_row_major_slice(&panel, n - last, width), own, -1.0, Par::Seq);
        });
    }
    true
}

/// The factor of a corner, `[width, width]`, row by row, so that each equation holds for the numbers of the rows before as they are
/// stored. False where it has none.
fn factor<T: Real>(a: &mut [f64], width: usize, heavy: impl Fn(usize) -> bool) -> bool {
    for i in 0..width {
        let stored = |x: f64| if heavy(i) { x } else { T::of(x).exact() };
        let (before, own) = a.split_at_mut(i * width);
        for j in 0..i {
            let row = &before[j * width..=j * width + j];
            own[j] = stored((own[j] - dot(&own[..j], &row[..j])) / row[j]);
        }
        let pivot = own[i] - dot(&own[..i], &own[..i]);
        own[i] = stored(pivot.sqrt());
        // NaN is not either.
        if !(own[i] > 0.0 && own[i].is_finite()) {
            return false;
        }
    }
    true
}

/// In four sums, none of which waits for another.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (fours, rest) = a.as_chunks::<4>();
    let (others, other) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    fours.iter().zip(others).for_each(|(a, b)| (0..4).for_each(|i| sums[i] += a[i] * b[i]));
    let rest: f64 = rest.iter().zip(other).map(|(a, b)| a * b).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// `U = P·L⁻¹·P` in single precision, `P` being the reversal of all rows: an upper triangular matrix, zero below its diagonal.
///
/// `l`: `[n, n]`, row-major; what lies above the diagonal is not read. `u`: `[n, n]`, zeros, of which those below the diagonal are not
/// written to.
///
/// # Panics
/// If the lengths do not fit.
pub fn reversed_inverse<T: Real>(l: &[T], n: usize, u: &mut [f32]) {
    assert_eq!((l.len(), u.len()), (n * n, n * n), "shapes of square matrices");
    u.par_chunks_mut(ROWS * n).enumerate().for_each(|(i, rows)| {
        let count = rows.len() / n;
        // Rows `end − count .. end` of X = L⁻¹, of which nothing lies behind column `end`: X·L = I.
        let end = n - i * ROWS;
        let mut x = vec![T::default(); count * end]; // [count, end]
        (0..count).for_each(|r| x[r * end + end - count + r] = T::of(1.0));
        let upper = MatRef::from_row_major_slice_with_stride(&l[..(end - 1) * n + end], end, end, n).transpose();
        let solved = MatMut::from_column_major_slice_mut(&mut x, end, count);
        solve_upper_triangular_in_place(upper, solved, Par::Seq);
        for (row, x) in rows.chunks_mut(n).zip(x.chunks(end).rev()) {
            let values = &mut row[n - end..];
            values.iter_mut().zip(x.iter().rev()).for_each(|(u, &x)| *u = x.exact() as f32);
        }
    });
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
            assert!(cholesky(&mut l, n, vec![]));
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
                    assert!(!cholesky(&mut a, n, vec![]), "{bad} at {at} of {n}");
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
                cholesky(&mut l, n, vec![]);
                reversed_inverse(&l, n, &mut u);
            });
            (0..n).for_each(|i| l[i * n + i + 1..(i + 1) * n].fill(0.0));
            (l, u)
        };
        assert_eq!(on(1), on(4));
    }

    /// Channels of which some are a thousand times as large as the others, and nearly sums of them.
    #[test]
    fn single_precision_keeps_the_pivots_of_heavy_channels() {
        let n = 300;
        let heavy = vec![40, 41, 127, 128, 250, 299];
        let light = |i: usize, k: usize| ((i * 31 + k * 17) as f64 * 0.713).sin();
        let x = |i: usize, k: usize| match heavy.contains(&i) {
            true => 1e3 * (0..5).map(|m| light((i * 7 + m * 13) % n, k)).sum::<f64>(),
            false => light(i, k),
        };
        // Next to nothing remains of the heavy ones' diagonals, though more than was rounded off when they were stored.
        let damping = 2e-6 * 1e6 * 5.0;
        let h: Vec<f32> = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let sum = (0..2 * n).map(|k| x(i, k) * x(j, k)).sum::<f64>() / (2 * n) as f64;
                (sum + if i == j { damping } else { 0.0 }) as f32
            })
            .collect();
        let mut exact: Vec<f64> = h.iter().map(|x| f64::from(*x)).collect();
        assert!(cholesky(&mut exact, n, vec![]));
        let worst = |heavy: &[usize]| {
            let mut l = h.clone();
            let done = cholesky(&mut l, n, heavy.to_vec());
            let off = |i: usize| (f64::from(l[i * n + i]) / exact[i * n + i]).powi(2) - 1.0;
            if done { (0..n).map(|i| off(i).abs()).fold(0.0, f64::max) } else { f64::INFINITY }
        };
        let (kept, lost) = (worst(&heavy), worst(&[]));
        assert!(kept < 1e-4 && lost > 10.0 * kept, "{kept} and {lost}");
        // And the inverse of what is stored.
        let (mut l, mut u, mut wanted) = (h.clone(), vec![0.0; n * n], vec![0.0; n * n]);
        assert!(cholesky(&mut l, n, heavy.clone()));
        reversed_inverse(&l, n, &mut u);
        reversed_inverse(&exact, n, &mut wanted);
        for i in 0..n {
            let size = wanted[i * n..(i + 1) * n].iter().fold(0.0f32, |a, x| a.max(x.abs()));
            (0..n).for_each(|j| assert!((u[i * n + j] - wanted[i * n + j]).abs() < 2e-3 * size, "{i} {j}"));
        }
    }

    #[test]
    fn heavy_rows_change_nothing_where_all_is_in_double_precision() {
        let n = 300;
        let (mut plain, mut heavy) = (positive(n), positive(n));
        assert!(cholesky(&mut plain, n, vec![]));
        assert!(cholesky(&mut heavy, n, vec![0, 5, 127, 128, 200, 299]));
        for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
            assert!((plain[i * n + j] - heavy[i * n + j]).abs() < 1e-13, "{i} {j}");
        }
    }
}
