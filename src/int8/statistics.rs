//! What quantization costs: the loss of accuracy with its confidence interval, against limits, where the truth is known; how
//! far outputs agree where it is not.
//!
//! Both models judge the same samples, so that only those count which one gets right and the other wrong. The interval is
//! Wald's for the difference of paired proportions with the adjustment of Bonett and Price 2012 ("Adjusted Wald Confidence
//! Interval for a Difference of Binomial Proportions Based on Paired Data", J. Educ. Behav. Stat. 37): one sample is added
//! to each kind of disagreement. Fagerland, Lydersen and Laake 2014 ("Recommended tests and confidence intervals for paired
//! binomial proportions", Stat. Med. 33) recommend it: its coverage is good for few samples, it does not shrink to
//! nothing when no sample disagrees, and it is arithmetic that one can check by hand.

use crate::eval::blocks::student_quantile;
use crate::eval::verdict::CONFIDENCE;

/// The part of all samples, as large as [`Loss::more`] says, that would settle the verdict.
const POWER: f64 = 0.8;

/// Degrees of freedom at which Student's t is as good as normal.
const MANY: usize = 1000;

/// What a loss of accuracy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Below the first limit.
    Excellent,
    /// Up to the second.
    Acceptable,
    /// Up to the third: quantization-aware training, or leaving layers out, may help.
    ConsiderQat,
    /// Above.
    Unsuitable,
}

impl Grade {
    /// All, the best first.
    pub const ALL: [Grade; 4] = [Grade::Excellent, Grade::Acceptable, Grade::ConsiderQat, Grade::Unsuitable];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Grade::Excellent => "excellent",
            Grade::Acceptable => "acceptable",
            Grade::ConsiderQat => "consider quantization-aware training",
            Grade::Unsuitable => "unsuitable",
        }
    }
}

/// What a model is for, which decides what may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Classes of images.
    Image,
    /// Detection of objects.
    Detection,
    /// Language.
    Nlp,
    /// Where errors are dear: half a point at most.
    Critical,
}

impl Task {
    /// The losses, as parts of all samples, at which a grade ends and the next begins. Half of the tolerated loss is
    /// excellent; half as much again is worth training.
    pub fn limits(self) -> [f64; 3] {
        match self {
            Task::Image | Task::Detection => [0.01, 0.02, 0.03],
            Task::Nlp => [0.005, 0.01, 0.015],
            Task::Critical => [0.0025, 0.005, 0.0075],
        }
    }
}

/// How often each of two models was right about the same samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Paired {
    /// Both were.
    pub both: u64,
    /// Only the original was.
    pub lost: u64,
    /// Only the quantized one was.
    pub gained: u64,
    /// Neither was.
    pub neither: u64,
}

impl Paired {
    /// Counts a sample.
    pub fn add(&mut self, original: bool, quantized: bool) {
        *match (original, quantized) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.lost,
            (false, true) => &mut self.gained,
            (false, false) => &mut self.neither,
        } += 1;
    }

    /// How many samples.
    pub fn total(&self) -> u64 {
        self.both + self.lost + self.gained + self.neither
    }

    /// The part that the original gets right.
    pub fn original(&self) -> f64 {
        (self.both + self.lost) as f64 / self.total() as f64
    }

    /// The part that the quantized model gets right.
    pub fn quantized(&self) -> f64 {
        (self.both + self.gained) as f64 / self.total() as f64
    }

    /// What the quantized model loses: the difference of both.
    pub fn loss(&self) -> f64 {
        (self.lost as f64 - self.gained as f64) / self.total() as f64
    }

    /// The adjusted difference, and its variance times `samples + 2`.
    fn adjusted(&self) -> (f64, f64) {
        let n = self.total() as f64 + 2.0;
        let (lost, gained) = ((self.lost + 1) as f64 / n, (self.gained + 1) as f64 / n);
        (lost - gained, lost + gained - (lost - gained).powi(2))
    }

    /// The interval that contains the true loss in [`CONFIDENCE`] of all samples.
    pub fn interval(&self) -> (f64, f64) {
        let (middle, variance) = self.adjusted();
        let around = student_quantile(CONFIDENCE, MANY) * (variance / (self.total() as f64 + 2.0)).sqrt();
        ((middle - around).max(-1.0), (middle + around).min(1.0))
    }
}

/// A loss of accuracy, and what it means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The counts.
    pub counts: Paired,
    /// As a part of all samples: a hundredth is a point.
    pub points: f64,
    /// The interval that contains the true one in [`CONFIDENCE`] of all samples.
    pub interval: (f64, f64),
    /// Where grades end.
    pub limits: [f64; 3],
    /// The best and the worst grade in the interval; where they differ, the verdict is inconclusive.
    pub grades: (Grade, Grade),
    /// How many more samples would settle an inconclusive verdict in four of five cases if the loss stays what it is;
    /// infinite where it lies on a limit.
    pub more: Option<f64>,
}

impl Loss {
    /// Judges counts of at least one sample.
    pub fn of(counts: Paired, limits: [f64; 3]) -> Loss {
        let interval = counts.interval();
        let grade = |loss: f64| Grade::ALL[limits.iter().filter(|&&limit| loss > limit).count()];
        let grades = (grade(interval.0), grade(interval.1));
        let more = (grades.0 != grades.1).then(|| {
            let (_, variance) = counts.adjusted();
            let distances = limits.map(|limit| (counts.loss() - limit).abs());
            let distance = distances.into_iter().fold(f64::INFINITY, f64::min);
            // A new sample's mean scatters, too: the distance has to be the interval's half and some of the scatter.
            let scatter = student_quantile(2.0 * POWER - 1.0, MANY);
            let needed = variance * ((student_quantile(CONFIDENCE, MANY) + scatter) / distance).powi(2);
            (needed - counts.total() as f64).max(1.0).ceil()
        });
        Loss { counts, points: counts.loss(), interval, limits, grades, more }
    }

    /// The grade, where the interval lies within one.
    pub fn settled(&self) -> Option<Grade> {
        (self.grades.0 == self.grades.1).then_some(self.grades.0)
    }

    /// The loss and its interval as parts of the original's accuracy, which is taken to be what was measured: of the two
    /// factors, the loss alone is uncertain enough to matter. None where the original gets nothing right.
    pub fn relative(&self) -> Option<(f64, (f64, f64))> {
        let original = self.counts.original();
        (original > 0.0).then(|| (self.points / original, (self.interval.0 / original, self.interval.1 / original)))
    }

    /// The limits that the interval straddles.
    pub fn straddled(&self) -> impl Iterator<Item = f64> + use<> {
        let (low, high) = self.interval;
        self.limits.into_iter().filter(move |&limit| low <= limit && limit < high)
    }
}

/// How near an output comes to the original's, over all samples.
#[derive(Debug, Clone, Copy)]
pub struct Likeness {
    signal: f64,
    noise: f64,
    samples: u64,
    cosines: f64,
    least_cosine: f64,
    rows: u64,
    agreed: u64,
}

impl Default for Likeness {
    fn default() -> Likeness {
        Likeness { signal: 0.0, noise: 0.0, samples: 0, cosines: 0.0, least_cosine: 1.0, rows: 0, agreed: 0 }
    }
}

impl Likeness {
    /// Adds an output of a sample. `width`: the length of its last axis, along which the largest number is looked for.
    pub fn add(&mut self, original: &[f32], quantized: &[f32], width: usize) {
        let (mut xx, mut yy, mut xy, mut noise) = (0.0, 0.0, 0.0, 0.0);
        for (&x, &y) in original.iter().zip(quantized) {
            let (x, y) = (f64::from(x), f64::from(y));
            xx += x * x;
            yy += y * y;
            xy += x * y;
            noise += (x - y).powi(2);
        }
        self.signal += xx;
        self.noise += noise;
        let cosine = if xx == 0.0 && yy == 0.0 { 1.0 } else { xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE) };
        self.samples += 1;
        self.cosines += cosine;
        self.least_cosine = self.least_cosine.min(cosine);
        let width = width.max(1);
        for (x, y) in original.chunks(width).zip(quantized.chunks(width)) {
            self.rows += 1;
            self.agreed += u64::from(largest(x) == largest(y));
        }
    }

    /// Adds what another part of the samples says.
    pub fn merge(&mut self, other: &Likeness) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.samples += other.samples;
        self.cosines += other.cosines;
        self.least_cosine = self.least_cosine.min(other.least_cosine);
        self.rows += other.rows;
        self.agreed += other.agreed;
    }

    /// The ratio of the original's power to that of the error, in dB; infinite where nothing differs.
    pub fn sqnr(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// The mean over samples of the cosine between both.
    pub fn cosine(&self) -> f64 {
        self.cosines / self.samples as f64
    }

    /// The least of them.
    pub fn least_cosine(&self) -> f64 {
        self.least_cosine
    }

    /// The part of rows in which both have their largest number at the same place.
    pub fn agreement(&self) -> f64 {
        self.agreed as f64 / self.rows as f64
    }

    /// How many rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// The place of the largest number, the first of several.
pub fn largest(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, &y)| if y > x[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LIMITS: [f64; 3] = [0.01, 0.02, 0.03];

    /// Samples of which these parts are lost and gained.
    fn drawn(random: &mut ChaCha8Rng, samples: u64, lost: f64, gained: f64) -> Paired {
        let mut counts = Paired::default();
        for _ in 0..samples {
            let x: f64 = random.random();
            let was_right = x < lost || (x >= lost + gained && random.random::<f64>() < 0.8);
            let is_right = if x < lost + gained { !was_right } else { was_right };
            counts.add(was_right, is_right);
        }
        counts
    }

    fn part(times: usize, seed: u64, mut happens: impl FnMut(&mut ChaCha8Rng) -> bool) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..times).filter(|_| happens(&mut random)).count() as f64 / times as f64
    }

    #[test]
    fn the_interval_contains_the_truth_as_often_as_it_says() {
        for (samples, lost, gained) in
            [(100, 0.05, 0.03), (1000, 0.03, 0.01), (1000, 0.004, 0.002), (10_000, 0.02, 0.01), (300, 0.1, 0.1)]
        {
            let covered = part(2000, samples, |random| {
                let (low, high) = drawn(random, samples, lost, gained).interval();
                low <= lost - gained && lost - gained <= high
            });
            // Three standard errors of the simulation are 0.015; too careful is allowed where few samples disagree.
            assert!((0.935..=0.985).contains(&covered), "{samples} {lost} {gained}: {covered}");
        }
    }

    #[test]
    fn an_interval_by_hand() {
        // 1000 samples, 40 lost and 20 gained: (41 − 21)/1002 ± 1.962 · √((62/1002 − (20/1002)²)/1002).
        let counts = Paired { both: 800, lost: 40, gained: 20, neither: 140 };
        let (low, high) = counts.interval();
        assert!((low - 0.00459).abs() < 5e-5 && (high - 0.03533).abs() < 5e-5, "{low} {high}");
        assert_eq!((counts.loss(), counts.original(), counts.quantized()), (0.02, 0.84, 0.82));
        let loss = Loss::of(counts, LIMITS);
        assert_eq!((loss.settled(), loss.grades), (None, (Grade::Excellent, Grade::Unsuitable)));
        assert_eq!(loss.more, Some(f64::INFINITY));
        assert_eq!(loss.straddled().collect::<Vec<_>>(), LIMITS);
    }

    #[test]
    fn equal_models_are_uncertain_until_there_are_enough_samples() {
        let same = |n| Loss::of(Paired { both: n, ..Paired::default() }, Task::Critical.limits());
        assert_eq!(same(100).settled(), None);
        assert_eq!(same(2000).settled(), Some(Grade::Excellent));
        assert_eq!(same(2000).points, 0.0);
    }

    #[test]
    fn as_many_more_samples_as_it_says_settle_it_in_four_of_five_cases() {
        for (lost, gained, wanted) in
            [(0.025, 0.02, Grade::Excellent), (0.035, 0.02, Grade::Acceptable), (0.08, 0.02, Grade::Unsuitable)]
        {
            let before = 400;
            let count = |part: f64| (part * before as f64).round() as u64;
            let counts = Paired {
                both: before - count(lost) - count(gained),
                lost: count(lost),
                gained: count(gained),
                neither: 0,
            };
            let more = match Loss::of(counts, LIMITS).more {
                Some(more) => more as u64,
                None => 0,
            };
            let often = part(400, 5, |random| {
                Loss::of(drawn(random, before + more, lost, gained), LIMITS).settled() == Some(wanted)
            });
            // The acceptable grade has a limit on both sides, of which the forecast looks at the nearest alone.
            assert!((0.6..0.9).contains(&often), "{lost} {gained}: {often} with {more} more");
        }
    }

    #[test]
    fn likeness_is_that_of_its_definition() {
        let mut likeness = Likeness::default();
        likeness.add(&[3.0, 4.0], &[3.0, 4.0], 2);
        assert_eq!((likeness.sqnr(), likeness.cosine(), likeness.agreement()), (f64::INFINITY, 1.0, 1.0));
        likeness.add(&[3.0, 4.0], &[4.0, 3.0], 2);
        assert!((likeness.sqnr() - 10.0 * (50.0f64 / 2.0).log10()).abs() < 1e-12);
        assert!((likeness.cosine() - (1.0 + 24.0 / 25.0) / 2.0).abs() < 1e-12);
        assert_eq!((likeness.least_cosine(), likeness.agreement(), likeness.rows()), (24.0 / 25.0, 0.5, 2));
    }

    proptest! {
        #[test]
        fn a_verdict_is_settled_exactly_if_its_interval_straddles_no_limit(
            both in 0..3000u64, lost in 0..200u64, gained in 0..200u64, neither in 0..1000u64, task in 0..3usize
        ) {
            prop_assume!(both + lost + gained + neither > 0);
            let task = [Task::Image, Task::Nlp, Task::Critical][task];
            let loss = Loss::of(Paired { both, lost, gained, neither }, task.limits());
            let (low, high) = loss.interval;
            prop_assert!(low < high && low <= loss.points + 2.0 / loss.counts.total() as f64);
            prop_assert_eq!(loss.settled().is_some(), loss.straddled().count() == 0);
            prop_assert_eq!(loss.settled().is_some(), loss.more.is_none());
        }
    }
}
