//! `vocab.json` with `merges.txt`, as checkpoints have them that were saved without a `tokenizer.json`.
//!
//! These two hold the model of byte-level BPE alone. How text is cut first is in the code of transformers' tokenizer class,
//! which `tokenizer_config.json` names, or else follows from the model's type.

use std::path::Path;

use serde_json::{Value, json};

use super::files::{Files, read_json, read_text};
use crate::error::{Error, Result};
use crate::source::pre_tokenizer;
use crate::source::value::shortened;

/// transformers' tokenizer class for the models that have one of these; `AutoTokenizer` looks here where no file names a class.
const CLASSES: [(&str, &str); 9] = [
    ("gpt2", GPT2),
    ("gpt_neo", GPT2),
    ("gptj", GPT2),
    ("opt", GPT2),
    ("codegen", GPT2),
    ("phi", GPT2),
    ("roberta", ROBERTA),
    ("qwen2", QWEN2),
    ("qwen3", QWEN2),
];
const GPT2: &str = "GPT2Tokenizer";
const ROBERTA: &str = "RobertaTokenizer";
const QWEN2: &str = "Qwen2Tokenizer";
/// What ends texts for all three, where they have it.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The two files as a `tokenizer.json` would have them; none if they are not there. `known`: how text is cut is known already.
///
/// # Errors
/// One file without the other, or an unknown class.
pub(super) fn read(folder: &Path, files: &Files, known: bool) -> Result<Option<Value>> {
    let vocab = read_json(&folder.join("vocab.json"))?;
    let merges = read_text(&folder.join("merges.txt"))?;
    let (vocab, merges) = match (vocab.is_object(), merges) {
        (true, Some(merges)) => (vocab, merges),
        (false, None) => return Ok(None),
        (has_vocab, _) => {
            let (there, missing) = if has_vocab { ("vocab.json", "merges.txt") } else { ("merges.txt", "vocab.json") };
            return Err(Error::new(format!("{} has {there}, but no {missing} with a list", folder.display()))
                .hint("fetch the checkpoint's tokenizer"));
        }
    };
    let merges: Vec<&str> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let config = &files.tokenizer_config;
    let class = config["tokenizer_class"].as_str().map(|class| class.trim_end_matches("Fast"));
    let of_type = || CLASSES.iter().find(|(kind, _)| files.config["model_type"] == *kind).map(|(_, class)| *class);
    let (normalizer, pre_tokenizer, post_processor) = match class.or_else(of_type) {
        Some(GPT2 | "CodeGenTokenizer") => (Value::Null, bytes(&config["add_prefix_space"], true), Value::Null),
        Some(ROBERTA) => (Value::Null, bytes(&config["add_prefix_space"], true), json!({"type": "RobertaProcessing"})),
        Some(QWEN2) => {
            let words = json!({"type": "Split", "pattern": {"Regex": pre_tokenizer::QWEN2}, "behavior": "Isolated", "invert": false});
            let steps = json!({"type": "Sequence", "pretokenizers": [words, bytes(&Value::Null, false)]});
            (json!({"type": "NFC"}), steps, Value::Null)
        }
        _ if known => (Value::Null, bytes(&Value::Null, true), Value::Null),
        class => {
            let class = class.map_or("no tokenizer_class is named".into(), |class| {
                format!("it is not known how {} cuts text", shortened(class))
            });
            return Err(Error::new(format!(
                "{} has no tokenizer.json, but vocab.json and merges.txt, and {class}",
                folder.display()
            ))
            .hint(format!(
                "transformers writes the missing file: AutoTokenizer.from_pretrained(…).save_pretrained(…); {}",
                pre_tokenizer::advice()
            )));
        }
    };
    let added = vocab.get(END_OF_TEXT).map(|id| json!({"id": id, "content": END_OF_TEXT, "special": true}));
    Ok(Some(json!({
        "added_tokens": added.into_iter().collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })))
}

fn bytes(add_prefix_space: &Value, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": *add_prefix_space == true, "use_regex": use_regex})
}
