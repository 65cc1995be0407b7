//! The added tokens of a checkpoint: those that are matched in the text itself, before anything else happens to it.
//!
//! They stand in up to five files. `tokenizer.json` counts most; then come `added_tokens_decoder` of `tokenizer_config.json`
//! and the older `added_tokens.json`, which give ids too; and last those that `tokenizer_config.json` or
//! `special_tokens_map.json` only names, which transformers adds with the next free ids.

use std::collections::HashSet;

use serde_json::Value;

use super::files::{Files, SHOWN};
use super::token_type;
use crate::error::{Error, Result};
use crate::source::value::quoted;

/// The keys under which files name tokens, in the order in which transformers adds them.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Further special tokens, as a list or by names of their own.
const FURTHER: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// An added token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Added {
    /// Its text.
    pub text: String,
    /// The id that its file gives it.
    pub id: Option<u64>,
    /// [`token_type::CONTROL`] or [`token_type::USER_DEFINED`].
    pub kind: i32,
    /// Whether it stands in `tokenizer.json`.
    pub own: bool,
}

/// The added tokens of `tokenizer.json`.
///
/// # Errors
/// A token without text or id.
pub(super) fn of_tokenizer(tokenizer: &Value) -> Result<Vec<Added>> {
    let tokens = tokenizer["added_tokens"].as_array().into_iter().flatten();
    tokens.map(|token| Added::new(token["content"].as_str(), token["id"].as_u64(), &token["special"], true)).collect()
}

/// The added tokens of all files, each text once, those that count most first.
///
/// # Errors
/// A token without text or id, where it needs one.
pub(super) fn of_all(files: &Files) -> Result<Vec<Added>> {
    let mut all = of_tokenizer(&files.tokenizer)?;
    let mut texts: HashSet<String> = all.iter().map(|token| token.text.clone()).collect();
    let named = named(files);
    let decoder = files.tokenizer_config["added_tokens_decoder"].as_object().into_iter().flatten();
    let decoder = decoder.map(|(id, token)| (token["content"].as_str(), id.parse().ok(), token["special"].clone()));
    let older = files.added_tokens.as_object().into_iter().flatten();
    let older = older.map(|(text, id)| (Some(text.as_str()), id.as_u64(), named.contains(text).into()));
    for (text, id, special) in decoder.chain(older) {
        let token = Added::new(text, id, &special, false)?;
        if texts.insert(token.text.clone()) {
            all.push(token);
        }
    }
    let new = named.into_iter().filter(|text| !text.is_empty() && texts.insert(text.clone()));
    all.extend(new.map(|text| Added { text, id: None, kind: token_type::CONTROL, own: false }));
    Ok(all)
}

impl Added {
    fn new(text: Option<&str>, id: Option<u64>, special: &Value, own: bool) -> Result<Added> {
        let (Some(text), Some(id)) = (text, id) else {
            let shown = quoted(text.unwrap_or_default(), SHOWN);
            return Err(Error::new(format!("an added token ({shown}) has no content or no valid id")));
        };
        let special = *special == true || looks_special(text);
        let kind = if special { token_type::CONTROL } else { token_type::USER_DEFINED };
        Ok(Added { text: text.to_owned(), id: Some(id), kind, own })
    }
}

/// The special tokens that files name, in transformers' order. It reads `special_tokens_map.json`, which then counts more,
/// only where `tokenizer_config.json` has no list of added tokens.
fn named(files: &Files) -> Vec<String> {
    let map = if files.tokenizer_config["added_tokens_decoder"].is_object() {
        &Value::Null
    } else {
        &files.special_tokens_map
    };
    let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned);
    let single = NAMES.iter().filter_map(|key| text(&map[*key]).or_else(|| text(&files.tokenizer_config[*key])));
    let lists = FURTHER.iter().flat_map(|key| [&files.tokenizer_config[*key], &map[*key]]);
    let further = lists.flat_map(|list| {
        let (list, by_name) = (list.as_array().into_iter().flatten(), list.as_object().into_iter().flatten());
        list.chain(by_name.map(|(_, token)| token)).filter_map(text)
    });
    single.chain(further).collect()
}

/// Some checkpoints forgot to call their control tokens special.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{FF5C}", "\u{FF5C}>")
        || between("<unused", ">")
}
