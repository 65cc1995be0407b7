//! The tokens of a vocabulary while they are gathered: one place for each row of the embedding.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::added::Added;
use super::files::SHOWN;
use super::token_type;
use crate::error::{Error, Result};
use crate::source::value::{quoted, shortened};

/// The score of a token that is matched in the text itself, as llama.cpp's converter sets it.
pub(super) const ADDED: f32 = -1000.0;
/// The score of a filler.
const FILLER: f32 = -10000.0;
/// No embedding has so many rows (Gemma's have 262144); it bounds what a wrong file can make us reserve.
pub(super) const MAX_ROWS: usize = 1 << 22;

/// The rows, of which some have no token yet.
pub(super) struct Slots {
    rows: Vec<Option<Slot>>,
    /// Added tokens for which the embedding has no row.
    beyond: Left,
    /// Added tokens whose row another token has.
    taken: Left,
    /// Added tokens with an id beside that which the vocabulary has for their text.
    twice: Left,
}

struct Slot {
    text: String,
    kind: i32,
    score: f32,
}

/// What counts where an added token has the id of another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conflict {
    /// The vocabulary. Two texts for one id in `tokenizer.json` itself are an error.
    KeepOld,
    /// The added token: SentencePiece's vocabularies have placeholders.
    Replace,
}

/// How many tokens were left out, and the first of them.
#[derive(Default)]
struct Left {
    count: usize,
    first: String,
}

/// The finished lists, as long as the embedding has rows.
#[derive(Default)]
pub(super) struct Tokens {
    pub texts: Vec<String>,
    pub kinds: Vec<i32>,
    pub scores: Vec<f32>,
    /// What was left out.
    pub notes: Vec<String>,
}

impl Slots {
    /// # Errors
    /// More rows than any vocabulary has.
    pub fn new(rows: usize) -> Result<Slots> {
        if rows > MAX_ROWS {
            return Err(Error::new(format!(
                "the embedding has {rows} rows, and no vocabulary has more than {MAX_ROWS} tokens"
            )));
        }
        let rows = (0..rows).map(|_| None).collect();
        Ok(Slots { rows, beyond: Left::default(), taken: Left::default(), twice: Left::default() })
    }

    /// Puts a token of the vocabulary in its place.
    ///
    /// # Errors
    /// There is no such place, or another token is there.
    pub fn place(&mut self, text: &str, id: &Value, kind: i32, score: f32) -> Result<()> {
        let (rows, shown) = (self.rows.len(), || quoted(text, SHOWN));
        let Some(id) = id.as_u64() else {
            let id = shortened(&id.to_string());
            return Err(Error::new(format!("token {} has no valid id, but {id}", shown())));
        };
        let slot = usize::try_from(id).ok().and_then(|id| self.rows.get_mut(id)).ok_or_else(|| {
            Error::new(format!("token {} has id {id}, but the embedding has only {rows} rows", shown())).hint(
                "the tokenizer is that of another checkpoint, or the embedding was not resized after tokens were added",
            )
        })?;
        match slot {
            Some(other) if other.text != text => Err(both_have(&other.text, text, id)),
            _ => {
                *slot = Some(Slot { text: text.to_owned(), kind, score });
                Ok(())
            }
        }
    }

    /// Puts added tokens in their places, which is where transformers has them: a text that the vocabulary has stays there,
    /// and a token without an id gets the next one. Those beyond the embedding are left out: such checkpoints are common, and
    /// no text that the model was trained on has them.
    ///
    /// # Errors
    /// Two tokens of `tokenizer.json` with the same id.
    pub fn add(&mut self, added: &[Added], conflict: Conflict) -> Result<()> {
        let occupied =
            self.rows.iter().enumerate().filter_map(|(id, slot)| Some((slot.as_ref()?.text.as_str(), id as u64)));
        let of_text: HashMap<&str, u64> = occupied.collect();
        let text_at = |id: u64| self.rows.get(usize::try_from(id).ok()?)?.as_ref().map(|slot| slot.text.as_str());
        let renamed = |token: &&Added| token.id.and_then(text_at).is_some_and(|old| old != token.text);
        let renamed: HashSet<u64> = match conflict {
            Conflict::KeepOld => HashSet::new(),
            Conflict::Replace => added.iter().filter(renamed).filter_map(|token| token.id).collect(),
        };
        let mut next = of_text
            .values()
            .copied()
            .chain(added.iter().filter_map(|token| token.id))
            .max()
            .map_or(0, |id| id.saturating_add(1));
        let ids: Vec<u64> = added
            .iter()
            .map(|token| match (of_text.get(token.text.as_str()), token.id) {
                (Some(old), Some(id)) if *old != id && renamed.contains(old) => id,
                (Some(old), _) => *old,
                (None, Some(id)) => id,
                (None, None) => {
                    next = next.saturating_add(1);
                    next - 1
                }
            })
            .collect();
        let mut placed = HashSet::new();
        for (token, id) in added.iter().zip(ids) {
            if token.id.is_some_and(|own| own != id) {
                self.twice.push(&token.text);
            }
            let Some(slot) = usize::try_from(id).ok().and_then(|id| self.rows.get_mut(id)) else {
                self.beyond.push(&token.text);
                continue;
            };
            let new = Slot { text: token.text.clone(), kind: token.kind, score: ADDED };
            match slot {
                // Only named: what the vocabulary says of it is more.
                Some(old) if token.id.is_none() && old.kind != token_type::NORMAL => {}
                Some(old) if old.text != token.text && (conflict == Conflict::KeepOld || placed.contains(&id)) => {
                    if token.own {
                        return Err(both_have(&old.text, &token.text, id));
                    }
                    self.taken.push(&token.text);
                }
                _ => *slot = Some(new),
            }
            placed.insert(id);
        }
        Ok(())
    }

    /// Fills the rows that have no token.
    ///
    /// # Errors
    /// Two rows have the same text.
    pub fn finish(self) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        for (left, why) in [
            (&self.beyond, "are left out: the embedding has no rows for them"),
            (&self.taken, "are left out: other tokens have their ids"),
            (&self.twice, "have an id of their own besides that of the vocabulary, which counts"),
        ] {
            if left.count > 0 {
                tokens.notes.push(format!("{} added tokens ({} first) {why}", left.count, quoted(&left.first, SHOWN)));
            }
        }
        for (id, slot) in self.rows.into_iter().enumerate() {
            let filler = || Slot { text: format!("[PAD{id}]"), kind: token_type::UNUSED, score: FILLER };
            let Slot { mut text, kind, score } = slot.unwrap_or_else(filler);
            if kind == token_type::USER_DEFINED {
                text = text.replace('\u{2581}', " "); // llama.cpp wants these as they stand in text
            }
            tokens.texts.push(text);
            tokens.kinds.push(kind);
            tokens.scores.push(score);
        }
        let mut ids = HashMap::with_capacity(tokens.texts.len());
        for (id, text) in tokens.texts.iter().enumerate() {
            if let Some(first) = ids.insert(text, id) {
                let shown = quoted(text, SHOWN);
                return Err(Error::new(format!("token {shown} occurs twice, with ids {first} and {id}"))
                    .hint("llama.cpp refuses such a vocabulary; rename one of them, if it is not used"));
            }
        }
        Ok(tokens)
    }
}

impl Left {
    fn push(&mut self, text: &str) {
        if self.count == 0 {
            self.first = text.to_owned();
        }
        self.count += 1;
    }
}

fn both_have(one: &str, other: &str, id: u64) -> Error {
    Error::new(format!("tokens {} and {} both have id {id}", quoted(one, SHOWN), quoted(other, SHOWN)))
}
