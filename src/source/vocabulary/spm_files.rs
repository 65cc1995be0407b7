//! The vocabularies of SentencePiece's kind: from `tokenizer.model`, or from a `tokenizer.json` converted from one.

use std::collections::HashSet;

use serde_json::Value;

use super::files::{DEFAULT_PRE, Files, Gathered, SHOWN, vocab_of};
use super::merges::{Scores, is_byte};
use super::sentencepiece::SentencePiece;
use super::slots::{Conflict, Slots, Tokens};
use super::spaces::Spaces;
use super::spm::SPACE;
use super::{Kind, added, token_type};
use crate::error::{Error, Result};
use crate::source::value::quoted;

/// Whether `tokenizer.json` and `tokenizer.model` give the same text to each id.
pub(super) fn agree(tokenizer: &Value, model: &SentencePiece) -> bool {
    let vocab = &tokenizer["model"]["vocab"];
    let listed = vocab.as_object().into_iter().flatten().map(|(text, id)| (text.as_str(), id.as_u64()));
    let numbered = vocab.as_array().into_iter().flatten().enumerate();
    let numbered = numbered.map(|(id, entry)| (entry[0].as_str().unwrap_or_default(), Some(id as u64)));
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added: HashSet<&str> = added.filter_map(|token| token["content"].as_str()).collect();
    listed.chain(numbered).all(|(text, id)| {
        let piece = id.and_then(|id| model.pieces.get(usize::try_from(id).ok()?));
        piece.is_some_and(|piece| piece.text == text) || added.contains(text)
    })
}

/// The vocabulary of `tokenizer.model`.
///
/// # Errors
/// Words or single characters as pieces; spaces behind words; tokens that have no place.
pub(super) fn from_model(files: &Files, model: &SentencePiece) -> Result<Gathered> {
    let mut notes = Vec::new();
    match model.algorithm {
        1 => notes.push(
            "tokenizer.model is a unigram model: llama.cpp joins the likeliest pairs instead of looking for the \
             likeliest tokens of a whole text, so that some words become other tokens"
                .to_owned(),
        ),
        2 => {}
        other => {
            return Err(Error::new(format!("tokenizer.model is of type {other}, neither unigram (1) nor BPE (2)"))
                .hint("GGUF has no such vocabulary; llama.cpp cannot run this checkpoint"));
        }
    }
    if model.whitespace_as_suffix {
        return Err(Error::new("tokenizer.model puts the space of a word behind it, not in front")
            .hint("llama.cpp cannot tokenize text this way"));
    }
    if model.normalizes {
        notes.push(
            "tokenizer.model replaces characters (by Unicode's NFKC, for example), which llama.cpp does not".into(),
        );
    }
    if model.remove_extra_whitespaces {
        notes.push("tokenizer.model makes runs of spaces into one, which llama.cpp does not".into());
    }
    let mut slots = Slots::new(files.rows)?;
    for (id, piece) in model.pieces.iter().enumerate() {
        slots.place(&piece.text, &id.into(), piece.kind, piece.score + 0.0)?;
    }
    slots.add(&added::of_all(files)?, Conflict::Replace)?;
    // What Hugging Face's own file says comes first, because that is what the model was trained or tuned with.
    let spaces = if files.tokenizer.is_null() { None } else { Spaces::read(&files.tokenizer).ok() };
    let configured = || files.tokenizer_config["add_prefix_space"].as_bool();
    let prefix = spaces.filter(|spaces| spaces.escaped).map(|spaces| spaces.prefix).or_else(configured);
    finish(slots, prefix.unwrap_or(model.add_dummy_prefix), notes)
}

/// The vocabulary of a `tokenizer.json` with byte fallback.
///
/// # Errors
/// Text that is cut before it is merged; merges or tokens that make no sense.
pub(super) fn from_json(files: &Files) -> Result<Gathered> {
    let model = &files.tokenizer["model"];
    let spaces = escaped_spaces(&files.tokenizer)?;
    let scores = Scores::new(&files.tokenizer)?;
    let mut notes = spaces.notes();
    if let Some((left, right)) = scores.example {
        notes.push(format!(
            "{} tokens can be put together in ways that are no merge ({} and {}, for example), which llama.cpp does too: \
             in rare places text becomes other tokens",
            scores.unlisted,
            quoted(left, SHOWN),
            quoted(right, SHOWN)
        ));
    }
    if scores.apart > 0 {
        notes.push(format!(
            "the merges of {} tokens stand apart in tokenizer.json, and llama.cpp knows only the first of each: in rare \
             places text becomes other tokens",
            scores.apart
        ));
    }
    let vocab = vocab_of(model)?;
    let mut inner = vocab.keys().filter(|text| text.trim_start_matches(SPACE).contains(SPACE));
    if let Some(text) = inner.next().filter(|_| spaces.split) {
        notes.push(format!(
            "tokenizer.json never merges over a space, but llama.cpp does, as in the token {}",
            quoted(text, SHOWN)
        ));
    }
    let mut slots = Slots::new(files.rows)?;
    for (text, id) in vocab {
        let (kind, score) = if is_byte(text) {
            (token_type::BYTE, 0.0)
        } else if model["unk_token"] == **text {
            (token_type::UNKNOWN, 0.0)
        } else {
            (token_type::NORMAL, scores.of(text))
        };
        slots.place(text, id, kind, score)?;
    }
    slots.add(&added::of_all(files)?, Conflict::Replace)?;
    finish(slots, spaces.prefix, notes)
}

/// What a `tokenizer.json` does with spaces, which is to replace them by U+2581.
///
/// # Errors
/// It does not, or cuts text.
pub(super) fn escaped_spaces(tokenizer: &Value) -> Result<Spaces> {
    let spaces = Spaces::read(tokenizer)?;
    if spaces.words {
        return Err(Error::new("it drops all whitespace, and llama.cpp does not cut text like this before it merges"));
    }
    if !spaces.escaped {
        return Err(Error::new("it does not replace spaces by U+2581").hint(
            "llama.cpp always does so with such a vocabulary; put a tokenizer.model beside it, if there is one",
        ));
    }
    Ok(spaces)
}

/// A note on bytes that no token stands for, where llama.cpp `does` something with a character that is no token.
pub(super) fn missing_bytes(tokens: &Tokens, does: &str) -> Option<String> {
    let missing = 256usize.saturating_sub(tokens.texts.iter().filter(|text| is_byte(text)).count());
    let note =
        || format!("{missing} of the 256 byte tokens are missing: llama.cpp {does} a character that is no token");
    (missing > 0).then(note)
}

fn finish(slots: Slots, add_space_prefix: bool, mut notes: Vec<String>) -> Result<Gathered> {
    let tokens = slots.finish()?;
    notes.extend(missing_bytes(&tokens, "stops at"));
    Ok(Gathered {
        kind: Kind::SentencePiece,
        pre: DEFAULT_PRE.to_owned(),
        tokens,
        merges: Vec::new(),
        add_space_prefix: Some(add_space_prefix),
        unigram: None,
        notes,
    })
}

#[cfg(test)]
mod tests;
