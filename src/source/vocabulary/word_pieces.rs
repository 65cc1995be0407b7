//! The vocabulary of an encoder: word pieces, as BERT has them.
//!
//! The files mark a piece that goes on with a word (`##ing`); llama.cpp marks one that starts a word, with the U+2581 that
//! SentencePiece has for a space.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::files::{Files, SHOWN, read_json, read_text, vocab_of};
use super::slots::{Conflict, Slots};
use super::{Kind, Normalizer, Vocabulary, added, special, token_type};
use crate::error::{Context, Error, Result};
use crate::source::value::quoted;

/// How the files mark a piece inside a word.
const INSIDE: &str = "##";
/// How llama.cpp marks a piece at the start of a word.
const START: char = '\u{2581}';
/// What transformers' BertTokenizer takes for special where no file says otherwise.
const USUAL: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

impl Vocabulary {
    /// Reads the word pieces of `tokenizer.json`, or of `vocab.txt` where there is none, and what their neighbours add to
    /// them. `rows` is the number of embedding rows, `config` the checkpoint's `config.json`.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another kind; tokens without a row; no token at the start or the end of a text.
    pub fn of_word_pieces(folder: &Path, rows: usize, config: &Value) -> Result<Self> {
        let mut files = Files {
            tokenizer: read_json(&folder.join("tokenizer.json"))?,
            tokenizer_config: read_json(&folder.join("tokenizer_config.json"))?,
            special_tokens_map: read_json(&folder.join("special_tokens_map.json"))?,
            added_tokens: read_json(&folder.join("added_tokens.json"))?,
            config,
            generation_config: Value::Null,
            model: None,
            rows,
        };
        // These count where neither file names a token.
        if files.special_tokens_map.is_null() {
            files.special_tokens_map = Map::new().into();
        }
        if let Some(map) = files.special_tokens_map.as_object_mut() {
            for (key, usual) in USUAL {
                map.entry(key).or_insert(usual.into());
            }
        }
        let mut path = folder.join("tokenizer.json");
        if files.tokenizer.is_null() {
            path = folder.join("vocab.txt");
            let Some(text) = read_text(&path)? else {
                return Err(Error::new(format!("{} has no tokenizer.json, and no vocab.txt", folder.display()))
                    .hint("fetch the checkpoint's tokenizer"));
            };
            files.tokenizer = of_list(&text, &files)?;
        }
        files.word_pieces().context(|| format!("cannot use {}", path.display()))
    }
}

impl Files<'_> {
    fn word_pieces(&self) -> Result<Vocabulary> {
        let model = &self.tokenizer["model"];
        // Files older than the field `type` hold word pieces when they hold a prefix for those inside words.
        let inside = model["continuing_subword_prefix"].as_str();
        if !matches!((model["type"].as_str(), inside), (Some("WordPiece"), Some(INSIDE)) | (None, Some(INSIDE))) {
            let found = model["type"].as_str().unwrap_or("of no known kind");
            return Err(Error::new(format!("its model is {found}, with {inside:?} in front of pieces inside words"))
                .hint("only WordPiece with \"##\" is supported here, as in BERT"));
        }
        let mut slots = Slots::new(self.rows)?;
        for (text, id) in vocab_of(model)? {
            slots.place(text, id, token_type::NORMAL, 0.0)?;
        }
        slots.add(&added::of_tokenizer(&self.tokenizer)?, Conflict::KeepOld)?;
        let tokens = slots.finish()?;
        let ids: HashMap<&str, u32> = tokens.texts.iter().map(String::as_str).zip(0..).collect();
        let special = special::find(self, Kind::WordPiece, &ids)?;
        let marked: Vec<String> =
            tokens.texts.iter().zip(&tokens.kinds).map(|(text, &kind)| marked(text, kind)).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = marked.iter().find(|text| !seen.insert(text.as_str())) {
            let shown = quoted(twice, SHOWN);
            return Err(Error::new(format!("two tokens become {shown} in llama.cpp's spelling"))
                .hint("llama.cpp refuses such a vocabulary; rename one of them, if it is not used"));
        }
        let vocabulary = Vocabulary {
            pre: "default".into(),
            tokens: marked,
            token_type: tokens.kinds,
            special: special.ids,
            add_bos: special.add_bos,
            add_eos: special.add_eos,
            add_sep: special.add_sep,
            normalizer: Some(self.normalizer()),
            notes: [tokens.notes, special.notes].concat(),
            ..Vocabulary::empty(Kind::WordPiece)
        };
        // llama.cpp puts the first in front of every text and the second behind it, whatever the flags say.
        for (name, text) in [("bos", "cls_token"), ("sep", "sep_token"), ("unk", "unk_token")] {
            if vocabulary.special(name).is_none() {
                return Err(Error::new(format!("no file says which token is the {text}"))
                    .hint(format!("add {text} to tokenizer_config.json or special_tokens_map.json")));
            }
        }
        Ok(vocabulary)
    }

    /// What `tokenizer.json` does to a text first, or else what `tokenizer_config.json` asks for.
    fn normalizer(&self) -> Normalizer {
        let own = &self.tokenizer["normalizer"];
        let flag = |key: &str, other: &str| own[key].as_bool().or_else(|| self.tokenizer_config[other].as_bool());
        let lowercase = flag("lowercase", "do_lower_case").unwrap_or(true);
        // Hugging Face's normalizer takes accents off wherever it makes letters small, unless told otherwise.
        let strip_accents = flag("strip_accents", "strip_accents").unwrap_or(lowercase);
        Normalizer { lowercase, strip_accents }
    }
}

/// A token as llama.cpp's converter writes it.
fn marked(text: &str, kind: i32) -> String {
    match text.strip_prefix(INSIDE) {
        _ if kind == token_type::CONTROL => text.to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!("{START}{text}"),
    }
}

/// A list of tokens, one a line, as a `tokenizer.json` would have it.
fn of_list(text: &str, files: &Files) -> Result<Value> {
    let vocab: Map<String, Value> = text.lines().zip(0u32..).map(|(token, id)| (token.to_owned(), id.into())).collect();
    if vocab.len() != text.lines().count() {
        return Err(Error::new("vocab.txt lists a token twice"));
    }
    let added = USUAL.iter().filter_map(|(key, _)| {
        let named = [&files.tokenizer_config, &files.special_tokens_map].map(|file| &file[*key]);
        let text = named.into_iter().find_map(|token| token.as_str().or_else(|| token["content"].as_str()))?;
        Some(json!({ "id": vocab.get(text)?, "content": text, "special": true }))
    });
    let added: Vec<Value> = added.collect();
    Ok(json!({
        "added_tokens": added,
        "model": { "type": "WordPiece", "continuing_subword_prefix": INSIDE, "vocab": vocab },
    }))
}
