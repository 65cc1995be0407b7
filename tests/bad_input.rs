//! Damaged, incomplete and unsuitable checkpoints, tokenizers and calibration texts, and options that make no sense:
//! each is refused with names and numbers, and nothing is left in the output folder.

mod common;

use common::checkpoint::{Checkpoint, Shape};
use common::{folder, llmq, names, refused, tiny};
use llmq::format;
use llmq::pipeline::weights::open_gguf;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const HINT: &str = "\nhint: ";

/// A model in a folder that goes away with the first.
fn written(checkpoint: &Checkpoint) -> (TempDir, PathBuf) {
    let root = folder();
    let model = root.path().join("model");
    checkpoint.write(&model);
    (root, model)
}

/// A small model, its tokenizer.json and config.json as they are.
fn small() -> Checkpoint {
    Shape { blocks: 1, ..Shape::default() }.checkpoint()
}

/// A safetensors file of F32 vectors at these places of its data, `(name, from, to)`, and its data.
fn safetensors(tensors: &[(&str, usize, usize)], data: usize) -> Vec<u8> {
    let entry = |&(name, from, to): &(&str, usize, usize)| {
        let info = json!({ "dtype": "F32", "shape": [(to - from) / 4], "data_offsets": [from, to] });
        (name.to_owned(), info)
    };
    let header = Value::Object(tensors.iter().map(entry).collect()).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn truncated_weights() {
    let (_root, model) = written(&small());
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    let file = path.to_str().unwrap();
    refused(&model, &[], 1, &[file, "tensor '", "ends at byte ", "but only ", HINT]);
    fs::write(&path, &bytes[..100]).unwrap();
    refused(&model, &[], 1, &[file, "but the file has only 100", HINT]);
    fs::write(&path, []).unwrap();
    refused(&model, &[], 1, &[file, "0 bytes", HINT]);
}

#[test]
fn overlapping_weights() {
    let (_root, model) = written(&small());
    fs::write(model.join("model.safetensors"), safetensors(&[("a", 0, 16), ("b", 12, 24)], 24)).unwrap();
    let told = "tensor 'b' starts at byte 12 of the data, inside tensor 'a', which ends at 16";
    refused(&model, &[], 1, &["model.safetensors", told, HINT]);
}

#[test]
fn a_missing_shard() {
    let mut checkpoint = small();
    checkpoint.shards = 3;
    let (_root, model) = written(&checkpoint);
    fs::remove_file(model.join(checkpoint.file(1))).unwrap();
    let told = "lacks 1 of the files that model.safetensors.index.json lists: model-00002-of-00003.safetensors";
    refused(&model, &[], 1, &[told, HINT]);
}

#[test]
fn no_weights_at_all() {
    let (_root, model) = written(&small());
    fs::remove_file(model.join("model.safetensors")).unwrap();
    refused(&model, &[], 1, &["model.safetensors", HINT]);
}

#[test]
fn a_missing_tensor() {
    let mut checkpoint = small();
    checkpoint.tensors.remove("model.layers.0.mlp.up_proj.weight");
    let (_root, model) = written(&checkpoint);
    refused(&model, &[], 1, &["model: there is no tensor 'model.layers.0.mlp.up_proj.weight'", "[96, 64]", HINT]);
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let mut checkpoint = small();
    checkpoint.config["num_key_value_heads"] = 4.into();
    let (_root, model) = written(&checkpoint);
    let told = "tensor 'model.layers.0.self_attn.k_proj.weight' has shape [32, 64], but config.json makes it [64, 64]";
    refused(&model, &[], 1, &["model.safetensors: ", told, HINT]);
}

#[test]
fn weights_that_are_no_numbers() {
    for (dtype, number, shown) in [(Dtype::F32, f32::NAN, "NaN"), (Dtype::F16, f32::NEG_INFINITY, "-inf")] {
        for tensor in ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"] {
            let mut checkpoint = Shape::default().checkpoint();
            checkpoint.dtype = dtype;
            checkpoint.numbers(tensor)[33] = number;
            let count = checkpoint.numbers(tensor).len();
            let (_root, model) = written(&checkpoint);
            let told = format!("model.safetensors: tensor '{tensor}' holds {shown} at element 33 of {count}");
            for method in ["rtn", "gptq"] {
                let options = ["--method", method, "--samples", "2", "--seq-len", "64"];
                refused(&model, &options, 1, &[&told, HINT]);
            }
        }
    }
}

#[test]
fn weights_too_large_for_their_type() {
    let mut checkpoint = small();
    checkpoint.numbers("model.layers.0.mlp.down_proj.weight")[7] = 1e6;
    let (_root, model) = written(&checkpoint);
    let told = "element 7 is 1000000, which F16 cannot hold";
    refused(&model, &["--type", "F16"], 1, &["'model.layers.0.mlp.down_proj.weight'", told, HINT]);
}

/// A scale ends at 65504, but what it is multiplied with does not end at one.
#[test]
fn blocks_hold_large_weights() {
    let mut checkpoint = small();
    checkpoint.numbers("model.layers.0.mlp.down_proj.weight")[7] = 1e5;
    let (root, model) = written(&checkpoint);
    let file = root.path().join("out.gguf");
    for kind in ["Q8_0", "Q4_0", "MXFP4"] {
        llmq!["quantize", &model, "-o", &file, "--type", kind, "--method", "rtn", "--force"].ok();
        let gguf = open_gguf(&file).unwrap();
        let down = gguf.tensor("blk.0.ffn_down.weight").unwrap();
        let x = format::by_id(down.type_id).unwrap().decode_all(gguf.data(down))[7];
        assert!((x / 1e5 - 1.0).abs() < 0.05, "{kind}: {x}");
    }
    let told = "element 7 is 100000, but Q4_1 is only sure to hold numbers up to 65504";
    refused(&model, &["--type", "Q4_1", "--method", "rtn"], 1, &[told, HINT]);
}

#[test]
fn activations_that_overflow_are_named_by_block() {
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.numbers("model.layers.1.post_attention_layernorm.weight").fill(1e16);
    for part in ["gate", "up"] {
        checkpoint.numbers(&format!("model.layers.1.mlp.{part}_proj.weight")).iter_mut().for_each(|x| *x *= 1e4);
    }
    let (_root, model) = written(&checkpoint);
    let told = ["block 1, input of model.layers.1.mlp.down_proj.weight", "at token ", "and column ", HINT];
    refused(&model, &["--samples", "2", "--seq-len", "64"], 1, &told);
    llmq!["eval", &model, "--perplexity", "-c", "64"].failed(1, &["likelihood of scored token 0", HINT]);
}

#[test]
fn a_configuration_without_a_needed_key() {
    for key in ["model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "rms_norm_eps", "vocab_size"] {
        let mut checkpoint = small();
        checkpoint.config.as_object_mut().unwrap().remove(key);
        let (_root, model) = written(&checkpoint);
        refused(&model, &[], 1, &[&format!("config.json has no key '{key}'"), HINT]);
    }
}

#[test]
fn a_configuration_that_makes_no_sense() {
    for (key, value, told) in [
        ("hidden_size", json!("big"), "'hidden_size' is \"big\""),
        ("num_attention_heads", json!(0), "'num_attention_heads' is 0"),
        ("num_attention_heads", json!(3), "hidden_size 64 does not divide into 3 heads"),
        ("num_key_value_heads", json!(3), "4 heads cannot share 3"),
        ("num_hidden_layers", json!(4_000_000_000u32), "model.layers.1."),
        ("head_dim", json!(96), "self_attn.q_proj"),
        ("head_dim", json!(4_000_000_000u32), "head_dim 4000000000 is beyond 65536"),
        ("rms_norm_eps", json!(-1), "'rms_norm_eps' is -1"),
        ("rope_scaling", json!({ "rope_type": "llama3" }), "no key 'rope_scaling.factor'"),
        ("hidden_act", json!("gelu"), "hidden_act 'gelu' is not supported"),
    ] {
        let mut checkpoint = small();
        checkpoint.config[key] = value;
        let (_root, model) = written(&checkpoint);
        refused(&model, &["--method", "rtn"], 1, &[told]);
    }
    let (_root, model) = written(&small());
    fs::write(model.join("config.json"), "{").unwrap();
    refused(&model, &[], 1, &["config.json, line 1, column 1: not valid JSON"]);
    fs::remove_file(model.join("config.json")).unwrap();
    refused(&model, &[], 1, &["is not a checkpoint folder", "config.json"]);
}

#[test]
fn an_unsupported_model_type_or_rope() {
    let mut checkpoint = small();
    checkpoint.config["model_type"] = "mamba".into();
    let (_root, model) = written(&checkpoint);
    refused(&model, &[], 1, &["config.json: model_type 'mamba' is not supported", HINT, "llama"]);
    let mut checkpoint = small();
    checkpoint.config["rope_scaling"] = json!({ "rope_type": "dynamic", "factor": 4.0 });
    let (_root, model) = written(&checkpoint);
    refused(&model, &[], 1, &["config.json: rope scaling of type 'dynamic' is not supported", HINT, "llama3"]);
}

#[test]
fn unsuitable_calibration_text() {
    let texts = folder();
    let (_root, model) = written(&small());
    for (name, content, told) in [
        ("short.txt", b"A few words.".as_slice(), vec!["too short", "tokens, but a window has 64", HINT, "--calib"]),
        ("empty.txt", b"", vec!["empty.txt holds no text"]),
        ("blank.jsonl", b"{\"text\": \" \"}\n", vec!["blank.jsonl holds no text"]),
        ("latin1.txt", b"caf\xe9", vec!["latin1.txt is not UTF-8: byte 3 is 0xe9", HINT]),
        ("bad.jsonl", b"{\"text\": \"a\"}\n{\"body\": \"b\"}\n", vec!["bad.jsonl: line 2", "\"text\"", HINT]),
        ("cut.json.gz", b"\x1f\x8b\x08\0", vec!["cut.json.gz"]),
    ] {
        let path = texts.path().join(name);
        fs::write(&path, content).unwrap();
        refused(&model, &["--seq-len", "64", "--calib", path.to_str().unwrap()], 1, &told);
    }
    refused(&model, &["--calib", "/nowhere/text.txt"], 1, &["cannot open /nowhere/text.txt", HINT, "c4"]);
}

#[test]
fn an_unknown_pre_tokenizer_is_shown_and_can_be_named() {
    let (_root, model) = written(&small());
    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w{1,7}|\W".into();
    fs::write(&path, tokenizer.to_string()).unwrap();
    let told = ["tokenizer.json", r"\w{1,7}|\W", HINT, "--pre NAME", "llama-bpe"];
    refused(&model, &["--method", "rtn"], 1, &told);
    refused(&model, &["--pre", "nonsense"], 2, &["`nonsense`", HINT, "llama-bpe"]);

    let out = folder();
    let file = out.path().join("out.gguf");
    llmq!["quantize", &model, "-o", &file, "--method", "rtn", "--pre", "qwen2"].ok();
    let keys = llmq!["inspect", &file, "--json"].ok().lines("metadata");
    assert!(keys.iter().any(|m| m["key"] == "tokenizer.ggml.pre" && m["value"] == "qwen2"));
}

#[test]
fn a_tokenizer_that_does_not_fit() {
    let (_root, model) = written(&Shape { vocab: 2000, ..Shape::default() }.checkpoint());
    refused(&model, &[], 1, &["tokenizer.json", "but the embedding has only 2000 rows", HINT]);

    let (_root, model) = written(&small());
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    refused(&model, &[], 1, &["there is no ", "tokenizer.json", HINT]);
    fs::write(model.join("tokenizer.json"), "{\"model\": ").unwrap();
    refused(&model, &[], 1, &["tokenizer.json, line 1, column 10", HINT]);
    fs::write(model.join("tokenizer.json"), r#"{"model": {"type": "Unigram", "vocab": []}}"#).unwrap();
    refused(&model, &[], 1, &["tokenizer.json", "does not replace spaces", HINT]);
    fs::write(model.join("tokenizer.json"), r#"{"model": {"type": "WordLevel", "vocab": {}}}"#).unwrap();
    refused(&model, &[], 1, &["tokenizer.json", "its model is \"WordLevel\"", HINT]);
}

#[test]
fn options_that_make_no_sense() {
    for (options, told) in [
        (vec!["--type", "Q9_9"], vec!["unknown type 'Q9_9'", HINT, "Q4_0"]),
        (vec!["--output-tensor-type", "nope"], vec!["unknown type 'nope'", HINT]),
        (vec!["--method", "magic"], vec!["unknown method 'magic'", HINT, "gptq", "rtn"]),
        (vec!["--tensor-type", "nothing=F16"], vec!["--tensor-type nothing=F16 matches no tensor", HINT]),
        (vec!["--tensor-type", "attn_v"], vec!["'attn_v'", HINT]),
        (vec!["--tensor-type", "(=F16"], vec!["--tensor-type"]),
        (vec!["--damp", "0"], vec!["--damp must be above zero, not 0"]),
        (vec!["--damp", "nan"], vec!["--damp must be above zero, not NaN"]),
        (vec!["--samples", "0"], vec!["--samples must be at least 1"]),
        (vec!["--seq-len", "1"], vec!["--seq-len must be at least 2"]),
        (vec!["--threads", "0"], vec!["--threads must be at least 1"]),
        (vec!["--samples", "many"], vec!["invalid value 'many'"]),
        (vec!["--no-such-option"], vec!["--no-such-option"]),
    ] {
        refused(&tiny(), &options, 2, &told);
    }
}

#[test]
fn a_model_that_is_not_there() {
    let nowhere = folder().path().join("nowhere");
    refused(&nowhere, &[], 1, &[nowhere.to_str().unwrap()]);
    for command in ["inspect", "eval"] {
        let options: &[&str] = if command == "eval" { &["--perplexity"] } else { &[] };
        llmq![command, &nowhere; options].failed(1, &[nowhere.to_str().unwrap(), "No such file"]);
    }
    let empty = folder();
    refused(empty.path(), &[], 1, &["config.json"]);
    assert_eq!(names(empty.path()), [""; 0]);
}

#[test]
fn unsuitable_text_for_eval() {
    let texts = folder();
    let [short, latin1] = ["short.txt", "latin1.txt"].map(|name| texts.path().join(name));
    fs::write(&short, "A few words.").unwrap();
    fs::write(&latin1, b"caf\xe9").unwrap();
    let (eval, measure, tiny) = ("eval", "--perplexity", tiny());
    llmq![eval, &tiny, measure, "-f", &short].failed(1, &["too short", "1024 are needed for windows of 512", HINT]);
    llmq![eval, &tiny, measure, "-f", &latin1].failed(1, &["latin1.txt is not UTF-8: byte 3 is 0xe9", HINT]);
    llmq![eval, &tiny, measure, "-f", "/nowhere/text.txt"].failed(1, &["/nowhere/text.txt", "No such file"]);
    llmq![eval, &tiny, measure, "-c", "3"].failed(2, &["windows of 3 tokens"]);
    llmq![eval, &tiny, measure, "-c", "18446744073709551615"].failed(1, &["too short"]);
    llmq![eval, &tiny, measure, "--chunks", "0"].failed(2, &["--chunks"]);
    llmq![eval, &tiny].failed(2, &["nothing to measure", HINT, "--perplexity"]);
}
