//! Which tokens are special, and which are added to every text.

use std::collections::HashMap;

use serde_json::Value;

use super::files::Files;
use super::{Kind, SPECIAL};
use crate::error::{Error, Result};

/// Where the special tokens stand in [`SPECIAL`].
const BOS: usize = 0;
const EOS: usize = 1;
const UNK: usize = 2;
const SEP: usize = 3;
const EOT: usize = 6;
const EOM: usize = 7;

/// The ids of all tokens by their texts as GGUF has them.
type Ids<'a> = HashMap<&'a str, u32>;

/// The special tokens of a checkpoint.
#[derive(Default)]
pub(super) struct Found {
    /// In the order of [`SPECIAL`].
    pub ids: [Option<u32>; SPECIAL.len()],
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_sep: Option<bool>,
    /// What is left out.
    pub notes: Vec<String>,
}

/// Asks the files in the order of their authority; what is added to every text follows from the post-processor, unless
/// `tokenizer_config.json` overrides it.
///
/// # Errors
/// Gemma 4 without a token that starts texts.
pub(super) fn find(files: &Files, kind: Kind, ids: &Ids) -> Result<Found> {
    let mut found = Found::default();
    for (slot, (name, _)) in found.ids.iter_mut().zip(SPECIAL) {
        *slot = find_one(files, ids, name, &mut found.notes);
    }
    if matches!(kind, Kind::SentencePiece | Kind::Unigram) && found.ids[UNK].is_none() {
        // What the model itself makes of a character that is no token; llama.cpp would take a number of its own.
        let model = &files.tokenizer["model"];
        let by_text = model["unk_token"].as_str().and_then(|text| id_of(ids, text));
        let by_id =
            model["unk_id"].as_u64().and_then(|id| id.try_into().ok()).filter(|id: &u32| (*id as usize) < ids.len());
        found.ids[UNK] = by_text.or(by_id);
    }
    let post_processor = &files.tokenizer["post_processor"];
    match post_processor["processors"].as_array() {
        Some(parts) => parts.iter().for_each(|part| found.follow(part, ids)),
        None => found.follow(post_processor, ids),
    }
    let over = |name: &str| files.tokenizer_config[format!("add_{name}_token")].as_bool();
    found.add_bos = over("bos").or(found.add_bos);
    found.add_eos = over("eos").or(found.add_eos);
    found.add_sep = over("sep").or(found.add_sep);
    // As llama.cpp's converter does for the small Granite models, whose tokenizer claims a BOS they never saw.
    let llama_class = matches!(files.config["model_type"].as_str(), Some("llama" | "mistral" | "mixtral"));
    if llama_class && files.rows == 49152 {
        found.add_bos = Some(false);
    }
    // Both Hugging Face's classes for SentencePiece and llama.cpp start text with BOS unless told otherwise.
    if kind == Kind::SentencePiece {
        found.add_bos = found.add_bos.or(Some(true));
    }
    // llama.cpp takes silence for "what the pre-tokenizer implies", and a missing id for token 11.
    found.add_bos = Some(found.add_bos == Some(true) && found.ids[BOS].is_some());
    found.add_eos = found.add_eos.map(|add| add && found.ids[EOS].is_some());
    match kind {
        Kind::Gemma4 if found.ids[BOS].is_none() => {
            return Err(Error::new("no file says which token is BOS")
                .hint("llama.cpp puts it in front of every text of Gemma 4; add bos_token to tokenizer_config.json"));
        }
        // As llama.cpp's converter writes, and as llama.cpp does whatever the file says.
        Kind::Gemma4 => found.add_bos = Some(true),
        // llama.cpp takes silence for yes.
        Kind::Unigram => found.add_eos = found.add_eos.or(Some(false)),
        _ => {}
    }
    Ok(found)
}

fn find_one(files: &Files, ids: &Ids, name: &str, notes: &mut Vec<String>) -> Option<u32> {
    // Encoders call their first token "cls", and their last one "sep".
    let texts = match name {
        "bos" => ["bos_token", "cls_token"].as_slice(),
        "eos" => &["eos_token", "sep_token"],
        _ => &[&*format!("{name}_token")],
    };
    for file in [&files.tokenizer_config, &files.special_tokens_map] {
        let text = texts.iter().find_map(|key| file[*key].as_str().or_else(|| file[*key]["content"].as_str()));
        if let Some(id) = text.and_then(|text| id_of(ids, text)) {
            return Some(id);
        }
    }
    let key = format!("{name}_token_id");
    let places = [
        ("config.json", files.config),
        ("config.json", &files.config["text_config"]),
        ("generation_config.json", &files.generation_config),
    ];
    for (file, value) in places {
        // Several ends of text are a list, whose first is the main one; llama.cpp finds the others by their text. A
        // negative number means none, and so does one beyond the embedding: many a padding token has no row.
        let value = &value[&key];
        match value.as_u64().or_else(|| value[0].as_u64()) {
            Some(id) if id < files.rows as u64 => return u32::try_from(id).ok(),
            Some(id) => {
                let rows = files.rows;
                notes.push(format!("{file}: {key} is {id} and is left out: the embedding has only {rows} rows"));
            }
            None => {}
        }
    }
    if let Some(text) = fim_texts(name).iter().find_map(|text| ids.get(text)) {
        return Some(*text);
    }
    let of_model = files.model.as_ref().and_then(|model| {
        let place = ["unk", "bos", "eos", "pad"].iter().position(|known| *known == name)?;
        let id = u32::try_from(model.special[place]).ok()?;
        (id as usize).lt(&model.pieces.len()).then_some(id)
    });
    of_model.filter(|id| (*id as usize) < files.rows)
}

/// The names that models have for the tokens of filling in the middle; no file says which token is which.
fn fim_texts(name: &str) -> &'static [&'static str] {
    match name {
        "fim_pre" => {
            &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"]
        }
        "fim_suf" => {
            &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"]
        }
        "fim_mid" => {
            &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"]
        }
        "fim_pad" => &["<|fim_pad|>", "<fim-pad>", "<fim_pad>"],
        "fim_rep" => &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"],
        "fim_sep" => &["<|file_sep|>"],
        _ => &[],
    }
}

fn id_of(ids: &Ids, text: &str) -> Option<u32> {
    ids.get(text).or_else(|| ids.get(&*text.replace('\u{2581}', " "))).copied()
}

impl Found {
    /// Concludes from one post-processor what is added to a text.
    fn follow(&mut self, processor: &Value, ids: &Ids) {
        match processor["type"].as_str() {
            Some("TemplateProcessing") => self.follow_template(processor, ids),
            Some("RobertaProcessing") => {
                (self.add_bos, self.add_eos, self.add_sep) = (Some(true), Some(true), Some(true));
            }
            _ => {}
        }
    }

    /// GGUF can say no more than "BOS first", "EOS last" and "separator between"; other templates are ignored.
    fn follow_template(&mut self, template: &Value, ids: &Ids) {
        let id = |piece: Option<&Value>| {
            let name = piece?["SpecialToken"]["id"].as_str()?;
            let listed = template["special_tokens"][name]["ids"][0].as_u64().and_then(|id| id.try_into().ok());
            let listed = listed.filter(|id| (*id as usize) < ids.len());
            listed.or_else(|| id_of(ids, name))
        };
        let pieces = |key: &str| template[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let single = pieces("single");
        let (first, last) = if single.len() > 1 { (id(single.first()), id(single.last())) } else { (None, None) };

        if let Some(first) = first {
            if id(single.get(1)).is_none() {
                self.ids[BOS].get_or_insert(first);
            }
            self.add_bos = Some(self.ids[BOS] == Some(first));
        }
        if let Some(last) = last {
            // A text that ends otherwise than an answer: what ends an answer is the end of a turn.
            if let Some(eos) = self.ids[EOS].filter(|eos| *eos != last) {
                let free = [EOT, EOM].into_iter().find(|slot| self.ids[*slot].is_none());
                free.into_iter().for_each(|slot| self.ids[slot] = Some(eos));
            }
            self.ids[EOS] = Some(last);
            self.add_eos = Some(true);
        }

        let mut pair = pieces("pair");
        if first.is_some() && id(pair.first()) == first {
            pair = &pair[1..];
        }
        if last.is_some() && id(pair.last()) == last {
            pair = &pair[..pair.len() - 1];
        }
        let names = |piece: &Value, sequence: &str| piece["Sequence"]["id"] == sequence;
        if let [a, between @ .., b] = pair
            && names(a, "A")
            && names(b, "B")
            && !between.is_empty()
        {
            let separates = |piece| id(piece).is_some_and(|id| [self.ids[SEP], self.ids[EOS]].contains(&Some(id)));
            let add =
                (separates(between.first()) && last.is_none()) || (between.len() == 2 && separates(between.last()));
            self.add_sep = Some(add);
            if add {
                self.ids[SEP] = self.ids[SEP].or(self.ids[EOS]);
            }
        }
    }
}
