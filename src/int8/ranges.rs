//! Which range of an activation becomes 256 levels. Outliers stretch the levels of all other numbers, clipping loses the
//! outliers: calibrators weigh the one against the other. Zero is in every range, for padding and ReLU need it exactly.

use super::histogram::Histogram;
use llmq_kernels::elementwise::first_non_finite;

/// The levels of an activation in 8 bits.
pub const LEVELS: usize = 256;

/// How a range is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrator {
    /// The smallest and the largest number that was seen.
    MinMax,
    /// The means of the samples' smallest and largest numbers: ONNX Runtime's `CalibMovingAverage`. Jacob et al. 2018
    /// ("Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.1) smooth
    /// exponentially instead, which makes the last samples count most.
    Average,
    /// The range that holds this percentage of all numbers, as much being cut off on both sides, as ONNX Runtime does it;
    /// McKinstry et al. 2018 ("Discovering Low-Precision Networks Close to Full-Precision Networks").
    Percentile(f64),
    /// The range whose quantized distribution has the least Kullback-Leibler divergence from the original (Migacz 2017,
    /// "8-bit Inference with TensorRT", slides 33 to 38).
    Entropy,
    /// The range with the least mean squared error, clipping and rounding taken together (Banner et al. 2019, "Post
    /// Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment", section 3), on the histogram that was
    /// seen instead of an assumed distribution.
    Mse,
}

impl Calibrator {
    /// All of them, the first being the one that errs least where nothing is known.
    pub const ALL: [Calibrator; 5] = [
        Calibrator::MinMax,
        Calibrator::Percentile(Calibrator::PERCENTILE),
        Calibrator::Mse,
        Calibrator::Entropy,
        Calibrator::Average,
    ];

    /// The percentage of [`Calibrator::Percentile`] that ONNX Runtime takes, too.
    pub const PERCENTILE: f64 = 99.999;

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Calibrator::MinMax => "minmax",
            Calibrator::Average => "average",
            Calibrator::Percentile(_) => "percentile",
            Calibrator::Entropy => "entropy",
            Calibrator::Mse => "mse",
        }
    }

    /// Whether it needs more than extremes.
    pub fn counts(self) -> bool {
        !matches!(self, Calibrator::MinMax | Calibrator::Average)
    }
}

/// A range with zero in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// At most zero.
    pub low: f32,
    /// At least zero.
    pub high: f32,
}

impl Range {
    /// The smallest range with zero and both numbers in it.
    pub fn new(low: f64, high: f64) -> Range {
        Range { low: low.min(0.0) as f32, high: high.max(0.0) as f32 }
    }

    /// Scale and zero point of unsigned codes: `x ≈ scale · (code − zero point)`. Signed ones have a zero point that is 128
    /// less.
    pub fn grid(self) -> (f32, u8) {
        let steps = (LEVELS - 1) as f64;
        let scale = (f64::from(self.high) - f64::from(self.low)) / steps;
        // A tensor that is zero everywhere needs some scale, and one whose inverse is a number.
        let mut scale = if self.low == self.high { 1.0 } else { scale.max(2f64.powi(-126)) } as f32;
        // The largest code may not exceed the range: behind a `Clip`, that is what makes the `Clip` superfluous.
        if self.low == 0.0 && self.high > 0.0 && scale * steps as f32 > self.high {
            scale = scale.next_down();
        }
        let zero = (-f64::from(self.low) / f64::from(scale)).round_ties_even().clamp(0.0, steps);
        (scale, zero as u8)
    }
}

/// Everything that the calibrators have to know about an activation, in memory that does not depend on the number of samples.
#[derive(Debug, Clone)]
pub struct Observer {
    counts: bool,
    histogram: Histogram,
    samples: u64,
    lows: f64,
    highs: f64,
}

impl Observer {
    /// Nothing seen. `counts`: for calibrators that need more than extremes.
    pub fn new(counts: bool) -> Observer {
        Observer { counts, histogram: Histogram::default(), samples: 0, lows: 0.0, highs: 0.0 }
    }

    /// Adds the activations of a sample.
    ///
    /// # Errors
    /// The position of a number that is not finite.
    pub fn add(&mut self, x: &[f32]) -> Result<(), usize> {
        if x.is_empty() {
            return Ok(());
        }
        if let Some(at) = first_non_finite(x) {
            return Err(at);
        }
        let (low, high) = x.iter().fold((0f32, 0f32), |(low, high), &x| (low.min(x), high.max(x)));
        self.samples += 1;
        self.lows += f64::from(low);
        self.highs += f64::from(high);
        self.histogram.add(if self.counts { x } else { &[] }, low, high);
        Ok(())
    }

    /// Whether a sample has come.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The range that a calibrator chooses.
    pub fn range(&self, calibrator: Calibrator) -> Range {
        let h = &self.histogram;
        let samples = self.samples.max(1) as f64;
        match calibrator {
            _ if h.min() == h.max() => Range::new(0.0, 0.0),
            Calibrator::MinMax => Range::new(f64::from(h.min()), f64::from(h.max())),
            Calibrator::Average => Range::new(self.lows / samples, self.highs / samples),
            Calibrator::Percentile(percent) => {
                let cut = (1.0 - percent / 100.0) / 2.0;
                Range::new(h.quantile(cut), h.quantile(1.0 - cut))
            }
            Calibrator::Entropy => least_divergence(h),
            Calibrator::Mse => least_squares(h),
        }
    }
}

/// Candidates for the range's ends that [`Calibrator::Entropy`] and [`Calibrator::Mse`] try on each side.
const TRIES: usize = 128;

/// Migacz' search: for each window around zero, the numbers outside are put into its outermost bins, the window is
/// quantized to [`LEVELS`], each level spread evenly over its bins that are not empty, and both are compared.
fn least_divergence(h: &Histogram) -> Range {
    let (counts, zero) = (h.counts(), h.zero_bin());
    let mut counts: Vec<f64> = counts.iter().map(|&n| n as f64).collect();
    // Zero is exact whatever the range; with the mass that ReLU puts there it would decide alone. TensorRT does this, too.
    let beside = [zero.wrapping_sub(1), zero + 1].into_iter().filter_map(|i| counts.get(i)).fold(0.0, |a, b| b.max(a));
    counts[zero] = counts[zero].min(beside);
    let widest = (counts.len() - zero).max(zero + 1);
    let narrowest = (LEVELS / 2).min(widest);
    let step = (widest - narrowest).div_ceil(TRIES).max(1);
    let mut best = (f64::INFINITY, 0..counts.len());
    // From the widest, which wins where several are as good.
    for half in (narrowest..=widest).rev().step_by(step) {
        let window = zero.saturating_sub(half)..(zero + half).min(counts.len());
        let divergence = divergence(&counts, window.clone());
        if divergence < best.0 {
            best = (divergence, window);
        }
    }
    let (low, high) = (h.edge(best.1.start), h.edge(best.1.end));
    Range::new(low.max(f64::from(h.min())), high.min(f64::from(h.max())))
}

/// The divergence of a window's quantized distribution from all counts.
fn divergence(counts: &[f64], window: std::ops::Range<usize>) -> f64 {
    /// What an empty bin is taken for, as ONNX Runtime does it.
    const NOTHING: f64 = 1e-4;
    let inside = &counts[window.clone()];
    let total: f64 = counts.iter().sum();
    let mut p = inside.to_vec();
    p[0] += counts[..window.start].iter().sum::<f64>();
    p[inside.len() - 1] += counts[window.end..].iter().sum::<f64>();
    let kept: f64 = inside.iter().sum();
    let mut divergence = 0.0;
    for level in 0..LEVELS {
        let bins = level * inside.len() / LEVELS..(level + 1) * inside.len() / LEVELS;
        let filled = p[bins.clone()].iter().filter(|&&p| p > 0.0).count();
        let mean = inside[bins.clone()].iter().sum::<f64>() / filled.max(1) as f64;
        for &p in p[bins].iter().filter(|&&p| p > 0.0) {
            let (p, q) = (p / total, (mean / kept.max(1.0)).max(NOTHING / total));
            divergence += p * (p / q).ln();
        }
    }
    divergence
}

/// The range with the least `Σ (x − x̂)²`. Numbers inside are off by `Δ²/12` in the mean, those outside by their distance
/// to the nearest end; running sums over the bins make each pair of ends cost the same few operations.
fn least_squares(h: &Histogram) -> Range {
    let bins = h.counts().len();
    // Of all bins before the i-th: their count, the sum of their middles, and that of the squares.
    let mut sums = vec![[0.0; 3]; bins + 1];
    for (i, &n) in h.counts().iter().enumerate() {
        let (n, x) = (n as f64, h.edge(i) + 0.5 * h.width());
        sums[i + 1] = [sums[i][0] + n, sums[i][1] + n * x, sums[i][2] + n * x * x];
    }
    let all = sums[bins];
    let squares = |[n, x, xx]: [f64; 3], end: f64| xx - 2.0 * end * x + n * end * end;
    let zero = h.zero_bin();
    let ends = |from: usize, to: usize| {
        let step = from.abs_diff(to).div_ceil(TRIES).max(1);
        let (low, high) = (from.min(to), from.max(to));
        (low..=high).rev().step_by(step).map(move |i| if from < to { i } else { low + high - i })
    };
    let mut best = (f64::INFINITY, 0, bins);
    for high in ends(zero + 1, bins) {
        for low in ends(zero, 0) {
            let (from, to) = (h.edge(low), h.edge(high));
            let step = (to - from) / (LEVELS - 1) as f64;
            let above = std::array::from_fn(|k| all[k] - sums[high][k]);
            let inside = (sums[high][0] - sums[low][0] - h.zeros() as f64).max(0.0);
            let error = inside * step * step / 12.0 + squares(sums[low], from) + squares(above, to);
            if error < best.0 {
                best = (error, low, high);
            }
        }
    }
    Range::new(h.edge(best.1).max(f64::from(h.min())), h.edge(best.2).min(f64::from(h.max())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn range(calibrator: Calibrator, samples: &[Vec<f32>]) -> Range {
        let mut observer = Observer::new(calibrator.counts());
        samples.iter().for_each(|x| observer.add(x).unwrap());
        observer.range(calibrator)
    }

    /// Laplace's distribution, whose tails are those of activations.
    fn laplace(n: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut one = || -(1.0 - random.random::<f64>()).ln();
        (0..n).map(|_| (one() - one()) as f32).collect()
    }

    /// The mean squared error of rounding to a range's levels.
    fn error(x: &[f32], range: Range) -> f64 {
        let (scale, zero) = range.grid();
        let back = |x: f32| {
            let code = ((x / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0);
            scale * (code - f32::from(zero))
        };
        x.iter().map(|&x| f64::from(x - back(x)).powi(2)).sum::<f64>() / x.len() as f64
    }

    #[test]
    fn grids_hold_zero_exactly_and_the_ends_within_half_a_step() {
        for (low, high) in
            [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (-1e-30, 1e-30), (-3e38, 3e38), (0.0, 1e-45), (0.0, 0.0)]
        {
            let (scale, zero) = Range::new(low, high).grid();
            assert!(scale > 0.0 && scale.is_finite(), "{low} {high}");
            let value = |code: f64| (code - f64::from(zero)) * f64::from(scale);
            assert!((value(0.0) - low).abs() <= 0.5001 * f64::from(scale), "{low} {high}");
            assert!(
                (value(255.0) - high).abs() <= 0.5001 * f64::from(scale) || low == high || high < 1e-37,
                "{low} {high}"
            );
        }
    }

    #[test]
    fn the_largest_code_of_a_clipped_activation_is_not_above_the_clip() {
        for high in (1..2000).map(|i| i as f32 * 0.013).chain([6.0]) {
            let (scale, zero) = Range::new(0.0, f64::from(high)).grid();
            assert!(zero == 0 && scale * 255.0 <= high && scale * 255.0 > high * 0.999_999, "{high} {scale}");
        }
    }

    #[test]
    fn each_calibrator_does_what_its_name_says() {
        let samples = [vec![-1.0, 2.0], vec![-3.0, 4.0], vec![0.5, 6.0]];
        assert_eq!(range(Calibrator::MinMax, &samples), Range { low: -3.0, high: 6.0 });
        assert_eq!(range(Calibrator::Average, &samples), Range { low: -4.0 / 3.0, high: 4.0 });
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let tail = range(Calibrator::Percentile(99.0), &[x]);
        assert!(tail.low == 0.0 && (tail.high - 994.0).abs() < 0.5, "{tail:?}");
        assert_eq!(Observer::new(true).add(&[0.0, f32::INFINITY]), Err(1));
    }

    #[test]
    fn the_least_squared_error_is_the_least() {
        for (name, x) in [
            ("laplace", laplace(100_000, 1)),
            ("relu", laplace(100_000, 2).into_iter().map(|x| x.max(0.0)).collect()),
            ("outlier", laplace(100_000, 3).into_iter().chain([400.0]).collect()),
        ] {
            let chosen = error(&x, range(Calibrator::Mse, std::slice::from_ref(&x)));
            let widest = range(Calibrator::MinMax, std::slice::from_ref(&x));
            for shrunk in (1..=40).map(|i| f64::from(i) / 40.0) {
                let other = Range::new(f64::from(widest.low) * shrunk, f64::from(widest.high) * shrunk);
                assert!(chosen <= 1.01 * error(&x, other), "{name} {shrunk}: {chosen} {}", error(&x, other));
            }
        }
    }

    #[test]
    fn entropy_cuts_a_long_tail_and_keeps_a_flat_distribution() {
        let flat: Vec<f32> = (0..100_000).map(|i| i as f32 / 50_000.0 - 1.0).collect();
        let kept = range(Calibrator::Entropy, &[flat]);
        assert!(kept.high > 0.99 && kept.low < -0.99, "{kept:?}");
        let tail: Vec<f32> = laplace(100_000, 4).into_iter().chain([100.0, -100.0]).collect();
        let cut = range(Calibrator::Entropy, &[tail]);
        assert!(cut.high < 50.0 && cut.high > 5.0, "{cut:?}");
    }

    proptest! {
        #[test]
        fn zero_is_in_every_range_and_no_range_is_wider_than_what_was_seen(
            samples in prop::collection::vec(prop::collection::vec(-1e3..1e3f32, 1..50), 1..10), shift in -2e3..2e3f32
        ) {
            let samples: Vec<Vec<f32>> = samples.into_iter().map(|x| x.into_iter().map(|x| x + shift).collect()).collect();
            let widest = range(Calibrator::MinMax, &samples);
            for calibrator in Calibrator::ALL {
                let r = range(calibrator, &samples);
                prop_assert!(r.low <= 0.0 && r.high >= 0.0, "{calibrator:?} {r:?}");
                prop_assert!(widest.low <= r.low && r.high <= widest.high, "{calibrator:?} {r:?} {widest:?}");
                prop_assert!(r.low < r.high || widest.low == widest.high, "{calibrator:?} {r:?} {widest:?}");
            }
        }
    }
}
