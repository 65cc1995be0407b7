//! Errors of means over tokens that are not independent: the tokens of a window share its text, so windows are what is
//! drawn at random, and what varies between them is the error.

/// Fewer blocks than these leave the error itself too uncertain to be of use; then windows are cut into several.
const LEAST: usize = 4;

/// A mean over tokens, and its error from what varies between blocks of them.
#[derive(Debug, Clone, Copy)]
pub struct Blocked {
    /// The mean over the tokens.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
    /// Blocks less one: the degrees of freedom of Student's t distribution.
    pub freedom: usize,
    /// How many tokens.
    pub tokens: usize,
}

impl Blocked {
    /// Of the tokens of `windows`, one window behind the other, as many of each. A window is a block; where there are
    /// fewer than 4, each is cut into as many blocks as make up for that (batch means).
    ///
    /// The error is that of a mean over clusters (Cochran 1977, Sampling Techniques, §9.3): the root of
    /// `B/(B − 1) · Σ (sum of the block − its tokens · mean)²`, over all tokens.
    pub fn of(values: &[f64], windows: usize) -> Blocked {
        let tokens = values.len();
        let mean = values.iter().sum::<f64>() / tokens as f64;
        let windows = windows.clamp(1, tokens);
        let per_window = tokens / windows;
        let cut = LEAST.div_ceil(windows).clamp(1, per_window);
        let mut squares = 0.0;
        for window in values.chunks_exact(per_window) {
            for part in 0..cut {
                let block = &window[part * per_window / cut..(part + 1) * per_window / cut];
                squares += block.iter().map(|x| x - mean).sum::<f64>().powi(2);
            }
        }
        let blocks = windows * cut;
        let spread = blocks as f64 / (blocks as f64 - 1.0).max(1.0);
        Blocked { mean, error: (spread * squares).sqrt() / tokens as f64, freedom: blocks - 1, tokens }
    }

    /// The interval that contains the true mean in this part of all samples.
    pub fn interval(&self, confidence: f64) -> (f64, f64) {
        let around = match (self.freedom, self.error > 0.0) {
            (0, _) => f64::INFINITY,
            (_, false) => 0.0,
            (freedom, true) => student_quantile(confidence, freedom) * self.error,
        };
        (self.mean - around, self.mean + around)
    }

    /// How probable a mean at least this far from zero would be if the true one were zero.
    pub fn p_value(&self) -> f64 {
        match (self.mean == 0.0 || self.freedom == 0, self.error > 0.0) {
            (true, _) => 1.0,
            (false, false) => 0.0,
            (false, true) => 1.0 - student_within((self.mean / self.error).abs(), self.freedom),
        }
    }
}

/// The probability that Student's t of `freedom` degrees lies between `−t` and `t`: the finite series of Abramowitz and
/// Stegun, 26.7.3 and 26.7.4.
pub fn student_within(t: f64, freedom: usize) -> f64 {
    if freedom == 0 {
        return 0.0;
    }
    let angle = (t / (freedom as f64).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    // Each term is the one before it, times cos²θ and a fraction: 2/3, 4/5 … or 1/2, 3/4 …
    let odd = freedom % 2;
    let (mut term, mut sum) = (if odd == 1 { cos } else { 1.0 }, 0.0);
    for k in 0..(freedom - odd) / 2 {
        sum += term;
        term *= cos * cos * (2 * k + 1 + odd) as f64 / (2 * k + 2 + odd) as f64;
    }
    if odd == 1 { std::f64::consts::FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

/// The `t` with [`student_within`]`(t) = confidence`. Without a degree of freedom nothing is known: infinity.
pub fn student_quantile(confidence: f64, freedom: usize) -> f64 {
    if freedom == 0 {
        return f64::INFINITY;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while student_within(high, freedom) < confidence {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if student_within(middle, freedom) < confidence { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Holm's correction of several tests at once (Holm 1979): what each p becomes so that the probability of even one false
/// finding stays below the level at which it is read.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let (mut corrected, mut least) = (vec![0.0; p.len()], 0.0f64);
    for (rank, &at) in order.iter().enumerate() {
        least = least.max((p.len() - rank) as f64 * p[at]).min(1.0);
        corrected[at] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn student_is_that_of_the_tables() {
        let table = [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423), (120, 1.9799), (4000, 1.9605)];
        for (freedom, t) in table {
            assert!((student_quantile(0.95, freedom) - t).abs() < 1e-4, "{freedom}");
            assert!((student_within(t, freedom) - 0.95).abs() < 1e-5, "{freedom}");
            assert!((student_quantile(student_within(1.3, freedom), freedom) - 1.3).abs() < 1e-9, "{freedom}");
        }
        assert!((student_quantile(0.99, 5) - 4.0321).abs() < 1e-4);
        assert_eq!((student_within(5.0, 0), student_quantile(0.95, 0)), (0.0, f64::INFINITY));
    }

    #[test]
    fn blocks_of_one_token_have_the_usual_error() {
        // 1 … 9: the mean 5, the variance 7.5.
        let values: Vec<f64> = (1..10).map(f64::from).collect();
        let b = Blocked::of(&values, 9);
        assert!((b.error - (7.5f64 / 9.0).sqrt()).abs() < 1e-12 && b.mean == 5.0 && b.freedom == 8, "{b:?}");
        let constant = Blocked::of(&[2.0; 64], 4);
        assert_eq!((constant.error, constant.interval(0.95), constant.p_value()), (0.0, (2.0, 2.0), 0.0));
        assert_eq!(Blocked::of(&[0.0; 64], 4).p_value(), 1.0);
    }

    #[test]
    fn few_windows_are_cut_into_blocks() {
        let values: Vec<f64> = (0..130).map(|i| f64::from(i).sin()).collect();
        for (windows, blocks) in [(1, 4), (2, 4), (3, 6), (5, 5), (13, 13)] {
            assert_eq!(Blocked::of(&values, windows).freedom, blocks - 1, "{windows}");
        }
        assert_eq!(Blocked::of(&values[..3], 1).freedom, 2);
        let one = Blocked::of(&values[1..2], 1);
        assert_eq!((one.interval(0.95), one.p_value()), ((f64::NEG_INFINITY, f64::INFINITY), 1.0));
    }

    #[test]
    fn a_window_repeated_token_by_token_tells_no_more_than_once() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let windows: Vec<f64> = (0..20).map(|_| random.random_range(-1.0..1.0)).collect();
        let repeated: Vec<f64> = windows.iter().flat_map(|&x| [x; 50]).collect();
        let (once, many) = (Blocked::of(&windows, 20), Blocked::of(&repeated, 20));
        assert!((once.error - many.error).abs() < 1e-12 && once.freedom == many.freedom);
    }

    #[test]
    fn holm_corrects_as_in_his_paper() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (got, want) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - want).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(holm(&[0.7, 0.9]), [1.0, 1.0]);
    }
}
