//! Matrix products of `f32`, row-major.

use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of the output that one task computes. A constant, so that results do not depend on the number of threads.
const TILE: usize = 256;

/// A read-only matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(MatRef<'a, f32>);

impl<'a> View<'a> {
    /// `data` as `[rows, columns]` with rows `stride` apart.
    ///
    /// # Panics
    /// If the matrix does not lie inside `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride || rows <= 1, "rows that overlap");
        // The last row need not be followed by the rest of its stride, but faer counts whole rows.
        let used = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
        Self(MatRef::from_row_major_slice_with_stride(&data[..used], rows, columns, stride))
    }

    /// The transposed matrix.
    #[must_use]
    pub fn t(self) -> Self {
        Self(self.0.transpose())
    }
}

/// What happens to the old content of a product's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// It is overwritten, unread.
    Replaced,
    /// The product is added to it.
    Kept,
}

/// `C = α·A·B`, or `C += α·A·B`, on the calling thread.
///
/// `c`: `[a.rows, b.columns]` with rows `stride` apart.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(c: &mut [f32], stride: usize, old: Old, alpha: f32, a: View<'_>, b: View<'_>) {
    let (m, n) = (a.0.nrows(), b.0.ncols());
    let used = if m == 0 { 0 } else { (m - 1) * stride + n };
    // Row-major is the transpose of column-major; faer 0.24's own row-major constructor for mutable slices forgets that.
    let c = MatMut::from_column_major_slice_with_stride_mut(&mut c[..used], n, m, stride).transpose_mut();
    let accum = if old == Old::Kept { Accum::Add } else { Accum::Replace };
    matmul(c, accum, a.0, b.0, alpha, Par::Seq);
}

/// Some columns of all rows of an output.
pub(crate) struct Strip<'a>(MatMut<'a, f32>);

impl Strip<'_> {
    /// The product `A·B` takes the place of what is there.
    pub fn product(&mut self, a: View<'_>, b: View<'_>) {
        matmul(self.0.rb_mut(), Accum::Replace, a.0, b.0, 1.0, Par::Seq);
    }
}

/// The columns of `c`, `[rows, columns]`, in strips of `width`; the last may be narrower.
pub(crate) fn strips(c: &mut [f32], columns: usize, width: usize) -> Vec<Strip<'_>> {
    let rows = c.len() / columns;
    let mut rest = MatMut::from_column_major_slice_mut(c, columns, rows).transpose_mut();
    let mut strips = Vec::new();
    while rest.ncols() > width {
        let (strip, others) = rest.split_at_col_mut(width);
        strips.push(Strip(strip));
        rest = others;
    }
    strips.push(Strip(rest));
    strips
}

/// `Y = X·Wᵀ`, a linear layer without bias, on all threads.
///
/// `x`: `[n, k]`, `w`: `[m, k]`, `y`: `[n, m]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn linear(x: &[f32], w: &[f32], k: usize, y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    let m = w.len() / k;
    assert_eq!((w.len(), x.len() / k * m), (m * k, y.len()), "shapes of a linear layer");
    let w = View::new(w, m, k, k);
    y.par_chunks_mut(TILE * m).zip(x.par_chunks(TILE * k)).for_each(|(y, x)| {
        product(y, m, Old::Replaced, 1.0, View::new(x, x.len() / k, k, k), w.t());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (s >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn a_linear_layer_equals_the_sums_it_stands_for() {
        for (n, m, k) in [(1, 1, 1), (3, 5, 7), (129, 33, 65), (300, 16, 31)] {
            let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
            let mut y = vec![f32::NAN; n * m];
            linear(&x, &w, k, &mut y);
            for i in 0..n {
                for j in 0..m {
                    let want: f64 = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p])).sum();
                    assert!((f64::from(y[i * m + j]) - want).abs() < 1e-5 * k as f64, "{n} {m} {k} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (x, w) = (numbers(517 * 96, 3), numbers(70 * 96, 4));
        let on = |threads| {
            let mut y = vec![0.0; 517 * 70];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| linear(&x, &w, 96, &mut y));
            y
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn a_product_adds_to_what_is_there() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0]);
        let mut c = [10.0, 10.0, -1.0, 10.0, 10.0, -1.0]; // [2, 2] in rows of 3
        product(&mut c, 3, Old::Kept, -1.0, View::new(&a, 2, 2, 2), View::new(&b, 2, 2, 2));
        assert_eq!(c, [9.0, 8.0, -1.0, 7.0, 6.0, -1.0]);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_view_beyond_its_slice_is_refused() {
        let _ = View::new(&[0.0; 5], 2, 3, 3);
    }
}
