//! Where windows of tokens come from: documents of one or several sources, each with its share.

use super::windows;
use crate::error::{Context, Error, Result};
use crate::source::tokenizer::Tokenizer;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// How windows are cut out of a source's documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Out of all documents in one row, so that one may end and the next begin inside a window: no token is left out.
    Packed,
    /// Each out of one document, as the GPTQ paper does with C4: shorter documents are left out.
    Within,
}

/// Documents of one kind.
#[derive(Debug, Clone)]
pub struct Source {
    /// What they are called.
    pub names: Vec<String>,
    /// The documents, in order.
    pub documents: Vec<String>,
    /// Its share of the windows, in proportion to the other sources'.
    pub weight: f64,
    /// How windows are cut out of them.
    pub cut: Cut,
}

/// All sources of a run.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// At least one, unless no window will ever be drawn.
    pub sources: Vec<Source>,
}

impl Corpus {
    /// Documents that are all one source, packed.
    pub fn of(documents: Vec<String>, names: Vec<String>) -> Corpus {
        Corpus { sources: vec![Source { names, documents, weight: 1.0, cut: Cut::Packed }] }
    }

    /// What all documents are called.
    pub fn names(&self) -> Vec<String> {
        self.sources.iter().flat_map(|source| source.names.iter().cloned()).collect()
    }

    /// All documents.
    pub fn documents(&self) -> impl Iterator<Item = &String> {
        self.sources.iter().flat_map(|source| &source.documents)
    }

    /// Seeded windows: `[count][length]`. Those of several sources come mixed, so that any part of them is of all.
    ///
    /// # Errors
    /// A source without as many tokens as a window has, or fewer windows than sources.
    pub fn windows(&self, tokenizer: &Tokenizer, count: usize, length: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
        let weights: Vec<f64> = self.sources.iter().map(|source| source.weight).collect();
        let mut all = Vec::with_capacity(count);
        for (i, (source, count)) in self.sources.iter().zip(shares(&weights, count)).enumerate() {
            let seed = seed.wrapping_add(i as u64);
            all.extend(
                source
                    .windows(tokenizer, count, length, seed)
                    .context(|| format!("cannot use {}", source.names.join(", ")))?,
            );
        }
        if self.sources.len() > 1 {
            all.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        Ok(all)
    }
}

impl Source {
    fn windows(&self, tokenizer: &Tokenizer, count: usize, length: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        match self.cut {
            Cut::Packed => {
                let tokens = tokenizer.encode_documents(&self.documents)?;
                windows::sample(&tokens, tokenizer.bos(), count, length, seed)
            }
            Cut::Within => {
                let documents = self.documents.par_iter().map(|text| tokenizer.encode(text));
                let documents = documents.collect::<Result<Vec<_>>>()?;
                windows::sample_within(&documents, tokenizer.bos(), count, length, seed)
            }
        }
    }
}

/// Divides `count` in proportion to weights, by largest remainders.
fn shares(weights: &[f64], count: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * count as f64).collect();
    let mut shares: Vec<usize> = exact.iter().map(|share| share.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| (exact[b] - exact[b].floor()).total_cmp(&(exact[a] - exact[a].floor())));
    let left = count.saturating_sub(shares.iter().sum());
    order.iter().take(left).for_each(|&i| shares[i] += 1);
    shares
}

/// An error about weights that are none.
pub fn check_weight(weight: f64, of: &str) -> Result<()> {
    if weight.is_finite() && weight > 0.0 {
        return Ok(());
    }
    Err(Error::usage(format!("--calib: the weight of {of} is {weight}, not a number above zero"))
        .hint("weights are shares of the windows, as in --calib c4:0.7,code.jsonl:0.3"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::vocabulary::Vocabulary;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config = serde_json::from_str(&config).unwrap();
        Tokenizer::open(&folder, &Vocabulary::from_files(&folder, 2048, &config, None).unwrap()).unwrap()
    }

    fn source(text: &str, weight: f64, cut: Cut) -> Source {
        Source { names: vec![text.into()], documents: vec![format!("{text} ").repeat(400)], weight, cut }
    }

    #[test]
    fn shares_add_up_and_follow_the_weights() {
        assert_eq!(shares(&[0.7, 0.3], 128), [90, 38]);
        assert_eq!(shares(&[1.0, 1.0, 1.0], 128), [43, 43, 42]);
        assert_eq!(shares(&[3.0], 5), [5]);
        assert_eq!(shares(&[1.0, 1000.0], 10), [0, 10]);
    }

    #[test]
    fn one_packed_source_is_drawn_as_its_row_of_tokens_is() {
        let tokenizer = tokenizer();
        let documents = vec!["A sentence of some words. ".repeat(50), "Another one. ".repeat(80)];
        let corpus = Corpus::of(documents.clone(), vec![]);
        let tokens = tokenizer.encode_documents(&documents).unwrap();
        let wanted = windows::sample(&tokens, tokenizer.bos(), 4, 32, 7).unwrap();
        assert_eq!(corpus.windows(&tokenizer, 4, 32, 7).unwrap(), wanted);
    }

    #[test]
    fn several_sources_come_mixed_and_in_their_shares() {
        let tokenizer = tokenizer();
        let (one, two) = (source("one", 3.0, Cut::Packed), source("7", 1.0, Cut::Within));
        let seven = tokenizer.encode(" 7").unwrap()[0];
        let corpus = Corpus { sources: vec![one, two] };
        let windows = corpus.windows(&tokenizer, 16, 24, 1).unwrap();
        let of_two: Vec<usize> = (0..16).filter(|&i| windows[i].contains(&seven)).collect();
        assert_eq!(of_two.len(), 4);
        assert!(of_two[0] < 12, "{of_two:?} are all at the end");
        assert_eq!(corpus.windows(&tokenizer, 16, 24, 1).unwrap(), windows);
        assert_ne!(corpus.windows(&tokenizer, 16, 24, 2).unwrap(), windows);
    }

    #[test]
    fn a_source_that_is_too_short_is_named() {
        let corpus = Corpus { sources: vec![source("short", 1.0, Cut::Within)] };
        let error = corpus.windows(&tokenizer(), 2, 5000, 0).unwrap_err();
        let told = error.chain().join(": ");
        assert!(told.contains("short") && told.contains("5000") && error.hint_text().is_some(), "{told}");
    }
}
