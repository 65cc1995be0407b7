//! Do calibration inputs say enough? Ranges that were seen on too few samples, on copies of one, or on inputs that hardly
//! differ, are those of these samples and not of the data.

use super::samples::{Sample, Values};
use std::collections::HashSet;

/// With fewer samples than these, ranges are uncertain.
pub const FEWEST: usize = 100;

/// More samples than these rarely change a range.
pub const ENOUGH: usize = 1000;

/// Inputs whose numbers vary from sample to sample by less than this part of how they vary at all are alike.
const ALIKE: f64 = 1e-3;

/// What has been seen, in memory that depends on the size of a sample, and by 16 bytes on their number.
#[derive(Default)]
pub struct Diversity {
    seen: HashSet<[u8; 16]>,
    samples: usize,
    constant: usize,
    inputs: Vec<Option<Spread>>,
    /// Inputs that are the same in all samples.
    whole: Vec<bool>,
}

/// Mean and squared deviation of each number over the samples (Welford 1962), and of all together.
struct Spread {
    mean: Vec<f64>,
    squares: Vec<f64>,
    samples: f64,
}

impl Diversity {
    /// Of samples in which some inputs are the same on purpose.
    pub fn of(whole: Vec<bool>) -> Self {
        Self { whole, ..Self::default() }
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: &Sample) {
        self.samples += 1;
        let mut hasher = blake3::Hasher::new();
        self.inputs.resize_with(sample.inputs.len(), || None);
        let mut constant = true;
        for (at, (input, spread)) in sample.inputs.iter().zip(&mut self.inputs).enumerate() {
            if self.whole.get(at) == Some(&true) {
                continue;
            }
            match &input.values {
                Values::Float(x) => {
                    for x in x {
                        hasher.update(&x.to_le_bytes());
                    }
                    constant &= x.iter().all(|y| *y == x[0]);
                    spread.get_or_insert_with(|| Spread::new(x.len())).add(x);
                }
                Values::Integer(x) => {
                    for x in x {
                        hasher.update(&x.to_le_bytes());
                    }
                    constant &= x.iter().all(|y| *y == x[0]);
                }
            }
        }
        self.constant += usize::from(constant);
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        self.seen.insert(key);
    }

    /// How many samples equal an earlier one.
    pub fn duplicates(&self) -> usize {
        self.samples - self.seen.len()
    }

    /// What the user should know, one sentence each. `names`: those of the inputs.
    pub fn warnings(&self, names: &[String]) -> Vec<String> {
        let (n, mut warnings) = (self.samples, Vec::new());
        if n < FEWEST {
            warnings.push(format!("{n} calibration samples are few: ranges get reliable with {FEWEST} to {ENOUGH}"));
        }
        if self.duplicates() > 0 {
            warnings.push(format!("{} of {n} calibration samples equal an earlier one", self.duplicates()));
        }
        if self.constant > 0 {
            warnings.push(format!("in {} of {n} calibration samples every number is the same", self.constant));
        }
        if n > 1 && self.seen.len() > 1 {
            for (spread, name) in self.inputs.iter().zip(names) {
                if let Some(part) = spread.as_ref().and_then(Spread::between).filter(|part| *part < ALIKE) {
                    warnings.push(format!(
                        "the calibration samples hardly differ: only {:.4}% of the variance of '{name}' is between them",
                        100.0 * part
                    ));
                }
            }
        }
        warnings
    }
}

impl Spread {
    fn new(numbers: usize) -> Spread {
        Spread { mean: vec![0.0; numbers], squares: vec![0.0; numbers], samples: 0.0 }
    }

    /// Samples of another size than the first, where axes are free, say nothing about single numbers.
    fn add(&mut self, x: &[f32]) {
        if x.len() != self.mean.len() {
            return;
        }
        self.samples += 1.0;
        for ((mean, squares), &x) in self.mean.iter_mut().zip(&mut self.squares).zip(x) {
            let from = f64::from(x) - *mean;
            *mean += from / self.samples;
            *squares += from * (f64::from(x) - *mean);
        }
    }

    /// The part of all variance that is between samples; none where there is no variance.
    fn between(&self) -> Option<f64> {
        let numbers = self.mean.len() as f64;
        let between = self.squares.iter().sum::<f64>() / (self.samples * numbers);
        let overall = self.mean.iter().sum::<f64>() / numbers;
        let within = self.mean.iter().map(|m| (m - overall).powi(2)).sum::<f64>() / numbers;
        (between + within > 0.0).then(|| between / (between + within))
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Array;
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn sample(x: Vec<f32>) -> Sample {
        let inputs = vec![Array { shape: vec![1, x.len()], values: Values::Float(x) }];
        Sample { inputs, labels: Vec::new(), place: String::new() }
    }

    fn warnings(samples: impl Iterator<Item = Vec<f32>>) -> String {
        let mut diversity = Diversity::default();
        samples.for_each(|x| diversity.add(&sample(x)));
        diversity.warnings(&["x".into()]).join("\n")
    }

    #[test]
    fn varied_samples_pass_and_others_are_named() {
        let random = |scale: f32, shared: f32| {
            let mut r = ChaCha8Rng::seed_from_u64(1);
            move |_: i32| (0..50).map(|i| scale * r.random::<f32>() + shared * (i as f32).sin()).collect::<Vec<f32>>()
        };
        assert_eq!(warnings((0..100).map(random(1.0, 1.0))), "");
        assert!(warnings((0..99).map(random(1.0, 1.0))).contains("99 calibration samples are few"));
        assert!(warnings((0..200).map(random(0.01, 1.0))).contains("hardly differ"));
        let mut copies = random(1.0, 1.0);
        let copies: Vec<_> = (0..100).map(&mut copies).collect();
        let doubled = copies.iter().chain(&copies[..7]).cloned();
        assert_eq!(warnings(doubled), "7 of 107 calibration samples equal an earlier one");
        assert!(warnings((0..100).map(|i| vec![i as f32; 50])).contains("in 100 of 100"));
        assert!(warnings((0..100).map(|_| vec![0.0; 50])).contains("99 of 100 calibration samples equal"));
    }
}
