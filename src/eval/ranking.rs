//! Which of several files is nearest to their reference, and beyond noise?
//!
//! All are scored on the same tokens, so two are told apart by the differences of their divergences, token by token: what
//! the text does to both cancels. Windows are what is drawn at random ([`super::blocks`]), and many tests at once are
//! corrected as Holm does.

use super::blocks::{Blocked, holm};
use super::statistics::Scored;

/// The level below which a difference counts as more than noise.
pub const LEVEL: f64 = 0.05;

/// Two files on the same tokens.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// The one nearer to the reference.
    pub better: usize,
    /// The other one.
    pub worse: usize,
    /// KL divergence of the worse less that of the better, in nats.
    pub divergence: Blocked,
    /// `ln(perplexity of the worse / perplexity of the better)`.
    pub ln_ratio: Blocked,
    /// How probable a difference of divergences at least as large would be if there were none; corrected for the number of
    /// pairs.
    pub p: f64,
}

impl Pair {
    /// Whether the difference is more than noise.
    pub fn is_beyond_noise(&self) -> bool {
        self.p < LEVEL
    }
}

/// Files in the order of their mean divergence, the nearest first; of equal ones the first. `scored`: per file its tokens,
/// one window behind the other.
pub fn ranking(scored: &[Vec<Scored>]) -> Vec<usize> {
    let sum = |tokens: &[Scored]| tokens.iter().map(|t| t.divergence).sum::<f64>();
    let sums: Vec<f64> = scored.iter().map(|tokens| sum(tokens)).collect();
    let mut order: Vec<usize> = (0..scored.len()).collect();
    order.sort_by(|&a, &b| sums[a].total_cmp(&sums[b]));
    order
}

/// Every two files of a [`ranking`], tested; the tokens are those of `windows`.
pub fn pairs(scored: &[Vec<Scored>], windows: usize) -> Vec<Pair> {
    let order = ranking(scored);
    let mut pairs = Vec::new();
    for (rank, &better) in order.iter().enumerate() {
        for &worse in &order[rank + 1..] {
            let of = |value: fn(&Scored) -> f64| {
                let difference = |(a, b): (&Scored, &Scored)| value(b) - value(a);
                let differences: Vec<f64> = scored[better].iter().zip(&scored[worse]).map(difference).collect();
                Blocked::of(&differences, windows)
            };
            let (divergence, ln_ratio) = (of(|t| t.divergence), of(|t| t.loss));
            pairs.push(Pair { better, worse, divergence, ln_ratio, p: divergence.p_value() });
        }
    }
    let corrected = holm(&pairs.iter().map(|pair| pair.p).collect::<Vec<_>>());
    pairs.iter_mut().zip(corrected).for_each(|(pair, p)| pair.p = p);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const WINDOWS: usize = 20;
    const PER_WINDOW: usize = 30;

    /// Files whose mean divergences are these, on one text: what a token and its window do is common to all, and each file
    /// has noise of its own.
    fn files(random: &mut ChaCha8Rng, means: &[f64]) -> Vec<Vec<Scored>> {
        let mut files = vec![Vec::new(); means.len()];
        for _ in 0..WINDOWS {
            let windows: Vec<f64> = means.iter().map(|_| 0.002 * random.random_range(-1.0..1.0)).collect();
            for _ in 0..PER_WINDOW {
                let text = 0.02 * random.random::<f64>();
                for ((file, mean), window) in files.iter_mut().zip(means).zip(&windows) {
                    let divergence = mean + text + window + 0.004 * random.random_range(-1.0..1.0);
                    file.push(Scored { loss: 3.0 + divergence, reference: 3.0, divergence, same_top: true });
                }
            }
        }
        files
    }

    #[test]
    fn the_nearest_comes_first_and_equal_ones_are_no_better_than_each_other() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut files = files(&mut random, &[0.05, 0.02, 0.04]);
        files.push(files[1].clone());
        assert_eq!(ranking(&files), [1, 3, 2, 0]);
        let pairs = pairs(&files, WINDOWS);
        assert_eq!(pairs.len(), 6);
        for pair in &pairs {
            let equal = (pair.better, pair.worse) == (1, 3);
            assert_eq!(pair.is_beyond_noise(), !equal, "{pair:?}");
            assert!(pair.divergence.mean >= 0.0);
        }
        assert_eq!(pairs[0].p, 1.0);
        let last = pairs.last().unwrap();
        assert!(
            (last.divergence.mean - 0.01).abs() < 0.002 && (last.ln_ratio.mean - last.divergence.mean).abs() < 1e-12
        );
    }

    #[test]
    fn files_that_differ_by_noise_are_seldom_told_apart_and_others_mostly() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut often = |means: &[f64], windows: usize| {
            let any = |_: &u32| pairs(&files(&mut random, means), windows).iter().any(Pair::is_beyond_noise);
            (0..600).filter(any).count() as f64 / 600.0
        };
        // Three equal files: the probability of even one false finding stays at the level, three standard errors added.
        let false_findings = often(&[0.02; 3], WINDOWS);
        assert!(false_findings < LEVEL + 0.03, "{false_findings}");
        // Tokens taken for independent would find far more.
        assert!(often(&[0.02; 3], WINDOWS * PER_WINDOW) > 0.15);
        assert!(often(&[0.02, 0.0215], WINDOWS) > 0.9);
    }
}
