//! The factor of the inverse Hessian that GPTQ walks along.

use llmq_kernels::cholesky::{cholesky, reversed_inverse};
use llmq_kernels::memory::triangular;
use rayon::prelude::*;

/// `U`, upper triangular, with `(H + λI)⁻¹ = UᵀU` (Frantar et al. 2022, section 3.3, step 3), or `None` where `H + λI` is
/// not positive definite in double precision.
///
/// `h`: `[n, n]`, symmetric; its rows and columns are taken in the given `order`. Result: `[n, n]`, in that order, zero below
/// the diagonal.
///
/// With the order of rows and columns reversed, `H = LLᵀ` is a factorization `H = RRᵀ` into an *upper* triangular `R`,
/// and `U = R⁻¹`: one Cholesky factorization and one triangular inverse, where the paper inverts `H` first.
pub fn inverse_factor(h: &[f32], order: &[usize], lambda: f64) -> Option<Vec<f32>> {
    let n = order.len();
    let mut l = vec![0.0; n * n];
    triangular(&l);
    l.par_chunks_mut(n).enumerate().for_each(|(i, to)| {
        let row = &h[order[n - 1 - i] * n..][..n];
        to[..=i].iter_mut().zip(order.iter().rev()).for_each(|(to, &column)| *to = f64::from(row[column]));
        to[i] += lambda;
    });
    if !cholesky(&mut l, n) {
        return None;
    }
    let mut u = vec![0.0; n * n];
    reversed_inverse(&l, n, &mut u);
    let sound = |i: usize| u[i * n + i].is_finite() && u[i * n + i] > 0.0;
    (0..n).all(sound).then_some(u)
}

/// By how much damping grows when a Hessian is not positive definite, and how often.
pub const LADDER: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];

/// The power of two next to the mean of a Hessian's diagonal; one where that is zero.
///
/// No choice of a code depends on how large all inputs are together, but sums of products of very large or very small ones
/// leave single precision. Divided by this a Hessian loses nothing, and stays within it.
pub fn size(hessian: &[f32], n: usize) -> f32 {
    let mean = (0..n).map(|j| f64::from(hessian[j * n + j])).sum::<f64>() / n as f64;
    if mean > 0.0 && mean.is_finite() { mean.log2().round().clamp(-149.0, 127.0).exp2() as f32 } else { 1.0 }
}

/// A Hessian divided by its [`size`], with dead inputs mended, and one per cent (or what `damp` says) of its mean diagonal.
pub fn mended(hessian: &[f32], n: usize, damp: f64) -> (Vec<f32>, f64) {
    let size = size(hessian, n);
    let mut h: Vec<f32> = hessian.iter().map(|h| h / size).collect();
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    // An input that is always zero says nothing about its weight: it is rounded by itself.
    for j in 0..n {
        if h[j * n + j] <= 0.0 {
            h[j * n + j] = if mean > 0.0 { mean as f32 } else { 1.0 };
        }
    }
    (h, if mean > 0.0 { damp * mean } else { 0.0 })
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
        let u = inverse_factor(&h, &order, 0.05).unwrap();
        for i in 0..n {
            for j in 0..n {
                // (UᵀU)(H + λI) = I
                let inverse = |a: usize, b: usize| (0..n).map(|k| u[k * n + a] * u[k * n + b]).sum::<f32>();
                let damped = |a: usize, b: usize| h[order[a] * n + order[b]] + if a == b { 0.05 } else { 0.0 };
                let got: f32 = (0..n).map(|k| inverse(i, k) * damped(k, j)).sum();
                assert!((got - if i == j { 1.0 } else { 0.0 }).abs() < 1e-3, "{i} {j}: {got}");
                assert!(j >= i || u[i * n + j] == 0.0);
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], &[0, 1], 0.0).is_none());
        assert!(inverse_factor(&[0.0], &[0], 0.0).is_none());
    }
}
