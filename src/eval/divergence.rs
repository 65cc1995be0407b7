//! How far a file's predictions are from those of the model that it was made from: the Kullback-Leibler divergence of
//! their distributions of the next token (Kullback and Leibler 1951), over the windows and scored tokens of
//! [`super::perplexity`].
//!
//! Both models are read one block at a time, and the two rows of logits of a token meet in pieces of the vocabulary, so
//! that no more than a piece of them is ever there. With `a` and `b` the logits, `p` the softmax of `a` and `L` the
//! logarithm of a sum of exponentials, `KL = Σ p·(a − b) − L(a) + L(b)`.

use super::perplexity::{
    Likelihood, Perplexity, Protocol, STREAM, check, final_states, log_add, logits, output_rows, pieces, targets,
};
use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::pipeline::subject::{BATCH, Subject};
use crate::source::value::quoted;
use candle_core::Tensor;
use llmq_kernels::elementwise::{log_sum_exp, log_sum_exp_and_gap};
use rayon::prelude::*;

/// Characters of a token's text that an error shows.
const SHOWN: usize = 40;

/// How far a file is from its reference.
#[derive(Debug, Clone, Copy)]
pub struct Divergence {
    /// Mean over the scored tokens of `KL(reference ‖ file)`, in nats.
    pub mean: f64,
    /// Its standard error: the standard deviation over `√tokens`.
    pub error: f64,
    /// What 99% of the scored tokens stay below, in nats; between two tokens, interpolated linearly.
    pub p99: f64,
    /// The part of the scored tokens, 0 to 1, for which both models hold the same token to be the likeliest.
    pub same_top: f64,
}

impl Divergence {
    /// From the divergences of the scored tokens and how many of them have the same likeliest token.
    pub fn from_tokens(divergences: &[f64], same: usize) -> Divergence {
        let n = divergences.len() as f64;
        let mean = divergences.iter().sum::<f64>() / n;
        let squares = divergences.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let error = (squares / (n - 1.0).max(1.0) / n).sqrt();
        let mut sorted = divergences.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = 0.99 * (n - 1.0);
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        Divergence { mean, error, p99: low + (high - low) * at.fract(), same_top: same as f64 / n }
    }
}

/// What one run through both models tells.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// How far the file is from its reference.
    pub divergence: Divergence,
    /// The file's own perplexity.
    pub perplexity: Perplexity,
}

/// Compares a file with its reference over windows. `progress` is told the done and the whole work, in blocks of windows.
///
/// # Errors
/// Two vocabularies, a tensor that cannot be read, or a forward pass that overflows.
pub fn compare(
    file: &Subject,
    reference: &Subject,
    windows: &[Vec<u32>],
    protocol: Protocol,
    progress: &dyn Fn(usize, usize),
) -> Result<Comparison> {
    check_vocabularies(file, reference)?;
    let context = windows.first().map_or(0, Vec::len);
    let first = protocol.first(context);
    // Half the room of one model's residual stream for each of the two.
    let widest = file.model.hidden.max(reference.model.hidden);
    let group = (STREAM / 2 / (4 * context * widest).max(1)).max(1);
    let groups = windows.len().div_ceil(group);
    let steps = reference.model.blocks + file.model.blocks + 1;
    let mut tokens = Vec::new();
    for (g, windows) in windows.chunks(group).enumerate() {
        let tell = |step: usize| progress(g * steps + step, groups * steps);
        let original = final_states(reference, windows, first, &tell).context(|| "running the reference".into())?;
        let hidden = final_states(file, windows, first, &|block| tell(reference.model.blocks + block))?;
        tokens.extend(both(reference, &original, file, &hidden, &targets(windows, first))?);
        tell(steps);
    }
    let losses = |of: fn(&Token) -> &Likelihood| tokens.iter().map(|t| of(t).loss()).collect::<Vec<_>>();
    check("likelihood", &losses(|t| &t.reference)).context(|| "running the reference".into())?;
    let own = losses(|t| &t.file);
    check("likelihood", &own)?;
    let divergences: Vec<f64> = tokens.iter().map(Token::divergence).collect();
    check("divergence", &divergences)?;
    let same = tokens.iter().filter(|t| t.top[0].id == t.top[1].id).count();
    Ok(Comparison {
        divergence: Divergence::from_tokens(&divergences, same),
        perplexity: Perplexity::from_losses(&own, windows.len()),
    })
}

/// Checks that a distribution of one model is one over the tokens of the other.
///
/// # Errors
/// Another number of tokens, or a token that is another one.
fn check_vocabularies(file: &Subject, reference: &Subject) -> Result<()> {
    const HINT: &str = "a reference is the model that the file was made from";
    let (ours, theirs) = (file.model.vocab, reference.model.vocab);
    if ours != theirs {
        let what = format!("its vocabulary has {ours} tokens, that of the reference {theirs}");
        return Err(Error::new(what).hint(HINT));
    }
    for id in 0..ours as u32 {
        // Ids without a text are rows that only fill the matrix up; who wrote the file decides whether they have one.
        if let (Some(a), Some(b)) = (file.tokenizer.token(id), reference.tokenizer.token(id))
            && a != b
        {
            let (a, b) = (quoted(&a, SHOWN), quoted(&b, SHOWN));
            let what = format!("token {id} of {ours} is {a}, but {b} in the reference");
            return Err(Error::new(what).hint(HINT));
        }
    }
    Ok(())
}

/// The token of the largest logit so far; of equal ones the first.
#[derive(Debug, Clone, Copy)]
struct Top {
    id: usize,
    logit: f32,
}

impl Top {
    fn add(&mut self, logits: &[f32], first: usize) {
        for (i, &logit) in logits.iter().enumerate() {
            if logit > self.logit {
                *self = Top { id: first + i, logit };
            }
        }
    }
}

/// What is known of one scored token while its logits come in piece by piece.
#[derive(Debug, Clone, Copy)]
struct Token {
    reference: Likelihood,
    file: Likelihood,
    /// The mean of reference's logits minus file's, under the softmax of the reference's so far.
    gap: f64,
    top: [Top; 2],
}

impl Token {
    const UNSEEN: Token = Token {
        reference: Likelihood::UNSEEN,
        file: Likelihood::UNSEEN,
        gap: 0.0,
        top: [Top { id: 0, logit: f32::NEG_INFINITY }; 2],
    };

    /// Takes in both models' logits of the tokens from `first` on.
    fn add(&mut self, reference: &[f32], file: &[f32], first: usize, target: u32) {
        let (sum, gap) = log_sum_exp_and_gap(reference, file);
        let total = log_add(self.reference.total, sum);
        // Weighed with what each part has of the probability; weights that add up to one keep equal gaps as they are.
        self.gap += (gap - self.gap) * (sum - total).exp();
        self.reference.add(reference, sum, first, target);
        self.file.add(file, log_sum_exp(file), first, target);
        self.top[0].add(reference, first);
        self.top[1].add(file, first);
    }

    /// `KL(reference ‖ file)` in nats. What rounding takes below zero is zero; NaN stays.
    fn divergence(&self) -> f64 {
        let nats = self.gap - self.reference.total + self.file.total;
        if nats < 0.0 { 0.0 } else { nats }
    }
}

/// What both models make of each target, from their last hidden states, `[targets, hidden]` each.
fn both(
    reference: &Subject,
    original: &Tensor,
    file: &Subject,
    hidden: &Tensor,
    targets: &[u32],
) -> Result<Vec<Token>> {
    let mut tokens = vec![Token::UNSEEN; targets.len()];
    for rows in pieces(file.model.vocab, file.model.hidden.max(reference.model.hidden)) {
        let (first, width) = (rows.start, rows.len());
        let matrices = [output_rows(reference, rows.clone())?, output_rows(file, rows)?];
        for from in (0..targets.len()).step_by(BATCH) {
            interrupt::check()?;
            let n = BATCH.min(targets.len() - from);
            let (a, b) = (
                logits(&reference.model, original, from, n, &matrices[0])?,
                logits(&file.model, hidden, from, n, &matrices[1])?,
            );
            tokens[from..from + n]
                .par_iter_mut()
                .zip(&targets[from..from + n])
                .zip(a.par_chunks(width).zip(b.par_chunks(width)))
                .for_each(|((token, &target), (a, b))| token.add(a, b, first, target));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token whose logits came in pieces of `width`.
    fn token(reference: &[f32], file: &[f32], width: usize) -> Token {
        let mut token = Token::UNSEEN;
        for (i, (a, b)) in reference.chunks(width).zip(file.chunks(width)).enumerate() {
            token.add(a, b, i * width, 1);
        }
        token
    }

    #[test]
    fn the_divergence_of_known_distributions_in_any_pieces() {
        // p = ½, ¼, ¼ and q = ¼, ¼, ½, the logits shifted by what cancels: KL = ½ ln 2 − ¼ ln 2.
        let p = [0.5f32, 0.25, 0.25].map(|x| x.ln() + 7.0);
        let q = [0.25f32, 0.25, 0.5].map(|x| x.ln() - 3.0);
        for width in 1..4 {
            let token = token(&p, &q, width);
            assert!((token.divergence() - 0.25 * 2f64.ln()).abs() < 1e-6, "{width}: {token:?}");
            assert!((token.file.loss() - 4f64.ln()).abs() < 1e-6);
            assert_eq!(token.top.map(|t| t.id), [0, 2]);
        }
    }

    #[test]
    fn the_same_logits_are_at_no_distance() {
        let x: Vec<f32> = (0..50).map(|i| (i as f32).sin() * 20.0).collect();
        for width in [1, 7, 50] {
            assert_eq!(token(&x, &x, width).divergence(), 0.0);
        }
    }

    #[test]
    fn divergences_are_summed_up_as_the_measures_are_defined() {
        // 0, 1, … 10: the mean 5, the variance 11, the 99th percentile at 9.9 of 10 steps.
        let all: Vec<f64> = (0..11).rev().map(f64::from).collect();
        let d = Divergence::from_tokens(&all, 10);
        assert!((d.mean - 5.0).abs() < 1e-12 && (d.error - 1.0).abs() < 1e-12, "{d:?}");
        assert!((d.p99 - 9.9).abs() < 1e-12 && (d.same_top - 10.0 / 11.0).abs() < 1e-12, "{d:?}");
        let one = Divergence::from_tokens(&[0.5], 1);
        assert_eq!((one.mean, one.error, one.p99), (0.5, 0.0, 0.5));
    }
}
