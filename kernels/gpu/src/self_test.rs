//! Whether a device computes what the CPU computes.

use crate::adapter::said;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::sum::{Part, Sum};
use llmq_kernels::gemm::{self, Precision};
use llmq_kernels::syrk;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How far a number may be off, against the sum of the magnitudes that it is a sum of: some times what the order of sums of that length
/// makes of single precision.
pub const TOLERANCE: f32 = 1e-5;

impl Gpu {
    /// Computes with each kernel, on ragged shapes of several tiles in both directions and of less than one, and holds that against
    /// [`llmq_kernels`]: 16 million multiplications.
    ///
    /// # Errors
    /// [`Error::Wrong`] where a number is off, or whatever the device fails with.
    pub fn self_test(self: &Arc<Gpu>) -> Result<()> {
        let tested = catch_unwind(AssertUnwindSafe(|| {
            for (n, m, k) in [(29, 43, 37), (270, 262, 38)] {
                self.test_linear(n, m, k, false)?;
                self.test_linear(n, m, k, true)?;
                self.test_sum(k, m, None)?;
                self.test_sum(k, m, Some(n))?;
            }
            Ok(())
        }));
        tested.unwrap_or_else(|panic| Err(Error::Refused(said(&*panic))))
    }

    /// Both ways for weights to come: `rounded` ones are of bfloat16, in rows of whole vec4.
    fn test_linear(&self, n: usize, m: usize, k: usize, rounded: bool) -> Result<()> {
        let k = if rounded { k.next_multiple_of(4) } else { k };
        let (x, mut w) = (numbers(n * k, 1), numbers(m * k, 2));
        if rounded {
            w.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        let old = numbers(n * m, 3);
        let matrix = self.matrix(&w, m, k)?;
        let (mut whole, mut added) = (vec![f32::NAN; n * m], old.clone());
        self.linear(&x, &matrix, false, &mut whole)?;
        self.linear(&x, &matrix, true, &mut added)?;
        let of = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; n * m];
            gemm::linear(Precision::Single, x, w, k, &mut y);
            y
        };
        let (wanted, size) = (of(&x, &w), of(&magnitudes(&x), &magnitudes(&w)));
        compare("gemm", m, &whole, &wanted, &size)?;
        let wanted: Vec<f32> = wanted.iter().zip(&old).map(|(x, old)| x + old).collect();
        compare("gemm, added", m, &added, &wanted, &size)
    }

    /// Two steps of a sum of `[tokens, m]` with itself, or with `[tokens, n]`.
    fn test_sum(self: &Arc<Gpu>, tokens: usize, m: usize, n: Option<usize>) -> Result<()> {
        let (a, columns) = (numbers(tokens * m, 4), n.unwrap_or(m));
        let b = n.map(|n| numbers(tokens * n, 5));
        let part = if n.is_some() { Part::Whole } else { Part::Lower };
        let mut sum = Sum::new(self, m, columns, part)?;
        let first = tokens / 3;
        sum.add(&a[..first * m], b.as_ref().map(|b| &b[..first * columns]))?;
        sum.add(&a[first * m..], b.as_ref().map(|b| &b[first * columns..]))?;
        let of = |a: &[f32], b: Option<&[f32]>| {
            let mut c = vec![0.0; m * columns];
            match b {
                Some(b) => syrk::outer(Precision::Single, a, m, b, columns, &mut c),
                None => syrk::syrk(Precision::Single, a, m, &mut c),
            }
            c
        };
        let wanted = of(&a, b.as_deref());
        let size = of(&magnitudes(&a), b.as_deref().map(magnitudes).as_deref());
        let there = |row: usize| if part == Part::Lower { row + 1 } else { columns };
        let (what, mut result) = (if n.is_some() { "outer" } else { "outer, lower" }, Ok(()));
        sum.read(|row, found| {
            let own = row * columns..row * columns + there(row);
            if result.is_ok() {
                result = compare(what, there(row), &found[..there(row)], &wanted[own.clone()], &size[own]);
            }
        })?;
        result
    }
}

/// Some numbers between −1 and 1, the same every time.
pub(crate) fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn magnitudes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

/// Holds numbers against what they should be, within [`TOLERANCE`] of `size`.
fn compare(what: &str, columns: usize, found: &[f32], wanted: &[f32], size: &[f32]) -> Result<()> {
    let wrong = |i: usize| {
        let off = (found[i] - wanted[i]).abs();
        // NaN is no better than too much.
        off.is_nan() || off > TOLERANCE * (size[i] + wanted[i].abs())
    };
    match (0..wanted.len()).find(|&i| wrong(i)) {
        None => Ok(()),
        Some(i) => {
            let (row, column) = (i / columns, i % columns);
            Err(Error::Wrong(format!("{what}: {} instead of {} at row {row} and column {column}", found[i], wanted[i])))
        }
    }
}
