//! A checkpoint's own `tokenizer.json`, where it can encode.
//!
//! The tokenizers crate trusts its files: some of what they can say makes it stop the program. So a file is loaded only if
//! all of its steps are known to be harmless, and its added tokens are those of the vocabulary.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::super::vocabulary::{LONGEST_UNIGRAM, Vocabulary, check_base64, read_text, token_type};
use crate::error::{Context, Result};
use crate::guard::guarded;

/// Normalizers and pre-tokenizers that take any text and any options.
const HARMLESS: [&str; 21] = [
    "BertNormalizer",
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "Lowercase",
    "Metaspace",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Prepend",
    "Punctuation",
    "Replace",
    "Split",
    "Strip",
    "StripAccents",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
];

/// What decides whether a file is harmless.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    vocab: Vocab,
}

/// Of BPE, a map; of unigrams, a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Unigram(Vec<(String, f64)>),
    Other(serde::de::IgnoredAny),
}

/// The file as a tokenizer that cuts and pads nothing; none if there is no such file, or if it cannot encode for `vocabulary`.
///
/// # Errors
/// A file that the tokenizers crate cannot read.
pub(super) fn open(folder: &Path, vocabulary: &Vocabulary) -> Result<Option<tokenizers::Tokenizer>> {
    let path = folder.join("tokenizer.json");
    let unreadable = || format!("cannot read {}", path.display());
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let shape: Shape = serde_json::from_str(&text).context(unreadable)?;
    if !shape.is_harmless() {
        return Ok(None);
    }
    let mut tokenizer = guarded(super::ODD, || tokenizers::Tokenizer::from_bytes(&text)).context(unreadable)?;
    // Many a file cuts texts at the length that its model takes; transformers ignores it until asked.
    tokenizer.with_padding(None).with_truncation(None).context(unreadable)?;
    Ok(has_tokens_of(&tokenizer, vocabulary).then_some(tokenizer))
}

impl Shape {
    fn is_harmless(&self) -> bool {
        let unmarked = |mark: &Option<String>| mark.as_ref().is_none_or(String::is_empty);
        let short = match &self.model.vocab {
            Vocab::Unigram(pieces) => pieces.iter().all(|(text, _)| text.len() <= LONGEST_UNIGRAM),
            Vocab::Other(_) => true,
        };
        let marks = [&self.model.continuing_subword_prefix, &self.model.end_of_word_suffix];
        short && marks.into_iter().all(unmarked) && is_harmless(&self.normalizer) && is_harmless(&self.pre_tokenizer)
    }
}

fn is_harmless(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("Sequence") => {
            let parts = ["normalizers", "pretokenizers"].into_iter().filter_map(|key| step[key].as_array()).flatten();
            parts.into_iter().all(is_harmless)
        }
        Some("Precompiled") => step["precompiled_charsmap"].as_str().is_some_and(|table| check_base64(table).is_ok()),
        Some(kind) => HARMLESS.contains(&kind),
        None => step.is_null(),
    }
}

/// Whether a tokenizer matches those tokens in text that the vocabulary says are matched, and no others.
fn has_tokens_of(tokenizer: &tokenizers::Tokenizer, vocabulary: &Vocabulary) -> bool {
    let added = tokenizer.get_added_vocabulary().get_vocab();
    let id_of = |text: &str| added.get(text).or_else(|| added.get(&text.replace(' ', "\u{2581}"))).copied();
    let tokens = || vocabulary.tokens.iter().zip(&vocabulary.token_type).zip(0u32..);
    let matched = |kind: i32| matches!(kind, token_type::CONTROL | token_type::USER_DEFINED);
    let all = tokens().filter(|((_, kind), _)| matched(**kind)).all(|((text, _), id)| id_of(text) == Some(id));
    let rows = vocabulary.tokens.len();
    all && added.values().all(|id| (*id as usize) < rows)
}
