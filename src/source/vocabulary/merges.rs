//! The merges of a `tokenizer.json`: as GGUF spells them, or as scores for SentencePiece's way of merging.
//!
//! SentencePiece joins whichever neighbours make the token of the highest score; it has no list of merges. Where every way
//! to put a token together is a merge, and those of one token stand next to each other, as in every file that was
//! converted from SentencePiece, minus the place of a token's first merge is its score, and both ways of merging agree.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::files::SHOWN;
use crate::error::{Error, Result};
use crate::source::value::{quoted, shortened};

/// The merges of a `model`, best first, in either of the two ways in which files spell them.
pub(super) fn pairs(model: &Value) -> Result<Vec<(&str, &str)>> {
    let is_token = |text: &str| model["vocab"].get(text).is_some();
    let pair = |(index, merge): (usize, &'_ Value)| {
        let (left, right) = spelled(merge).ok_or_else(|| {
            Error::new(format!("merge {index} is not two tokens, but {}", shortened(&merge.to_string())))
        })?;
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|text| !is_token(text)) {
            let (left, right, missing) = (quoted(left, SHOWN), quoted(right, SHOWN), quoted(missing, SHOWN));
            return Err(Error::new(format!("merge {index} joins {left} and {right}, but {missing} is no token"))
                .hint("the file is damaged, or was edited by hand"));
        }
        Ok(())
    };
    let merges = || model["merges"].as_array().into_iter().flatten();
    merges().enumerate().try_for_each(pair)?;
    Ok(merges().filter_map(spelled).collect())
}

fn spelled(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
            _ => None,
        },
        _ => None,
    }
}

/// The merges as GGUF spells them.
pub(super) fn spaced(model: &Value) -> Result<Vec<String>> {
    let pairs = pairs(model)?.into_iter();
    Ok(pairs.map(|(left, right)| format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))).collect())
}

/// Of longer tokens nobody asks whether they can be put together otherwise: it takes the square of their length.
const LONGEST: usize = 256;

/// What merges amount to where only scores count.
pub(super) struct Scores<'a> {
    of: HashMap<String, f32>,
    last: f32,
    /// How many tokens can also be put together from two tokens that are no merge. Added tokens do not count.
    pub unlisted: usize,
    /// Such a token, with its two parts.
    pub example: Option<(&'a str, &'a str)>,
    /// How many tokens have merges that stand apart in the list, so that their order is lost. Added tokens do not count.
    pub apart: usize,
}

impl<'a> Scores<'a> {
    /// The scores that follow from the merges of a `tokenizer.json`.
    ///
    /// # Errors
    /// Merges that are not two tokens that make a third.
    pub fn new(tokenizer: &'a Value) -> Result<Scores<'a>> {
        let model = &tokenizer["model"];
        // These are matched in the text, so it does not matter how they are put together.
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added: HashSet<&str> = added.filter_map(|token| token["content"].as_str()).collect();
        let pairs = pairs(model)?;
        let listed: HashSet<(&str, &str)> = pairs.iter().copied().collect();
        let mut scores =
            Scores { of: HashMap::new(), last: 0.0 - pairs.len() as f32, unlisted: 0, example: None, apart: 0 };
        // Where the merges of the token last seen begin and end, to find those that come back later.
        let (mut finished, mut apart) = (HashSet::new(), HashSet::new());
        let mut current = String::new();
        for (rank, (left, right)) in pairs.iter().enumerate() {
            let joined = format!("{left}{right}");
            scores.of.entry(joined.clone()).or_insert(0.0 - rank as f32);
            if joined != current {
                if finished.contains(&joined) && !added.contains(joined.as_str()) {
                    apart.insert(joined.clone());
                }
                finished.insert(std::mem::replace(&mut current, joined));
            }
        }
        scores.apart = apart.len();
        let vocab = model["vocab"].as_object();
        let is_token = |text: &str| vocab.is_some_and(|vocab| vocab.contains_key(text));
        for text in vocab
            .into_iter()
            .flat_map(|vocab| vocab.keys())
            .filter(|text| text.len() <= LONGEST && !is_byte(text) && !added.contains(text.as_str()))
        {
            let halves = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
            let unlisted =
                halves.into_iter().find(|half| is_token(half.0) && is_token(half.1) && !listed.contains(half));
            scores.unlisted += usize::from(unlisted.is_some());
            scores.example = scores.example.or(unlisted);
        }
        Ok(scores)
    }

    /// The score of a token: the sooner it is made, the higher. Tokens that no merge makes come last.
    pub fn of(&self, text: &str) -> f32 {
        self.of.get(text).copied().unwrap_or(self.last)
    }
}

/// Whether a token stands for one byte of a character that is no token, as `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model(merges: Value) -> Value {
        let vocab = json!({"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "<0x0A>": 6});
        json!({"model": {"vocab": vocab, "merges": merges}})
    }

    #[test]
    fn a_score_is_the_place_of_the_first_merge() {
        let model = model(json!(["a b", "b c", "ab c", "a bc"]));
        let scores = Scores::new(&model).unwrap();
        assert_eq!(["ab", "bc", "abc", "a"].map(|text| scores.of(text)), [0.0, -1.0, -2.0, -4.0]);
        assert!(scores.of("ab").is_sign_positive(), "minus zero would come after zero");
        assert_eq!((scores.unlisted, scores.apart), (0, 0));
    }

    #[test]
    fn what_scores_cannot_say_is_found() {
        let missing = model(json!(["a b", "b c", "ab c"]));
        let scores = Scores::new(&missing).unwrap();
        assert_eq!((scores.unlisted, scores.example, scores.apart), (1, Some(("a", "bc")), 0));
        let apart = model(json!(["a b", "ab c", "b c", "a bc"]));
        let scores = Scores::new(&apart).unwrap();
        assert_eq!((scores.unlisted, scores.apart), (0, 1));
        for mut tokenizer in [missing.clone(), apart.clone()] {
            tokenizer["added_tokens"] = json!([{"content": "abc"}]);
            let scores = Scores::new(&tokenizer).unwrap();
            assert_eq!((scores.unlisted, scores.apart), (0, 0), "it is matched in the text");
        }
    }
}
