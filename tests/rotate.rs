//! `llmq quantize --rotate`: the same function from other weights, what is told about it, and what is refused.

mod common;

use common::checkpoint::Shape;
use common::{folder, llmq, names, perplexity, refused, tensors, tiny};
use llmq::pipeline::weights::open_gguf;
use llmq::source::value::Value;
use llmq_kernels::gemm::Precision;
use serde_json::json;
use std::fs;
use std::path::Path;

const LITTLE: [&str; 4] = ["--samples", "8", "--seq-len", "64"];

/// Decoded tensors of an F32 GGUF by name.
fn numbers(file: &Path, tensor: &str) -> Vec<f32> {
    let gguf = open_gguf(file).unwrap();
    let data = gguf.data(gguf.tensor(tensor).unwrap_or_else(|| panic!("no tensor {tensor}")));
    data.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// Writes the model as F32 with these options.
fn single(model: &Path, file: &Path, options: &[&str]) {
    llmq!["quantize", model, "-o", file, "--type", "F32", "--force"; options].ok();
}

#[test]
fn a_rotated_model_computes_the_same() {
    let all = Shape { attention_bias: true, mlp_bias: true, ..Shape::default() };
    let rope = json!({ "type": "linear", "factor": 4.0 });
    for shape in [
        Shape::default(),
        Shape { tied: false, kv_heads: 1, ..Shape::default() },
        all.clone(),
        Shape { tied: false, kv_heads: 4, rope, ..all.clone() },
        // Sizes with odd parts: 3·2^5, 5·2^4 and heads of 3·2^2 and 5·2.
        Shape { hidden: 96, head_dim: Some(12), ..all.clone() },
        Shape { hidden: 80, heads: 8, head_dim: Some(10), ffn: 52, ..all },
    ] {
        let root = folder();
        let [model, plain, rotated] = ["model", "plain.gguf", "rotated.gguf"].map(|name| root.path().join(name));
        shape.write(&model);
        single(&model, &plain, &[]);
        single(&model, &rotated, &["--rotate"]);
        for options in [["-c", "64", "--chunks", "4"], ["-c", "128", "--chunks", "2"]] {
            let [a, b] = [&plain, &rotated].map(|file| perplexity(file, &options));
            // Numbers that are split in two for products keep about sixteen of twenty-four bits.
            let rounding = if Precision::Split.rounds() { 1e-4 } else { 1e-5 };
            assert!((b / a - 1.0).abs() < rounding, "{shape:?}: {a} becomes {b}");
        }
        // Every norm's gain has gone into the layers behind it, and every matrix has turned.
        for tensor in tensors(&plain) {
            let name = tensor["name"].as_str().unwrap();
            let (before, after) = (numbers(&plain, name), numbers(&rotated, name));
            let still = ["attn_q.bias", "attn_k.bias", "ffn_gate.bias", "ffn_up.bias"];
            assert_eq!(before == after, still.iter().any(|still| name.ends_with(still)), "{name}");
            assert!(!name.contains("norm") || after.iter().all(|&x| x == 1.0), "{name}");
        }
    }
}

#[test]
fn a_quantized_rotated_model_is_as_good_as_its_bits() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let original = perplexity(&tiny(), &["-c", "128", "--chunks", "8"]);
    for options in [["--type", "Q4_K_M", "-m", "gptq"], ["--type", "Q8_0", "-m", "rtn"]] {
        llmq!["quantize", tiny(), "-o", &file, "--rotate", "--force"; [&options[..], &LITTLE].concat()].ok();
        let quality = perplexity(&file, &["-c", "128", "--chunks", "8"]) / original;
        assert!((0.95..1.05).contains(&quality), "{options:?}: {quality}");
    }
}

#[test]
fn untying_and_its_price_are_told() {
    let out = folder();
    let [plain, file] = ["plain.gguf", "out.gguf"].map(|name| out.path().join(name));
    let options = ["--type", "Q4_K_M", "-m", "rtn"];
    llmq!["quantize", tiny(), "-o", &plain; options].ok();
    let dry = llmq!["quantize", tiny(), "-o", &file, "--rotate", "--dry-run", "--json"; options].ok();
    assert_eq!(names(out.path()), ["plain.gguf"]);
    let real = llmq!["quantize", tiny(), "-o", &file, "--rotate", "--json"; options].ok();
    let size = |file: &Path| fs::metadata(file).unwrap().len();
    assert_eq!(dry.summary()["bytes"], size(&file));
    let note = real.summary()["notes"][0].as_str().unwrap().to_owned();
    assert_eq!(dry.summary()["notes"], json!([note]));
    assert_eq!(real.lines("note")[0]["text"], note);
    assert!(real.stderr.contains(&note) && dry.stderr.contains(&note), "{}", real.stderr);
    // The rest is the entry in the header, and what fills it up.
    let told: u64 = note.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let rest = size(&file) - size(&plain) - told;
    assert!((20..150).contains(&rest), "{note}, but the file has grown by {rest} more");

    let kinds = |wanted: &str| tensors(&file).iter().find(|t| t["name"] == wanted).unwrap()["kind"].clone();
    assert!(note.contains("token_embd.weight gets Q4_K instead of Q6_K"), "{note}");
    assert_eq!((kinds("output.weight"), kinds("token_embd.weight")), (json!("Q6_K"), json!("Q4_K")));
    // It is another file, but no larger model.
    let label =
        |file: &Path| open_gguf(file).unwrap().get("general.size_label").and_then(Value::as_str).map(str::to_owned);
    assert_eq!(label(&file), label(&plain));
    let from = real.lines("tensor").iter().find(|t| t["name"] == "output.weight").unwrap()["from"].clone();
    assert_eq!(from, real.lines("tensor")[0]["from"]);
}

#[test]
fn nothing_is_told_where_nothing_is_untied() {
    let out = folder();
    let [model, file] = ["model", "out.gguf"].map(|name| out.path().join(name));
    Shape { tied: false, ..Shape::default() }.write(&model);
    let run = llmq!["quantize", &model, "-o", &file, "--rotate", "--json", "-m", "rtn", "--type", "Q8_0"].ok();
    assert_eq!(run.summary()["notes"], json!([]));
    assert!(!run.stderr.contains("unties"), "{}", run.stderr);
}

#[test]
fn the_seed_decides_about_the_rotation() {
    let out = folder();
    let bytes = |options: &[&str]| {
        let file = out.path().join("out.gguf");
        single(&tiny(), &file, &[&["--rotate"], options].concat());
        fs::read(file).unwrap()
    };
    let first = bytes(&["--threads", "1"]);
    assert!(first == bytes(&["--threads", "2"]));
    assert!(first != bytes(&["--seed", "1"]));
}

#[test]
fn what_cannot_be_rotated_is_refused_with_the_reason() {
    let root = folder();
    let [gguf, imatrix] = ["model.gguf", "imatrix.gguf"].map(|name| root.path().join(name));
    single(&tiny(), &gguf, &[]);
    refused(&gguf, &["--rotate"], 2, &["--rotate", "model.gguf", "only checkpoint folders are rotated", "hint: "]);
    llmq!["imatrix", tiny(), "-o", &imatrix, "-c", "64", "--chunks", "2"].ok();
    let with = ["--rotate", "--imatrix", imatrix.to_str().unwrap(), "-m", "rtn"];
    refused(&tiny(), &with, 2, &["--rotate", "imatrix.gguf", "it was measured on the model as it is", "hint: "]);
    let save = root.path().join("saved.gguf");
    let with = ["--rotate", "--save-imatrix", save.to_str().unwrap()];
    refused(&tiny(), &with, 2, &["--save-imatrix", "--rotate", "hint: "]);
    assert!(!save.exists());
    // What is not there is not called a file of the wrong kind.
    refused(&root.path().join("nothing"), &["--rotate"], 1, &["nothing"]);
}

#[test]
fn damaged_gains_are_named() {
    let root = folder();
    let model = root.path().join("model");
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.numbers("model.layers.1.input_layernorm.weight")[3] = f32::NAN;
    checkpoint.write(&model);
    let told = ["model.layers.1.input_layernorm.weight", "NaN at element 3", "hint: "];
    refused(&model, &["--rotate", "-m", "rtn"], 1, &told);
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.numbers("model.layers.1.input_layernorm.weight")[3] = 3e38;
    checkpoint.numbers("model.layers.1.self_attn.q_proj.weight").fill(1e3);
    checkpoint.write(&model);
    refused(&model, &["--rotate", "-m", "rtn"], 1, &["model.layers.1.self_attn.q_proj.weight", "overflows", "hint: "]);
}
