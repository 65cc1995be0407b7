//! Checkpoints and calibration that leave a method little or nothing to go by: a file as good as rounding makes it, or an
//! error that says where.

mod common;

use common::checkpoint::{Checkpoint, Shape};
use common::{folder, kind, llmq, refused};
use llmq::eval::perplexity::{Protocol, losses, windows};
use llmq::method;
use llmq::pipeline::loaded_model::LoadedModel;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// As little calibration as there can be.
const LEAST: [&str; 4] = ["--samples", "1", "--seq-len", "2"];

/// Little, but with windows to hold out.
const LITTLE: [&str; 4] = ["--samples", "16", "--seq-len", "32"];

fn written(checkpoint: &Checkpoint) -> (TempDir, PathBuf) {
    let root = folder();
    let model = root.path().join("model");
    checkpoint.write(&model);
    (root, model)
}

/// The log-likelihoods of some tokens.
fn likelihoods(model: &Path) -> Vec<f64> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/heldout.txt")).unwrap();
    let loaded = LoadedModel::open(model, None).unwrap();
    let windows = windows(&loaded, &text, Protocol::LlamaCpp, 64, Some(8)).unwrap();
    losses(&loaded, &windows, 0, &|_, _| ()).unwrap()
}

/// Quantizes by every method to every one of these types. No method may be further from the original than `worst` times
/// what rounding to nearest is.
#[track_caller]
fn all_are_sound(model: &Path, kinds: &[&str], options: &[&str], worst: f64) {
    let original = likelihoods(model);
    let out = folder();
    for base in kinds {
        let change = |method: &str| {
            let file = out.path().join(format!("{base}.{method}.gguf"));
            let own = ["--type", base, "--output-tensor-type", "F16", "--method", method, "--json"];
            let run = llmq!["quantize", model, "-o", &file; [&own[..], options].concat()].ok();
            for tensor in run.lines("tensor") {
                let error = tensor["relative_error"].as_f64();
                assert!(error.is_some_and(|e| e < 1.0) || !tensor["to"].as_str().unwrap().starts_with('Q'), "{tensor}");
            }
            let changed = likelihoods(&file);
            assert!(changed.iter().all(|x| x.is_finite()), "{base} {method}");
            original.iter().zip(&changed).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / original.len() as f64
        };
        let rtn = change("rtn");
        for method in method::METHODS.iter().map(|m| m.name()).filter(|&name| name != "rtn") {
            let change = change(method);
            eprintln!("{base} {method}: {change:.3e} where rtn has {rtn:.3e}: {:.3}", change / rtn);
            assert!(change <= worst * rtn + 1e-9, "{base} {method}: {change} where rtn has {rtn}");
        }
    }
}

const NARROW: [&str; 3] = ["Q4_0", "Q8_0", "MXFP4"];

#[test]
fn two_tokens_of_calibration() {
    let (_root, model) = written(&Shape::default().checkpoint());
    all_are_sound(&model, &NARROW, &LEAST, 4.0);
}

#[test]
fn two_tokens_of_calibration_for_super_blocks() {
    let (_root, model) = written(&Shape { hidden: 256, ffn: 256, blocks: 1, ..Shape::default() }.checkpoint());
    all_are_sound(&model, &["Q4_K_S"], &LEAST, 4.0);
}

#[test]
fn inputs_that_are_all_zero() {
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        let mut checkpoint = Shape::default().checkpoint();
        checkpoint.numbers(&format!("model.layers.1.{norm}.weight")).fill(0.0);
        let (_root, model) = written(&checkpoint);
        all_are_sound(&model, &NARROW, &LITTLE, 2.0);
    }
}

#[test]
fn channels_that_are_always_zero() {
    // Gains, values and gated channels: half of the columns of every site.
    let mut checkpoint = Shape::default().checkpoint();
    for i in 0..2 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            checkpoint.numbers(&format!("model.layers.{i}.{norm}.weight")).iter_mut().step_by(2).for_each(|x| *x = 0.0);
        }
        for part in ["self_attn.v_proj", "mlp.up_proj"] {
            let rows = checkpoint.numbers(&format!("model.layers.{i}.{part}.weight"));
            rows.chunks_mut(64).step_by(2).for_each(|row| row.fill(0.0));
        }
    }
    let (_root, model) = written(&checkpoint);
    all_are_sound(&model, &NARROW, &LITTLE, 2.0);
}

#[test]
fn weights_that_are_all_zero() {
    let mut checkpoint = Shape::default().checkpoint();
    for part in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"] {
        checkpoint.numbers(&format!("model.layers.0.{part}.weight")).fill(0.0);
    }
    checkpoint.numbers("model.layers.1.mlp.gate_proj.weight").fill(0.0);
    let (_root, model) = written(&checkpoint);
    all_are_sound(&model, &NARROW, &LITTLE, 2.0);
}

#[test]
fn layers_as_narrow_as_a_block() {
    // One block per row everywhere; heads of two numbers.
    let shape = Shape { hidden: 32, heads: 16, kv_heads: 1, head_dim: Some(2), ffn: 32, blocks: 1, ..Shape::default() };
    let (_root, model) = written(&shape.checkpoint());
    all_are_sound(&model, &NARROW, &LITTLE, 2.0);
    all_are_sound(&model, &["Q4_0"], &LEAST, 4.0);
}

#[test]
fn matrices_of_a_single_row() {
    // Down and the heads' output have one block per row, gate and up 32 rows, k and v two.
    let shape = Shape { hidden: 32, heads: 16, kv_heads: 1, head_dim: Some(2), ffn: 1, blocks: 1, ..Shape::default() };
    let (_root, model) = written(&shape.checkpoint());
    let out = folder();
    for method in method::METHODS {
        let file = out.path().join(method.name());
        let own = ["--type", "Q8_0", "--method", method.name()];
        llmq!["quantize", &model, "-o", &file; [&own[..], &LITTLE].concat()].ok();
        // One row alone is a vector to llama.cpp, which it leaves as it is.
        assert_eq!(kind(&file, "blk.0.ffn_up.weight"), "F32");
        assert_eq!(kind(&file, "blk.0.attn_k.weight"), "Q8_0");
        assert_eq!(kind(&file, "blk.0.ffn_down.weight"), "F16");
        let change: Vec<f64> = likelihoods(&model).iter().zip(likelihoods(&file)).map(|(a, b)| (a - b).abs()).collect();
        assert!(change.iter().all(|x| *x < 0.5), "{}: {change:?}", method.name());
    }
}

#[test]
fn layers_that_ask_for_scales_beyond_half_precision() {
    // Some gates are wide open, or almost shut, so that AWQ has something to scale by; and up is so small, or so large, that
    // its own scales have no room for that.
    for (size, gates) in [(1e-4, 30.0), (1e-3, 30.0), (2e5, 1e-3)] {
        let mut checkpoint = Shape { blocks: 1, ..Shape::default() }.checkpoint();
        let gate = checkpoint.numbers("model.layers.0.mlp.gate_proj.weight");
        gate.chunks_mut(64).skip(3).step_by(8).flatten().for_each(|x| *x *= gates);
        checkpoint.numbers("model.layers.0.mlp.up_proj.weight").iter_mut().for_each(|x| *x *= size);
        checkpoint.numbers("model.layers.0.mlp.down_proj.weight").iter_mut().for_each(|x| *x /= size.min(1e4));
        let (_root, model) = written(&checkpoint);
        all_are_sound(&model, &["Q4_0", "Q8_0"], &LITTLE, 2.0);
    }
}

/// A model whose second attention reads and mixes inputs of a far too large, or far too small, size.
fn extreme(size: f32, undone: f32) -> Checkpoint {
    let mut checkpoint = Shape::default().checkpoint();
    let mut scale = |part: &str, by: f32| {
        checkpoint.numbers(&format!("model.layers.1.{part}.weight")).iter_mut().for_each(|x| *x *= by);
    };
    scale("input_layernorm", size);
    scale("self_attn.q_proj", 0.0);
    scale("self_attn.k_proj", 0.0);
    scale("self_attn.v_proj", undone);
    scale("self_attn.o_proj", undone);
    checkpoint
}

#[test]
fn activations_that_are_infinite() {
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.numbers("model.layers.1.post_attention_layernorm.weight").fill(1e16);
    for part in ["gate", "up"] {
        let name = format!("model.layers.1.mlp.{part}_proj.weight");
        checkpoint.numbers(&name).iter_mut().for_each(|x| *x *= 1e4);
    }
    let (_root, model) = written(&checkpoint);
    for method in ["auto", "awq", "gptq", "awq+gptq"] {
        let told = ["block 1, input of model.layers.1.mlp.down_proj.weight", "token ", "column ", "\nhint: "];
        refused(&model, &[&["--method", method, "--type", "Q4_0"], &LITTLE[..]].concat(), 1, &told);
    }
}

#[test]
fn attention_whose_scores_are_infinite() {
    let mut checkpoint = Shape::default().checkpoint();
    for part in ["q", "k"] {
        let name = format!("model.layers.1.self_attn.{part}_proj.weight");
        checkpoint.numbers(&name).iter_mut().for_each(|x| *x *= 1e21);
    }
    let (_root, model) = written(&checkpoint);
    let told = ["block 1, input of model.layers.1.self_attn.o_proj.weight", "NaN at token ", "\nhint: "];
    for method in ["auto", "gptq"] {
        refused(
            &model,
            &[&["--method", method, "--type", "Q4_0", "--tensor-type", "attn_[qk]=F32"], &LITTLE[..]].concat(),
            1,
            &told,
        );
    }
}

#[test]
fn activations_whose_squares_are_infinite() {
    // The activations themselves are finite, and so is everything behind them.
    let (_root, model) = written(&extreme(1e20, 1e-4));
    let told = [
        "block 1, input of model.layers.1.self_attn.q_proj.weight, model.layers.1.self_attn.k_proj.weight",
        "are too large: their squares overflow",
        "\nhint: ",
    ];
    for method in ["auto", "awq", "gptq", "awq+gptq"] {
        refused(&model, &[&["--method", method, "--type", "Q4_0"], &LITTLE[..]].concat(), 1, &told);
    }
}

#[test]
fn activations_that_are_huge_or_tiny() {
    for (size, undone) in [(1e8, 1e-4), (1e-8, 1e4)] {
        let (_root, model) = written(&extreme(size, undone));
        all_are_sound(&model, &["Q4_0", "Q8_0"], &LITTLE, 2.0);
    }
}

/// Weights whose codes or numbers become zeros, since F16 ends at 6e-8 and so do the scales of blocks: each is said once, for
/// all blocks together.
#[test]
fn weights_that_are_too_small_for_their_type_are_said() {
    let mut checkpoint = Shape::default().checkpoint();
    for block in 0..2 {
        let name = format!("model.layers.{block}.mlp.up_proj.weight");
        checkpoint.numbers(&name).iter_mut().for_each(|x| *x *= 1e-9);
    }
    let (_root, model) = written(&checkpoint);
    let count = 2 * checkpoint.numbers("model.layers.0.mlp.up_proj.weight").len();
    for (kind, options, told) in [
        ("F16", &["--method", "rtn"][..], true),
        ("BF16", &["--method", "rtn"], false),
        ("Q4_0", &["--method", "rtn"], true),
        ("Q8_0", &LITTLE, true),
    ] {
        let out = folder();
        let file = out.path().join("out.gguf");
        let run = llmq!["quantize", &model, "-o", &file, "--type", kind, "--json"; options].ok();
        let summary = run.summary();
        let notes: Vec<&str> = summary["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str()).collect();
        let line = format!("blk.*.ffn_up.weight (2 tensors): {count} of {count} numbers are too small for {kind}");
        assert_eq!(notes.iter().filter(|note| note.starts_with(&line)).count(), usize::from(told), "{notes:?}");
        assert_eq!(notes.iter().filter(|note| note.contains("too small")).count(), usize::from(told), "{notes:?}");
    }
}
