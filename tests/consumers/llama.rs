//! llama.cpp loads every file and finds each token as likely as llmq does.

use crate::ask;
use crate::common::checkpoint::Shape;
use crate::common::{folder, llmq, tiny};
use crate::quantize;
use llmq::eval::perplexity::{self, Protocol};
use llmq::format::{mix, writable};
use llmq::pipeline::loaded_model::LoadedModel;
use serde_json::json;
use std::path::PathBuf;

const TEXT: &str = include_str!("../../eval/heldout.txt");

#[test]
fn every_type_gives_the_same_probabilities() {
    let files: Vec<_> = writable().map(|kind| quantize(&tiny(), kind.name(), "rtn")).collect();
    let windows = windows(&LoadedModel::open(&tiny(), None).unwrap(), 128);
    let questions: Vec<ask::Question> = files.iter().map(|(_, file)| (file.as_path(), &[][..], &windows[..])).collect();
    for ((kind, (_, file)), answer) in writable().zip(&files).zip(ask::llamas(&questions)) {
        // llama.cpp rounds activations to suit the weights: to halves, or to eight bits for all quantized types.
        let bound = match kind.name() {
            "F32" => 1e-4,
            "F16" => 5e-3,
            "BF16" => 5e-2,
            _ => 0.3,
        };
        let loaded = LoadedModel::open(file, None).unwrap();
        agree(&answer.logprobs.concat(), &loaded, &windows, bound, kind.name());
    }
}

/// One file of each mix: llama.cpp's perplexity on a short text is within one percent of ours.
#[test]
fn every_mix_gives_the_same_perplexity() {
    let out = folder();
    let windows = windows(&LoadedModel::open(&tiny(), None).unwrap(), 256);
    let quantized = |mix: mix::Mix| {
        let file = out.path().join(format!("{}.gguf", mix.name));
        llmq!["quantize", tiny(), "-o", &file, "--type", mix.name, "--method", "rtn"].ok();
        file
    };
    let files: Vec<PathBuf> = mix::all().map(quantized).collect();
    let questions: Vec<ask::Question> = files.iter().map(|file| (file.as_path(), &[][..], &windows[..])).collect();
    for ((mix, file), answer) in mix::all().zip(&files).zip(ask::llamas(&questions)) {
        let loaded = LoadedModel::open(file, None).unwrap();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let theirs = (-mean(&answer.logprobs.concat())).exp();
        let ours = mean(&perplexity::losses(&loaded, &windows, 0, &|_, _| ()).unwrap()).exp();
        assert!((theirs / ours - 1.0).abs() < 0.01, "{}: {theirs} against {ours}", mix.name);
    }
}

#[test]
fn shards_are_one_model() {
    let out = folder();
    let file = out.path().join("model.gguf");
    llmq!["quantize", tiny(), "-o", &file, "--type", "F32", "--max-shard-size", "4M"].ok();
    let first = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path());
    let first = first.min().unwrap();
    assert!(first.to_str().unwrap().contains("-00001-of-0000"));
    let loaded = LoadedModel::open(&tiny(), None).unwrap();
    let windows = windows(&loaded, 128);
    agree(&ask::llama(&first, &[], &windows).logprobs.concat(), &loaded, &windows, 1e-4, "shards");
}

/// The weights are those of the checkpoint, so that what gets lost on the way into the file shows.
#[test]
fn every_variation_of_the_block_gives_the_same_probabilities() {
    let base = Shape::default();
    let llama3 = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let variations = [
        ("one key-value head", Shape { kv_heads: 1, ..base.clone() }),
        ("an output matrix of its own", Shape { tied: false, ..base.clone() }),
        ("biases", Shape { attention_bias: true, mlp_bias: true, ..base.clone() }),
        ("wide heads", Shape { head_dim: Some(32), ..base.clone() }),
        ("narrow heads", Shape { head_dim: Some(8), ..base.clone() }),
        ("linear rotary scaling", Shape { rope: json!({ "type": "linear", "factor": 4.0 }), ..base.clone() }),
        ("Llama 3's rotary scaling", Shape { rope: llama3, ..base }),
    ];
    for (name, shape) in variations {
        let checkpoint = folder();
        shape.write(checkpoint.path());
        let (_folder, file) = quantize(checkpoint.path(), "F32", "rtn");
        let loaded = LoadedModel::open(checkpoint.path(), None).unwrap();
        let windows = windows(&loaded, 256);
        let theirs = ask::llama(&file, &[], &windows).logprobs.concat();
        agree(&theirs, &loaded, &windows, 1e-3, name);
        agree(&theirs, &LoadedModel::open(&file, None).unwrap(), &windows, 1e-3, name);
    }
}

/// llama.cpp knows nothing of the rotation, and need not.
#[test]
fn a_rotated_model_gives_the_probabilities_of_its_checkpoint() {
    let all = Shape { attention_bias: true, mlp_bias: true, ..Shape::default() };
    for (name, shape) in
        [("tied", all.clone()), ("untied", Shape { hidden: 96, head_dim: Some(12), tied: false, ..all })]
    {
        let out = folder();
        let [model, file] = ["model", "model.gguf"].map(|name| out.path().join(name));
        shape.write(&model);
        llmq!["quantize", &model, "-o", &file, "--type", "F32", "--rotate"].ok();
        let loaded = LoadedModel::open(&model, None).unwrap();
        let windows = windows(&loaded, 256);
        agree(&ask::llama(&file, &[], &windows).logprobs.concat(), &loaded, &windows, 1e-3, name);
    }
}

/// Two windows of text, each after BOS.
fn windows(loaded: &LoadedModel, length: usize) -> Vec<Vec<u32>> {
    perplexity::windows(loaded, TEXT, Protocol::LlamaCpp, length, Some(2)).unwrap()
}

/// Our log-probabilities differ from those of llama.cpp by at most `bound`, and by far less on average.
fn agree(theirs: &[f64], loaded: &LoadedModel, windows: &[Vec<u32>], bound: f64, what: &str) {
    let losses = perplexity::losses(loaded, windows, 0, &|_, _| ()).unwrap();
    assert_eq!(theirs.len(), losses.len(), "{what}");
    let differences = || theirs.iter().zip(&losses).map(|(theirs, loss)| theirs + loss);
    let largest = differences().map(f64::abs).fold(0.0, f64::max);
    let mean = differences().sum::<f64>() / theirs.len() as f64;
    assert!(largest <= bound, "{what}: log-probabilities differ by up to {largest}");
    assert!(mean.abs() <= bound / 30.0, "{what}: log-probabilities differ by {mean} on average");
}
