//! Unigram vocabularies: every token has a probability, and text becomes the likeliest row of tokens. GGUF calls them `t5`.
//!
//! A `tokenizer.json` becomes one where no `tokenizer.model` stands beside it; with that file, a decoder's vocabulary is
//! written as SentencePiece's (`llama`), as llama.cpp's converter does.

use tokenizers::Tokenizer;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Prepend, Replace, Sequence};

use super::files::{DEFAULT_PRE, Files, Gathered, SHOWN};
use super::merges::is_byte;
use super::slots::{Conflict, Slots};
use super::spaces::{Spaces, not_done};
use super::spm::SPACE;
use super::{Kind, Vocabulary, added, charsmap, token_type};
use crate::error::{Context, Error, Result};
use crate::source::value::{quoted, shortened};

/// No piece of SentencePiece is nearly as long, in bytes; a trie of tokens is as deep as the longest.
pub(in crate::source) const LONGEST: usize = 1024;
/// A character that no text has, for the tokens that no text becomes.
const NONCHARACTER: char = '\u{10FFFF}';

/// What happens to a text before it is cut into unigrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnigramNormalizer {
    /// Runs of spaces become one, and those at the ends vanish.
    pub remove_extra_whitespaces: bool,
    /// SentencePiece's table of characters that are replaced; may be empty.
    pub charsmap: Vec<u8>,
}

/// The vocabulary of a Unigram `tokenizer.json`.
///
/// # Errors
/// Text that is cut in a way that llama.cpp does not know; tokens or a table that make no sense.
pub(super) fn from_json(files: &Files) -> Result<Gathered> {
    let model = &files.tokenizer["model"];
    let spaces = Spaces::read(&files.tokenizer)?;
    if !spaces.escaped {
        return Err(
            Error::new("it does not replace spaces by U+2581").hint("llama.cpp always does so with such a vocabulary")
        );
    }
    let remove_extra_whitespaces = spaces.collapsed || spaces.words;
    let mut notes: Vec<String> = spaces.ignored.iter().map(|what| not_done(what)).collect();
    if spaces.stripped && !remove_extra_whitespaces {
        notes.push(not_done("Strip"));
    }
    if model["byte_fallback"] == true {
        notes.push(
            "a character that is no token becomes bytes in tokenizer.json, and the unknown token in llama.cpp".into(),
        );
    }
    let charsmap = spaces.charsmap.as_deref().map(charsmap::check_base64).transpose()?.unwrap_or_default();
    let vocab = model["vocab"].as_array().filter(|vocab| !vocab.is_empty());
    let vocab = vocab.ok_or_else(|| Error::new("it has no tokens in model.vocab"))?;
    let unknown = model["unk_id"].as_u64();
    let mut slots = Slots::new(files.rows)?;
    for (id, entry) in (0u64..).zip(vocab) {
        let (Some(text), Some(score)) = (entry[0].as_str(), entry[1].as_f64()) else {
            let shown = shortened(&entry.to_string());
            return Err(Error::new(format!("token {id} is not a text and its score, but {shown}")));
        };
        let kind = match text {
            _ if unknown == Some(id) => token_type::UNKNOWN,
            _ if is_byte(text) => token_type::BYTE,
            _ => token_type::NORMAL,
        };
        check_length(text)?;
        slots.place(text, &id.into(), kind, score as f32)?;
    }
    slots.add(&added::of_all(files)?, Conflict::Replace)?;
    Ok(Gathered {
        kind: Kind::Unigram,
        pre: DEFAULT_PRE.to_owned(),
        tokens: slots.finish()?,
        merges: Vec::new(),
        add_space_prefix: Some(spaces.prefix),
        unigram: Some(UnigramNormalizer { remove_extra_whitespaces, charsmap }),
        notes,
    })
}

fn check_length(text: &str) -> Result<()> {
    if text.len() > LONGEST {
        let (shown, bytes) = (quoted(text, SHOWN), text.len());
        return Err(Error::new(format!("token {shown} has {bytes} bytes, and no unigram has more than {LONGEST}")));
    }
    Ok(())
}

/// What encodes text with a Unigram vocabulary, without its added tokens.
///
/// # Errors
/// A table that is damaged, no unknown token, or scores that are no numbers.
pub(super) fn tokenizer(vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let unknown = vocabulary.special("unk").ok_or_else(|| {
        Error::new("the vocabulary has no unknown token (tokenizer.ggml.unknown_token_id)")
            .hint("a vocabulary of kind `t5` needs one for characters that are no token")
    })?;
    if let Some(id) = vocabulary.scores.iter().position(|score| !score.is_finite()) {
        return Err(Error::new(format!("the score of token {id} is {}", vocabulary.scores[id])));
    }
    let kinds = || vocabulary.scores.iter().zip(&vocabulary.token_type);
    let normal = kinds().filter(|(_, kind)| **kind == token_type::NORMAL);
    let lowest = normal.map(|(score, _)| *score).fold(f32::INFINITY, f32::min);
    let lowest = if lowest.is_finite() { lowest } else { 0.0 };
    let mut pieces = Vec::with_capacity(vocabulary.tokens.len());
    for ((id, text), (score, kind)) in vocabulary.tokens.iter().enumerate().zip(kinds()) {
        check_length(text)?;
        pieces.push(match *kind {
            token_type::NORMAL => (text.clone(), f64::from(*score)),
            // No text becomes these. The lowest score counts for what is unknown, and theirs has no part in it.
            token_type::UNUSED | token_type::BYTE => (format!("{NONCHARACTER}{id}"), f64::from(lowest)),
            // Matched before.
            _ => (text.clone(), f64::from(lowest)),
        });
    }
    let model = Unigram::from(pieces, Some(unknown as usize), false)
        .context(|| "the vocabulary makes no Unigram model".into())?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(normalizer(vocabulary)?))
        .context(|| "the vocabulary's tokens cannot be normalized".into())?;
    Ok(tokenizer)
}

fn normalizer(vocabulary: &Vocabulary) -> Result<Sequence> {
    let replace = |pattern: ReplacePattern, by: &str| {
        Replace::new(pattern, by).map(NormalizerWrapper::from).context(|| "spaces cannot be replaced".into())
    };
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    let mut prefix = vocabulary.add_space_prefix.unwrap_or(false);
    if let Some(UnigramNormalizer { remove_extra_whitespaces, charsmap }) = &vocabulary.unigram {
        if !charsmap.is_empty() {
            charsmap::check(charsmap)?;
            steps.push(Precompiled::from(charsmap).context(|| "precompiled_charsmap cannot be used".into())?.into());
        }
        if *remove_extra_whitespaces {
            steps.push(replace(ReplacePattern::Regex("^ +| +$".into()), "")?);
            steps.push(replace(ReplacePattern::Regex(" {2,}".into()), " ")?);
            // llama.cpp then puts a space in front of every word, the first included.
            prefix = true;
        }
    }
    let space = SPACE.to_string();
    if prefix {
        steps.push(Prepend::new(space.clone()).into());
    }
    steps.push(replace(ReplacePattern::String(" ".into()), &space)?);
    Ok(Sequence::new(steps))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::charsmap::write;
    use super::*;
    use crate::source::tokenizer::Tokenizer;

    fn tokenizer() -> Value {
        use base64::Engine;
        let table = base64::engine::general_purpose::STANDARD.encode(write::table(b'X', "a"));
        let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"});
        let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
        let table = json!({"type": "Precompiled", "precompiled_charsmap": table});
        let added = |id: u32, text: &str, special: bool| {
            json!({
                "id": id, "content": text, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false,
            })
        };
        json!({
            "added_tokens": [added(0, "<unk>", true), added(5, "<x>", false)],
            "normalizer": {"type": "Sequence", "normalizers": [table, strip, runs]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
            "post_processor": null,
            "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
            "model": {
                "type": "Unigram", "unk_id": 0, "byte_fallback": false,
                "vocab": [["<unk>", 0.0], ["\u{2581}", -3.0], ["\u{2581}a", -2.5], ["a", -1.0], ["aa", -1.5]],
            },
        })
    }

    fn read(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Result<Vocabulary>) {
        let folder = tempfile::tempdir().unwrap();
        let mut json = tokenizer();
        change(&mut json);
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let vocabulary = Vocabulary::from_files(folder.path(), 7, &json!({}), None);
        (folder, vocabulary)
    }

    #[test]
    fn the_likeliest_row_of_tokens_is_found() {
        let (folder, vocabulary) = read(|_| {});
        let vocabulary = vocabulary.unwrap();
        assert_eq!((vocabulary.kind, vocabulary.pre.as_str()), (Kind::Unigram, "default"));
        assert_eq!(vocabulary.token_type, [3, 1, 1, 1, 1, 4, 5]);
        assert_eq!(
            (vocabulary.add_bos, vocabulary.add_eos),
            (Some(false), Some(false)),
            "llama.cpp takes silence for yes"
        );
        assert_eq!(vocabulary.add_space_prefix, Some(true));
        assert!(vocabulary.unigram.as_ref().is_some_and(|unigram| unigram.remove_extra_whitespaces));
        assert_eq!(vocabulary.notes, [""; 0]);
        let rebuilt = Vocabulary::from_metadata(&vocabulary.to_metadata()).unwrap();
        let [own, rebuilt] =
            [Tokenizer::open(folder.path(), &vocabulary), Tokenizer::from_vocabulary(&rebuilt)].map(Result::unwrap);
        for (text, expected) in [
            ("aaa", &[2, 4][..]),
            ("  aX  a ", &[2, 3, 2]),
            ("a<x>a", &[2, 5, 2]),
            ("éa", &[1, 0, 3]),
            ("[PAD6]", &[1, 0]),
            ("", &[]),
        ] {
            assert_eq!(own.encode(text).unwrap(), expected, "{text:?}");
            assert_eq!(rebuilt.encode(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_llama_cpp_does_otherwise_is_told_or_refused() {
        let complaint = |change: &dyn Fn(&mut Value)| read(change).1.unwrap_err().chain().join(": ");
        let notes = read(|json| json["model"]["byte_fallback"] = true.into()).1.unwrap().notes;
        assert!(notes[0].contains("becomes bytes"), "{notes:?}");
        let notes =
            read(|json| json["normalizer"]["normalizers"][2] = json!({"type": "NFD"})).1.unwrap().notes.join("; ");
        assert!(notes.contains("NFD") && notes.contains("Strip"), "{notes}");
        let steps = &|json: &mut Value| json["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "AAAA".into();
        assert!(complaint(steps).contains("precompiled_charsmap: it is cut off"));
        assert!(complaint(&|json| json["pre_tokenizer"] = Value::Null).contains("does not replace spaces"));
        assert!(
            complaint(&|json| json["model"]["vocab"][1] = json!(["a"])).contains("token 1 is not a text and its score")
        );
        assert!(complaint(&|json| json["model"]["vocab"][1][0] = "a".repeat(2000).into()).contains("has 2000 bytes"));
    }

    #[test]
    fn a_file_that_cannot_encode_is_refused() {
        let vocabulary = read(|_| {}).1.unwrap();
        let error = |change: &dyn Fn(&mut Vocabulary)| {
            let mut vocabulary = vocabulary.clone();
            change(&mut vocabulary);
            tokenizer_error(&vocabulary)
        };
        assert!(error(&|it| it.special = Default::default()).contains("no unknown token"));
        assert!(error(&|it| it.scores[2] = f32::NAN).contains("the score of token 2 is NaN"));
        assert!(error(&|it| it.unigram.as_mut().unwrap().charsmap.truncate(100)).contains("cut off"));
        assert!(error(&|it| it.tokens[2] = "a".repeat(2000)).contains("2000 bytes"));
    }

    fn tokenizer_error(vocabulary: &Vocabulary) -> String {
        Tokenizer::from_vocabulary(vocabulary).err().unwrap().chain().join(": ")
    }
}
