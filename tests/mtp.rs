//! Layers for multi-token prediction behind the blocks: kept under llama.cpp's names, or left out.

mod common;

use common::checkpoint::Weights;
use common::golden::{self, Golden};
use common::{folder, llmq, perplexity, tensors};
use llmq::format;
use llmq::pipeline::weights::open_gguf;
use llmq::source::gguf::Gguf;
use llmq::source::value::{Array, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Families that have them: text alone and inside a model that sees, dense and with experts.
const NAMES: [&str; 4] = ["qwen3_5", "qwen3_5-seeing", "qwen3_5_moe", "qwen3_next"];
const LITTLE: [&str; 4] = ["--samples", "8", "--seq-len", "64"];

fn made(golden: &Golden, folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let [model, file] = ["", ".gguf"].map(|end| folder.join(format!("{name}{end}")));
    golden.checkpoint.write(&model);
    llmq!["quantize", &model, "-o", &file; options].ok();
    file
}

fn numbers(file: &Gguf, name: &str) -> Vec<f32> {
    let info = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    format::by_id(info.type_id).unwrap().decode_all(file.data(info))
}

fn key(file: &Gguf, key: &str) -> Option<Value> {
    let architecture = file.get("general.architecture").unwrap().as_str().unwrap();
    file.get(&format!("{architecture}.{key}")).cloned()
}

/// The parts of a block's names.
fn parts(file: &Gguf, block: usize) -> BTreeSet<String> {
    let prefix = format!("blk.{block}.");
    file.tensors.iter().filter_map(|info| Some(info.name.strip_prefix(&prefix)?.to_owned())).collect()
}

#[test]
fn they_are_kept_as_llama_cpp_has_them() {
    for name in NAMES {
        let out = folder();
        let golden = golden::read(name).with_mtp();
        let path = made(&golden, out.path(), "model", &["--type", "F32", "--method", "rtn"]);
        let file = open_gguf(&path).unwrap();
        assert_eq!(key(&file, "block_count"), Some(Value::U32(4)), "{name}");
        assert_eq!(key(&file, "nextn_predict_layers"), Some(Value::U32(1)), "{name}");
        let recurrent = Value::from(vec![true, false, true, false]);
        assert_eq!(key(&file, "attention.recurrent_layers"), Some(recurrent), "{name}");
        // Block 1 has attention, as they do.
        let mut wanted = parts(&file, 1);
        wanted.extend(["eh_proj", "enorm", "hnorm", "shared_head_norm"].map(|part| format!("nextn.{part}.weight")));
        assert_eq!(parts(&file, 3), wanted, "{name}");
        let stored = |name: &str| golden.checkpoint.tensors[name].numbers.clone();
        let plus_one = |name: &str| stored(name).into_iter().map(|x| x + 1.0).collect::<Vec<f32>>();
        for (own, source) in [
            ("nextn.enorm", "pre_fc_norm_embedding"),
            ("nextn.hnorm", "pre_fc_norm_hidden"),
            ("nextn.shared_head_norm", "norm"),
            ("attn_norm", "layers.0.input_layernorm"),
            ("post_attention_norm", "layers.0.post_attention_layernorm"),
            ("attn_q_norm", "layers.0.self_attn.q_norm"),
            ("attn_k_norm", "layers.0.self_attn.k_norm"),
        ] {
            let own = numbers(&file, &format!("blk.3.{own}.weight"));
            assert!(own == plus_one(&format!("mtp.{source}.weight")), "{name}: {source}");
        }
        for (own, source) in [("nextn.eh_proj", "fc"), ("attn_q", "layers.0.self_attn.q_proj")] {
            let own = numbers(&file, &format!("blk.3.{own}.weight"));
            assert!(own == stored(&format!("mtp.{source}.weight")), "{name}: {source}");
        }
        if golden.checkpoint.config.get("num_experts").is_some() {
            let all: Vec<f32> =
                (0..4).flat_map(|e| stored(&format!("mtp.layers.0.mlp.experts.{e}.up_proj.weight"))).collect();
            assert!(numbers(&file, "blk.3.ffn_up_exps.weight") == all, "{name}");
        } else {
            assert!(numbers(&file, "blk.3.ffn_up.weight") == stored("mtp.layers.0.mlp.up_proj.weight"), "{name}");
        }
    }
}

/// They get the types of other layers, rounded to nearest, and say so; nothing else in the file changes, and the model does not.
#[test]
fn a_file_is_the_same_beside_them() {
    for name in NAMES {
        let out = folder();
        let (plain, with) = (golden::read(name), golden::read(name).with_mtp());
        for method in ["rtn", "gptq"] {
            let options = ["--type", "Q4_0", "--method", method, LITTLE[0], LITTLE[1], LITTLE[2], LITTLE[3]];
            let one = made(&plain, out.path(), &format!("plain-{method}"), &options);
            let model = out.path().join(format!("with-{method}"));
            let two = model.with_extension("gguf");
            with.checkpoint.write(&model);
            let run = llmq!["quantize", &model, "-o", &two, "--json"; options].ok();
            let notes = run.summary()["notes"].to_string();
            assert!(
                notes.contains("1 block for multi-token prediction is kept (") && notes.contains("--no-mtp"),
                "{notes}"
            );
            let (own, theirs) = (open_gguf(&two).unwrap(), open_gguf(&one).unwrap());
            for info in &theirs.tensors {
                let same = own.tensor(&info.name).unwrap();
                assert!(own.data(same) == theirs.data(info), "{name}, {method}: {}", info.name);
            }
            assert_eq!(own.tensors.len() - theirs.tensors.len(), parts(&own, 3).len(), "{name}");
            for tensor in tensors(&two).iter().filter(|t| t["name"].as_str().unwrap().starts_with("blk.3.")) {
                let (part, kind) = (tensor["name"].as_str().unwrap(), tensor["kind"].as_str().unwrap());
                let layer = !part.contains("norm.") && !part.contains("ffn_gate_inp");
                assert_eq!(kind, if layer { "Q4_0" } else { "F32" }, "{name}: {part}");
            }
            let few = ["--chunks", "4", "-c", "64"];
            assert_eq!(perplexity(&one, &few), perplexity(&two, &few), "{name}, {method}");
        }
    }
}

#[test]
fn they_can_be_left_out_and_need_not_be_there() {
    for name in NAMES {
        let out = folder();
        let options = ["--type", "Q8_0", "--method", "rtn"];
        let plain = made(&golden::read(name), out.path(), "model", &options);
        let wanted = std::fs::read(&plain).unwrap();
        // transformers saves fine-tuned models without them, and with the words about them.
        let mut claimed = golden::read(name);
        claimed.claim_mtp();
        assert!(
            std::fs::read(made(&claimed, out.path(), "model", &[&options[..], &["--force"]].concat())).unwrap()
                == wanted
        );
        let with = golden::read(name).with_mtp();
        let left_out = made(&with, out.path(), "model", &[&options[..], &["--force", "--no-mtp"]].concat());
        let (own, theirs) = (open_gguf(&left_out).unwrap(), open_gguf(&plain).unwrap());
        assert_eq!(parts(&own, 3), BTreeSet::new(), "{name}");
        let keys = |file: &Gguf| {
            file.metadata.iter().filter(|(key, _)| !key.starts_with("llmq.")).cloned().collect::<Vec<_>>()
        };
        let data = |file: &Gguf| file.tensors.iter().map(|info| file.data(info).to_vec()).collect::<Vec<_>>();
        // The configuration's hash is another.
        assert!(keys(&own) == keys(&theirs) && data(&own) == data(&theirs), "{name}");
    }
}

/// From a GGUF they go along, too, and can be left out.
#[test]
fn a_gguf_hands_them_on() {
    for name in ["qwen3_5", "qwen3_5_moe"] {
        let out = folder();
        let source = made(&golden::read(name).with_mtp(), out.path(), "source", &["--type", "F16", "--method", "rtn"]);
        let [kept, left_out] = ["kept.gguf", "left-out.gguf"].map(|name| out.path().join(name));
        let options = ["--type", "Q4_0", "--method", "gptq", LITTLE[0], LITTLE[1], LITTLE[2], LITTLE[3]];
        llmq!["quantize", &source, "-o", &kept; options].ok();
        let run = llmq!["quantize", &source, "-o", &left_out, "--no-mtp", "--json"; options].ok();
        let notes = run.summary()["notes"].to_string();
        assert!(notes.contains("1 block for multi-token prediction is left out"), "{notes}");
        let [kept, without] = [&kept, &left_out].map(|path| open_gguf(path).unwrap());
        assert_eq!(common::kind(&kept.path, "blk.3.nextn.eh_proj.weight"), "Q4_0", "{name}");
        assert_eq!(
            (key(&kept, "block_count"), key(&kept, "nextn_predict_layers")),
            (Some(Value::U32(4)), Some(Value::U32(1)))
        );
        assert_eq!((key(&without, "block_count"), key(&without, "nextn_predict_layers")), (Some(Value::U32(3)), None));
        let recurrent = Value::from(vec![true, false, true]);
        assert_eq!(key(&without, "attention.recurrent_layers"), Some(recurrent), "{name}");
        let sections = Value::from(vec![2i32, 1, 1, 0]);
        assert_eq!(key(&without, "rope.dimension_sections"), Some(sections), "{name}");
        assert_eq!(parts(&without, 3), BTreeSet::new(), "{name}");
        for info in &without.tensors {
            assert!(kept.data(kept.tensor(&info.name).unwrap()) == without.data(info), "{name}: {}", info.name);
        }
        let few = ["--chunks", "4", "-c", "64"];
        assert_eq!(perplexity(&kept.path, &few), perplexity(&without.path, &few), "{name}");
    }
}

#[test]
fn one_that_is_not_whole_is_an_error_that_says_what_to_do() {
    let out = folder();
    let mut golden = golden::read("qwen3_5").with_mtp();
    golden.checkpoint.tensors.remove("mtp.layers.0.self_attn.o_proj.weight").unwrap();
    golden.checkpoint.write(&out.path().join("model"));
    let model = out.path().join("model");
    let wanted = ["mtp.layers.0.self_attn.o_proj.weight", "--no-mtp"];
    common::refused(&model, &["--type", "Q8_0", "--method", "rtn"], 1, &wanted);
    llmq!["quantize", &model, "-o", out.path().join("out.gguf"), "--type", "Q8_0", "--method", "rtn", "--no-mtp"].ok();
}

/// A golden checkpoint with a block behind the last one, of the same kind, and what predicts one more token beside it.
fn with_numbered(name: &str, norm: &str) -> Golden {
    let mut golden = golden::read(name);
    let own: Vec<(String, Weights)> = golden
        .checkpoint
        .tensors
        .iter()
        .filter_map(|(name, weights)| {
            let rest = name.strip_prefix("model.layers.2.")?;
            Some((format!("model.layers.3.{rest}"), weights.clone()))
        })
        .collect();
    golden.checkpoint.tensors.extend(own);
    for (name, shape) in [("eh_proj", vec![64, 128]), ("enorm", vec![64]), ("hnorm", vec![64]), (norm, vec![64])] {
        let numbers = (0..shape.iter().product::<usize>()).map(|i| (i as f32).sin()).collect();
        golden.checkpoint.tensors.insert(format!("model.layers.3.{name}.weight"), Weights { shape, numbers });
    }
    golden
}

/// DeepSeek V3.2's has the number behind the last block's, and an indexer, as llama.cpp wants it.
#[test]
fn that_of_deepseek_has_an_indexer() {
    let out = folder();
    let golden = with_numbered("deepseek_v32", "shared_head.norm");
    let file = open_gguf(&made(&golden, out.path(), "model", &["--type", "F32", "--method", "rtn"])).unwrap();
    assert_eq!(key(&file, "block_count"), Some(Value::U32(4)));
    assert_eq!(key(&file, "nextn_predict_layers"), Some(Value::U32(1)));
    let mut wanted = parts(&file, 2);
    wanted.extend(["eh_proj", "enorm", "hnorm", "shared_head_norm"].map(|part| format!("nextn.{part}.weight")));
    assert_eq!(parts(&file, 3), wanted);
    assert!(wanted.contains("indexer.k_norm.bias"), "{wanted:?}");
}

/// Ling 3's has the number behind the last block's, attends, and its norm has a name of its own in llama.cpp.
#[test]
fn that_of_ling_attends_behind_blocks_of_both_kinds() {
    let out = folder();
    let golden = with_numbered("bailing_hybrid", "final_layernorm");
    let file = open_gguf(&made(&golden, out.path(), "model", &["--type", "F32", "--method", "rtn"])).unwrap();
    assert_eq!(key(&file, "block_count"), Some(Value::U32(4)));
    assert_eq!(key(&file, "nextn_predict_layers"), Some(Value::U32(1)));
    assert_eq!(key(&file, "attention.head_count_kv"), Some(Value::Array(Array::U32(vec![0, 0, 1, 1]))));
    let mut wanted = parts(&file, 2);
    wanted.extend(
        ["nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "layer_output_norm"].map(|part| format!("{part}.weight")),
    );
    assert_eq!(parts(&file, 3), wanted);
    let left_out = made(&golden, out.path(), "without", &["--type", "F32", "--method", "rtn", "--no-mtp"]);
    let heads = key(&open_gguf(&left_out).unwrap(), "attention.head_count_kv");
    assert_eq!(heads, Some(Value::Array(Array::U32(vec![0, 0, 1]))));
}
