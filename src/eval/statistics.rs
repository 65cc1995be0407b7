//! What one run through a file and its reference tells, in the measures of llama-perplexity (`--kl-divergence`):
//! perplexities and their ratio, Kullback-Leibler divergence, what the probability of the right token loses or gains
//! (Δp), and how often both hold the same token to be the likeliest. Sums in `f64`.

use super::histogram::{self, Bin};
use super::perplexity::Perplexity;
use std::ops::Range;

/// The parts of the tokens at which quantiles are told.
pub const QUANTILES: [f64; 11] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

/// Parts of a window for which statistics are told separately.
pub const PARTS: usize = 8;

/// What file and reference make of one scored token.
#[derive(Debug, Clone, Copy)]
pub struct Scored {
    /// `−ln p` of the token under the file, in nats.
    pub loss: f64,
    /// `−ln p` under the reference.
    pub reference: f64,
    /// `KL(reference ‖ file)` of the distributions that it was drawn from, in nats.
    pub divergence: f64,
    /// Whether both have the same likeliest token.
    pub same_top: bool,
}

impl Scored {
    /// Loss, reference's loss, divergence, and 1 where the likeliest token is the same.
    pub fn numbers(&self) -> [f64; 4] {
        [self.loss, self.reference, self.divergence, f64::from(u8::from(self.same_top))]
    }

    /// The opposite of [`Scored::numbers`].
    pub fn from_numbers(&[loss, reference, divergence, same]: &[f64; 4]) -> Scored {
        Scored { loss, reference, divergence, same_top: same == 1.0 }
    }

    /// Δp: the token's probability under the file less that under the reference.
    pub fn delta_p(&self) -> f64 {
        (-self.loss).exp() - (-self.reference).exp()
    }
}

/// A mean and its standard error, the standard deviation over `√tokens`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

impl Mean {
    /// Of values that are taken to be independent.
    pub fn of(values: &[f64]) -> Mean {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|x| (x - value).powi(2)).sum::<f64>();
        Mean { value, error: (squares / (n - 1.0).max(1.0) / n).sqrt() }
    }
}

/// How a measure is spread over the tokens.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// The mean.
    pub mean: Mean,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// What the parts [`QUANTILES`] of the tokens stay below; between two tokens, interpolated linearly.
    pub quantiles: [f64; QUANTILES.len()],
}

impl Distribution {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Distribution {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let quantile = |part: f64| {
            let at = part * last as f64;
            let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        Distribution { mean: Mean::of(values), min: sorted[0], max: sorted[last], quantiles: QUANTILES.map(quantile) }
    }

    /// What `part` of the tokens, one of [`QUANTILES`], stay below.
    ///
    /// # Panics
    /// `part` is none of them.
    pub fn quantile(&self, part: f64) -> f64 {
        let at = QUANTILES.iter().position(|&q| q == part);
        self.quantiles[at.expect("one of the quantiles that are told")]
    }
}

/// A file's statistics at some positions of the windows.
#[derive(Debug, Clone)]
pub struct Part {
    /// The positions, of all that a window has, of the tokens that were scored.
    pub positions: Range<usize>,
    /// Perplexity of the file.
    pub perplexity: Perplexity,
    /// Perplexity of the reference.
    pub reference: Perplexity,
    /// `KL(reference ‖ file)` in nats.
    pub divergence: Mean,
    /// The part of the tokens, 0 to 1, with the same likeliest token.
    pub same_top: Mean,
}

/// All that is told of a file and its reference.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Perplexity of the file.
    pub perplexity: Perplexity,
    /// Perplexity of the reference.
    pub reference: Perplexity,
    /// Correlation of the two losses over the tokens, −1 to 1; 1 where neither varies.
    pub correlation: f64,
    /// `ln(perplexity / reference)`; its error takes the losses' covariance into account.
    pub ln_ratio: Mean,
    /// `perplexity − reference`, likewise.
    pub difference: Mean,
    /// `KL(reference ‖ file)` in nats.
    pub divergence: Distribution,
    /// How many tokens have a divergence of which size.
    pub histogram: Vec<Bin>,
    /// Δp, −1 to 1.
    pub delta_p: Distribution,
    /// The root of the mean square of Δp.
    pub delta_p_rms: Mean,
    /// The part of the tokens, 0 to 1, with the same likeliest token.
    pub same_top: Mean,
    /// By position, in eighths of a window; eighths of which nothing is scored are left out.
    pub parts: Vec<Part>,
}

impl Statistics {
    /// From the tokens of windows of `context`, of which those behind position `first` are scored: one window behind the
    /// other.
    pub fn of(tokens: &[Scored], context: usize, first: usize) -> Statistics {
        let scored = context - 1 - first;
        let windows = tokens.len() / scored;
        let of = |value: fn(&Scored) -> f64| tokens.iter().map(value).collect::<Vec<f64>>();
        let (losses, references) = (of(|t| t.loss), of(|t| t.reference));
        let perplexity = Perplexity::from_losses(&losses, windows);
        let reference = Perplexity::from_losses(&references, windows);
        // exp(a)·(mean of a's losses) − exp(b)·(mean of b's) has the error of the difference, to first order.
        let weighed = of_pairs(&losses, &references, |a, b| perplexity.value * a - reference.value * b);
        let squares = Mean::of(&of(|t| t.delta_p().powi(2)));
        let rms = squares.value.sqrt();
        let divergences = of(|t| t.divergence);
        Statistics {
            perplexity,
            reference,
            correlation: correlation(&losses, &references),
            ln_ratio: Mean::of(&of(|t| t.loss - t.reference)),
            difference: Mean { value: perplexity.value - reference.value, error: Mean::of(&weighed).error },
            divergence: Distribution::of(&divergences),
            histogram: histogram::logarithmic(&divergences),
            delta_p: Distribution::of(&of(Scored::delta_p)),
            delta_p_rms: Mean { value: rms, error: if rms > 0.0 { 0.5 * squares.error / rms } else { 0.0 } },
            same_top: Mean::of(&of(same)),
            parts: parts(tokens, context, first),
        }
    }
}

/// 1 or 0.
fn same(token: &Scored) -> f64 {
    f64::from(u8::from(token.same_top))
}

fn of_pairs(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
}

/// Pearson's coefficient.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (of_a, of_b) = (Mean::of(a).value, Mean::of(b).value);
    let sum = |x: &[f64]| x.iter().sum::<f64>();
    let both = sum(&of_pairs(a, b, |a, b| (a - of_a) * (b - of_b)));
    let [a, b] = [(a, of_a), (b, of_b)].map(|(x, mean)| sum(&of_pairs(x, x, |x, _| (x - mean).powi(2))));
    if a > 0.0 && b > 0.0 { both / (a * b).sqrt() } else { 1.0 }
}

fn parts(tokens: &[Scored], context: usize, first: usize) -> Vec<Part> {
    let scored = context - 1 - first;
    let parts = (0..PARTS).filter_map(|part| {
        let end = (part + 1) * context / PARTS;
        // The token at position `p` is scored from `first + 1` on.
        let positions = (part * context / PARTS).max(first + 1)..end;
        let inside = |i: usize| positions.contains(&(first + 1 + i % scored));
        let chosen: Vec<Scored> = tokens.iter().enumerate().filter(|(i, _)| inside(*i)).map(|(_, t)| *t).collect();
        if chosen.is_empty() {
            return None;
        }
        let of = |value: fn(&Scored) -> f64| chosen.iter().map(value).collect::<Vec<f64>>();
        let windows = tokens.len() / scored;
        Some(Part {
            positions: positions.clone(),
            perplexity: Perplexity::from_losses(&of(|t| t.loss), windows),
            reference: Perplexity::from_losses(&of(|t| t.reference), windows),
            divergence: Mean::of(&of(|t| t.divergence)),
            same_top: Mean::of(&of(same)),
        })
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn tokens(n: usize) -> Vec<Scored> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let token = |_| {
            let reference = random.random_range(0.1..6.0);
            let loss = reference + random.random_range(-0.2..0.3);
            Scored { loss, reference, divergence: random.random_range(0.0..0.1), same_top: random.random_bool(0.9) }
        };
        (0..n).map(token).collect()
    }

    #[test]
    fn quantiles_lie_between_the_tokens() {
        // 0, 1, … 10: the mean 5, the variance 11, the 99th percentile at 9.9 of 10 steps.
        let all: Vec<f64> = (0..11).rev().map(f64::from).collect();
        let d = Distribution::of(&all);
        assert!((d.mean.value - 5.0).abs() < 1e-12 && (d.mean.error - 1.0).abs() < 1e-12, "{d:?}");
        assert!((d.quantile(0.99) - 9.9).abs() < 1e-12 && d.quantile(0.5) == 5.0 && d.quantile(0.1) == 1.0, "{d:?}");
        assert_eq!((d.min, d.max), (0.0, 10.0));
        let one = Distribution::of(&[0.5]);
        assert_eq!((one.mean, one.quantiles, one.max), (Mean { value: 0.5, error: 0.0 }, [0.5; 11], 0.5));
    }

    #[test]
    fn ratio_and_difference_have_the_errors_of_llama_perplexity() {
        // Its formulas, from sums: variances of both means and the covariance between them.
        let tokens = tokens(8 * 63);
        let s = Statistics::of(&tokens, 128, 64);
        let n = tokens.len() as f64;
        let mean = |f: &dyn Fn(&Scored) -> f64| tokens.iter().map(f).sum::<f64>() / n;
        let (a, b) = (mean(&|t| t.loss), mean(&|t| t.reference));
        let of_mean = |square: f64, product: f64| (square - product) / (n - 1.0);
        let (aa, bb) = (of_mean(mean(&|t| t.loss * t.loss), a * a), of_mean(mean(&|t| t.reference.powi(2)), b * b));
        let ab = of_mean(mean(&|t| t.loss * t.reference), a * b);
        let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-9 * y.abs().max(1.0), "{x} {y}");
        near(s.ln_ratio.value, a - b);
        near(s.ln_ratio.error, (aa + bb - 2.0 * ab).sqrt());
        near(s.correlation, ab / (aa * bb).sqrt());
        let (p, q) = (a.exp(), b.exp());
        near(s.difference.value, p - q);
        near(s.difference.error, (p * p * aa + q * q * bb - 2.0 * p * q * ab).sqrt());
        let top = mean(&|t| f64::from(u8::from(t.same_top)));
        near(s.same_top.value, top);
        near(s.same_top.error, (top * (1.0 - top) / (n - 1.0)).sqrt());
        let delta = |t: &Scored| (-t.loss).exp() - (-t.reference).exp();
        near(s.delta_p_rms.value, mean(&|t| delta(t).powi(2)).sqrt());
        let fourth = of_mean(mean(&|t| delta(t).powi(4)), mean(&|t| delta(t).powi(2)).powi(2)).sqrt();
        near(s.delta_p_rms.error, 0.5 * fourth / s.delta_p_rms.value);
        near(s.delta_p.mean.value, mean(&delta));
    }

    #[test]
    fn equal_losses_have_a_ratio_without_error() {
        let tokens: Vec<Scored> = tokens(126).iter().map(|t| Scored { loss: t.reference, ..*t }).collect();
        let s = Statistics::of(&tokens, 128, 64);
        assert_eq!((s.ln_ratio, s.difference), (Mean { value: 0.0, error: 0.0 }, Mean { value: 0.0, error: 0.0 }));
        assert_eq!((s.delta_p.min, s.delta_p.max, s.delta_p_rms.value, s.delta_p_rms.error), (0.0, 0.0, 0.0, 0.0));
        assert!((s.correlation - 1.0).abs() < 1e-12);
    }

    #[test]
    fn every_token_is_in_the_part_of_its_position() {
        for (context, first) in [(128, 64), (128, 0), (9, 4), (4, 2), (1000, 500)] {
            let scored = context - 1 - first;
            let mut tokens = tokens(3 * scored);
            // The position is the divergence.
            tokens.iter_mut().enumerate().for_each(|(i, t)| t.divergence = (first + 1 + i % scored) as f64);
            let parts = Statistics::of(&tokens, context, first).parts;
            assert_eq!(parts.iter().map(|p| p.perplexity.tokens).sum::<usize>(), tokens.len());
            for part in &parts {
                let range = &part.positions;
                assert_eq!(part.perplexity.tokens, 3 * range.len());
                let middle = (range.start + range.end - 1) as f64 / 2.0;
                assert!((part.divergence.value - middle).abs() < 1e-9, "{context} {part:?}");
            }
            assert_eq!(parts[0].positions.start, first + 1);
            assert_eq!(parts[parts.len() - 1].positions.end, context);
        }
    }
}
