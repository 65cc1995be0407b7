//! Models whose output is not the next token: embeddings, whose vectors become one, and rerankers, which score a text.
//!
//! sentence-transformers lists a model's parts in `modules.json`; those behind the transformer have folders with a
//! `config.json` of their own. Rerankers of Qwen3 are language models that answer "yes" or "no": llama.cpp keeps these two
//! rows of the output head as `cls.output.weight`, shape [2, hidden], and takes a softmax over them.

use super::checkpoint::modules::{self, Module};
use super::value::quoted;
use super::vocabulary::{Vocabulary, read_text};
use crate::error::{Context, Error, Result};
use serde_json::Value as Json;
use std::path::Path;

/// How the vectors of a text's tokens become one, with llama.cpp's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Pooling {
    None = 0,
    Mean = 1,
    Cls = 2,
    Last = 3,
    Rank = 4,
}

/// A language model that scores texts by its logits of two tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reranker {
    /// The rows of the output head (of the embedding, where they are tied) of the answers, in the order of [`LABELS`].
    pub rows: [u32; 2],
}

/// What the rows of a reranker's head stand for (`ARCH.classifier.output_labels`).
pub const LABELS: [&str; 2] = ["yes", "no"];
/// The prompt that Qwen3's rerankers were trained with, as llama.cpp's server fills it in.
const PROMPT: &str = concat!(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n",
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
);
/// The name under which llama.cpp's server looks for it.
const PROMPT_NAME: &str = "rerank";

impl Reranker {
    /// Asks the files of a checkpoint folder: it is one by a module of sentence-transformers, or by its name. `config` is its
    /// `config.json`, `vocabulary` what its tokenizer became, which gets a note where llama.cpp has no place for what the folder says.
    ///
    /// # Errors
    /// Files that cannot be read, or a reranker without rows for its answers.
    pub fn of(folder: &Path, config: &Json, vocabulary: &mut Vocabulary) -> Result<Option<Reranker>> {
        let rows = match logit_score(folder)? {
            Some([Some(yes), Some(no)]) => [yes, no],
            Some(_) => {
                let note = "the reranker scores by one token alone, for which llama.cpp has no place: a language model is written";
                vocabulary.notes.push(note.into());
                return Ok(None);
            }
            None if is_named_reranker(folder, config)? => answers(vocabulary)?,
            None => return Ok(None),
        };
        let known = vocabulary.tokens.len();
        match rows.into_iter().find(|row| *row as usize >= known) {
            Some(row) => {
                Err(Error::new(format!("a reranker's answer is token {row}, but there are only {known} tokens")))
            }
            None => Ok(Some(Reranker { rows })),
        }
    }

    /// Gives a vocabulary the prompt that the answers depend on.
    pub fn add_prompt(&self, vocabulary: &mut Vocabulary) {
        if vocabulary.named_templates.iter().all(|(name, _)| name != PROMPT_NAME) {
            vocabulary.named_templates.push((PROMPT_NAME.into(), PROMPT.into()));
        }
    }
}

/// What sentence-transformers' files say about pooling; none if there are none.
///
/// # Errors
/// Files that cannot be read, or a kind of pooling that llama.cpp does not have.
pub fn pooling_of(folder: &Path) -> Result<Option<Pooling>> {
    let Some(Module { path, config, .. }) = module(folder, "Pooling")?.filter(|module| !module.config.is_null()) else {
        return Ok(None);
    };
    let modes = [
        ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
        ("pooling_mode_cls_token", "cls", Pooling::Cls),
        ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
    ];
    let named = config["pooling_mode"].as_str();
    let is = |key: &str, name: &str| named.map_or(config[key] == true, |named| named == name);
    match modes.into_iter().find(|(key, name, _)| is(key, name)) {
        Some((_, _, pooling)) => Ok(Some(pooling)),
        None => Err(Error::new("it asks for a kind of pooling that llama.cpp does not have")
            .hint("llama.cpp has mean, cls and lasttoken"))
        .context(|| format!("cannot use {}", folder.join(path).join("config.json").display())),
    }
}

/// The first module of a kind.
fn module(folder: &Path, kind: &str) -> Result<Option<Module>> {
    Ok(modules::read(folder)?.into_iter().find(|module| module.kind == kind))
}

/// The tokens whose logits sentence-transformers compares for a score, "yes" first; none without such a module.
fn logit_score(folder: &Path) -> Result<Option<[Option<u32>; 2]>> {
    let Some(Module { config, .. }) = module(folder, "LogitScore")? else { return Ok(None) };
    let id = |key: &str| config[key].as_u64().and_then(|id| id.try_into().ok());
    Ok(Some([id("true_token_id"), id("false_token_id")]))
}

/// Whether a name says that the model is a reranker, as llama.cpp's converter asks: no key of `config.json` does.
fn is_named_reranker(folder: &Path, config: &Json) -> Result<bool> {
    let readme = read_text(&folder.join("README.md"))?.unwrap_or_default().to_lowercase();
    if ["# qwen3-reranker", "# qwen3-vl-reranker"].iter().any(|title| readme.contains(title)) {
        return Ok(true);
    }
    // A relative path has no name of its own.
    let whole = folder.canonicalize().context(|| format!("cannot read {}", folder.display()))?;
    let folder = whole.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let named = config["_name_or_path"].as_str().unwrap_or_default().to_lowercase();
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let names = [folder, named];
    let hinted =
        ["qwen3-reranker", "qwen3-vl-reranker"].iter().any(|hint| names.iter().any(|name| name.contains(hint)));
    Ok(hinted || class.contains("SequenceClassification"))
}

/// The tokens of the two answers.
fn answers(vocabulary: &Vocabulary) -> Result<[u32; 2]> {
    let id = |answer: &str| {
        let id = vocabulary.tokens.iter().position(|text| text == answer).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            Error::new(format!("the model is a reranker by its name, but has no token {}", quoted(answer, 8)))
                .hint("llama.cpp's rerankers of Qwen3 answer \"yes\" or \"no\"; rename the folder if it is no reranker")
        })
    };
    Ok([id(LABELS[0])?, id(LABELS[1])?])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, Json)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.as_str().map_or_else(|| content.to_string(), str::to_owned)).unwrap();
        }
        folder
    }

    fn modules(kind: &str, path: &str) -> (&'static str, Json) {
        let transformer = json!({"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"});
        (
            "modules.json",
            json!([transformer, {"idx": 1, "path": path, "type": format!("sentence_transformers.{kind}")}]),
        )
    }

    /// Answers at ids 3 and 5.
    fn vocabulary() -> Vocabulary {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let mut vocabulary = Vocabulary::from_files(&tiny, 2048, &json!({}), None).unwrap();
        (vocabulary.tokens[3], vocabulary.tokens[5]) = ("yes".into(), "no".into());
        vocabulary
    }

    #[test]
    fn pooling_is_as_sentence_transformers_says() {
        let pooling = |config: Json| {
            pooling_of(folder(&[modules("models.Pooling", "1_Pooling"), ("1_Pooling/config.json", config)]).path())
        };
        assert_eq!(pooling(json!({"pooling_mode_lasttoken": true})).unwrap(), Some(Pooling::Last));
        assert_eq!(
            pooling(json!({"pooling_mode": "mean", "pooling_mode_cls_token": true})).unwrap(),
            Some(Pooling::Mean)
        );
        assert_eq!(
            pooling(json!({"pooling_mode_cls_token": true, "pooling_mode_lasttoken": false})).unwrap(),
            Some(Pooling::Cls)
        );
        let error = pooling(json!({"pooling_mode_max_tokens": true})).unwrap_err();
        assert!(error.to_string().contains("1_Pooling") && error.hint_text().is_some());
        assert_eq!(pooling_of(folder(&[]).path()).unwrap(), None);
    }

    #[test]
    fn rerankers_are_known_by_their_module_or_their_name() {
        let read = |files: &[(&str, Json)], config: Json| {
            let mut vocabulary = vocabulary();
            let found = Reranker::of(folder(files).path(), &config, &mut vocabulary);
            found.map(|found| (found.map(|found| found.rows), vocabulary.notes))
        };
        let qwen3 = || json!({"model_type": "qwen3"});
        let scored = |config: Json| {
            [
                modules("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
                ("1_LogitScore/config.json", config),
            ]
        };
        let (rows, _) = read(&scored(json!({"true_token_id": 9, "false_token_id": 7})), qwen3()).unwrap();
        assert_eq!(rows, Some([9, 7]));
        let (rows, notes) = read(&scored(json!({"true_token_id": 9, "false_token_id": null})), qwen3()).unwrap();
        assert!(rows.is_none() && notes.last().unwrap().contains("one token alone"));
        let error = read(&scored(json!({"true_token_id": 9, "false_token_id": 2048})), qwen3()).unwrap_err();
        assert!(error.to_string().contains("token 2048"), "{error}");

        let readme = [("README.md", "text\n# Qwen3-Reranker-0.6B\n".into())];
        let class = json!({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]});
        let named = json!({"model_type": "qwen3", "_name_or_path": "Qwen/Qwen3-Reranker-4B"});
        assert_eq!(read(&readme, qwen3()).unwrap().0, Some([3, 5]));
        assert_eq!(read(&[], class).unwrap().0, Some([3, 5]));
        assert_eq!(read(&[], named).unwrap().0, Some([3, 5]));
        assert_eq!(read(&[], qwen3()).unwrap().0, None);
        let mut mute = Vocabulary { tokens: vec!["a".into()], ..vocabulary() };
        let error = Reranker::of(folder(&readme).path(), &qwen3(), &mut mute).unwrap_err();
        assert!(error.to_string().contains("has no token \"yes\""), "{error}");
    }

    #[test]
    fn the_prompt_of_a_reranker_is_added_once() {
        let mut prompted = vocabulary();
        Reranker { rows: [3, 5] }.add_prompt(&mut prompted);
        assert!(prompted.named_templates[0].0 == "rerank" && prompted.named_templates[0].1.contains("{query}"));
        let once = prompted.clone();
        Reranker { rows: [3, 5] }.add_prompt(&mut prompted);
        assert_eq!(prompted, once);
    }
}
