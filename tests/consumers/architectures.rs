//! llama.cpp loads every architecture, and makes of it what transformers does.

use crate::ask;
use crate::common::golden::{self, Golden};
use crate::common::{folder, llmq};
use std::path::PathBuf;

#[test]
fn every_architecture_gives_the_probabilities_of_transformers() {
    let out = folder();
    let all = golden::all();
    let quantized = |golden: &Golden| {
        // The folder gives the model its name, where llama.cpp looks for words that mean other vocabularies.
        let [model, file] = ["", ".gguf"].map(|end| out.path().join(format!("{}{end}", golden.name)));
        golden.checkpoint.write(&model);
        llmq!["quantize", &model, "-o", &file, "--type", "F32", "--method", "rtn"].ok();
        file
    };
    let files: Vec<PathBuf> = all.iter().map(quantized).collect();
    let questions = files.iter().zip(&all).map(|(file, golden)| (file.as_path(), &[][..], &golden.windows[..]));
    let answers = ask::llamas(&questions.collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (golden, answer) in all.iter().zip(answers) {
        let theirs = answer.logprobs.concat();
        let worst = theirs.iter().zip(&golden.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // llama.cpp has a table of halves for GELU.
        let bound = if golden.checkpoint.config.to_string().contains("\"gelu") { 5e-3 } else { 1e-4 };
        if theirs.len() != golden.logprobs.len() || worst > bound {
            wrong.push(format!("{}: log-probabilities differ by {worst:e}", golden.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
