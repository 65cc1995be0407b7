//! Whole decoder blocks, linear layers and all, side by side: what a recurrent mixer costs beside attention of as many parameters.
//!
//! `cargo bench --bench blocks`. Only the ratios mean something: machines are shared and noisy. Each figure is the best of several rounds.

use candle_core::{Device, Tensor};
use llmq::model::Model;
use llmq::model::block::Block;
use llmq::model::frame::Frame;
use llmq::model::states::States;
use llmq::source::config::Config;
use llmq_kernels::gemm::Precision;
use std::time::{Duration, Instant};

/// As in the program.
#[global_allocator]
static MEMORY: llmq_kernels::LargePages = llmq_kernels::LargePages;

/// A gated delta net (16 key heads and 32 value heads of 64), and gated attention (32 query heads and 16 key heads of 64): 8.5 and 8.4
/// million parameters, behind each of which is an MLP of 9.4 million.
const MODEL: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 256, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 64, "tie_word_embeddings": true
}"#;

/// Positions of a window, and windows at once.
const SHAPES: [(usize, usize); 4] = [(512, 1), (512, 8), (2048, 1), (2048, 4)];

fn numbers(n: usize, around: f32) -> Vec<f32> {
    (0..n).map(|i| around * (i as f32 * 0.37).sin()).collect()
}

fn block<'a>(model: &Model, frame: &'a Frame, i: usize) -> Block<'a> {
    let mut block = Block::new(frame, i);
    for spec in model.block(i) {
        let around = 1.0 / (spec.columns() as f32).sqrt();
        block.set(&spec, numbers(spec.elements(), around)).expect("a tensor of the block");
    }
    block
}

/// The best time of one call, over rounds of at least half a second.
fn best(mut call: impl FnMut()) -> Duration {
    let round = || {
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(500) {
            call();
            calls += 1;
        }
        started.elapsed() / calls
    };
    std::iter::repeat_with(round).take(5).min().expect("rounds")
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, MODEL).expect("config.json");
    let model = Model::read(&Config::open(&path).expect("a configuration")).expect("a model");
    println!("{:36} {:>10} {:>10}   ratio", "", "delta net", "attention");
    for precision in [Precision::Bf16, Precision::Split] {
        for (positions, windows) in SHAPES {
            let frame = Frame::new(&model, llmq_kernels::elementwise::Pairing::Halves, positions, &Device::Cpu);
            let frame = frame.expect("room for its tables").with_precision(precision);
            let n = positions * windows;
            let h = Tensor::from_vec(numbers(n * model.hidden, 1.0), (n, model.hidden), &Device::Cpu);
            let states = States::new(h.expect("a stream"));
            let [net, attention] = [0, 1].map(|i| {
                let block = block(&model, &frame, i);
                best(|| drop(block.forward(&states).expect("a forward pass")))
            });
            let what = format!("{precision:?}, {windows} x {positions} tokens");
            println!("{what:36} {net:>10.1?} {attention:>10.1?}   {:.2}", net.as_secs_f64() / attention.as_secs_f64());
        }
    }
}
