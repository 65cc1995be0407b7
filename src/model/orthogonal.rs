//! Randomised orthogonal transforms of any size, in `O(n log n)` where `n` is mostly a power of two.
//!
//! A Hadamard matrix spreads one large number evenly over all of them, and random signs in front of it make it unlikely
//! that many numbers meet again in one place (QuIP#, Tseng et al. 2024, section 3; QuaRot, Ashkboos et al. 2024, section
//! 4.1). Hadamard matrices of other sizes than powers of two exist, but have to be looked up; a cosine transform stands in
//! for their odd part, which spreads nearly as evenly.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::f64::consts::PI;

/// Vectors that are transformed side by side: a loop over them is what the compiler makes vector instructions of.
const LANES: usize = 16;

/// `R = diag(s)·(C ⊗ H)`, `[n, n]` with `n = m·2^k` and `m` odd: random signs `s`, the orthonormal DCT-II `C` of size `m`,
/// and the orthonormal Walsh–Hadamard matrix `H` of size `2^k`.
#[derive(Debug, Clone)]
pub struct Orthogonal {
    /// `m`.
    odd: usize,
    /// `s/√2^k`, `[n]`.
    signs: Vec<f32>,
    /// `cos(π·j/2m)`, `[4m]`: one full turn.
    cosines: Vec<f64>,
}

impl Orthogonal {
    /// Of size `n`, above zero. The same `seed` and `stream` give the same signs; another `stream` gives independent ones.
    pub fn new(n: usize, seed: u64, stream: u64) -> Orthogonal {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        let odd = n >> n.trailing_zeros();
        let scale = (1.0 / ((n / odd) as f64).sqrt()) as f32;
        let signs = (0..n).map(|_| if random.random::<bool>() { scale } else { -scale }).collect();
        let cosines = (0..4 * odd).map(|j| (PI * j as f64 / (2 * odd) as f64).cos()).collect();
        Orthogonal { odd, signs, cosines }
    }

    /// `n`.
    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// `x·R` for vectors `x` that lie one after the other, `[…, n]`.
    pub fn turn_rows(&self, x: &mut [f32]) {
        let n = self.size();
        x.par_chunks_mut(n * LANES).for_each_init(
            || vec![[0.0; LANES]; n],
            |lanes, vectors| {
                for (lane, vector) in vectors.chunks_exact(n).enumerate() {
                    lanes.iter_mut().zip(vector).for_each(|(to, x)| to[lane] = *x);
                }
                self.turn(lanes);
                for (lane, vector) in vectors.chunks_exact_mut(n).enumerate() {
                    vector.iter_mut().zip(&*lanes).for_each(|(x, from)| *x = from[lane]);
                }
            },
        );
    }

    /// `Rᵀ·X` for matrices `X`, `[n, columns]`, that lie one below the other: each of their columns is turned like a vector of
    /// [`Orthogonal::turn_rows`].
    pub fn turn_columns(&self, x: &mut [f32], columns: usize) {
        let n = self.size();
        for matrix in x.chunks_exact_mut(n * columns) {
            let mut rows: Vec<_> = matrix.chunks_exact_mut(columns).map(|row| row.chunks_mut(LANES)).collect();
            // Only so many strips of columns at once, because the pieces that make up a strip take memory, too.
            let wave = 4 * rayon::current_num_threads();
            for first in (0..columns.div_ceil(LANES)).step_by(wave) {
                let strips: Vec<Vec<&mut [f32]>> = (first..columns.div_ceil(LANES).min(first + wave))
                    .map(|_| rows.iter_mut().filter_map(Iterator::next).collect())
                    .collect();
                strips.into_par_iter().for_each_init(
                    || vec![[0.0; LANES]; n],
                    |lanes, strip| {
                        lanes.iter_mut().zip(&strip).for_each(|(to, x)| to[..x.len()].copy_from_slice(x));
                        self.turn(lanes);
                        strip.into_iter().zip(&*lanes).for_each(|(x, from)| x.copy_from_slice(&from[..x.len()]));
                    },
                );
            }
        }
    }

    /// `x·R` for [`LANES`] vectors side by side, `[n][LANES]`.
    fn turn(&self, x: &mut [[f32; LANES]]) {
        for (x, sign) in x.iter_mut().zip(&self.signs) {
            x.iter_mut().for_each(|x| *x *= sign);
        }
        let power = self.size() / self.odd;
        if self.odd > 1 {
            let mut scratch = vec![[0.0; LANES]; self.odd];
            for b in 0..power {
                self.cosine_transform(&mut x[b..], power, &mut scratch);
            }
        }
        x.chunks_exact_mut(power).for_each(walsh_hadamard);
    }

    /// `y_c = √(2/m)·Σ_a x_a·cos(π·(a + ½)·c/m)`, with `√(1/m)` for `c = 0`, of every `stride`-th element. `scratch`: `[m]`.
    fn cosine_transform(&self, x: &mut [[f32; LANES]], stride: usize, scratch: &mut [[f64; LANES]]) {
        let m = self.odd;
        for (c, sum) in scratch.iter_mut().enumerate() {
            *sum = [0.0; LANES];
            let scale = (if c == 0 { 1.0 } else { 2.0 } / m as f64).sqrt();
            for (a, x) in x.iter().step_by(stride).enumerate() {
                let factor = scale * self.cosines[(2 * a + 1) * c % (4 * m)];
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * f64::from(*x));
            }
        }
        for (x, y) in x.iter_mut().step_by(stride).zip(scratch) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x = *y as f32);
        }
    }
}

/// The Walsh–Hadamard transform without its scale, in the order of its definition `H_2k = H_2 ⊗ H_k`. `x`: `[2^k][LANES]`.
fn walsh_hadamard(x: &mut [[f32; LANES]]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 8] = [512, 768, 1536, 80, 96, 5, 1, 64];

    fn vectors(count: usize, n: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(n as u64);
        (0..count * n).map(|_| random.random_range(-1.0..1.0f32)).collect()
    }

    /// The matrix by its definition, `[n, n]`.
    fn dense(r: &Orthogonal) -> Vec<f64> {
        let (n, m) = (r.size(), r.odd);
        let power = n / m;
        let entry = |i: usize, j: usize| {
            let ((a, b), (c, d)) = ((i / power, i % power), (j / power, j % power));
            let cosine = (PI * (a as f64 + 0.5) * c as f64 / m as f64).cos();
            let cosine = cosine * if c == 0 { (1.0 / m as f64).sqrt() } else { (2.0 / m as f64).sqrt() };
            let hadamard = if (b & d).count_ones() % 2 == 0 { 1.0 } else { -1.0 } / (power as f64).sqrt();
            f64::from(r.signs[i].signum()) * cosine * hadamard
        };
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 2e-6
    }

    #[test]
    fn the_fast_transform_is_the_dense_matrix_and_that_is_orthogonal() {
        for n in SIZES {
            let r = Orthogonal::new(n, 7, 0);
            let dense = dense(&r);
            // More vectors than are turned side by side, and no multiple of them.
            let x = vectors(LANES + 3, n);
            let mut y = x.clone();
            r.turn_rows(&mut y);
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                let product = |j: usize| (0..n).map(|i| f64::from(x[i]) * dense[i * n + j]).sum::<f64>();
                assert!((0..n).all(|j| close(product(j), f64::from(y[j]))), "{n}: the dense matrix");
                // The inverse is the transpose.
                let back = |i: usize| (0..n).map(|j| f64::from(y[j]) * dense[i * n + j]).sum::<f64>();
                assert!((0..n).all(|i| close(back(i), f64::from(x[i]))), "{n}: the inverse");
                let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                assert!((norm(y) / norm(x) - 1.0).abs() < 1e-6, "{n}: the norm");
            }
        }
    }

    #[test]
    fn columns_turn_like_rows() {
        for n in SIZES {
            let r = Orthogonal::new(n, 7, 1);
            for (matrices, columns) in [(1, 1), (1, 37), (3, 16), (2, 500)] {
                let mut x = vectors(matrices * columns, n);
                // [matrices, columns, n] to [matrices, n, columns].
                let at = |i: usize| {
                    let (matrix, row, column) = (i / (n * columns), i / columns % n, i % columns);
                    (matrix * columns + column) * n + row
                };
                let mut turned: Vec<f32> = (0..x.len()).map(|i| x[at(i)]).collect();
                r.turn_columns(&mut turned, columns);
                r.turn_rows(&mut x);
                assert!((0..x.len()).all(|i| turned[i] == x[at(i)]), "{n}: {matrices} of {columns} columns");
            }
        }
    }

    #[test]
    fn one_large_number_is_spread_over_all() {
        for n in [512, 768, 1536] {
            let r = Orthogonal::new(n, 0, 0);
            let mut x = vec![0.0; n];
            x[n / 3] = 1.0;
            r.turn_rows(&mut x);
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(largest <= (2.0 / n as f32).sqrt() * 1.0001, "{n}: {largest}");
        }
    }

    #[test]
    fn seed_and_stream_decide_about_the_signs() {
        let signs = |seed, stream| Orthogonal::new(96, seed, stream).signs;
        assert_eq!(signs(1, 0), signs(1, 0));
        assert_ne!(signs(1, 0), signs(2, 0));
        assert_ne!(signs(1, 0), signs(1, 1));
    }
}
