//! llama.cpp loads every architecture, and makes of it what transformers does.

use crate::ask;
use crate::common::{folder, golden, llmq};

#[test]
fn every_architecture_gives_the_probabilities_of_transformers() {
    let mut wrong = Vec::new();
    for golden in golden::all() {
        let out = folder();
        let [model, file] = ["model", "model.gguf"].map(|name| out.path().join(name));
        golden.checkpoint.write(&model);
        llmq!["quantize", &model, "-o", &file, "--type", "F32", "--method", "rtn"].ok();
        let theirs = ask::llama(&file, &[], &golden.windows).logprobs.concat();
        let worst = theirs.iter().zip(&golden.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // llama.cpp has a table of halves for GELU.
        let bound = if golden.checkpoint.config.to_string().contains("\"gelu") { 5e-3 } else { 1e-4 };
        if theirs.len() != golden.logprobs.len() || worst > bound {
            wrong.push(format!("{}: log-probabilities differ by {worst:e}", golden.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
