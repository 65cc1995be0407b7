//! Is a quantized model nearer to the float model than another one?

use crate::error::{Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::compare::numbers;
use crate::int8::engine::Engine;
use crate::int8::onnx::proto::ModelProto;
use crate::int8::samples::Samples;

/// How many of its standard errors a gain has to be.
const SURE: f64 = 2.0;

/// Noise below this part of the signal is none.
const NOTHING: f64 = 1e-12;

/// The errors of a quantized model on the samples that judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// For each sample, for each output.
    sums: Vec<Vec<Sums>>,
}

/// What is known of an output for a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sums {
    /// The sum of the squares of the float model's numbers.
    signal: f64,
    /// That of the differences.
    noise: f64,
    /// How many numbers.
    count: f64,
}

/// Runs both models.
///
/// # Errors
/// A sample cannot be read, or a graph cannot be run on it.
pub fn judge(float: &Engine, quantized: &ModelProto, samples: &Samples, chosen: &[usize]) -> Result<Verdict> {
    let engine = Engine::new(quantized)?;
    let mut sums = Vec::with_capacity(chosen.len());
    samples.each(chosen, &mut |sample| {
        let inputs = calibration_inputs::inputs(float, &sample)?;
        let (wanted, found) = (float.run(&inputs)?, engine.run(&inputs)?);
        let mut outputs = Vec::with_capacity(wanted.len());
        for ((a, b), name) in wanted.iter().zip(&found).zip(float.outputs()) {
            if a.dims() != b.dims() {
                let (place, a, b) = (&sample.place, a.dims(), b.dims());
                return Err(Error::new(format!("{place}: output '{name}' has shape {a:?}, quantized {b:?}")));
            }
            let square = |x: f32| f64::from(x) * f64::from(x);
            let pairs = numbers(a).into_iter().zip(numbers(b));
            let (signal, noise) = pairs.fold((0.0, 0.0), |(s, n), (a, b)| (s + square(a), n + square(a - b)));
            outputs.push(Sums { signal, noise, count: a.dims().iter().product::<usize>() as f64 });
        }
        sums.push(outputs);
        Ok(())
    })?;
    Ok(Verdict { sums })
}

impl Verdict {
    /// The least signal-to-noise ratio of all outputs, in dB; infinite where nothing differs.
    pub fn sqnr(&self) -> f64 {
        let outputs = self.sums.first().map_or(0, Vec::len);
        let ratio = |at: usize| {
            let sums = self.sums.iter().map(|sums| sums[at]);
            let (signal, noise) = sums.fold((0.0, 0.0), |(s, n), sums| (s + sums.signal, n + sums.noise));
            if noise == 0.0 { f64::INFINITY } else { decibels(signal / noise) }
        };
        (0..outputs).map(ratio).fold(f64::INFINITY, |a, b| if b.is_nan() { b } else { a.min(b) })
    }

    /// Whether this is measurably better than `other`, on the same samples: the ratio is higher, and the mean gain of the
    /// single samples is not by chance.
    pub fn better_than(&self, other: &Verdict) -> bool {
        let gains: Vec<f64> = self.sums.iter().zip(&other.sums).map(|(new, old)| gain(new, old)).collect();
        let n = gains.len() as f64;
        let mean = gains.iter().sum::<f64>() / n;
        let deviation = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>();
        let error = (deviation / (n - 1.0).max(1.0) / n).sqrt();
        self.sqnr() > other.sqnr() && mean > SURE * error
    }
}

/// By how many dB the outputs of a sample are nearer, in the mean. An output counts by how many numbers it has: the noise of a
/// few says little about one sample.
fn gain(new: &[Sums], old: &[Sums]) -> f64 {
    let of = |(new, old): (&Sums, &Sums)| {
        let least = (NOTHING * new.signal).max(f64::MIN_POSITIVE);
        // Not by `max`, which would lose what is not a number.
        let at_least = |noise: f64| if noise < least { least } else { noise };
        new.count * decibels(at_least(old.noise) / at_least(new.noise))
    };
    let count = new.iter().map(|sums| sums.count).sum::<f64>();
    new.iter().zip(old).map(of).sum::<f64>() / count.max(1.0)
}

fn decibels(ratio: f64) -> f64 {
    10.0 * ratio.log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(noise: f64) -> Sums {
        Sums { signal: 1.0, noise, count: 1.0 }
    }

    fn verdict(noises: &[f64]) -> Verdict {
        Verdict { sums: noises.iter().map(|&noise| vec![sums(noise)]).collect() }
    }

    #[test]
    fn only_a_gain_that_is_sure_counts() {
        let old = verdict(&[0.01, 0.012, 0.008, 0.011]);
        assert!((old.sqnr() - 19.9).abs() < 0.1);
        assert!(verdict(&[0.009, 0.011, 0.007, 0.010]).better_than(&old));
        // As good in the sum, but by one sample.
        assert!(!verdict(&[0.001, 0.012, 0.008, 0.011]).better_than(&old));
        assert!(!verdict(&[0.001, 0.013, 0.009, 0.011]).better_than(&old));
        assert!(!old.better_than(&old));
        assert!(!verdict(&[f64::NAN; 4]).better_than(&old));
        assert!(!verdict(&[0.0; 4]).better_than(&verdict(&[0.0; 4])));
        assert!(verdict(&[0.0; 4]).better_than(&old));
    }

    #[test]
    fn the_worst_output_speaks_for_all() {
        let two = |a: f64, b: f64| Verdict { sums: vec![vec![sums(a), sums(b)]; 4] };
        assert!((two(1e-4, 1e-2).sqnr() - 20.0).abs() < 1e-9);
        assert!(!two(1e-6, 2e-2).better_than(&two(1e-4, 1e-2)));
        assert!(two(1e-4, 5e-3).better_than(&two(1e-4, 1e-2)));
    }
}
