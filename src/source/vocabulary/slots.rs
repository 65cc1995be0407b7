//! The tokens of a vocabulary while they are gathered: one place for each row of the embedding.

use std::collections::HashMap;

use serde_json::Value;

use super::files::{Files, SHOWN, added_tokens};
use super::token_type;
use crate::error::{Error, Result};
use crate::source::value::quoted;

/// The score of a token that is matched in the text itself, as llama.cpp's converter sets it.
const ADDED: f32 = -1000.0;
/// The score of a filler.
const FILLER: f32 = -10000.0;

/// The rows, of which some have no token yet.
pub(super) struct Slots {
    rows: Vec<Option<Slot>>,
    /// Added tokens for which the embedding has no row.
    pub beyond: Vec<String>,
}

struct Slot {
    text: String,
    kind: i32,
    score: f32,
}

/// The finished lists, as long as the embedding has rows.
#[derive(Default)]
pub(super) struct Tokens {
    pub texts: Vec<String>,
    pub kinds: Vec<i32>,
    pub scores: Vec<f32>,
}

impl Slots {
    pub fn new(rows: usize) -> Slots {
        Slots { rows: (0..rows).map(|_| None).collect(), beyond: Vec::new() }
    }

    /// Puts a token in its place.
    ///
    /// # Errors
    /// There is no such place, or another token is there.
    pub fn place(&mut self, text: &str, id: &Value, kind: i32, score: f32) -> Result<()> {
        let (rows, shown) = (self.rows.len(), || quoted(text, SHOWN));
        let Some(id) = id.as_u64() else {
            return Err(Error::new(format!("token {} has no valid id, but {id}", shown())));
        };
        let slot = usize::try_from(id).ok().and_then(|id| self.rows.get_mut(id)).ok_or_else(|| {
            Error::new(format!("token {} has id {id}, but the embedding has only {rows} rows", shown())).hint(
                "the tokenizer is that of another checkpoint, or the embedding was not resized after tokens were added",
            )
        })?;
        match slot {
            Some(other) if other.text != text => {
                let other = quoted(&other.text, SHOWN);
                Err(Error::new(format!("tokens {other} and {} both have id {id}", shown())))
            }
            _ => {
                *slot = Some(Slot { text: text.to_owned(), kind, score });
                Ok(())
            }
        }
    }

    /// Puts the added tokens of `tokenizer.json` in their places.
    ///
    /// # Errors
    /// As [`Slots::place`], or a token without text.
    pub fn place_added(&mut self, tokenizer: &Value) -> Result<()> {
        for token in added_tokens(tokenizer) {
            let text =
                token["content"].as_str().ok_or_else(|| Error::new(format!("added token {token} has no content")))?;
            self.place(text, &token["id"], added_kind(text, &token["special"]), ADDED)?;
        }
        Ok(())
    }

    /// Puts the added tokens of all files in their places, later files over earlier ones, as llama.cpp's converter does
    /// for SentencePiece. Those beyond the embedding are left out: such checkpoints are common, and no text that the
    /// model was trained on has them.
    ///
    /// # Errors
    /// A token without text or id.
    pub fn replace_added(&mut self, files: &Files) -> Result<()> {
        for (text, id) in files.added_tokens.as_object().into_iter().flatten() {
            self.replace(Some(text), id.as_u64(), added_kind(text, &Value::Null))?;
        }
        for (id, token) in files.tokenizer_config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let text = token["content"].as_str();
            self.replace(text, id.parse().ok(), added_kind(text.unwrap_or_default(), &token["special"]))?;
        }
        for token in added_tokens(&files.tokenizer) {
            let text = token["content"].as_str();
            self.replace(text, token["id"].as_u64(), added_kind(text.unwrap_or_default(), &token["special"]))?;
        }
        Ok(())
    }

    fn replace(&mut self, text: Option<&str>, id: Option<u64>, kind: i32) -> Result<()> {
        let (Some(text), Some(id)) = (text, id) else {
            let shown = quoted(text.unwrap_or_default(), SHOWN);
            return Err(Error::new(format!("an added token ({shown}) has no content or no valid id")));
        };
        match usize::try_from(id).ok().and_then(|id| self.rows.get_mut(id)) {
            Some(slot) => *slot = Some(Slot { text: text.to_owned(), kind, score: ADDED }),
            None if self.beyond.iter().any(|other| other == text) => {}
            None => self.beyond.push(text.to_owned()),
        }
        Ok(())
    }

    /// Fills the rows that have no token.
    ///
    /// # Errors
    /// Two rows have the same text.
    pub fn finish(self) -> Result<Tokens> {
        let mut tokens = Tokens::default();
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

fn added_kind(text: &str, special: &Value) -> i32 {
    if *special == true || looks_special(text) { token_type::CONTROL } else { token_type::USER_DEFINED }
}

/// Some checkpoints forgot to call their control tokens special.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{FF5C}", "\u{FF5C}>")
        || between("<unused", ">")
}
