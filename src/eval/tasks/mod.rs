//! Tasks with right answers: a model picks the continuation that it holds to be the likeliest, or has to say a word itself.
//! Formats and scores are those of llama-perplexity, so that the numbers can be compared.

pub mod hellaswag;
pub mod last_word;
pub mod multiple_choice;
pub mod winogrande;

use super::logits::{Likelihood, each_row};
use super::perplexity::{STREAM, check, final_states};
use crate::error::{Context, Error, Result};
use crate::pipeline::loaded_model::LoadedModel;
use crate::source::tokenizer::Tokenizer;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// The normal distribution's quantile for intervals that contain the truth in 95% of all samples.
const NORMAL: f64 = 1.959_963_984_54;

/// A text as a model reads it, and which of its tokens are scored: some behind the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    tokens: Vec<u32>,
    scored: Range<usize>,
}

/// Continuations of which some are right; one alone is right if the model says it itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    choices: Vec<Continuation>,
    right: Vec<bool>,
}

/// What a model reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// Tasks that it solved.
    pub right: usize,
    /// All.
    pub tasks: usize,
    /// Of as many answers by chance, the part that would be right; none where there is no choice.
    pub chance: Option<f64>,
    /// `exp` of the mean negative log-likelihood of scored tokens, where there is no choice.
    pub perplexity: Option<f64>,
}

impl Accuracy {
    /// The part of the tasks that was solved, 0 to 1.
    pub fn value(&self) -> f64 {
        self.right as f64 / self.tasks as f64
    }

    /// Its standard error, from the binomial distribution.
    pub fn error(&self) -> f64 {
        (self.value() * (1.0 - self.value()) / (self.tasks as f64 - 1.0).max(1.0)).sqrt()
    }

    /// Wilson's interval (1927), which contains the true value in 95% of all samples.
    pub fn interval(&self) -> (f64, f64) {
        let (n, p) = (self.tasks as f64, self.value());
        let z = NORMAL * NORMAL / n;
        let around = NORMAL * (p * (1.0 - p) / n + z / (4.0 * n)).sqrt();
        (((p + z / 2.0 - around) / (1.0 + z)).max(0.0), ((p + z / 2.0 + around) / (1.0 + z)).min(1.0))
    }
}

/// `n` of all tasks, drawn by a seed that never changes, in their order; all where there are fewer.
pub fn some<T>(tasks: Vec<T>, n: Option<usize>) -> Vec<T> {
    let all = tasks.len();
    let Some(n) = n.filter(|&n| n < all) else { return tasks };
    let mut chosen = vec![false; all];
    index::sample(&mut ChaCha8Rng::seed_from_u64(1), all, n).iter().for_each(|i| chosen[i] = true);
    tasks.into_iter().zip(chosen).filter_map(|(task, chosen)| chosen.then_some(task)).collect()
}

/// Lets a model solve tasks. `progress` is told the done and the whole work.
///
/// # Errors
/// A task that is longer than the model's context, a tensor that cannot be read, or a forward pass that overflows.
pub fn solve(loaded: &LoadedModel, tasks: &[Task], progress: &dyn Fn(usize, usize)) -> Result<Accuracy> {
    let all: Vec<&Continuation> = tasks.iter().flat_map(|task| &task.choices).collect();
    let said = say(loaded, &all, progress)?;
    let mut said = said.into_iter();
    let (mut right, mut choices, mut losses) = (0, 0, Vec::new());
    for task in tasks {
        let said: Vec<Said> = said.by_ref().take(task.choices.len()).collect();
        choices += said.len();
        right += usize::from(match &said[..] {
            [only] => {
                losses.extend_from_slice(&only.losses);
                only.itself
            }
            several => task.right[likeliest(several)],
        });
    }
    let chance = tasks.len() as f64 / choices as f64;
    let perplexity = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    Ok(Accuracy {
        right,
        tasks: tasks.len(),
        chance: (choices > tasks.len()).then_some(chance),
        perplexity: (!losses.is_empty()).then_some(perplexity),
    })
}

/// Of the largest mean log-likelihood; of equal ones the first.
fn likeliest(said: &[Said]) -> usize {
    let mean = |said: &Said| said.losses.iter().sum::<f64>() / said.losses.len() as f64;
    (1..said.len()).fold(0, |best, i| if mean(&said[i]) < mean(&said[best]) { i } else { best })
}

/// What a model makes of a continuation.
struct Said {
    /// `−ln p` of each scored token, in nats.
    losses: Vec<f64>,
    /// Whether each scored token is the likeliest.
    itself: bool,
}

fn say(loaded: &LoadedModel, all: &[&Continuation], progress: &dyn Fn(usize, usize)) -> Result<Vec<Said>> {
    if let Some(i) = all.iter().position(|c| c.tokens.len() > loaded.model.context) {
        let (n, context) = (all[i].tokens.len(), loaded.model.context);
        return Err(Error::new(format!("continuation {i} has {n} tokens, but the model's context only {context}"))
            .hint("choose some of the tasks with --tasks, or leave the long ones out of the file"));
    }
    // Those of one length together: what is behind the shorter ones is computed in vain.
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(all[i].tokens.len()));
    let mut said: Vec<Option<Said>> = all.iter().map(|_| None).collect();
    let mut done = 0;
    while done < order.len() {
        let longest = all[order[done]].tokens.len();
        let group = (STREAM / (4 * longest * loaded.model.hidden).max(1)).clamp(1, order.len() - done);
        let chosen: Vec<&Continuation> = order[done..done + group].iter().map(|&i| all[i]).collect();
        let tell = |block: usize| {
            let blocks = loaded.model.blocks.len() + 1;
            progress(done * blocks + group * block, order.len() * blocks);
        };
        for (&i, words) in order[done..done + group].iter().zip(say_some(loaded, &chosen, longest, &tell)?) {
            said[i] = Some(words);
        }
        done += group;
    }
    Ok(said.into_iter().flatten().collect())
}

/// Continuations of up to `longest` tokens, in one pass.
fn say_some(loaded: &LoadedModel, chosen: &[&Continuation], longest: usize, done: &dyn Fn(usize)) -> Result<Vec<Said>> {
    let padded = chosen.iter().map(|c| {
        let mut tokens = c.tokens.clone();
        // Nothing looks ahead, so what follows does not matter.
        tokens.resize(longest.max(2), 0);
        tokens
    });
    let states = final_states(loaded, &padded.collect::<Vec<_>>(), 0, done)?;
    // The state before a token says what the token should be; of a window, the last position has no state.
    let places = |(i, c): (usize, &&Continuation)| {
        let start = i * (longest.max(2) - 1);
        c.scored.clone().map(move |at| (start + at - 1) as u32).collect::<Vec<_>>()
    };
    let places: Vec<u32> = chosen.iter().enumerate().flat_map(places).collect();
    let targets: Vec<u32> = chosen.iter().flat_map(|c| c.tokens[c.scored.clone()].iter().copied()).collect();
    let n = places.len();
    let hidden = states.index_select(&Tensor::from_vec(places, n, &Device::Cpu)?, 0)?;
    let mut seen = vec![(Likelihood::UNSEEN, f64::NEG_INFINITY); n];
    each_row(loaded, &hidden, &mut seen, |(seen, largest), i, logits, sum, first| {
        seen.add(logits, sum, first, targets[i]);
        *largest = logits.iter().fold(*largest, |m, &x| m.max(f64::from(x)));
    })?;
    check("likelihood", &seen.iter().map(|(seen, _)| seen.loss()).collect::<Vec<_>>(), 0)?;
    let mut seen = seen.into_iter();
    let said = chosen.iter().map(|c| {
        let seen: Vec<_> = seen.by_ref().take(c.scored.len()).collect();
        let itself = seen.iter().all(|(seen, largest)| seen.chosen >= *largest);
        Said { losses: seen.iter().map(|(seen, _)| seen.loss()).collect(), itself }
    });
    Ok(said.collect())
}

/// The tokens of a text behind BOS, if there is one. As in llama-perplexity, the text of special tokens is plain text.
fn tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut tokens: Vec<u32> = tokenizer.bos().into_iter().collect();
    tokens.extend(tokenizer.encode_plain(text)?);
    Ok(tokens)
}

/// How many tokens at the start of all texts are the same.
fn common_prefix(texts: &[Vec<u32>]) -> usize {
    let same = |&at: &usize| texts.iter().all(|text| text.get(at).is_some() && text.get(at) == texts[0].get(at));
    (0..).take_while(same).count()
}

/// Continuations of one beginning, each scored where they differ. `of` names the task in errors.
fn differing(tokenizer: &Tokenizer, texts: &[String], of: &dyn Fn() -> String) -> Result<Vec<Continuation>> {
    let texts = texts.iter().map(|text| tokens(tokenizer, text)).collect::<Result<Vec<_>>>().context(of)?;
    let prefix = common_prefix(&texts);
    let choices = texts.into_iter().map(|tokens| {
        if prefix == 0 || tokens.len() <= prefix {
            let what = if prefix == 0 { "its choices begin differently" } else { "a choice begins another one" };
            return Err(Error::new(what)).context(of);
        }
        Ok(Continuation { scored: prefix..tokens.len(), tokens })
    });
    choices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_and_binomial_are_those_of_llama_perplexity() {
        let a = Accuracy { right: 7, tasks: 10, chance: None, perplexity: None };
        assert!((a.value() - 0.7).abs() < 1e-12 && (a.error() - (0.21f64 / 9.0).sqrt()).abs() < 1e-12);
        // From its formula, by hand.
        let (z, f, n) = (NORMAL * NORMAL / 10.0, 0.7, 10.0);
        let around = z * (n * (4.0 * f * (1.0 - f) + z)).sqrt() / (2.0 * NORMAL);
        let (low, high) = a.interval();
        assert!((low - (f + z / 2.0 - around) / (1.0 + z)).abs() < 1e-12, "{low}");
        assert!((high - (f + z / 2.0 + around) / (1.0 + z)).abs() < 1e-12, "{high}");
        assert_eq!(Accuracy { right: 0, ..a }.interval().0, 0.0);
    }

    #[test]
    fn the_likeliest_has_the_largest_mean() {
        let said = |losses: &[f64]| Said { losses: losses.to_vec(), itself: false };
        assert_eq!(likeliest(&[said(&[2.0]), said(&[1.0, 1.5, 1.0]), said(&[1.5])]), 1);
        assert_eq!(likeliest(&[said(&[1.0]), said(&[1.0])]), 0);
    }

    #[test]
    fn some_tasks_are_the_same_ones_every_time_and_in_order() {
        let all: Vec<usize> = (0..100).collect();
        let chosen = some(all.clone(), Some(10));
        assert!(chosen.len() == 10 && chosen.is_sorted() && chosen != all[..10]);
        assert_eq!(chosen, some(all.clone(), Some(10)));
        assert_eq!(some(all.clone(), Some(100)), all);
        assert_eq!(some(all.clone(), None), all);
    }

    #[test]
    fn prefixes_end_where_any_text_differs_or_ends() {
        assert_eq!(common_prefix(&[vec![1, 2, 3], vec![1, 2, 4], vec![1, 2]]), 2);
        assert_eq!(common_prefix(&[vec![1], vec![2]]), 0);
        assert_eq!(common_prefix(&[vec![1, 2], vec![1, 2]]), 2);
    }
}
