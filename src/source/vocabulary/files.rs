//! A vocabulary from the files of a checkpoint.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::sentencepiece::SentencePiece;
use super::slots::{Conflict, MAX_ROWS, Slots, Tokens};
use super::vocab_and_merges;
use super::{
    Kind, UnigramNormalizer, Vocabulary, added, merges, special, spm_files, tekken, templates, token_type, unigram,
};
use crate::error::{Context, Error, Result};
use crate::source::value::quoted;
use crate::source::{json, lfs, pre_tokenizer};

/// How much of a token's text an error shows.
pub(super) const SHOWN: usize = 48;
/// No known file of a tokenizer comes near this size (Gemma's have 33 MB); it bounds what a wrong file can make us read.
pub(super) const MAX_BYTES: u64 = 128 << 20;

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

/// What of a vocabulary depends on its kind.
pub(super) struct Gathered {
    pub kind: Kind,
    /// llama.cpp's name for the pre-tokenizer.
    pub pre: String,
    pub tokens: Tokens,
    pub merges: Vec<String>,
    pub add_space_prefix: Option<bool>,
    pub unigram: Option<UnigramNormalizer>,
    /// Where llama.cpp will not do what the checkpoint's own tokenizer does.
    pub notes: Vec<String>,
}

impl Vocabulary {
    /// Reads `tokenizer.json`, `tokenizer.model`, both, or else `vocab.json` with `merges.txt`, and what their neighbours add
    /// to them. `vocab_size` is the number of embedding rows, `config` the checkpoint's `config.json`, and `pre` overrides what
    /// is derived from the pre-tokenizer of BPE. In Mistral's own layout it is `tekken.json` that is read.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a kind that GGUF does not have; tokens of the vocabulary without a row.
    pub fn from_files(folder: &Path, vocab_size: usize, config: &Value, pre: Option<&str>) -> Result<Self> {
        if tekken::is_used(folder) {
            return Vocabulary::from_tekken(folder, vocab_size, pre);
        }
        if vocab_size > MAX_ROWS {
            return Err(Error::new(format!("{} says that there are {vocab_size} tokens", folder.display()))
                .hint(format!("vocab_size in config.json should be the embedding's rows, {MAX_ROWS} at most")));
        }
        let mut files = Files {
            tokenizer: read_json(&folder.join("tokenizer.json"))?,
            tokenizer_config: read_json(&folder.join("tokenizer_config.json"))?,
            special_tokens_map: read_json(&folder.join("special_tokens_map.json"))?,
            added_tokens: read_json(&folder.join("added_tokens.json"))?,
            config,
            generation_config: read_json(&folder.join("generation_config.json"))?,
            model: None,
            rows: vocab_size,
        };
        let gathered = files.gather(folder, pre)?;
        let Gathered { kind, pre, tokens, merges, add_space_prefix, unigram, mut notes } = gathered;
        notes.extend(tokens.notes);
        let ids: HashMap<&str, u32> = tokens.texts.iter().map(String::as_str).zip(0..).collect();
        let special = special::find(&files, kind, &ids)?;
        notes.extend(special.notes);
        let templates = templates::read(folder, &files.tokenizer_config)?;
        notes.extend(templates.note);
        Ok(Self {
            pre,
            tokens: tokens.texts,
            token_type: tokens.kinds,
            scores: if kind.has_scores() { tokens.scores } else { Vec::new() },
            merges,
            special: special.ids,
            add_bos: special.add_bos,
            add_eos: special.add_eos,
            add_sep: special.add_sep,
            add_space_prefix,
            chat_template: templates.default,
            named_templates: templates.named,
            suppress_tokens: files.suppress_tokens(),
            unigram,
            notes,
            ..Self::empty(kind)
        })
    }
}

impl Files<'_> {
    fn gather(&mut self, folder: &Path, pre: Option<&str>) -> Result<Gathered> {
        let mut path = folder.join("tokenizer.json");
        let model_path = folder.join("tokenizer.model");
        if self.tokenizer.is_null()
            && !model_path.is_file()
            && let Some(assembled) = vocab_and_merges::read(folder, self, pre.is_some())?
        {
            (self.tokenizer, path) = (assembled, folder.join("vocab.json"));
        }
        let unusable = || format!("cannot use {}", path.display());
        if is_byte_level(&self.tokenizer) {
            return self.byte_level(checked(pre)?).context(unusable);
        }
        let raw = pre.filter(|name| pre_tokenizer::by_name(name).is_some_and(|pre| pre.is_raw()));
        let gemma4 = self.config["model_type"].as_str().is_some_and(|kind| kind.starts_with(Kind::Gemma4.name()));
        if check_kind(&self.tokenizer).is_ok() && (raw.is_some() || gemma4) {
            return self.raw_merges(raw).context(unusable);
        }
        if let Some(name) = pre {
            return Err(Error::usage(format!("--pre {name} is not for this kind of tokenizer")).hint(
                "leave out --pre: only byte-level BPE has a pre-tokenizer, and BPE with byte fallback can have one of its own \
                 (gemma4, sarvam-moe)",
            ));
        }
        // Only here, because some checkpoints of the other kinds have other things under this name.
        let mut aside = None;
        match SentencePiece::open(&model_path) {
            Ok(None) => {}
            Ok(Some(model)) if spm_files::agree(&self.tokenizer, &model) => self.model = Some(model),
            Ok(Some(_)) => aside = Some("tokenizer.json has other tokens".to_owned()),
            Err(damage) if self.tokenizer.is_null() => return Err(damage),
            Err(damage) => aside = Some(damage.chain().join(": ")),
        }
        if let Some(model) = &self.model {
            return spm_files::from_model(self, model).context(|| format!("cannot use {}", model_path.display()));
        }
        if self.tokenizer.is_null() {
            let what = format!("there is no {}, and no tokenizer.model", path.display());
            return Err(Error::new(what).hint(
                "fetch the checkpoint's tokenizer; \
                 transformers writes one: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            ));
        }
        let mut gathered = match self.tokenizer["model"]["type"] == "Unigram" {
            true => unigram::from_json(self),
            false => check_kind(&self.tokenizer).and_then(|()| spm_files::from_json(self)),
        }
        .context(unusable)?;
        gathered.notes.extend(aside.map(|why| format!("tokenizer.model is left aside: {why}")));
        Ok(gathered)
    }

    /// The vocabulary of a `tokenizer.json` of byte-level BPE.
    fn byte_level(&self, pre: Option<&str>) -> Result<Gathered> {
        let pre = pre.map_or_else(|| pre_tokenizer::derive(&self.tokenizer), Ok)?;
        let model = &self.tokenizer["model"];
        let mut slots = Slots::new(self.rows)?;
        for (text, id) in vocab_of(model)? {
            slots.place(text, id, token_type::NORMAL, 0.0)?;
        }
        slots.add(&added::of_all(self)?, Conflict::KeepOld)?;
        let caveat = pre_tokenizer::by_name(pre).and_then(|pre| pre.caveat);
        Ok(Gathered {
            kind: Kind::Bpe,
            pre: pre.to_owned(),
            tokens: slots.finish()?,
            merges: merges::spaced(model)?,
            add_space_prefix: None,
            unigram: None,
            notes: caveat.into_iter().map(str::to_owned).collect(),
        })
    }

    /// The vocabulary of a `tokenizer.json` of BPE with byte fallback, as merges: for Gemma 4, or for the pre-tokenizer `pre`.
    fn raw_merges(&self, pre: Option<&str>) -> Result<Gathered> {
        let model = &self.tokenizer["model"];
        let spaces = spm_files::escaped_spaces(&self.tokenizer)?;
        let mut notes = spaces.notes();
        if spaces.prefix {
            notes.push("tokenizer.json puts a space in front of text, which llama.cpp does not".into());
        }
        let vocab = vocab_of(model)?;
        let mixed = |text: &&String| text.contains('\n') && text.contains(|c| c != '\n');
        if let Some(text) = vocab.keys().find(mixed) {
            let text = quoted(text, SHOWN);
            notes.push(format!("llama.cpp cuts lines before it merges, so that no text becomes the token {text}"));
        }
        let mut slots = Slots::new(self.rows)?;
        for (text, id) in vocab {
            let kind = if merges::is_byte(text) { token_type::BYTE } else { token_type::NORMAL };
            slots.place(text, id, kind, super::slots::ADDED)?;
        }
        slots.add(&added::of_all(self)?, Conflict::Replace)?;
        let mut tokens = slots.finish()?;
        if pre.is_none() {
            let always = |text: &String| ALWAYS_SHOWN.contains(&text.as_str());
            let shown = tokens.texts.iter().zip(&mut tokens.kinds).filter(|(text, _)| always(text));
            shown.for_each(|(_, kind)| *kind = token_type::USER_DEFINED);
        }
        notes.extend(spm_files::missing_bytes(&tokens, "leaves out"));
        Ok(Gathered {
            kind: if pre.is_some() { Kind::Bpe } else { Kind::Gemma4 },
            pre: pre.unwrap_or_default().to_owned(),
            tokens,
            merges: merges::spaced(model)?,
            add_space_prefix: Some(false),
            unigram: None,
            notes,
        })
    }

    /// Tokens that are never generated, as llama.cpp's converter writes them: for one architecture alone.
    fn suppress_tokens(&self) -> Vec<i32> {
        let unified = self.config["model_type"].as_str().is_some_and(|kind| kind.starts_with("gemma4_unified"));
        let listed = self.generation_config["suppress_tokens"].as_array().into_iter().flatten().filter(|_| unified);
        let has_row = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < self.rows);
        listed.filter_map(|id| i32::try_from(id.as_i64()?).ok()).filter(has_row).collect()
    }
}

/// The tokens of Gemma 4 that llama.cpp's converter makes visible, so that its parser of answers sees them.
const ALWAYS_SHOWN: [&str; 7] =
    ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

/// The tokens of a `model` that lists them with their ids.
pub(super) fn vocab_of(model: &Value) -> Result<&Map<String, Value>> {
    model["vocab"].as_object().ok_or_else(|| Error::new("it has no model.vocab"))
}

/// What `--pre` says for byte-level BPE.
fn checked(pre: Option<&str>) -> Result<Option<&str>> {
    match pre {
        Some(name) if pre_tokenizer::by_name(name).is_none() => {
            Err(Error::usage(format!("llama.cpp knows no pre-tokenizer `{name}`")).hint(pre_tokenizer::advice()))
        }
        Some(name) if pre_tokenizer::by_name(name).is_some_and(|pre| pre.is_raw()) => {
            Err(Error::usage(format!("--pre {name} is for BPE on characters, and this tokenizer's is on bytes")))
        }
        _ => Ok(pre),
    }
}

/// The value of `tokenizer.ggml.pre` where there is no pre-tokenizer.
pub(super) const DEFAULT_PRE: &str = "default";

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

/// Refuses all but BPE with byte fallback and merges, by the name of what was found.
fn check_kind(tokenizer: &Value) -> Result<()> {
    let model = &tokenizer["model"];
    let found = match model["type"].as_str() {
        _ if is_bpe(model) && has_marks(model) => "BPE with marked subwords".into(),
        _ if is_bpe(model) && model["byte_fallback"] == true => return Ok(()),
        _ if is_bpe(model) => "BPE on characters, without byte fallback".into(),
        Some("BPE") => "BPE without merges".into(),
        Some(other) => quoted(other, SHOWN),
        None => "of no known kind".into(),
    };
    Err(Error::new(format!("its model is {found}")).hint(
        "only byte-level BPE is supported, as in Llama 3, Qwen or GPT-2, BPE with byte fallback, as in Llama 2 or Gemma, and \
         Unigram",
    ))
}

fn has_step(step: &Value, kind: &str) -> bool {
    let parts = ["pretokenizers", "decoders"].into_iter().filter_map(|key| step[key].as_array()).flatten();
    step["type"] == kind || parts.into_iter().any(|part| has_step(part, kind))
}

/// The text of a file, or `None` when there is none.
///
/// # Errors
/// More bytes than any tokenizer's file has, or no UTF-8.
pub(in crate::source) fn read_text(path: &Path) -> Result<Option<String>> {
    let cannot = || format!("cannot read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(cannot),
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).context(cannot)?;
    lfs::refuse_pointer(path, text.as_bytes())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(too_large(path));
    }
    Ok(Some(text))
}

pub(super) fn too_large(path: &Path) -> Error {
    Error::new(format!("{} has more than {MAX_BYTES} bytes, and no tokenizer's file has", path.display()))
}

/// The content of a JSON file, `null` when there is none.
pub(in crate::source) fn read_json(path: &Path) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    json::parse(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
