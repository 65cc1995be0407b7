//! Linear layers whose weights are decoded on the way: of the matrix, no thread ever holds more than a panel.
//!
//! Where the numbers come from is the caller's business: `decode(rows, out)` fills `out`, `[rows, k]`. Many activations go
//! through the matrix product in [`crate::gemm`], a panel at a time, and each panel is decoded once for all of them. A few,
//! as in generation, cost less than decoding does: then rows are decoded into a buffer that stays in the nearest cache, and
//! multiplied right there.

use crate::dispatch::kernel;
use crate::gemm::{self, Precision};
use crate::lanes::{F, LANES, whole};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Rows of activations that weights are decoded, or packed, once for.
pub const AT_ONCE: usize = 2048;

/// Up to so many rows of activations each decoded row is multiplied with by itself.
pub const FEW: usize = 8;

/// Rows of weights that a task handles for few activations.
const ROWS: usize = 16;

/// Numbers that a task decodes at once for few activations, if a row is not longer: half of a usual nearest cache.
const NEAR: usize = 4096;

/// `Y = X·Wᵀ` on all threads, with the rows of `W` from `decode`.
///
/// `x`: `[n, k]`, `y`: `[n, m]`. `decode` is asked for rows of `W`, `[m, k]`, one range by one task, and fills all of what it is
/// given. A few rows of `x` are multiplied in single precision anyway.
///
/// # Errors
/// The one that `decode` gave for the first rows that it failed on. What is in `y` then means nothing.
///
/// # Panics
/// If the lengths do not fit.
pub fn linear<E: Send>(
    precision: Precision,
    x: &[f32],
    k: usize,
    m: usize,
    decode: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    y: &mut [f32],
) -> Result<(), E> {
    if y.is_empty() {
        return Ok(());
    }
    let n = y.len() / m;
    assert_eq!((y.len(), x.len()), (n * m, n * k), "shapes of a linear layer");
    if n <= FEW {
        return few(x, k, m, &decode, y);
    }
    let rows = |rows: Range<usize>| {
        let mut panel = vec![0.0; rows.len() * k]; // [rows, k]
        decode(rows, &mut panel)?;
        Ok(Cow::Owned(panel))
    };
    gemm::layer(precision, x, k, m, rows, y)
}

fn few<E: Send>(
    x: &[f32],
    k: usize,
    m: usize,
    decode: &(impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync),
    y: &mut [f32],
) -> Result<(), E> {
    let n = y.len() / m;
    let mut turned = vec![0.0; y.len()]; // [m, n]
    let failed = turned.par_chunks_mut(ROWS * n).enumerate().find_map_first(|(i, out)| {
        let at_once = (NEAR / k).clamp(1, ROWS);
        let mut near = vec![0.0; at_once * k];
        for (j, out) in out.chunks_mut(at_once * n).enumerate() {
            let (first, rows) = (i * ROWS + j * at_once, out.len() / n);
            let near = &mut near[..rows * k]; // [rows, k]
            if let Err(error) = decode(first..first + rows, near) {
                return Some(error);
            }
            near.chunks(k).zip(out.chunks_mut(n)).for_each(|(row, out)| dots(row, x, out));
        }
        None
    });
    for (i, y) in y.chunks_mut(m).enumerate() {
        y.iter_mut().zip(turned[i..].iter().step_by(n)).for_each(|(y, &x)| *y = x);
    }
    failed.map_or(Ok(()), Err)
}

kernel! {
    /// The products of `row`, `[k]`, with each row of `x`, `[n, k]`: `out`, `[n]`. Sums of 64 columns side by side, products and
    /// sums rounded each by itself, so that every instruction set gives the same.
    pub fn dots / dots_on(row: &[f32], x: &[f32], out: &mut [f32]) {
        const SIDE: usize = 4;
        let wide = row.len() / (SIDE * LANES) * (SIDE * LANES);
        for (x, out) in x.chunks_exact(row.len()).zip(out) {
            let mut sums = [F::ZERO; SIDE];
            for (w, x) in row[..wide].chunks_exact(SIDE * LANES).zip(x[..wide].chunks_exact(SIDE * LANES)) {
                whole();
                for (s, sum) in sums.iter_mut().enumerate() {
                    for l in 0..LANES {
                        sum.0[l] += w[s * LANES + l] * x[s * LANES + l];
                    }
                }
            }
            let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            let tail: f32 = row[wide..].iter().zip(&x[wide..]).map(|(w, x)| w * x).sum();
            *out = sum.0.iter().sum::<f32>() + tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn numbers(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// A decoder of numbers that are there already.
    fn of(w: &[f32], k: usize) -> impl Fn(Range<usize>, &mut [f32]) -> Result<(), usize> + Sync {
        move |rows, out| {
            out.copy_from_slice(&w[rows.start * k..rows.end * k]);
            Ok(())
        }
    }

    #[test]
    fn it_is_the_plain_layer_for_few_and_for_many_with_tails() {
        for (m, k) in [(1, 1), (5, 7), (16, 64), (63, 65), (64, 32), (65, 200), (150, 33)] {
            let w = numbers(m * k, 0.7);
            for n in [1, 2, FEW, FEW + 1, 64, 65, 300] {
                let x = numbers(n * k, 1.3);
                let (mut ours, mut plain) = (vec![f32::NAN; n * m], vec![0.0; n * m]);
                linear(Precision::Single, &x, k, m, of(&w, k), &mut ours).unwrap();
                gemm::linear(Precision::Single, &x, &w, k, &mut plain);
                for (at, (a, b)) in ours.iter().zip(&plain).enumerate() {
                    assert!((a - b).abs() < 1e-6 * k as f32, "{n} x {k} -> {m}, at {at}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_dots() {
        for k in [1, 15, 16, 63, 64, 65, 129, 512] {
            let (row, x) = (numbers(k, 0.3), numbers(3 * k, 0.9));
            let on = |isa| {
                let mut out = [0.0; 3];
                dots_on(isa, &row, &x, &mut out);
                out
            };
            let wanted = on(Isa::Baseline);
            for (x, out) in x.chunks(k).zip(wanted) {
                let exact: f64 = row.iter().zip(x).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!((exact - f64::from(out)).abs() < 1e-6 * k as f64, "{k}: {exact} and {out}");
            }
            Isa::available().into_iter().for_each(|isa| assert_eq!(on(isa), wanted, "{isa:?}, {k} columns"));
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        for n in [3, 70] {
            let (x, w) = (numbers(n * 96, 0.3), numbers(200 * 96, 0.4));
            let on = |threads| {
                let mut y = vec![0.0; n * 200];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| linear(Precision::Single, &x, 96, 200, of(&w, 96), &mut y)).unwrap();
                y
            };
            assert_eq!(on(1), on(3));
        }
    }

    #[test]
    fn the_first_error_is_the_one_that_is_told() {
        let fails = |rows: Range<usize>, _: &mut [f32]| if rows.end > 70 { Err(rows.start) } else { Ok(()) };
        for (n, wanted) in [(1, 64), (20, 64)] {
            let x = vec![0.0; n * 8];
            assert_eq!(linear(Precision::Single, &x, 8, 300, fails, &mut vec![0.0; n * 300]), Err(wanted));
        }
    }
}
