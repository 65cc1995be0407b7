//! llama.cpp loads every architecture, and makes of it what transformers does.

use crate::ask;
use crate::common::golden::{self, Golden};
use crate::common::{folder, llmq};
use llmq::eval::perplexity;
use llmq::pipeline::forecast::fit::Sizes;
use llmq::pipeline::loaded_model::LoadedModel;
use std::path::{Path, PathBuf};

/// The file of a golden checkpoint. The folder gives the model its name, where llama.cpp looks for words that mean other vocabularies.
fn f32_file(golden: &Golden, out: &Path) -> PathBuf {
    let [model, file] = ["", ".gguf"].map(|end| out.join(format!("{}{end}", golden.name)));
    golden.checkpoint.write(&model);
    llmq!["quantize", &model, "-o", &file, "--type", "F32", "--method", "rtn"].ok();
    file
}

/// What is wrong if llama.cpp finds other probabilities in the files of these checkpoints than transformers does.
fn differences(all: &[Golden], out: &Path, skipped: &dyn Fn(&str) -> bool) -> Vec<String> {
    let files: Vec<PathBuf> = all.iter().map(|golden| f32_file(golden, out)).collect();
    let questions = files.iter().zip(all).map(|(file, golden)| (file.as_path(), &[][..], &golden.windows[..]));
    let answers = ask::llamas_skipping(skipped, &questions.collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (golden, answer) in all.iter().zip(answers) {
        let theirs = answer.logprobs.concat();
        let worst = theirs.iter().zip(&golden.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let config = golden.checkpoint.config.to_string();
        let bound = match config {
            // llama.cpp has a table of halves for GELU.
            _ if config.contains("\"gelu") => 1e-2,
            // And with its own converter's files, too, it turns pairs along several axes, not interleaved, less exactly than others.
            _ if golden.keys.keys().any(|key| key.starts_with("qwen2vl.")) => 5e-3,
            _ => 1e-4,
        };
        if theirs.len() != golden.logprobs.len() || worst > bound {
            wrong.push(format!("{}: log-probabilities differ by {worst:e}", golden.name));
        }
    }
    wrong
}

#[test]
fn every_architecture_gives_the_probabilities_of_transformers() {
    let out = folder();
    let all: Vec<Golden> = golden::all().into_iter().filter(|golden| golden.means.is_none()).collect();
    let wrong = differences(&all, out.path(), &|_| false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What llama.cpp takes for a context is what a plan says.
#[test]
fn contexts_take_what_is_predicted() {
    const TOKENS: usize = 2048;
    let half = llmq::format::by_name("F16").unwrap();
    let out = folder();
    let all = golden::all().into_iter().filter(|golden| golden.means.is_none());
    let files: Vec<PathBuf> = all.map(|golden| f32_file(&golden, out.path())).collect();
    let mut wrong = Vec::new();
    for (file, lines) in files.iter().zip(ask::contexts(&files, TOKENS)) {
        let said = |kind: &str| -> f64 {
            let sizes = lines
                .iter()
                .filter_map(|line| line.split_once(kind)?.1.trim().strip_suffix(" MiB")?.parse::<f64>().ok());
            sizes.sum()
        };
        let theirs = said(" KV buffer size =") + said(" RS buffer size =");
        let sizes = Sizes::of_model(&LoadedModel::open(file, None).unwrap().model);
        let ours = sizes.needs(Some(TOKENS as u64), half).cache as f64 / f64::from(1 << 20);
        if (ours - theirs).abs() > 0.03 * theirs {
            wrong.push(format!("{}: {ours:.2} MiB here, {theirs:.2} in llama.cpp", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_llama_cpp_that_is_named_is_the_one_that_was_asked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".consumers/node/node_modules/node-llama-cpp/llama");
    let release = std::fs::read(root.join("binariesGithubRelease.json")).expect("run scripts/setup-consumers.sh");
    let release: serde_json::Value = serde_json::from_slice(&release).unwrap();
    let said = llmq!["archs"].ok().stderr;
    assert!(said.contains(&format!("llama.cpp {} ", release["release"].as_str().unwrap())), "{said}");
}

/// llama.cpp has a place for every tensor of layers that predict more tokens, which it leaves alone unless it is to guess ahead: one that it
/// did not know would be an error. The next token's probabilities stay what they are.
#[test]
fn layers_for_multi_token_prediction_are_known() {
    let out = folder();
    let all = ["qwen3_5", "qwen3_5-seeing", "qwen3_5_moe", "qwen3_next"].map(|name| golden::read(name).with_mtp());
    let wrong = differences(&all, out.path(), &|tensor| tensor.starts_with("blk.3."));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of a calibrated mix of types, llama.cpp makes what llmq does, as far as activations that are rounded to eight bits go.
#[test]
fn quantized_files_of_every_mixer_give_the_same_loss() {
    let out = folder();
    let all =
        ["qwen3_5", "qwen3_5_moe", "qwen3_next", "gemma4", "gemma4_e2b", "gemma4_moe", "gemma3n"].map(golden::read);
    let quantized = |golden: &Golden| {
        let [model, file] = ["", ".gguf"].map(|end| out.path().join(format!("{}{end}", golden.name)));
        golden.checkpoint.write(&model);
        let options = ["--samples", "16", "--seq-len", "64"];
        llmq!["quantize", &model, "-o", &file, "--type", "Q4_K_M", "--method", "auto"; options].ok();
        file
    };
    let files = all.each_ref().map(quantized);
    let questions: Vec<ask::Question> =
        files.iter().zip(&all).map(|(file, golden)| (file.as_path(), &[][..], &golden.windows[..])).collect();
    let mut wrong = Vec::new();
    for ((golden, file), answer) in all.iter().zip(&files).zip(ask::llamas(&questions)) {
        let loaded = LoadedModel::open(file, None).unwrap();
        let ours = perplexity::losses(&loaded, &golden.windows, 0, &|_, _| ()).unwrap();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let [own, theirs] = [mean(&ours), -mean(&answer.logprobs.concat())];
        if (own - theirs).abs() > 0.02 * own {
            wrong.push(format!("{}: {own} here, {theirs} in llama.cpp", golden.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
