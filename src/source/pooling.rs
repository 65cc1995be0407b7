//! Models whose output is not the next token: embeddings, whose vectors become one, and rerankers, which score a text.
//!
//! sentence-transformers lists a model's parts in `modules.json`; those behind the transformer have folders with a
//! `config.json` of their own. Rerankers of Qwen3 are language models that answer "yes" or "no": llama.cpp keeps these two
//! rows of the output head as `cls.output.weight`, shape [2, hidden], and takes a softmax over them.

use std::path::{Component, Path};

use serde_json::Value as Json;

use super::value::{Metadata, Value, quoted};
use super::vocabulary::{Vocabulary, read_json, read_text};
use crate::error::{Context, Error, Result};

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

/// What a folder says of a model beyond its language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentenceModel {
    /// How vectors become one; none if no file says.
    pub pooling: Option<Pooling>,
    /// Whether EOS goes behind every text, which models that pool the last token rely on (`Vocabulary::add_eos`).
    pub add_eos: bool,
    /// The rows of the output head (of the embedding, where they are tied) that become `cls.output.weight`, in the order of
    /// [`LABELS`]; none for what is no reranker. A reranker's GGUF has no other output head.
    pub rank_rows: Option<[u32; 2]>,
    /// What llama.cpp has no place for.
    pub notes: Vec<String>,
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

impl SentenceModel {
    /// Asks the files of a checkpoint folder. `config` is its `config.json`, `vocabulary` what its tokenizer became.
    ///
    /// # Errors
    /// Files that cannot be read, a kind of pooling that llama.cpp does not have, or a reranker without rows for its answers.
    pub fn read(folder: &Path, config: &Json, vocabulary: &Vocabulary) -> Result<SentenceModel> {
        let (pooling, add_eos) = (pooling_of(folder)?, vocabulary.add_eos == Some(true));
        let mut model = SentenceModel { pooling, add_eos, rank_rows: None, notes: Vec::new() };
        if !config["model_type"].as_str().is_some_and(|kind| kind.starts_with("qwen3")) {
            return Ok(model);
        }
        model.rank_rows = match logit_score(folder)? {
            Some([Some(yes), Some(no)]) => Some([yes, no]),
            Some(_) => {
                model.notes.push(
                    "the reranker scores by one token alone, for which llama.cpp has no place: a language model is written"
                        .into(),
                );
                None
            }
            None if is_named_reranker(folder, config)? => Some(answers(vocabulary)?),
            None => None,
        };
        if let Some(rows) = model.rank_rows {
            if let Some(row) = rows.into_iter().find(|row| *row as usize >= vocabulary.tokens.len()) {
                let rows = vocabulary.tokens.len();
                return Err(Error::new(format!(
                    "a reranker's answer is token {row}, but there are only {rows} tokens"
                )));
            }
            model.pooling = Some(Pooling::Rank);
        }
        Ok(model)
    }

    /// The keys for a GGUF of `architecture`, as llama.cpp's converter writes them.
    pub fn metadata(&self, architecture: &str) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.extend(self.pooling.map(|kind| (format!("{architecture}.pooling_type"), Value::U32(kind as u32))));
        if self.rank_rows.is_some() {
            let labels = LABELS.map(str::to_owned).to_vec();
            metadata.push((format!("{architecture}.classifier.output_labels"), labels.into()));
        }
        metadata
    }

    /// Gives a reranker's vocabulary the prompt that its answers depend on.
    pub fn add_prompt(&self, vocabulary: &mut Vocabulary) {
        if self.rank_rows.is_some() && vocabulary.named_templates.iter().all(|(name, _)| name != PROMPT_NAME) {
            vocabulary.named_templates.push((PROMPT_NAME.into(), PROMPT.into()));
        }
    }
}

/// What sentence-transformers' files say about pooling; none if there are none.
///
/// # Errors
/// Files that cannot be read, or a kind of pooling that llama.cpp does not have.
pub fn pooling_of(folder: &Path) -> Result<Option<Pooling>> {
    let Some(path) = module(folder, "Pooling")? else { return Ok(None) };
    let path = folder.join(path).join("config.json");
    let config = read_json(&path)?;
    if config.is_null() {
        return Ok(None);
    }
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
        .context(|| format!("cannot use {}", path.display())),
    }
}

/// The folder of the first module whose type ends with `kind`, as far as it is inside the checkpoint's.
fn module(folder: &Path, kind: &str) -> Result<Option<String>> {
    let modules = read_json(&folder.join("modules.json"))?;
    let inside = |path: &&str| {
        let mut parts = Path::new(path).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    let of_kind = |module: &&Json| match module["type"].as_str() {
        Some(class) => class.ends_with(kind),
        None => module["path"].as_str().is_some_and(|path| path.ends_with(kind)),
    };
    let mut found = modules.as_array().into_iter().flatten().filter(of_kind);
    Ok(found.find_map(|module| module["path"].as_str().filter(inside)).map(str::to_owned))
}

/// The tokens whose logits sentence-transformers compares for a score, "yes" first; none without such a module.
fn logit_score(folder: &Path) -> Result<Option<[Option<u32>; 2]>> {
    let Some(path) = module(folder, "LogitScore")? else { return Ok(None) };
    let config = read_json(&folder.join(path).join("config.json"))?;
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
    fn vocabulary(add_eos: bool) -> Vocabulary {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/tiny");
        let mut vocabulary = Vocabulary::from_files(&tiny, 2048, &json!({}), None).unwrap();
        (vocabulary.tokens[3], vocabulary.tokens[5]) = ("yes".into(), "no".into());
        Vocabulary { add_eos: Some(add_eos), ..vocabulary }
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
        let outside = folder(&[modules("models.Pooling", "../up"), ("up/config.json", json!({}))]);
        assert_eq!(pooling_of(outside.path()).unwrap(), None, "no folder outside is read");
    }

    #[test]
    fn an_embedding_model_has_its_keys() {
        let files = [
            modules("models.Pooling", "1_Pooling"),
            ("1_Pooling/config.json", json!({"pooling_mode_lasttoken": true})),
        ];
        let found =
            SentenceModel::read(folder(&files).path(), &json!({"model_type": "qwen3"}), &vocabulary(true)).unwrap();
        assert_eq!((found.pooling, found.add_eos, found.rank_rows), (Some(Pooling::Last), true, None));
        assert_eq!(found.metadata("qwen3"), [("qwen3.pooling_type".to_owned(), Value::U32(3))]);
        let mut same = vocabulary(true);
        found.add_prompt(&mut same);
        assert_eq!(same, vocabulary(true));
        let plain =
            SentenceModel::read(folder(&[]).path(), &json!({"model_type": "llama"}), &vocabulary(false)).unwrap();
        assert_eq!((plain.pooling, plain.add_eos, plain.metadata("llama").len()), (None, false, 0));
    }

    #[test]
    fn rerankers_are_known_by_their_module_or_their_name() {
        let read = |files: &[(&str, Json)], config: Json| {
            SentenceModel::read(folder(files).path(), &config, &vocabulary(false))
        };
        let qwen3 = || json!({"model_type": "qwen3"});
        let scored = |config: Json| {
            [
                modules("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
                ("1_LogitScore/config.json", config),
            ]
        };
        let found = read(&scored(json!({"true_token_id": 9, "false_token_id": 7})), qwen3()).unwrap();
        assert_eq!((found.pooling, found.rank_rows), (Some(Pooling::Rank), Some([9, 7])));
        let one = read(&scored(json!({"true_token_id": 9, "false_token_id": null})), qwen3()).unwrap();
        assert!(one.pooling.is_none() && one.notes[0].contains("one token alone"));
        let error = read(&scored(json!({"true_token_id": 9, "false_token_id": 2048})), qwen3()).unwrap_err();
        assert!(error.to_string().contains("token 2048"), "{error}");

        let readme = [("README.md", "text\n# Qwen3-Reranker-0.6B\n".into())];
        let found = read(&readme, qwen3()).unwrap();
        assert_eq!((found.pooling, found.rank_rows), (Some(Pooling::Rank), Some([3, 5])));
        let labels = found.metadata("qwen3").pop().unwrap();
        assert_eq!(labels, ("qwen3.classifier.output_labels".to_owned(), vec!["yes".to_owned(), "no".into()].into()));
        let mut prompted = vocabulary(false);
        found.add_prompt(&mut prompted);
        assert!(prompted.named_templates[0].0 == "rerank" && prompted.named_templates[0].1.contains("{query}"));
        let class = json!({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]});
        assert_eq!(read(&[], class).unwrap().rank_rows, Some([3, 5]));
        assert_eq!(
            read(&[], json!({"model_type": "qwen3", "_name_or_path": "Qwen/Qwen3-Reranker-4B"})).unwrap().rank_rows,
            Some([3, 5])
        );
        assert_eq!(
            read(&readme, json!({"model_type": "llama"})).unwrap().rank_rows,
            None,
            "llama.cpp has no such head there"
        );
        let mute = Vocabulary { tokens: vec!["a".into()], ..vocabulary(false) };
        let error = SentenceModel::read(folder(&readme).path(), &qwen3(), &mute).unwrap_err();
        assert!(error.to_string().contains("has no token \"yes\""), "{error}");
    }
}
