//! The chat templates of a checkpoint, which stand in one of three places.

use std::path::Path;

use serde_json::Value;

use super::files::{read_json, read_text};
use crate::error::{Context, Result};
use crate::source::links::stays_inside;

/// The chat templates of a checkpoint.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Templates {
    pub default: Option<String>,
    /// Further ones with their names.
    pub named: Vec<(String, String)>,
    /// Which one is taken where files differ.
    pub note: Option<String>,
}

/// Files of their own count more than `tokenizer_config.json`, as in transformers.
pub(super) fn read(folder: &Path, tokenizer_config: &Value) -> Result<Templates> {
    let inline = sort_templates(&tokenizer_config["chat_template"]);
    let Some(default) = read_own(folder, &folder.join("chat_template.jinja"))? else {
        if inline.default.is_some() || !inline.named.is_empty() {
            return Ok(inline);
        }
        let json = read_json(&folder.join("chat_template.json"))?;
        return Ok(sort_templates(&json["chat_template"]));
    };
    let note = inline.default.is_some_and(|other| other != default).then(|| {
        "tokenizer_config.json has another chat template than chat_template.jinja, which counts (as in transformers)".into()
    });
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
            if let (Some(stem), Some(text)) = (stem, read_own(folder, &path)?) {
                named.push((key_name(stem), text));
            }
        }
        named.sort();
        named.dedup_by(|a, b| a.0 == b.0);
    }
    Ok(Templates { default: Some(default), named, note })
}

/// The text of a file, which becomes a part of the GGUF word for word.
fn read_own(folder: &Path, path: &Path) -> Result<Option<String>> {
    let text = read_text(path)?;
    if text.is_some() {
        stays_inside(folder, path)?;
    }
    Ok(text)
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
    Templates { default, named, note: None }
}

/// A template's name becomes a part of a key, where llama.cpp's converter allows only letters and digits.
fn key_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
