//! The factor of the inverse Hessian that GPTQ walks along.

use super::diagonal;
use llmq_kernels::cholesky::{Real, cholesky, reversed_inverse};
use llmq_kernels::memory::triangle;
use rayon::prelude::*;
use std::sync::Arc;

/// `U`, upper triangular, with `H⁻¹ = UᵀU` (Frantar et al. 2022, section 3.3, step 3), or `None` where `H` is not positive definite in
/// double precision.
///
/// `h`: `[n, n]`, symmetric; its rows and columns are taken in the given `order`. Result: `[n, n]`, in that order, zero below
/// the diagonal.
///
/// With the order of rows and columns reversed, `H = LLᵀ` is a factorization `H = RRᵀ` into an *upper* triangular `R`,
/// and `U = R⁻¹`: one Cholesky factorization and one triangular inverse, where the paper inverts `H` first.
///
/// In single precision where that is exact enough: where of each channel remains, once it is told from those before it, a part of the
/// mean that rounding errors are small against. Channels with massive activations are in double precision anyway.
pub fn inverse_factor(h: &[f32], order: &[usize]) -> Option<Vec<f32>> {
    let n = order.len();
    let mean = diagonal(h, n).iter().map(|h| f64::from(*h)).sum::<f64>() / n as f64;
    let is_heavy = |i: &usize| f64::from(h[order[n - 1 - i] * (n + 1)]) > HEAVY * mean;
    let heavy: Vec<usize> = (0..n).filter(is_heavy).collect();
    let remains = |i: usize, l: f32| heavy.binary_search(&i).is_ok() || f64::from(l).powi(2) > LEAST * mean;
    let single = factor_in(h, order, heavy.clone(), remains);
    single.or_else(|| factor_in::<f64>(h, order, Vec::new(), |_, _| true))
}

/// How many times the mean of the diagonal an entry may be in single precision.
const HEAVY: f64 = 16.0;

/// What has to remain of one, as a part of the mean: a thousand times the rounding errors of those that are not [`HEAVY`].
const LEAST: f64 = 2e-3;

/// The same in a given precision. `heavy`: see [`cholesky`]; `remains`: whether the factor's diagonal is as it has to be.
fn factor_in<T: Real>(
    h: &[f32],
    order: &[usize],
    heavy: Vec<usize>,
    remains: impl Fn(usize, T) -> bool,
) -> Option<Vec<f32>> {
    let n = order.len();
    let mut l = triangle::<T>(n);
    l.par_chunks_mut(n).enumerate().for_each(|(i, to)| {
        let row = &h[order[n - 1 - i] * n..][..n];
        to[..=i].iter_mut().zip(order.iter().rev()).for_each(|(to, &column)| *to = T::of(f64::from(row[column])));
    });
    if !cholesky(&mut l, n, heavy) || !(0..n).all(|i| remains(i, l[i * n + i])) {
        return None;
    }
    let mut u = triangle(n);
    reversed_inverse(&l, n, &mut u);
    let sound = |i: usize| u[i * n + i].is_finite() && u[i * n + i] > 0.0;
    (0..n).all(sound).then_some(u)
}

/// By how much damping grows when a Hessian is not positive definite, and how often.
const LADDER: [f64; 3] = [10.0, 100.0, 1000.0];

/// What `factor` makes of a Hessian, with more damping where it finds that it is not positive definite; and the Hessian with the damping
/// that was tried last.
pub fn factored<T>(mut hessian: Arc<Damped>, factor: impl Fn(&Damped) -> Option<T>) -> (Arc<Damped>, Option<T>) {
    let mut found = factor(&hessian);
    for times in LADDER {
        if found.is_some() {
            break;
        }
        hessian = Arc::new(hessian.times(times));
        found = factor(&hessian);
    }
    (hessian, found)
}

/// The power of two next to the mean of a Hessian's diagonal; one where that is zero.
///
/// No choice of a code depends on how large all inputs are together, but sums of products of very large or very small ones
/// leave single precision. Divided by this a Hessian loses nothing, and stays within it.
pub fn size(hessian: &[f32], n: usize) -> f32 {
    let mean = (0..n).map(|j| f64::from(hessian[j * n + j])).sum::<f64>() / n as f64;
    if mean > 0.0 && mean.is_finite() { mean.log2().round().clamp(-149.0, 127.0).exp2() as f32 } else { 1.0 }
}

/// A Hessian that can be factored: divided by its size, with dead inputs mended, and damped.
pub struct Damped {
    /// By what it was divided.
    pub size: f32,
    /// `[columns, columns]`.
    pub h: Vec<f32>,
    /// Its diagonal without what was mended and added: `[columns]`.
    pub diagonal: Vec<f32>,
    /// What is added to the diagonal: so many per cent of its mean, in hundredths.
    damp: f64,
    /// By how many times that.
    times: f64,
}

impl Damped {
    /// `hessian`: `[columns, columns]`; `damp`: what is added to its diagonal, as a fraction of the mean.
    pub fn new(mut hessian: Vec<f32>, columns: usize, damp: f64) -> Damped {
        let size = size(&hessian, columns);
        hessian.par_iter_mut().for_each(|h| *h /= size);
        let diagonal = diagonal(&hessian, columns);
        let mut damped = Damped { size, h: hessian, diagonal, damp, times: 1.0 };
        damped.set_diagonal();
        damped
    }

    /// The same with so many times the damping.
    pub fn times(&self, times: f64) -> Damped {
        let mut more = Damped { h: self.h.clone(), diagonal: self.diagonal.clone(), times, ..*self };
        more.set_diagonal();
        more
    }

    fn set_diagonal(&mut self) {
        let (n, mean) = (self.columns(), self.mean());
        let damping = if mean > 0.0 { self.damp * self.times * mean } else { 0.0 };
        for (j, own) in self.mended().into_iter().enumerate() {
            self.h[j * n + j] = (f64::from(own) + damping) as f32;
        }
    }

    fn mean(&self) -> f64 {
        self.diagonal.iter().map(|h| f64::from(*h)).sum::<f64>() / self.columns() as f64
    }

    /// The diagonal with dead inputs mended: `[columns]`. One that is always zero says nothing about its weight, which is rounded by
    /// itself.
    pub fn mended(&self) -> Vec<f32> {
        let mean = self.mean();
        let dead = if mean > 0.0 { mean as f32 } else { 1.0 };
        self.diagonal.iter().map(|&own| if own > 0.0 { own } else { dead }).collect()
    }

    /// How many columns it has.
    pub fn columns(&self) -> usize {
        self.diagonal.len()
    }

    /// What its damping is, as a fraction of the mean of the diagonal, and what was asked for.
    pub fn damping(&self) -> (f64, f64) {
        (self.damp * self.times, self.damp)
    }

    /// What was mended and added: `[columns]`.
    fn added(&self) -> Vec<f32> {
        let n = self.columns();
        self.diagonal.iter().enumerate().map(|(j, own)| self.h[j * n + j] - own).collect()
    }

    /// `tr(E H Eᵀ)` without what was mended and added. `e`: `[rows, columns]`.
    pub fn energy(&self, e: &[f32]) -> f64 {
        let (n, added) = (self.columns(), self.added());
        let squares = |row: &[f32]| row.iter().zip(&added).map(|(e, h)| f64::from(e * e * h)).sum::<f64>();
        let less: f64 = e.chunks(n).map(squares).sum();
        (super::energies(e, n, &self.h).iter().sum::<f64>() - less).max(0.0)
    }

    /// As [`output_error`](super::output_error), without what was mended and added. `w`, `q`: `[rows, columns]`.
    pub fn output_error(&self, w: &[f32], q: &[f32]) -> (f64, f64) {
        let (n, added) = (self.columns(), self.added());
        let (error, whole) = super::output_error(w, q, n, &self.h);
        let (less, less_whole) = super::weight_error((0.0, 0.0), w, q, n, Some(&added));
        ((error - less).max(0.0), (whole - less_whole).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_of_the_factor_is_the_inverse() {
        let n = 7;
        let x: Vec<f32> = (0..n * 9).map(|i| (i as f32 * 0.77).sin()).collect(); // [9, n]
        let mut h = vec![0.0; n * n];
        llmq_kernels::syrk::syrk(llmq_kernels::gemm::Precision::Single, &x, n, &mut h);
        llmq_kernels::syrk::mirror(n, &mut h);
        let order = [3, 0, 6, 1, 2, 5, 4];
        (0..n).for_each(|j| h[j * n + j] += 0.05);
        let u = inverse_factor(&h, &order).unwrap();
        for i in 0..n {
            for j in 0..n {
                // (UᵀU)H = I
                let inverse = |a: usize, b: usize| (0..n).map(|k| u[k * n + a] * u[k * n + b]).sum::<f32>();
                let damped = |a: usize, b: usize| h[order[a] * n + order[b]];
                let got: f32 = (0..n).map(|k| inverse(i, k) * damped(k, j)).sum();
                assert!((got - if i == j { 1.0 } else { 0.0 }).abs() < 1e-3, "{i} {j}: {got}");
                assert!(j >= i || u[i * n + j] == 0.0);
            }
        }
    }

    /// Little of each channel remains where damping is small; with more it is single precision that is asked.
    #[test]
    fn either_precision_gives_the_same_factor() {
        let n = 40;
        let x: Vec<f32> = (0..n * 30).map(|i| (i as f32 * 0.77).sin() * if i % n == 7 { 30.0 } else { 1.0 }).collect(); // [30, n]
        let mut h = vec![0.0; n * n];
        llmq_kernels::syrk::syrk(llmq_kernels::gemm::Precision::Single, &x, n, &mut h);
        llmq_kernels::syrk::mirror(n, &mut h);
        let order: Vec<usize> = (0..n).map(|i| i * 7 % n).collect();
        for (damping, single) in [(1e-3, false), (10.0, true)] {
            let mut h = h.clone();
            (0..n).for_each(|j| h[j * n + j] += damping);
            let heavy = |i: &usize| order[n - 1 - i] == 7;
            let one = factor_in::<f32>(&h, &order, (0..n).filter(heavy).collect(), |_, l| l * l > 2.0);
            assert_eq!(one.is_some(), single);
            let exact = factor_in::<f64>(&h, &order, vec![], |_, _| true).unwrap();
            let u = inverse_factor(&h, &order).unwrap();
            let size = exact.iter().fold(0.0f32, |a, u| a.max(u.abs()));
            assert!(u.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-4 * size));
            assert_eq!(u == exact, !single, "which of the two it was");
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], &[0, 1]).is_none());
        assert!(inverse_factor(&[0.0], &[0]).is_none());
    }
}
