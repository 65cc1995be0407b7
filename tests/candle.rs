//! llmq's files in the hands of candle's own quantized models: they load them, and give the probabilities that llmq gives. Its Mixtral
//! knows only files of 2023, with a tensor for each expert.

mod common;

use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{
    quantized_gemma3, quantized_lfm2, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
    quantized_qwen3_moe,
};
use common::golden::{self, Golden};
use common::{folder, llmq};
use llmq::eval::perplexity;
use llmq::pipeline::loaded_model::LoadedModel;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The next token's logits behind some tokens, of which so many went before.
type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

/// A way to open a file.
type Open = fn(Content, &mut File) -> candle_core::Result<Forward>;

/// Golden checkpoints, and candle's model of them.
const MODELS: [(&str, Open); 5] = [
    ("llama", |content, file| {
        let mut model = quantized_llama::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
        Ok(Box::new(move |x, at| model.forward(x, at)))
    }),
    ("qwen2", |content, file| {
        let mut model = quantized_qwen2::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
        Ok(Box::new(move |x, at| model.forward(x, at)))
    }),
    ("qwen3", |content, file| {
        let mut model = quantized_qwen3::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
        Ok(Box::new(move |x, at| model.forward(x, at)))
    }),
    ("phi3", |content, file| {
        let mut model = quantized_phi3::ModelWeights::from_gguf(false, content, file, &Device::Cpu)?;
        Ok(Box::new(move |x, at| model.forward(x, at)))
    }),
    ("lfm2", |content, file| {
        let mut model = quantized_lfm2::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
        Ok(Box::new(move |x, at| model.forward(x, at)))
    }),
];

fn written(golden: &Golden, out: &Path, options: &[&str]) -> PathBuf {
    let [model, file] = ["", ".gguf"].map(|end| out.join(format!("{}{end}", golden.name)));
    golden.checkpoint.write(&model);
    llmq!["quantize", &model, "-o", &file, "--force"; options].ok();
    file
}

/// What candle says of each token of a window but the first, in nats.
fn losses(open: Open, path: &Path, window: &[u32]) -> candle_core::Result<Vec<f64>> {
    let mut file = File::open(path)?;
    let mut forward = open(Content::read(&mut file)?, &mut file)?;
    let mut losses = Vec::new();
    for (at, pair) in window.windows(2).enumerate() {
        let logits = forward(&Tensor::new(&pair[..1], &Device::Cpu)?.unsqueeze(0)?, at)?;
        let logits = logits.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let all: f64 = logits.iter().map(|x| (x - most).exp()).sum();
        losses.push(most + all.ln() - logits[pair[1] as usize]);
    }
    Ok(losses)
}

/// How far candle is from llmq: for each model, the tokens' losses of both.
fn both(options: &[&str]) -> Vec<(&'static str, Vec<f64>, Vec<f64>)> {
    let out = folder();
    let of = |(name, open): &(&'static str, Open)| {
        let golden = golden::read(name);
        let file = written(&golden, out.path(), options);
        let window = &golden.windows[0];
        let theirs = losses(*open, &file, window).unwrap_or_else(|error| panic!("{name}: {error}"));
        let loaded = LoadedModel::open(&file, None).unwrap();
        (*name, theirs, perplexity::losses(&loaded, std::slice::from_ref(window), 0, &|_, _| ()).unwrap())
    };
    MODELS.iter().map(of).collect()
}

#[test]
fn files_in_single_precision_give_the_same_probabilities() {
    let worst = both(&["--type", "F32", "--method", "rtn"]).into_iter().map(|(name, theirs, ours)| {
        assert_eq!(theirs.len(), ours.len());
        (name, theirs.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
    });
    let worst: Vec<(&str, f64)> = worst.collect();
    // Its Qwen 3 keeps keys and values in half precision.
    assert!(worst.iter().all(|(name, worst)| *worst < if *name == "qwen3" { 1e-2 } else { 1e-3 }), "{worst:?}");
}

/// Candle multiplies quantized experts on CUDA alone, and computes Gemma 3 with SiLU where the model has GELU.
#[test]
fn files_of_others_are_loaded() {
    let out = folder();
    let open = |name: &str| {
        let mut file =
            File::open(written(&golden::read(name), out.path(), &["--type", "Q4_0", "--method", "rtn"])).unwrap();
        (Content::read(&mut file).unwrap(), file)
    };
    let (content, mut file) = open("qwen3_moe");
    quantized_qwen3_moe::GGUFQWenMoE::from_gguf(content, &mut file, &Device::Cpu, DType::F32).unwrap();
    let (content, mut file) = open("gemma3");
    quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
}

/// Candle rounds activations to eight bits there.
#[test]
fn quantized_files_give_the_same_loss() {
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let all = both(&["--type", "Q4_0", "--samples", "8", "--seq-len", "64"]);
    let all: Vec<(&str, f64, f64)> = all.iter().map(|(name, theirs, ours)| (*name, mean(theirs), mean(ours))).collect();
    assert!(all.iter().all(|(_, theirs, ours)| (theirs - ours).abs() < 0.02 * ours), "{all:?}");
}
