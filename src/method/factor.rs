//! The factor of the inverse Hessian that GPTQ walks along.

use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Par, Side};

/// `U`, upper triangular, with `(H + λI)⁻¹ = UᵀU` (Frantar et al. 2022, section 3.3, step 3), or `None` where `H + λI` is
/// not positive definite in double precision.
///
/// `h`: `[n, n]`, symmetric; result: `[n, n]`, zero below the diagonal.
///
/// With the order of rows and columns reversed, `H = LLᵀ` is a factorization `H = RRᵀ` into an *upper* triangular `R`,
/// and `U = R⁻¹`: one Cholesky factorization and one triangular inverse, where the paper inverts `H` first.
pub fn inverse_factor(h: &[f32], n: usize, lambda: f64) -> Option<Vec<f32>> {
    let reversed = Mat::from_fn(n, n, |i, j| {
        let (i, j) = (n - 1 - i, n - 1 - j);
        f64::from(h[i * n + j]) + if i == j { lambda } else { 0.0 }
    });
    let factor = reversed.llt(Side::Lower).ok()?;
    let mut inverse = Mat::<f64>::zeros(n, n);
    // On one thread: nothing here may depend on how many there are.
    invert_lower_triangular(inverse.as_mut(), factor.L(), Par::Seq);
    let mut u = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            u[i * n + j] = inverse[(n - 1 - i, n - 1 - j)] as f32;
        }
        let pivot = u[i * n + i];
        if !(pivot.is_finite() && pivot > 0.0) {
            return None;
        }
    }
    Some(u)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_of_the_factor_is_the_inverse() {
        let n = 7;
        let x: Vec<f32> = (0..n * 9).map(|i| (i as f32 * 0.77).sin()).collect(); // [9, n]
        let mut h = vec![0.0; n * n];
        llmq_kernels::syrk::syrk(&x, n, &mut h);
        llmq_kernels::syrk::mirror(n, &mut h);
        let u = inverse_factor(&h, n, 0.05).unwrap();
        for i in 0..n {
            for j in 0..n {
                // (UᵀU)(H + λI) = I
                let inverse = |a: usize, b: usize| (0..n).map(|k| u[k * n + a] * u[k * n + b]).sum::<f32>();
                let damped = |a: usize, b: usize| h[a * n + b] + if a == b { 0.05 } else { 0.0 };
                let got: f32 = (0..n).map(|k| inverse(i, k) * damped(k, j)).sum();
                assert!((got - if i == j { 1.0 } else { 0.0 }).abs() < 1e-3, "{i} {j}: {got}");
                assert!(j >= i || u[i * n + j] == 0.0);
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2, 0.0).is_none());
        assert!(inverse_factor(&[0.0], 1, 0.0).is_none());
    }
}
