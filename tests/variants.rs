//! Every variation of the Llama block, as random weights: its F32 GGUF has to behave like the folder it was made from.
//! This is the test of row permutation, tensor names and metadata, because the two are read by different code.

mod common;

use common::checkpoint::{Checkpoint, Shape};
use common::{folder, llmq, perplexity, tensors};
use safetensors::Dtype;
use serde_json::json;

const PROTOCOLS: [[&str; 6]; 2] =
    [["-c", "64", "--chunks", "4", "--protocol", "llama.cpp"], ["-c", "128", "--chunks", "2", "--protocol", "hf"]];

/// Quantizes to F32 and compares; returns the perplexities.
#[track_caller]
fn same(checkpoint: &Checkpoint) -> [f64; 2] {
    let root = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| root.path().join(name));
    checkpoint.write(&model);
    llmq!["quantize", &model, "-o", &file, "--type", "F32"].ok();
    PROTOCOLS.map(|options| {
        let [folder, gguf] = [&model, &file].map(|model| perplexity(model, &options));
        assert!((gguf / folder - 1.0).abs() < 1e-5, "{options:?}: the folder has {folder}, the GGUF {gguf}");
        folder
    })
}

/// The perplexities differ so much that a variation that went missing would show.
#[track_caller]
fn differ(a: [f64; 2], b: [f64; 2]) {
    for (a, b) in a.into_iter().zip(b) {
        assert!((a / b - 1.0).abs() > 1e-3, "{a} and {b}");
    }
}

#[test]
fn grouped_and_multi_query_and_full_attention() {
    for kv_heads in [1, 2, 4] {
        same(&Shape { kv_heads, ..Shape::default() }.checkpoint());
    }
}

#[test]
fn an_output_matrix_of_its_own() {
    let checkpoint = Shape { tied: false, ..Shape::default() }.checkpoint();
    let mut tied = checkpoint.clone();
    tied.config["tie_word_embeddings"] = true.into();
    // One that is stored is read, whatever the configuration says.
    assert_eq!(same(&checkpoint), same(&tied));
    tied.tensors.remove("lm_head.weight").expect("a matrix of its own");
    differ(same(&checkpoint), same(&tied));
}

#[test]
fn biases() {
    for shape in [
        Shape { attention_bias: true, ..Shape::default() },
        Shape { mlp_bias: true, ..Shape::default() },
        Shape { attention_bias: true, mlp_bias: true, kv_heads: 1, ..Shape::default() },
    ] {
        let checkpoint = shape.checkpoint();
        let mut without = checkpoint.clone();
        without.config["attention_bias"] = false.into();
        without.config["mlp_bias"] = false.into();
        differ(same(&checkpoint), same(&without));
    }
}

#[test]
fn heads_wider_and_narrower_than_their_share() {
    for head_dim in [8, 32] {
        same(&Shape { head_dim: Some(head_dim), ..Shape::default() }.checkpoint());
    }
}

#[test]
fn rotary_scaling() {
    let llama3 = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let [plain, linear, llama3] = [json!(null), json!({ "type": "linear", "factor": 4.0 }), llama3]
        .map(|rope| same(&Shape { rope, ..Shape::default() }.checkpoint()));
    differ(plain, linear);
    differ(plain, llama3);
    differ(linear, llama3);
}

#[test]
fn newer_configurations_keep_rotary_scaling_elsewhere() {
    let rope = json!({ "type": "linear", "factor": 4.0 });
    let older = Shape { rope, ..Shape::default() }.checkpoint();
    let mut newer = older.clone();
    let config = newer.config.as_object_mut().unwrap();
    config.remove("rope_scaling");
    config.remove("rope_theta");
    config.insert("rope_parameters".into(), json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0 }));
    assert_eq!(same(&older), same(&newer));
}

#[test]
fn sources_of_every_float_type() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut checkpoint = Shape::default().checkpoint();
        checkpoint.dtype = dtype;
        let root = folder();
        checkpoint.write(root.path());
        assert!(tensors(root.path()).iter().all(|t| t["kind"] == format!("{dtype:?}")));
        same(&checkpoint);
    }
}

#[test]
fn every_variation_is_calibrated_too() {
    let rope = json!({ "type": "linear", "factor": 4.0 });
    let shape =
        Shape { attention_bias: true, mlp_bias: true, head_dim: Some(32), tied: false, rope, ..Shape::default() };
    let root = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| root.path().join(name));
    shape.write(&model);
    llmq!["quantize", &model, "-o", &file, "--type", "Q8_0", "--samples", "8", "--seq-len", "64"].ok();
    let [folder, gguf] = [&model, &file].map(|model| perplexity(model, &PROTOCOLS[0]));
    assert!((gguf / folder - 1.0).abs() < 0.02, "the folder has {folder}, the GGUF {gguf}");
}
