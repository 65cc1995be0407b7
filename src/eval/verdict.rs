//! Is a file good enough to publish? The relative increase of perplexity, with its confidence interval, against limits.
//!
//! Both models are scored on the same tokens, so the increase comes from paired differences of log-likelihoods: the noise
//! of the text cancels. The interval is that of `ln(perplexity / reference)`, taken to the increase by `eˣ − 1`.

use super::blocks::{Blocked, student_quantile};
use super::statistics::Scored;

/// The increase that the field promises for INT4, in units of perplexity.
pub const PROMISE: f64 = 0.5;

/// The part of all samples whose interval contains the true increase.
pub const CONFIDENCE: f64 = 0.95;

/// The part of all samples, as large as [`Verdict::more`] says, that would settle the verdict.
const POWER: f64 = 0.8;

/// Degrees of freedom at which Student's t is as good as normal.
const MANY: usize = 1000;

/// What an increase of perplexity means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Below 1%.
    Excellent,
    /// 1% to 2%.
    Acceptable,
    /// 2% to 3%: a better method or more bits are worth trying.
    Poor,
    /// Above 3%.
    NotRecommended,
}

impl Grade {
    /// The relative increases at which a grade ends and the next begins.
    pub const LIMITS: [f64; 3] = [0.01, 0.02, 0.03];

    /// All, the best first.
    pub const ALL: [Grade; 4] = [Grade::Excellent, Grade::Acceptable, Grade::Poor, Grade::NotRecommended];

    /// The grade of a relative increase.
    pub fn of(increase: f64) -> Grade {
        Grade::ALL[Grade::LIMITS.iter().filter(|&&limit| increase > limit).count()]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Grade::Excellent => "excellent",
            Grade::Acceptable => "acceptable",
            Grade::Poor => "poor",
            Grade::NotRecommended => "not recommended",
        }
    }
}

/// A file's increase of perplexity, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// `perplexity / reference − 1`.
    pub increase: f64,
    /// The interval that contains the true one in [`CONFIDENCE`] of all samples.
    pub interval: (f64, f64),
    /// The best and the worst grade in the interval; where they differ, the verdict is inconclusive.
    pub grades: (Grade, Grade),
    /// How many more tokens of such text would settle an inconclusive verdict in four of five samples, if the increase
    /// stays what it is; none where the verdict is settled, infinite where the increase lies on a limit.
    pub more: Option<f64>,
}

impl Verdict {
    /// From what became of the tokens of `windows`, one window behind the other.
    pub fn of(tokens: &[Scored], windows: usize) -> Verdict {
        let differences: Vec<f64> = tokens.iter().map(|t| t.loss - t.reference).collect();
        Verdict::of_ln_ratio(Blocked::of(&differences, windows))
    }

    /// From `ln(perplexity / reference)`.
    pub fn of_ln_ratio(ln_ratio: Blocked) -> Verdict {
        let (low, high) = ln_ratio.interval(CONFIDENCE);
        let interval = (low.exp_m1(), high.exp_m1());
        let grades = (Grade::of(interval.0), Grade::of(interval.1));
        let more = (grades.0 != grades.1).then(|| {
            let distances = Grade::LIMITS.map(|limit| (ln_ratio.mean - limit.ln_1p()).abs());
            more_tokens(&ln_ratio, distances.into_iter().fold(f64::INFINITY, f64::min))
        });
        Verdict { increase: ln_ratio.mean.exp_m1(), interval, grades, more }
    }

    /// The grade, where the interval lies within one.
    pub fn settled(&self) -> Option<Grade> {
        (self.grades.0 == self.grades.1).then_some(self.grades.0)
    }

    /// The limits that the interval straddles.
    pub fn straddled(&self) -> impl Iterator<Item = f64> + use<> {
        let (low, high) = self.interval;
        Grade::LIMITS.into_iter().filter(move |&limit| low <= limit && limit < high)
    }
}

/// How many more tokens make an interval around a mean at this distance from a limit leave that limit out. A new sample's
/// mean scatters, too, so that the distance has to be the interval's half and, for [`POWER`], some of the scatter.
fn more_tokens(mean: &Blocked, distance: f64) -> f64 {
    // One side of the normal distribution, where [`student_quantile`] is of both.
    let scatter = student_quantile(2.0 * POWER - 1.0, MANY);
    let needed = (student_quantile(CONFIDENCE, MANY) + scatter) * mean.error / distance;
    (mean.tokens as f64 * (needed * needed - 1.0)).max(1.0).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const PER_WINDOW: usize = 30;

    /// Paired differences of log-likelihoods with this mean: what a token's text does, skewed, and what its window does.
    fn differences(random: &mut ChaCha8Rng, mean: f64, windows: usize) -> Vec<f64> {
        // An exponential variable less its mean: as the losses of tokens, many small ones and few large ones.
        let skewed = |random: &mut ChaCha8Rng| -(1.0 - random.random::<f64>()).ln() - 1.0;
        let window = |_| {
            let shared = 0.02 * (random.random::<f64>() - 0.5);
            (0..PER_WINDOW).map(|_| mean + shared + 0.03 * skewed(random)).collect::<Vec<f64>>()
        };
        (0..windows).flat_map(window).collect()
    }

    fn verdict(differences: &[f64], windows: usize) -> Verdict {
        let tokens =
            differences.iter().map(|d| Scored { loss: 3.0 + d, reference: 3.0, divergence: 0.0, same_top: true });
        Verdict::of(&tokens.collect::<Vec<_>>(), windows)
    }

    /// How often something happens in simulated samples.
    fn part(samples: usize, seed: u64, mut happens: impl FnMut(&mut ChaCha8Rng) -> bool) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..samples).filter(|_| happens(&mut random)).count() as f64 / samples as f64
    }

    #[test]
    fn grades_begin_where_the_limits_say() {
        let wanted = [(-0.5, "excellent"), (0.01, "excellent"), (0.0101, "acceptable"), (0.02, "acceptable")];
        for (increase, name) in wanted.into_iter().chain([(0.021, "poor"), (0.031, "not recommended")]) {
            assert_eq!(Grade::of(increase).name(), name, "{increase}");
        }
    }

    #[test]
    fn the_interval_contains_the_truth_as_often_as_it_says() {
        for windows in [4, 20, 100] {
            let mean = 1.015f64.ln();
            let covered = part(2000, windows as u64, |random| {
                let (low, high) = verdict(&differences(random, mean, windows), windows).interval;
                low <= 0.015 && 0.015 <= high
            });
            // Three standard errors of the simulation itself are 0.015.
            assert!((0.935..0.965).contains(&covered), "{windows}: {covered}");
        }
    }

    #[test]
    fn tokens_taken_for_independent_would_promise_too_much() {
        let mean = 1.015f64.ln();
        let covered = part(1000, 9, |random| {
            let d = differences(random, mean, 40);
            let (low, high) = verdict(&d, d.len()).interval;
            low <= 0.015 && 0.015 <= high
        });
        assert!(covered < 0.93, "{covered}");
    }

    #[test]
    fn as_many_more_tokens_as_it_says_settle_it_in_four_of_five_samples() {
        for (increase, settled) in
            [(0.0088, Grade::Excellent), (0.0114, Grade::Acceptable), (0.033, Grade::NotRecommended)]
        {
            let mean = f64::ln_1p(increase);
            // Twelve windows whose mean and error are the true ones, so that the increase stays what it is.
            let many = differences(&mut ChaCha8Rng::seed_from_u64(4), mean, 20_000);
            let error = Blocked::of(&many, 20_000).error * (20_000f64 / 12.0).sqrt();
            let before = Verdict::of_ln_ratio(Blocked { mean, error, freedom: 11, tokens: 12 * PER_WINDOW });
            assert_eq!(before.settled(), None, "{before:?}");
            let windows = 12 + (before.more.unwrap() / PER_WINDOW as f64).ceil() as usize;
            let often =
                part(400, 5, |random| verdict(&differences(random, mean, windows), windows).settled() == Some(settled));
            // Three standard errors of the simulation itself are 0.06.
            assert!((0.73..0.87).contains(&often), "{increase}: {often} with {windows} windows");
        }
    }

    #[test]
    fn on_a_limit_no_number_of_tokens_settles_it() {
        let on = Blocked { mean: 0.01f64.ln_1p(), error: 0.001, freedom: 99, tokens: 1000 };
        let verdict = Verdict::of_ln_ratio(on);
        assert_eq!(verdict.more, Some(f64::INFINITY));
        assert_eq!(verdict.straddled().collect::<Vec<_>>(), [0.01]);
    }

    proptest! {
        #[test]
        fn a_verdict_is_settled_exactly_if_its_interval_straddles_no_limit(
            mean in -0.05..0.08f64, error in 0.0..0.02f64, freedom in 1..200usize
        ) {
            let v = Verdict::of_ln_ratio(Blocked { mean, error, freedom, tokens: 10_000 });
            let (low, high) = v.interval;
            prop_assert!(low <= v.increase && v.increase <= high);
            prop_assert_eq!(v.settled().is_some(), v.straddled().count() == 0);
            prop_assert_eq!(v.settled().is_some(), v.more.is_none());
            prop_assert!(v.grades.0 <= Grade::of(v.increase) && Grade::of(v.increase) <= v.grades.1);
            if let Some(more) = v.more {
                // With so many more tokens the error is small enough for the interval to leave out the nearest limit.
                let n = 10_000.0 + more;
                let nearest = Grade::LIMITS.map(|l| (l.ln_1p() - mean).abs()).into_iter().fold(1.0, f64::min);
                prop_assert!(1.96 * error * (10_000.0 / n).sqrt() <= nearest);
            }
        }
    }
}
