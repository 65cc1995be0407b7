//! Weights in eight bits with one scale for each row, as linear layers have them: `w ≈ scale·q`.
//!
//! Codes go from −127 to 127, so that the negative of each is one, too, and scales are above zero.

use half::{bf16, f16};
use llmq_kernels::search::{self, Effort};
use llmq_kernels::{F, LANES, Levels, column, lanes};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

/// How the scale of a row is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// The entry of largest magnitude becomes 127.
    Max,
    /// The one that errs least in the sum of squares, among those that clip the largest entries by up to a tenth.
    Mse,
}

/// Rows in eight bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// `[rows, columns]`.
    pub codes: Vec<i8>,
    /// `[rows]`, each exact in the type that it will be stored in.
    pub scales: Vec<f32>,
    /// `Σ(w − scale·q)²`.
    pub error: f64,
    /// `Σw²`.
    pub power: f64,
}

const LEVELS: Levels = Levels::Uniform { lo: -127, hi: 127 };

/// Rounds rows of finite numbers. `w`: `[rows, columns]`; `stored`: the type that scales will be stored in: F32, F16 or BF16.
///
/// Codes are chosen for the scale as it will be stored, so that storing it loses nothing more.
pub fn round(w: &[f32], columns: usize, how: Scales, stored: Dtype) -> Rows {
    let mut rows = Rows { codes: vec![0; w.len()], scales: vec![0.0; w.len() / columns], error: 0.0, power: 0.0 };
    let parts = rows.codes.par_chunks_mut(LANES * columns).zip(rows.scales.par_chunks_mut(LANES));
    let sums: Vec<(f64, f64)> = parts
        .zip(w.par_chunks(LANES * columns))
        .map(|((codes, scales), w)| {
            let mut block = vec![F::ZERO; columns];
            lanes::gather(w, columns, 0, &mut block);
            let scale = scale(&block, how, stored);
            let mut lanes = vec![[0; LANES]; columns];
            column::round(&block, scale, F::ZERO, LEVELS, &mut lanes);
            scales.copy_from_slice(&scale.0[..scales.len()]);
            let mut sums = (0.0, 0.0);
            for (l, (codes, w)) in codes.chunks_mut(columns).zip(w.chunks(columns)).enumerate() {
                for ((code, &w), lanes) in codes.iter_mut().zip(w).zip(&lanes) {
                    *code = lanes[l];
                    let e = f64::from(w) - f64::from(scale.0[l]) * f64::from(*code);
                    sums.0 += e * e;
                    sums.1 += f64::from(w) * f64::from(w);
                }
            }
            sums
        })
        .collect();
    // One after the other, for the same sum at any number of threads.
    for (error, power) in sums {
        rows.error += error;
        rows.power += power;
    }
    rows
}

/// The scales of sixteen rows, as they will be stored. `w`: `[columns]`.
fn scale(w: &[F], how: Scales, stored: Dtype) -> F {
    let largest = w.iter().fold(F::ZERO, |largest, w| largest.max(w.abs()));
    let plain = (largest * F::splat(1.0 / 127.0)).map(|scale| as_stored(scale, stored));
    if how == Scales::Max {
        return plain;
    }
    let alike = vec![F::splat(1.0); w.len()];
    // Of either sign, which makes no difference to levels that are the same on both sides of zero.
    let best = search::symmetric(w, &alike, LEVELS, Effort::Full).abs();
    let best = best.map(|scale| as_stored(scale, stored));
    let error = |scale| search::error(w, &alike, scale, F::ZERO, LEVELS);
    error(best).less(error(plain), best, plain)
}

/// The nearest scale above zero that a type can hold. A row that is all zero, or too near to it, gets one.
fn as_stored(scale: f32, stored: Dtype) -> f32 {
    let rounded = match stored {
        Dtype::F16 => f16::from_f32(scale).to_f32(),
        Dtype::BF16 => bf16::from_f32(scale).to_f32(),
        _ => scale,
    };
    // The reciprocal has to be finite, too.
    if rounded >= f32::MIN_POSITIVE { rounded } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(rows: &Rows, columns: usize) -> Vec<f32> {
        let lines = rows.codes.chunks(columns).zip(&rows.scales);
        lines.flat_map(|(codes, scale)| codes.iter().map(|&q| f32::from(q) * scale).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn golden_codes() {
        let rows = round(&[127.0, -63.6, 0.4, 0.0, 0.0, 0.0], 3, Scales::Max, Dtype::F32);
        assert_eq!(rows.codes, [127, -64, 0, 0, 0, 0]);
        assert_eq!(rows.scales, [1.0, 1.0]);
        assert!((rows.error - (0.16 + 0.16)).abs() < 1e-5, "{}", rows.error);
    }

    #[test]
    fn a_search_clips_what_stands_alone() {
        // One entry far out, and a thousand that sit between the levels it forces upon them.
        let mut w: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 0.5).collect();
        w.push(1.0);
        let [max, mse] = [Scales::Max, Scales::Mse].map(|how| round(&w, w.len(), how, Dtype::F32));
        assert!(mse.error < max.error, "{} {}", mse.error, max.error);
        assert_eq!(mse.power, max.power);
    }

    proptest! {
        #[test]
        fn rounding_errs_by_half_a_step_and_a_search_is_never_worse(
            seed in 0u64..1000, rows in 1usize..40, columns in 1usize..50, kind in 0usize..3, size in -20i32..20,
        ) {
            let stored = [Dtype::F32, Dtype::F16, Dtype::BF16][kind];
            let mut s = seed;
            let mut next = || {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((s >> 40) as f32 / (1 << 23) as f32 - 1.0) * 2f32.powi(size / 4)
            };
            let w: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
            let max = round(&w, columns, Scales::Max, stored);
            let mse = round(&w, columns, Scales::Mse, stored);
            prop_assert!(mse.error <= max.error * (1.0 + 1e-5));
            for (i, (w, v)) in w.iter().zip(value(&max, columns)).enumerate() {
                let scale = max.scales[i / columns];
                // A scale that was rounded down clips the largest entry by what it lost.
                prop_assert!((w - v).abs() <= scale * (0.5 + 127.0 / 256.0), "{} {} {}", w, v, scale);
            }
            for &scale in max.scales.iter().chain(&mse.scales) {
                prop_assert_eq!(as_stored(scale, stored), scale);
            }
            let one = round(&w[..columns], columns, Scales::Mse, stored);
            prop_assert_eq!(&one.codes[..], &mse.codes[..columns]);
        }
    }
}
