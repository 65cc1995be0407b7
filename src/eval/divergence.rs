//! How far files' predictions are from those of the model that they were made from: the Kullback-Leibler divergence of
//! their distributions of the next token (Kullback and Leibler 1951), over the windows and scored tokens of
//! [`super::perplexity`].
//!
//! All models are read one block at a time, and the rows of logits of a token meet in pieces of the vocabulary, so that
//! no more than a piece of them is ever there. With `a` and `b` the logits, `p` the softmax of `a` and `L` the logarithm
//! of a sum of exponentials, `KL = Σ p·(a − b) − L(a) + L(b)`.
//!
//! Saved logits of a reference are rounded, and clipped where they tell little: `p` adds up to about one. They are compared
//! as llama-perplexity does, over the tokens whose probability is above e⁻¹⁶, but with the generalised divergence
//! `Σ p·(ln p − ln q) − p + q`, whose terms are never negative: what rounding adds is of second order, where without
//! `− p + q` it is as large as the rounding.

use super::logits::{Likelihood, log_add, logits, output_rows, pieces};
use super::perplexity::{Parts, Protocol, check, final_states, targets, windows_of_a_part};
use super::saved::SavedLogits;
use super::statistics::Scored;
use crate::error::{Context, Error, Result};
use crate::interrupt;
use crate::pipeline::loaded_model::{BATCH, LoadedModel};
use crate::source::value::quoted;
use candle_core::Tensor;
use llmq_kernels::elementwise::{log_sum_exp, log_sum_exp_and_gap};
use rayon::prelude::*;

/// Characters of a token's text that an error shows.
const SHOWN: usize = 40;

/// What to do about models that do not belong together.
pub(super) const HINT: &str = "a reference is the model that the file was made from";

/// A file to be judged, and what errors call it.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The model.
    pub loaded: &'a LoadedModel,
    /// Its name.
    pub name: &'a str,
}

/// What files are compared with.
pub enum Reference {
    /// A model, which is run.
    Model(Box<LoadedModel>),
    /// What a model gave earlier.
    Saved(SavedLogits),
}

impl Reference {
    fn blocks(&self) -> usize {
        match self {
            Reference::Model(loaded) => loaded.model.blocks.len(),
            Reference::Saved(_) => 0,
        }
    }

    fn hidden(&self) -> usize {
        match self {
            Reference::Model(loaded) => loaded.model.hidden,
            Reference::Saved(_) => 0,
        }
    }
}

/// Compares files with one reference over windows, in one pass over all: for each file what became of the scored tokens,
/// one window behind the other. `progress` is told the done and the whole work, in blocks of windows; `states` gets the
/// last hidden states of a reference that is run, `[tokens, hidden]`, some windows at a time.
///
/// # Errors
/// Two vocabularies, a tensor that cannot be read, or a forward pass that overflows.
pub fn compare(
    files: &[Candidate],
    reference: &Reference,
    windows: &[Vec<u32>],
    protocol: Protocol,
    states: &mut dyn FnMut(&LoadedModel, &Tensor) -> Result<()>,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Vec<Scored>>> {
    compare_in_parts(files, reference, windows, protocol, states, &mut (), progress)
}

/// The same, some windows after the others; those that `parts` knows already are left out.
///
/// # Errors
/// As [`compare`], or those of `parts`.
pub fn compare_in_parts(
    files: &[Candidate],
    reference: &Reference,
    windows: &[Vec<u32>],
    protocol: Protocol,
    states: &mut dyn FnMut(&LoadedModel, &Tensor) -> Result<()>,
    parts: &mut dyn Parts,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Vec<Scored>>> {
    for file in files {
        check_vocabularies(file.loaded, reference).context(|| format!("cannot judge {}", file.name))?;
    }
    let context = windows.first().map_or(0, Vec::len);
    let first = protocol.first(context);
    // An equal share of one model's residual stream for each.
    let widest = files.iter().map(|file| file.loaded.model.hidden).fold(reference.hidden(), usize::max);
    let group = windows_of_a_part(context, widest * (files.len() + 1));
    let groups = windows.len().div_ceil(group);
    let steps = reference.blocks() + files.iter().map(|file| file.loaded.model.blocks.len()).sum::<usize>() + 1;
    let mut scored = vec![Vec::new(); files.len()];
    for (g, windows) in windows.chunks(group).enumerate() {
        let tell = |step: usize| progress(g * steps + step, groups * steps);
        if let Some(known) = parts.known(g) {
            from_numbers(&known, &mut scored);
            tell(steps);
            continue;
        }
        let original = match reference {
            Reference::Saved(saved) => Original::Saved(saved, g * group * (context - 1 - first)),
            Reference::Model(loaded) => {
                let hidden = final_states(loaded, windows, first, &tell).context(|| "running the reference".into())?;
                states(loaded, &hidden)?;
                Original::Hidden(loaded, hidden)
            }
        };
        let mut done = reference.blocks();
        let mut streams = Vec::new();
        for file in files {
            let hidden = final_states(file.loaded, windows, first, &|block| tell(done + block));
            streams.push((file.loaded, hidden.context(|| format!("running {}", file.name))?));
            done += file.loaded.model.blocks.len();
        }
        let tokens = all(&original, &streams, &targets(windows, first))?;
        for (tokens, (file, scored)) in tokens.iter().zip(files.iter().zip(&scored)) {
            check_numbers(tokens, file, scored.len())?;
        }
        parts.add(g, groups, &tokens.iter().flatten().flat_map(Scored::numbers).collect::<Vec<f64>>())?;
        scored.iter_mut().zip(tokens).for_each(|(scored, tokens)| scored.extend(tokens));
        tell(steps);
    }
    Ok(scored)
}

/// Adds to each file's tokens those that [`Parts`] has been given as numbers.
fn from_numbers(numbers: &[f64], scored: &mut [Vec<Scored>]) {
    let files = scored.len().max(1);
    for (scored, numbers) in scored.iter_mut().zip(numbers.chunks(numbers.len() / files)) {
        scored.extend(numbers.as_chunks().0.iter().map(Scored::from_numbers));
    }
}

/// Checks what became of tokens, the first of which is the `before`-th of all.
///
/// # Errors
/// A likelihood or a divergence is no number.
fn check_numbers(scored: &[Scored], file: &Candidate, before: usize) -> Result<()> {
    let of = |value: fn(&Scored) -> f64| scored.iter().map(value).collect::<Vec<f64>>();
    check("likelihood", &of(|t| t.reference), before).context(|| "running the reference".into())?;
    check("likelihood", &of(|t| t.loss), before).context(|| format!("running {}", file.name))?;
    check("divergence", &of(|t| t.divergence), before).context(|| format!("running {}", file.name))
}

/// Checks that a distribution of one model is one over the tokens of the other. Of saved logits only their number is known.
///
/// # Errors
/// Another number of tokens, or a token that is another one.
fn check_vocabularies(file: &LoadedModel, reference: &Reference) -> Result<()> {
    let ours = file.model.vocab;
    let theirs = match reference {
        Reference::Model(loaded) => loaded.model.vocab,
        Reference::Saved(saved) => saved.vocab(),
    };
    if ours != theirs {
        let what = format!("its vocabulary has {ours} tokens, that of the reference {theirs}");
        return Err(Error::new(what).hint(HINT));
    }
    match reference {
        Reference::Model(reference) => check_tokens(file, reference),
        Reference::Saved(_) => Ok(()),
    }
}

/// Checks that two models with as many tokens have the same ones.
///
/// # Errors
/// A token that is another one.
pub(super) fn check_tokens(file: &LoadedModel, reference: &LoadedModel) -> Result<()> {
    let ours = file.model.vocab;
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

/// Saved log-probabilities up to this are clipped or too small to count, as in llama-perplexity.
const NEGLIGIBLE: f32 = -16.0;

/// A logit whose exponential is nothing, but whose product with nothing is not NaN.
const NOTHING: f32 = -1e4;

/// What is known of one scored token while its logits come in piece by piece.
#[derive(Debug, Clone, Copy)]
struct Token {
    reference: Likelihood,
    file: Likelihood,
    /// The mean of reference's logits minus file's, under the softmax of the reference's so far.
    gap: f64,
    /// `ln Σ exp` of the file's logits of those tokens that the reference tells apart.
    kept: f64,
    top: [Top; 2],
}

impl Token {
    const UNSEEN: Token = Token {
        reference: Likelihood::UNSEEN,
        file: Likelihood::UNSEEN,
        gap: 0.0,
        kept: f64::NEG_INFINITY,
        top: [Top { id: 0, logit: f32::NEG_INFINITY }; 2],
    };

    /// Takes in both models' logits of the tokens from `first` on.
    fn add(&mut self, reference: &[f32], file: &[f32], first: usize, target: u32) {
        self.add_gap(reference, file);
        self.reference.choose(reference, first, target);
        self.file.add(file, log_sum_exp(file), first, target);
        self.top[0].add(reference, first);
        self.top[1].add(file, first);
    }

    /// Takes in saved log-probabilities of the tokens from `first` on, and the file's logits.
    fn add_saved(&mut self, reference: &[f32], file: &[f32], first: usize, target: u32) {
        let counts = |(&a, &b): (&f32, &f32)| if a > NEGLIGIBLE { (a, b) } else { (NOTHING, NOTHING) };
        let (kept, same): (Vec<f32>, Vec<f32>) = reference.iter().zip(file).map(counts).unzip();
        self.add_gap(&kept, &same);
        self.kept = log_add(self.kept, log_sum_exp(&same));
        self.reference.choose(reference, first, target);
        self.file.add(file, log_sum_exp(file), first, target);
        self.top[0].add(reference, first);
        self.top[1].add(file, first);
    }

    fn add_gap(&mut self, reference: &[f32], file: &[f32]) {
        let (sum, gap) = log_sum_exp_and_gap(reference, file);
        let total = log_add(self.reference.total, sum);
        // Weighed with what each part has of the probability; weights that add up to one keep equal gaps as they are.
        self.gap += (gap - self.gap) * (sum - total).exp();
        self.reference.total = total;
    }

    fn scored(&self) -> Scored {
        self.result(self.reference.loss(), self.gap - self.reference.total + self.file.total)
    }

    fn scored_saved(&self) -> Scored {
        let (p, q) = (self.reference.total.exp(), (self.kept - self.file.total).exp());
        self.result(-self.reference.chosen, p * (self.gap + self.file.total) - p + q)
    }

    /// With the reference's loss and `KL(reference ‖ file)` in nats. What rounding takes below zero is zero; NaN stays.
    fn result(&self, reference: f64, divergence: f64) -> Scored {
        Scored {
            loss: self.file.loss(),
            reference,
            divergence: if divergence < 0.0 { 0.0 } else { divergence },
            same_top: self.top[0].id == self.top[1].id,
        }
    }
}

/// How a token takes in logits: [`Token::add`] or [`Token::add_saved`].
type Adding = fn(&mut Token, &[f32], &[f32], usize, u32);

/// What the reference makes of the tokens of some windows.
pub(super) enum Original<'a> {
    /// Its last hidden states, `[tokens, hidden]`.
    Hidden(&'a LoadedModel, Tensor),
    /// Rows of saved logits from this one on.
    Saved(&'a SavedLogits, usize),
}

/// What the reference and each file make of each target, from the files' last hidden states, `[targets, hidden]` each. The
/// reference's logits are computed once for all files.
pub(super) fn all(original: &Original, files: &[(&LoadedModel, Tensor)], targets: &[u32]) -> Result<Vec<Vec<Scored>>> {
    let mut tokens = vec![vec![Token::UNSEEN; targets.len()]; files.len()];
    let models = files.iter().map(|(file, _)| &file.model);
    let (vocab, own) = match original {
        Original::Hidden(reference, _) => (reference.model.vocab, reference.model.hidden),
        Original::Saved(saved, _) => (saved.vocab(), 0),
    };
    for rows in pieces(vocab, models.map(|model| model.hidden).fold(own, usize::max)) {
        let (first, width) = (rows.start, rows.len());
        let own = match original {
            Original::Hidden(reference, _) => Some(output_rows(reference, rows.clone())?),
            Original::Saved(..) => None,
        };
        // A file that shares the reference's output matrix needs no copy of it.
        let shared =
            |file: &LoadedModel| matches!(original, Original::Hidden(reference, _) if std::ptr::eq(*reference, file));
        let other = |file: &LoadedModel| match shared(file) {
            true => Ok(None),
            false => output_rows(file, rows.clone()).map(Some),
        };
        let matrices = files.iter().map(|(file, _)| other(file)).collect::<Result<Vec<_>>>()?;
        for from in (0..targets.len()).step_by(BATCH) {
            let n = BATCH.min(targets.len() - from);
            let (a, add): (_, Adding) = match (original, &own) {
                (Original::Hidden(reference, hidden), Some(own)) => {
                    (logits(reference, hidden, from, n, (first, own))?, Token::add)
                }
                (Original::Saved(saved, before), _) => (saved.rows(before + from, n, rows.clone())?, Token::add_saved),
                (Original::Hidden(..), None) => continue,
            };
            for (((file, hidden), matrix), tokens) in files.iter().zip(&matrices).zip(&mut tokens) {
                interrupt::check()?;
                let Some(matrix) = matrix.as_ref().or(own.as_ref()) else { continue };
                let b = logits(file, hidden, from, n, (first, matrix))?;
                tokens[from..from + n]
                    .par_iter_mut()
                    .zip(&targets[from..from + n])
                    .zip(a.par_chunks(width).zip(b.par_chunks(width)))
                    .for_each(|((token, &target), (a, b))| add(token, a, b, first, target));
            }
        }
    }
    let scored = match original {
        Original::Hidden(..) => Token::scored,
        Original::Saved(saved, before) => {
            for (i, token) in tokens.iter().flatten().enumerate() {
                saved.check_total(before + i % targets.len(), token.reference.total.exp())?;
            }
            Token::scored_saved
        }
    };
    Ok(tokens.iter().map(|tokens| tokens.iter().map(scored).collect()).collect())
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
            let token = token(&p, &q, width).scored();
            assert!((token.divergence - 0.25 * 2f64.ln()).abs() < 1e-6, "{width}: {token:?}");
            assert!((token.loss - 4f64.ln()).abs() < 1e-6 && (token.reference - 4f64.ln()).abs() < 1e-6);
            assert!(!token.same_top);
        }
    }

    #[test]
    fn the_same_logits_are_at_no_distance() {
        let x: Vec<f32> = (0..50).map(|i| (i as f32).sin() * 20.0).collect();
        for width in [1, 7, 50] {
            let token = token(&x, &x, width).scored();
            assert_eq!((token.divergence, token.same_top), (0.0, true));
        }
    }

    #[test]
    fn saved_log_probabilities_give_the_divergence_of_what_they_keep() {
        // p = ½, ¼, ¼ less almost nothing, and a fourth token that is clipped; the file gives it a tenth.
        let p = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln(), -16.7];
        let q = [0.3f32, 0.3, 0.3, 0.1].map(|x| x.ln() + 5.0);
        let wanted = 0.5 * (0.5f64 / 0.3).ln() + 0.5 * (0.25f64 / 0.3).ln() - 1.0 + 0.9;
        for (width, target) in [(1, 1), (2, 3), (4, 3)] {
            let mut token = Token::UNSEEN;
            for (i, (a, b)) in p.chunks(width).zip(q.chunks(width)).enumerate() {
                token.add_saved(a, b, i * width, target);
            }
            let scored = token.scored_saved();
            assert!((scored.divergence - wanted).abs() < 1e-6, "{width}: {scored:?}, {wanted}");
            assert!((scored.reference + f64::from(p[target as usize])).abs() < 1e-6, "{scored:?}");
            assert!(scored.same_top);
        }
    }

    #[test]
    fn what_rounding_adds_to_a_divergence_is_of_second_order() {
        let exact: Vec<f32> = (0..64).map(|i| (i as f32 * 2.3).sin() * 4.0).collect();
        let sum = log_sum_exp(&exact) as f32;
        // As the codes of a file round: by up to half of 16/65535, here always up.
        let rounded: Vec<f32> = exact.iter().map(|x| x - sum + 1.2e-4).collect();
        let mut token = Token::UNSEEN;
        token.add_saved(&rounded, &exact, 0, 0);
        let divergence = token.scored_saved().divergence;
        assert!(divergence < 1e-6, "{divergence}");
    }
}
