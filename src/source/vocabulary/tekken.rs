//! Mistral's own tokenizer file, `tekken.json`: tokens as bytes with ranks, which tiktoken merges by rank.
//!
//! Special tokens have the first ids, and the others follow in the order of their ranks. GGUF wants a list of merges instead
//! of ranks; as llama.cpp's converter does, every way to put a token together from two others becomes one.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::files::{SHOWN, read_json};
use super::slots::Slots;
use super::{Kind, SPECIAL, Vocabulary, templates, token_type};
use crate::error::{Context, Error, Result};
use crate::source::value::quoted;
use crate::source::{json, mistral, pre_tokenizer};

/// The file.
const FILE: &str = "tekken.json";

/// The longest token that is read, in bytes; the longest of the published files has 78.
const LONGEST: usize = 512;

/// The most special tokens that are read, for which the file need not have anything; the published ones have 1,000.
const SPECIALS: usize = 1 << 16;

/// How many merges there may be for each token, on average; those of the published files have 2.
const MERGES: usize = 64;

/// The special tokens of files that do not list them, which are those up to version 7 (mistral-common, `tekken.py`).
const UNLISTED: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Whether a folder's tokenizer is its `tekken.json`: there is no `tokenizer.json`, or the whole folder is in Mistral's layout.
pub fn is_used(folder: &Path) -> bool {
    folder.join(FILE).is_file() && (!folder.join("tokenizer.json").is_file() || mistral::is_native(folder))
}

impl Vocabulary {
    /// Reads `tekken.json`, and a chat template beside it. `rows` is the number of embedding rows, and `pre` overrides what
    /// is derived from the file's pattern.
    ///
    /// # Errors
    /// A file that is damaged, or that has more tokens than there are rows.
    pub(super) fn from_tekken(folder: &Path, rows: usize, pre: Option<&str>) -> Result<Self> {
        let path = folder.join(FILE);
        let file = json::read(&path)?;
        let templates = templates::read(folder, &read_json(&folder.join("tokenizer_config.json"))?)?;
        if let Some(name) = pre.filter(|name| pre_tokenizer::by_name(name).is_none()) {
            return Err(
                Error::usage(format!("llama.cpp knows no pre-tokenizer `{name}`")).hint(pre_tokenizer::advice())
            );
        }
        let mut vocabulary = of_file(&file, rows, pre).context(|| format!("cannot use {}", path.display()))?;
        vocabulary.notes.extend(templates.note);
        if templates.default.is_none() {
            let note =
                "there is no chat template: mistral-common builds prompts itself; put a chat_template.jinja beside it";
            vocabulary.notes.push(note.into());
        }
        Ok(Self { chat_template: templates.default, named_templates: templates.named, ..vocabulary })
    }
}

fn of_file(file: &Value, rows: usize, pre: Option<&str>) -> Result<Vocabulary> {
    let config = &file["config"];
    let size = |key: &str| {
        let n = config[key].as_u64().filter(|&n| n < 1 << 32);
        n.map(|n| n as usize).ok_or_else(|| Error::new(format!("config.{key} is {}, not a size", config[key])))
    };
    let pre = match pre {
        Some(pre) => pre,
        None => {
            let pattern = config["pattern"].as_str().ok_or_else(|| Error::new("it has no config.pattern"))?;
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
            let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
            let steps = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
            pre_tokenizer::derive(&json!({"pre_tokenizer": steps, "model": {"ignore_merges": true}}))?
        }
    };
    let (total, specials) = (size("default_vocab_size")?, size("default_num_special_tokens")?);
    if specials > SPECIALS {
        return Err(Error::new(format!(
            "it is to have {specials} special tokens (config), more than any of {SPECIALS}"
        )));
    }
    let listed = file["vocab"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The file has more tokens than the model.
    let used = total.checked_sub(specials).and_then(|used| listed.get(..used)).ok_or_else(|| {
        let count = listed.len();
        Error::new(format!("it has {count} tokens, but is to have {total} with {specials} special ones (config)"))
    })?;
    let tokens = used.iter().enumerate().map(|(rank, token)| bytes_of(token, rank)).collect::<Result<Vec<_>>>()?;

    let letters = alphabet();
    let spelled = |bytes: &[u8]| bytes.iter().map(|&byte| letters[usize::from(byte)]).collect::<String>();
    let mut slots = Slots::new(rows)?;
    for (id, text) in special_tokens(file, specials)?.iter().enumerate() {
        slots.place(text, &id.into(), token_type::CONTROL, 0.0)?;
    }
    for (rank, bytes) in tokens.iter().enumerate() {
        slots.place(&spelled(bytes), &(specials + rank).into(), token_type::NORMAL, 0.0)?;
    }
    let gathered = slots.finish()?;
    let ids: HashMap<&str, u32> = gathered.texts.iter().take(specials).map(String::as_str).zip(0..).collect();
    let special = |name: &str| {
        let text = match name {
            "bos" => "<s>",
            "eos" => "</s>",
            "unk" => "<unk>",
            "pad" => "<pad>",
            _ => return None,
        };
        ids.get(text).copied()
    };
    let caveat = pre_tokenizer::by_name(pre).and_then(|pre| pre.caveat);
    Ok(Vocabulary {
        kind: Kind::Bpe,
        pre: pre.to_owned(),
        merges: merges(&tokens)?.into_iter().map(|(a, b)| format!("{} {}", spelled(a), spelled(b))).collect(),
        special: SPECIAL.map(|(name, _)| special(name)),
        add_bos: Some(special("bos").is_some()),
        add_eos: Some(false),
        add_sep: None,
        add_space_prefix: None,
        token_type: gathered.kinds,
        scores: Vec::new(),
        chat_template: None,
        named_templates: Vec::new(),
        normalizer: None,
        suppress_tokens: Vec::new(),
        unigram: None,
        notes: caveat.into_iter().map(str::to_owned).collect(),
        tokens: gathered.texts,
    })
}

/// The bytes of a token that has to have this rank. The first 256 are the bytes themselves.
fn bytes_of(token: &Value, rank: usize) -> Result<Vec<u8>> {
    let decoded = token["token_bytes"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
    let fits = |bytes: &Vec<u8>| {
        (1..=LONGEST).contains(&bytes.len())
            && token["rank"].as_u64() == Some(rank as u64)
            && (rank >= 256 || bytes[..] == [rank as u8])
    };
    decoded.filter(fits).ok_or_else(|| {
        let token = quoted(&token.to_string(), SHOWN);
        Error::new(format!(
            "token {rank} is {token}, not {{rank: {rank}, token_bytes: 1 to {LONGEST} bytes in base64}}"
        ))
        .hint("the download may be incomplete; fetch the file again")
    })
}

/// The texts of the special tokens, with fillers for those that have none.
fn special_tokens(file: &Value, count: usize) -> Result<Vec<String>> {
    let mut texts: Vec<String> = match file["special_tokens"].as_array() {
        None => UNLISTED.map(str::to_owned).into(),
        Some(listed) => {
            let text = |(id, token): (usize, &Value)| {
                let text = token["token_str"].as_str().filter(|_| token["rank"].as_u64() == Some(id as u64));
                text.map(str::to_owned).ok_or_else(|| {
                    let token = quoted(&token.to_string(), SHOWN);
                    Error::new(format!("special token {id} is {token}, not {{rank: {id}, token_str: …}}"))
                })
            };
            listed.iter().enumerate().map(text).collect::<Result<_>>()?
        }
    };
    if texts.len() > count {
        let listed = texts.len();
        return Err(Error::new(format!(
            "it has {listed} special tokens, but config.default_num_special_tokens is {count}"
        )));
    }
    texts.extend((texts.len()..count).map(|id| format!("<SPECIAL_{id}>")));
    Ok(texts)
}

/// Every way to put a token together from two others: tokens in the order of their ranks, and the ways to make one in the
/// order of the ranks of its parts.
fn merges(tokens: &[Vec<u8>]) -> Result<Vec<(&[u8], &[u8])>> {
    let ranks: HashMap<&[u8], usize> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let mut merges = Vec::new();
    for token in tokens.iter().skip(256) {
        let halves = (1..token.len()).map(|at| token.split_at(at));
        let mut ways: Vec<_> = halves.filter_map(|(a, b)| Some((*ranks.get(a)?, *ranks.get(b)?, (a, b)))).collect();
        ways.sort_unstable_by_key(|&(a, b, _)| (a, b));
        merges.extend(ways.into_iter().map(|(.., way)| way));
        if merges.len() > MERGES * tokens.len() {
            let count = tokens.len();
            return Err(Error::new(format!("its {count} tokens can be put together in more than {MERGES} ways each")));
        }
    }
    Ok(merges)
}

/// The printable character for every byte: its own where it has one in Latin-1, others in order from U+0100 on, as in GPT-2.
fn alphabet() -> [char; 256] {
    let mut next = 0x100..;
    std::array::from_fn(|byte| {
        let code = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
            _ => next.next().unwrap_or_default(),
        };
        char::from_u32(code).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests;
