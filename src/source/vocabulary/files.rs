//! A vocabulary from the files of a checkpoint.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::sentencepiece::SentencePiece;
use super::slots::Slots;
use super::spm_files::{self, Gathered};
use super::{Kind, Vocabulary, merges, special, templates, token_type};
use crate::error::{Context, Error, Result};
use crate::source::pre_tokenizer;

/// More rows than any embedding has: Gemma's has 262,144. What a `config.json` claims is not yet compared with the weights here.
const MOST_ROWS: usize = 1 << 22;

/// How much of a token's text an error shows.
pub(super) const SHOWN: usize = 48;

/// What the files say, unread parts `null`.
pub(super) struct Files<'a> {
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    /// The older list of added tokens: text to id.
    pub added_tokens: Value,
    pub config: &'a Value,
    pub generation_config: Value,
    /// `tokenizer.model`.
    pub model: Option<SentencePiece>,
    /// The number of tokens, which is the number of embedding rows.
    pub rows: usize,
}

impl Vocabulary {
    /// Reads `tokenizer.json`, `tokenizer.model`, or both, and what their neighbours add to them. `vocab_size` is the
    /// number of embedding rows, `config` the checkpoint's `config.json`, and `pre` overrides what is derived from the
    /// pre-tokenizer of byte-level BPE.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a kind that GGUF does not have; tokens without a row.
    pub fn from_files(folder: &Path, vocab_size: usize, config: &Value, pre: Option<&str>) -> Result<Self> {
        if vocab_size > MOST_ROWS {
            return Err(Error::new(format!("{} says that there are {vocab_size} tokens", folder.display()))
                .hint(format!("vocab_size in config.json should be the embedding's rows, {MOST_ROWS} at most")));
        }
        let path = folder.join("tokenizer.json");
        let mut files = Files {
            tokenizer: read_json(&path)?,
            tokenizer_config: read_json(&folder.join("tokenizer_config.json"))?,
            special_tokens_map: read_json(&folder.join("special_tokens_map.json"))?,
            added_tokens: read_json(&folder.join("added_tokens.json"))?,
            config,
            generation_config: read_json(&folder.join("generation_config.json"))?,
            model: None,
            rows: vocab_size,
        };
        let kind = if is_byte_level(&files.tokenizer) { Kind::ByteLevel } else { Kind::SentencePiece };
        check_pre(kind, pre)?;
        let (pre, merges, gathered) = match kind {
            Kind::ByteLevel => files.byte_level(pre).context(|| format!("cannot use {}", path.display()))?,
            _ => {
                // Only here, because some checkpoints of the other kind have other things under this name.
                files.model = SentencePiece::open(&folder.join("tokenizer.model"))?;
                (DEFAULT_PRE, Vec::new(), files.sentencepiece(folder)?)
            }
        };
        let Gathered { tokens, add_space_prefix, notes } = gathered;
        let ids: HashMap<&str, u32> = tokens.texts.iter().map(String::as_str).zip(0..).collect();
        let special = special::find(&files, kind, &ids)?;
        let (chat_template, named_templates) = templates::read(folder, &files.tokenizer_config)?;
        Ok(Self {
            kind,
            pre: pre.to_owned(),
            tokens: tokens.texts,
            token_type: tokens.kinds,
            scores: if kind == Kind::SentencePiece { tokens.scores } else { Vec::new() },
            merges,
            special: special.ids,
            add_bos: special.add_bos,
            add_eos: special.add_eos,
            add_sep: special.add_sep,
            add_space_prefix: (kind == Kind::SentencePiece).then_some(add_space_prefix),
            chat_template,
            named_templates,
            normalizer: None,
            notes,
        })
    }
}

impl Files<'_> {
    /// The pre-tokenizer, the merges and the rest of a `tokenizer.json` of byte-level BPE.
    fn byte_level<'a>(&self, pre: Option<&'a str>) -> Result<(&'a str, Vec<String>, Gathered)> {
        let pre = pre.map_or_else(|| pre_tokenizer::derive(&self.tokenizer), Ok)?;
        let model = &self.tokenizer["model"];
        let vocab = model["vocab"].as_object().ok_or_else(|| Error::new("it has no model.vocab"))?;
        let mut slots = Slots::new(self.rows);
        for (text, id) in vocab {
            slots.place(text, id, token_type::NORMAL, 0.0)?;
        }
        slots.place_added(&self.tokenizer)?;
        let caveat = pre_tokenizer::by_name(pre).and_then(|pre| pre.caveat);
        let notes = caveat.into_iter().map(str::to_owned).collect();
        let gathered = Gathered { tokens: slots.finish()?, add_space_prefix: false, notes };
        Ok((pre, merges::spaced(model)?, gathered))
    }

    /// The vocabulary of `tokenizer.model`, or of a `tokenizer.json` that was made from one.
    fn sentencepiece(&mut self, folder: &Path) -> Result<Gathered> {
        let unusable = |file: &str| format!("cannot use {}", folder.join(file).display());
        let other = self.model.take_if(|model| !spm_files::agree(&self.tokenizer, model));
        if let Some(model) = &self.model {
            return spm_files::from_model(self, model).context(|| unusable("tokenizer.model"));
        }
        if self.tokenizer.is_null() {
            let path = folder.join("tokenizer.json");
            return Err(Error::new(format!("there is no {}, and no tokenizer.model", path.display())).hint(
                "fetch the checkpoint's tokenizer; \
                 transformers writes one: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            ));
        }
        let of_json = || unusable("tokenizer.json");
        check_kind(&self.tokenizer).context(of_json)?;
        let mut gathered = spm_files::from_json(self).context(of_json)?;
        if other.is_some() {
            gathered.notes.push("tokenizer.model is left aside: tokenizer.json has other tokens".into());
        }
        Ok(gathered)
    }
}

/// Refuses what `--pre` cannot be.
fn check_pre(kind: Kind, pre: Option<&str>) -> Result<()> {
    match (kind, pre) {
        (Kind::ByteLevel, Some(name)) if pre_tokenizer::by_name(name).is_none() => {
            Err(Error::usage(format!("llama.cpp knows no pre-tokenizer `{name}`")).hint(pre_tokenizer::advice()))
        }
        (Kind::SentencePiece, Some(name)) => {
            Err(Error::usage(format!("--pre {name} is for byte-level BPE, which this tokenizer is not"))
                .hint("leave out --pre: SentencePiece has no pre-tokenizer"))
        }
        _ => Ok(()),
    }
}

/// The value of `tokenizer.ggml.pre` where there is no pre-tokenizer.
const DEFAULT_PRE: &str = "default";

/// Whether the model of a `tokenizer.json` is BPE; files older than the field `type` hold BPE when they hold merges.
fn is_bpe(model: &Value) -> bool {
    matches!(model["type"].as_str(), Some("BPE") | None) && model["merges"].is_array()
}

fn has_marks(model: &Value) -> bool {
    let suffixed = |key: &str| model[key].as_str().is_some_and(|text| !text.is_empty());
    suffixed("continuing_subword_prefix") || suffixed("end_of_word_suffix")
}

fn is_byte_level(tokenizer: &Value) -> bool {
    let model = &tokenizer["model"];
    let bytes = has_step(&tokenizer["pre_tokenizer"], "ByteLevel") || has_step(&tokenizer["decoder"], "ByteLevel");
    is_bpe(model) && model["byte_fallback"] != true && !has_marks(model) && bytes
}

/// Refuses all but BPE with byte fallback, by the name of what was found.
fn check_kind(tokenizer: &Value) -> Result<()> {
    let model = &tokenizer["model"];
    let found = match model["type"].as_str() {
        _ if is_bpe(model) && has_marks(model) => "BPE with marked subwords",
        _ if is_bpe(model) && model["byte_fallback"] == true => return Ok(()),
        _ if is_bpe(model) => "BPE on characters, without byte fallback",
        Some("BPE") => "BPE without merges",
        Some("Unigram") => "Unigram",
        Some(other) => other,
        None => "of no known kind",
    };
    let hint = if found == "Unigram" {
        "only BPE can be read from it; put the tokenizer.model that it was made from beside it"
    } else {
        "only byte-level BPE is supported, as in Llama 3, Qwen or GPT-2, and SentencePiece, as in Llama 2 or Gemma"
    };
    Err(Error::new(format!("its model is {found}")).hint(hint))
}

fn has_step(step: &Value, kind: &str) -> bool {
    let parts = ["pretokenizers", "decoders"].into_iter().filter_map(|key| step[key].as_array()).flatten();
    step["type"] == kind || parts.into_iter().any(|part| has_step(part, kind))
}

/// The tokens that are matched in the text itself, before anything else happens to it.
pub(super) fn added_tokens(tokenizer: &Value) -> impl Iterator<Item = &Value> {
    tokenizer["added_tokens"].as_array().into_iter().flatten()
}

/// The text of a file, or `None` when there is none.
pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read {}", path.display())),
    }
}

/// The content of a JSON file, `null` when there is none.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| {
        Error::new(format!("{}, line {}, column {}: not valid JSON", path.display(), error.line(), error.column()))
            .because(error)
            .hint("the download may be incomplete; fetch the file again")
    })
}

#[cfg(test)]
mod tests;
