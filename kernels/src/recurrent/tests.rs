//! Mixers against their recurrences in `f64`, and against what transformers computes (scripts/golden_recurrent.py).

mod conv;
mod delta;
mod kda;
mod mamba;

use crate::Isa;
use crate::amx::Split;
use crate::micro::Micro;
use std::fmt::Debug;

/// Numbers without any pattern.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    fn numbers(&mut self, n: usize, lo: f32, hi: f32) -> Vec<f32> {
        (0..n).map(|_| lo + (hi - lo) * self.next() as f32).collect()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() * all.len() as f64) as usize]
    }
}

/// The inputs of the golden files.
fn made(seed: usize, n: usize, lo: f64, hi: f64) -> Vec<f32> {
    let number = |i: usize| lo + (hi - lo) * (i * (7919 + 2 * seed) % 1009) as f64 / 1008.0;
    (1..=n).map(|i| number(i) as f32).collect()
}

fn golden(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// Compares numbers in units of the largest.
fn close(got: &[f32], want: &[f64], within: f64, what: &dyn Debug) {
    assert_eq!(got.len(), want.len(), "{what:?}");
    let largest = want.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs() / largest;
        assert!(off < within, "{what:?}: {got} and not {want} at {i}, of at most {largest}");
    }
}

/// Runs a check with the tiles of every instruction set, those of single precision and those of split numbers.
fn on_all(single: impl Fn(Micro<f32>), split: impl Fn(Micro<Split>)) {
    for isa in Isa::available() {
        single(Micro::on(isa));
        split(Micro::on(isa));
    }
}
