//! A vocabulary from the files of a checkpoint.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::{Vocabulary, special, token_type};
use crate::error::{Context, Error, Result};
use crate::source::pre_tokenizer;
use crate::source::value::quoted;

/// How much of a token's text an error shows.
const SHOWN: usize = 48;

/// What the files say, unread parts `null`.
pub(super) struct Files<'a> {
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    pub config: &'a Value,
    pub generation_config: Value,
    /// The number of tokens, which is the number of embedding rows.
    pub rows: usize,
}

impl Vocabulary {
    /// Reads `tokenizer.json` and what its neighbours add to it. `vocab_size` is the number of embedding rows, `config`
    /// the checkpoint's `config.json`, and `pre` overrides what is derived from the pre-tokenizer.
    pub fn from_files(folder: &Path, vocab_size: usize, config: &Value, pre: Option<&str>) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let files = Files {
            tokenizer: read_json(&path)?,
            tokenizer_config: read_json(&folder.join("tokenizer_config.json"))?,
            special_tokens_map: read_json(&folder.join("special_tokens_map.json"))?,
            config,
            generation_config: read_json(&folder.join("generation_config.json"))?,
            rows: vocab_size,
        };
        if files.tokenizer.is_null() {
            return Err(Error::new(format!("there is no {}", path.display())).hint(
                "only Hugging Face's tokenizer.json is read; \
                 transformers writes one: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            ));
        }
        let unusable = || format!("cannot use {}", path.display());
        check_kind(&files.tokenizer).context(unusable)?;
        let pre = match pre {
            Some(name) => pre_tokenizer::by_name(name).map(|_| name).ok_or_else(|| {
                Error::usage(format!("llama.cpp knows no pre-tokenizer `{name}`")).hint(pre_tokenizer::advice())
            })?,
            None => pre_tokenizer::derive(&files.tokenizer).context(unusable)?,
        };
        let (tokens, token_type) = tokens(&files.tokenizer, vocab_size).context(unusable)?;
        let merges = merges(&files.tokenizer["model"]).context(unusable)?;
        let special = special::find(&files)?;
        let (chat_template, named_templates) = templates(folder, &files.tokenizer_config)?;
        Ok(Self {
            pre: pre.to_owned(),
            tokens,
            token_type,
            merges,
            special: special.ids,
            add_bos: special.add_bos,
            add_eos: special.add_eos,
            add_sep: special.add_sep,
            chat_template,
            named_templates,
        })
    }
}

/// Refuses all but byte-level BPE, by the name of what was found.
fn check_kind(tokenizer: &Value) -> Result<()> {
    let model = &tokenizer["model"];
    let suffixed = |key: &str| model[key].as_str().is_some_and(|text| !text.is_empty());
    let found = match model["type"].as_str() {
        // Files older than the field hold BPE when they hold merges.
        Some("BPE") | None if model["merges"].is_array() => {
            if model["byte_fallback"] == true {
                "BPE with byte fallback, as converted from SentencePiece"
            } else if suffixed("continuing_subword_prefix") || suffixed("end_of_word_suffix") {
                "BPE with marked subwords"
            } else if !has_step(&tokenizer["pre_tokenizer"], "ByteLevel")
                && !has_step(&tokenizer["decoder"], "ByteLevel")
            {
                "BPE on characters, not on bytes"
            } else {
                return Ok(());
            }
        }
        Some("BPE") => "BPE without merges",
        Some(other) => other,
        None => "of no known kind",
    };
    Err(Error::new(format!("its model is {found}"))
        .hint("only byte-level BPE is supported, as in Llama 3, Qwen or GPT-2"))
}

fn has_step(step: &Value, kind: &str) -> bool {
    let parts = ["pretokenizers", "decoders"].into_iter().filter_map(|key| step[key].as_array()).flatten();
    step["type"] == kind || parts.into_iter().any(|part| has_step(part, kind))
}

/// Every row's token and what it is for; rows without one get a filler.
fn tokens(tokenizer: &Value, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut slots: Vec<Option<(String, i32)>> = vec![None; rows];
    let mut place = |text: &str, id: &Value, kind: i32| {
        let shown = || quoted(text, SHOWN);
        let Some(id) = id.as_u64() else {
            return Err(Error::new(format!("token {} has no valid id, but {id}", shown())));
        };
        let slot = usize::try_from(id).ok().and_then(|id| slots.get_mut(id)).ok_or_else(|| {
            Error::new(format!("token {} has id {id}, but the embedding has only {rows} rows", shown())).hint(
                "the tokenizer is that of another checkpoint, or the embedding was not resized after tokens were added",
            )
        })?;
        match slot {
            Some((other, _)) if other != text => {
                let other = quoted(other, SHOWN);
                Err(Error::new(format!("tokens {other} and {} both have id {id}", shown())))
            }
            _ => {
                *slot = Some((text.to_owned(), kind));
                Ok(())
            }
        }
    };

    let vocab = tokenizer["model"]["vocab"].as_object().ok_or_else(|| Error::new("it has no model.vocab"))?;
    for (text, id) in vocab {
        place(text, id, token_type::NORMAL)?;
    }
    for token in added_tokens(tokenizer) {
        let text =
            token["content"].as_str().ok_or_else(|| Error::new(format!("added token {token} has no content")))?;
        let control = token["special"] == true || looks_special(text);
        place(text, &token["id"], if control { token_type::CONTROL } else { token_type::USER_DEFINED })?;
    }

    let (mut tokens, mut kinds) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for (id, slot) in slots.into_iter().enumerate() {
        let (mut text, kind) = slot.unwrap_or_else(|| (format!("[PAD{id}]"), token_type::UNUSED));
        if kind == token_type::USER_DEFINED {
            text = text.replace('\u{2581}', " "); // llama.cpp wants these as they stand in text
        }
        tokens.push(text);
        kinds.push(kind);
    }
    let mut ids = HashMap::with_capacity(rows);
    for (id, text) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(text, id) {
            let shown = quoted(text, SHOWN);
            return Err(Error::new(format!("token {shown} occurs twice, with ids {first} and {id}"))
                .hint("llama.cpp refuses such a vocabulary; rename one of them, if it is not used"));
        }
    }
    Ok((tokens, kinds))
}

/// The tokens that are matched in the text itself, before anything else happens to it.
pub(super) fn added_tokens(tokenizer: &Value) -> impl Iterator<Item = &Value> {
    tokenizer["added_tokens"].as_array().into_iter().flatten()
}

/// Some checkpoints forgot to call their control tokens special.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{FF5C}", "\u{FF5C}>")
        || between("<unused", ">")
}

/// The merges as GGUF spells them, whichever of its two spellings the file has.
fn merges(model: &Value) -> Result<Vec<String>> {
    let is_token = |text: &str| model["vocab"].get(text).is_some();
    let pair = |(index, merge): (usize, &Value)| {
        let (left, right) = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| Error::new(format!("merge {index} is not two tokens, but {merge}")))?;
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|text| !is_token(text)) {
            let (left, right, missing) = (quoted(left, SHOWN), quoted(right, SHOWN), quoted(missing, SHOWN));
            return Err(Error::new(format!("merge {index} joins {left} and {right}, but {missing} is no token"))
                .hint("the file is damaged, or was edited by hand"));
        }
        Ok(format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ")))
    };
    model["merges"].as_array().into_iter().flatten().enumerate().map(pair).collect()
}

/// The default chat template, and others with their names.
type Templates = (Option<String>, Vec<(String, String)>);

fn templates(folder: &Path, tokenizer_config: &Value) -> Result<Templates> {
    let inline = &tokenizer_config["chat_template"];
    if !inline.is_null() {
        return Ok(sort_templates(inline));
    }
    let Some(default) = read_text(&folder.join("chat_template.jinja"))? else {
        let json = read_json(&folder.join("chat_template.json"))?;
        return Ok(sort_templates(&json["chat_template"]));
    };
    let further = folder.join("additional_chat_templates");
    let mut named = Vec::new();
    if further.is_dir() {
        let failed = || format!("cannot list {}", further.display());
        for entry in std::fs::read_dir(&further).context(failed)? {
            let path = entry.context(failed)?.path();
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .filter(|_| path.extension().is_some_and(|it| it == "jinja"));
            if let (Some(stem), Some(text)) = (stem, read_text(&path)?) {
                named.push((key_name(stem), text));
            }
        }
        named.sort();
        named.dedup_by(|a, b| a.0 == b.0);
    }
    Ok((Some(default), named))
}

/// One template, or a list of `{name, template}` of which the one called "default" is the default.
fn sort_templates(value: &Value) -> Templates {
    let (mut default, mut named) = (value.as_str().map(str::to_owned), Vec::<(String, String)>::new());
    for entry in value.as_array().into_iter().flatten() {
        let (Some(name), Some(text)) = (entry["name"].as_str().map(key_name), entry["template"].as_str()) else {
            continue;
        };
        if name == "default" {
            default = Some(text.to_owned());
        } else if !name.is_empty() && named.iter().all(|(other, _)| *other != name) {
            named.push((name, text.to_owned()));
        }
    }
    (default, named)
}

/// A template's name becomes a part of a key, where llama.cpp's converter allows only letters and digits.
fn key_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// The text of a file, or `None` when there is none.
fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read {}", path.display())),
    }
}

/// The content of a JSON file, `null` when there is none.
fn read_json(path: &Path) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| {
        Error::new(format!("{}, line {}, column {}: not valid JSON", path.display(), error.line(), error.column()))
            .because(error)
            .hint("the download may be incomplete; fetch the file again")
    })
}

#[cfg(test)]
mod tests;
