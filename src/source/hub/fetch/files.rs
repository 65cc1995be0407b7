//! Which files of a repository a model needs.

use super::Repository;
use crate::error::{Context, Error, Result};
use crate::source::mistral::PARAMS;
use std::collections::BTreeMap;
use std::path::Path;

/// The layouts that are read, the first choice first: what begins the names of weights, and the configuration beside them.
const LAYOUTS: [(&str, &str); 2] = [("model", "config.json"), ("consolidated", PARAMS)];

/// What is read beside the weights and their configuration; whoever needs one of them says so.
const SMALL: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Mistral's own tokenizer, which counts where there is no other, or where everything is in Mistral's layout.
const TEKKEN: &str = "tekken.json";

/// The folder of chat templates that have names.
const TEMPLATES: &str = "additional_chat_templates/";

/// What is to be fetched.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Everything but weights.
    pub small: Vec<String>,
    /// The one among them that lists the weights.
    pub index: Option<String>,
    /// The weights, if no index lists them.
    pub weights: Vec<String>,
}

/// Chooses from the files of a repository.
///
/// # Errors
/// It holds no model that can be read.
pub fn choose(repository: &Repository, files: &[String]) -> Result<Choice> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let id = &repository.id;
    let ending = |end: &str| files.iter().filter(|file| file.to_lowercase().ends_with(end)).collect::<Vec<_>>();
    let single = |stem: &str| format!("{stem}.safetensors");
    let index = |stem: &str| format!("{stem}.safetensors.index.json");
    let saved = |stem: &str| has(&single(stem)) || has(&index(stem));
    let Some((stem, config)) = LAYOUTS.into_iter().find(|(stem, config)| has(config) && saved(stem)) else {
        if saved(LAYOUTS[0].0) {
            return Err(Error::new(format!("{id} has no config.json"))
                .hint("name a repository in the layout of transformers, with config.json beside the weights"));
        }
        let error = |what: String| Error::new(format!("{id} has no {}, {what}", single(LAYOUTS[0].0)));
        return Err(match (ending(".gguf").first(), ending(".safetensors").first()) {
            (Some(gguf), _) => error(format!("but GGUF files, of which {gguf} is the first")).hint(format!(
                "name the repository that they were made from, or fetch one and give its path: hf download {id} {gguf} \
                 --local-dir ."
            )),
            (None, Some(other)) => error(format!("but {other}, which is of another kind")).hint(
                "name a repository in the layout of transformers, with config.json and model.safetensors or its shards",
            ),
            (None, None) => match [".bin", ".pth", ".pt"].iter().find_map(|end| ending(end).first().copied()) {
                Some(pickle) => error(format!("but {pickle}, whose format can run code and is not read")).hint(format!(
                    "see whether https://huggingface.co/{id}/discussions has one with safetensors, and name it as \
                     {id}@refs/pr/N; or convert it with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
                )),
                None => error("nor weights of any other kind".into()).hint("check the name: it may be an adapter or a dataset"),
            },
        });
    };
    let template = |file: &&String| {
        file.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja")).is_some_and(|stem| {
            !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
    };
    let tekken = (config == PARAMS || !has("tokenizer.json")).then_some(TEKKEN);
    // A whole file counts whatever an index beside it says, as it does in a folder.
    let index = Some(index(stem)).filter(|_| !has(&single(stem)));
    let names = [config].into_iter().chain(SMALL).chain(tekken).filter(|name| has(name)).map(str::to_owned);
    let small = names.chain(index.clone()).chain(files.iter().filter(template).cloned()).collect();
    let weights = if index.is_some() { vec![] } else { vec![single(stem)] };
    Ok(Choice { small, index, weights })
}

/// The shards that an index lists.
///
/// # Errors
/// It lists none, or something that is no file name.
pub fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).context(|| format!("cannot read {}", index.display()))?;
    let parsed: Index =
        serde_json::from_str(&text).context(|| format!("{} is not a valid index of shards", index.display()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let plain = |name: &String| {
        name.ends_with(".safetensors")
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match names.iter().find(|name| !plain(name)) {
        Some(odd) => Err(Error::new(format!("{} lists '{odd}', which is no name of a shard", index.display()))),
        None if names.is_empty() => Err(Error::new(format!("{} lists no shards", index.display()))),
        None => Ok(names),
    }
}

/// Whether a folder holds a whole model.
pub fn is_complete(folder: &Path) -> bool {
    let there = |name: &str| folder.join(name).exists();
    LAYOUTS.into_iter().any(|(stem, config)| {
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        let shards = || shards(&index).unwrap_or_default();
        let whole = || Some(shards()).is_some_and(|names| !names.is_empty() && names.iter().all(|name| there(name)));
        there(config) && (there(&format!("{stem}.safetensors")) || whole())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "model.safetensors.index.json";

    fn chosen(files: &[&str]) -> Result<Choice> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        choose(&Repository::model("org/name").unwrap(), &files)
    }

    #[test]
    fn only_what_is_needed_is_chosen() {
        let all = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "pytorch_model.bin",
            "model-q4.gguf",
            "onnx/model.onnx",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/../x.jinja",
        ];
        let choice = chosen(&all).unwrap();
        assert_eq!(choice.small, ["config.json", "tokenizer.json", "additional_chat_templates/tool_use.jinja"]);
        assert_eq!((choice.index, choice.weights), (None, vec!["model.safetensors".to_owned()]));
        let sharded = chosen(&["config.json", INDEX, "model-00001-of-00002.safetensors"]).unwrap();
        assert_eq!((sharded.index.as_deref(), sharded.weights.len()), (Some(INDEX), 0));
        assert!(sharded.small.contains(&INDEX.to_owned()), "{:?}", sharded.small);
        let both = chosen(&["config.json", INDEX, "model.safetensors", "model-00001-of-00002.safetensors"]).unwrap();
        assert_eq!((both.index, both.weights), (None, vec!["model.safetensors".to_owned()]));
    }

    #[test]
    fn mistrals_own_layout_is_chosen_where_it_is_the_only_one() {
        let own = ["params.json", "tekken.json", "consolidated.safetensors"];
        let choice = chosen(&own).unwrap();
        assert_eq!(choice.small, ["params.json", "tekken.json"]);
        assert_eq!(choice.weights, ["consolidated.safetensors"]);
        let both = chosen(&[&own[..], &["config.json", "model.safetensors", "tokenizer.json"]].concat()).unwrap();
        assert_eq!(
            (&both.small[..], &both.weights[..]),
            (&["config.json", "tokenizer.json"].map(str::to_owned)[..], &["model.safetensors".to_owned()][..])
        );
        let index = "consolidated.safetensors.index.json";
        assert_eq!(chosen(&["params.json", index]).unwrap().index.as_deref(), Some(index));
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_complete(folder.path()));
        for name in own {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(is_complete(folder.path()));
    }

    #[test]
    fn what_holds_no_model_says_what_it_holds() {
        for (files, told, hint) in [
            (vec!["README.md", "name-Q4_K_M.gguf"], "name-Q4_K_M.gguf", "made from"),
            (vec!["config.json", "pytorch_model.bin"], "pytorch_model.bin", "refs/pr/N"),
            (vec!["config.json", "consolidated.safetensors"], "consolidated.safetensors", "layout of transformers"),
            (vec!["README.md"], "nor weights", "check the name"),
            (vec!["model.safetensors"], "no config.json", "config.json"),
        ] {
            let error = chosen(&files).unwrap_err();
            assert!(error.to_string().contains(told) && error.to_string().contains("org/name"), "{error}");
            assert!(error.hint_text().unwrap().contains(hint), "{error}");
        }
    }

    #[test]
    fn shards_with_odd_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        let of = |name: &str| {
            std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{name}", "b": "{name}"}}}}"#)).unwrap();
            shards(&index)
        };
        assert_eq!(of("model-1.safetensors").unwrap(), ["model-1.safetensors"]);
        for odd in ["../model.safetensors", "a/b.safetensors", ".safetensors", "model.bin"] {
            assert!(of(odd).unwrap_err().to_string().contains(odd));
        }
    }
}
