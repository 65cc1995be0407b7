//! Models with Mamba blocks: what rounding does to a block's output, where scales go, what is kept, and what is refused.

mod common;

use candle_core::Device;
use common::checkpoint::Weights;
use common::golden::{self, Golden};
use common::{folder, llmq, refused, tensors};
use llmq::model::frame::Frame;
use llmq::pipeline::loaded_model::LoadedModel;
use llmq::pipeline::weights::open_gguf;
use serde_json::{Value, json};
use std::path::Path;

const LENGTH: usize = 64;

/// Windows of a text that nothing is calibrated on.
fn windows(loaded: &LoadedModel) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/eval/heldout.txt")).unwrap();
    let tokens = loaded.tokenizer.encode(&text[..16_384]).unwrap();
    tokens.chunks_exact(LENGTH).take(16).map(<[u32]>::to_vec).collect()
}

/// How far what each of the first blocks adds to the stream of the original is from what it adds there, in squares and against
/// these.
fn off(original: &LoadedModel, file: &Path, blocks: usize) -> Vec<f64> {
    let rounded = LoadedModel::open(file, None).unwrap();
    let (frame, own) = (frame(original), frame(&rounded));
    let mut states = original.embed(&windows(original), &Device::Cpu).unwrap();
    let squares = |x: candle_core::Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    let block = |i: usize| {
        let (block, other) = (original.block(&frame, i).unwrap(), rounded.block(&own, i).unwrap());
        let (mut error, mut whole) = (0.0, 0.0);
        for states in &mut states {
            let (next, others) = (block.forward(states).unwrap(), other.forward(states).unwrap());
            error += squares((&others.h - &next.h).unwrap());
            whole += squares((&next.h - &states.h).unwrap());
            *states = next;
        }
        error / whole
    };
    (0..blocks).map(block).collect()
}

fn frame(loaded: &LoadedModel) -> Frame {
    Frame::new(&loaded.model, loaded.pairing(), LENGTH, &Device::Cpu).unwrap()
}

fn quantize(model: &Path, file: &Path, kind: &str, method: &str) {
    let how = ["--type", kind, "--method", method, "--samples", "64", "--seq-len", "64"];
    llmq!["quantize", model, "-o", file, "--force"; how].ok();
}

/// A golden model whose embedding has columns that go together and are of different size, as those of trained models do.
fn correlated(name: &str) -> Golden {
    let mut golden = golden::read(name);
    let names: Vec<String> = golden.checkpoint.tensors.keys().filter(|name| name.contains("embed")).cloned().collect();
    for row in golden.checkpoint.numbers(&names[0]).chunks_mut(64) {
        (1..row.len()).for_each(|j| row[j] = 0.8 * row[j - 1] + 0.6 * row[j]);
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j * 5 % 7) as f32);
    }
    golden
}

fn write(golden: &Golden, folder: &Path) -> LoadedModel {
    golden.checkpoint.write(folder);
    LoadedModel::open(folder, None).unwrap()
}

#[test]
fn calibrated_rounding_lowers_the_error_of_what_mamba_adds() {
    for (name, blocks) in [("mamba2", 2), ("jamba", 1)] {
        let out = folder();
        let [model, file] = ["model", "file.gguf"].map(|name| out.path().join(name));
        let original = write(&correlated(name), &model);
        let [rtn, gptq, auto] = ["rtn", "gptq", "auto"].map(|method| {
            quantize(&model, &file, "Q4_0", method);
            off(&original, &file, blocks)
        });
        for block in 0..blocks {
            let shown =
                format!("{name}, block {block}: rtn {}, gptq {}, auto {}", rtn[block], gptq[block], auto[block]);
            eprintln!("{shown}");
            assert!(rtn[block] > 1e-4 && gptq[block] < 0.9 * rtn[block] && auto[block] < 0.9 * rtn[block], "{shown}");
        }
    }
}

/// AWQ divides the channels of the norm behind the gate, and those of a layer in front of a square by roots: what comes out stays the
/// same but for rounding.
#[test]
fn scales_go_into_what_makes_the_inputs_of_the_last_layer() {
    for (name, block, absorber) in
        [("mamba2", 0, "ssm_norm"), ("nemotron_h-dense", 0, "ssm_norm"), ("nemotron_h-dense", 1, "ffn_up")]
    {
        let out = folder();
        let [model, plain, file] = ["model", "plain.gguf", "file.gguf"].map(|name| out.path().join(name));
        let original = write(&correlated(name), &model);
        quantize(&model, &plain, "Q5_0", "rtn");
        quantize(&model, &file, "Q5_0", "awq");
        let spec = original.model.block(block).into_iter().find(|spec| spec.gguf.contains(absorber)).unwrap();
        let [own, scaled] = [&model, &file].map(|path| LoadedModel::open(path, None).unwrap().read(&spec).unwrap());
        let most = own.iter().zip(&scaled).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f32::max);
        assert!(most > 0.02, "{name}: {absorber} has changed by {most} at most");
        let [rtn, awq] = [&plain, &file].map(|file| off(&original, file, block + 1)[block]);
        eprintln!("{name}, block {block}: rtn {rtn}, awq {awq}");
        assert!(awq < 1.5 * rtn && rtn < 0.02, "{name}, block {block}: rtn {rtn}, awq {awq}");
    }
}

/// Two layers of the checkpoint become one block of the file, which the forward pass does not use.
#[test]
fn a_block_that_predicts_another_token_is_kept() {
    let mut golden = golden::read("nemotron_h");
    let stored = &golden.checkpoint.tensors;
    let of = |block: usize, layer: usize| {
        let prefix = format!("backbone.layers.{block}.");
        let own = stored.iter().filter_map(move |(name, own)| Some((name.strip_prefix(&prefix)?.to_owned(), own)));
        own.map(move |(rest, own)| {
            let copy = Weights { shape: own.shape.clone(), numbers: own.numbers.clone() };
            (format!("mtp.layers.{layer}.{rest}"), copy)
        })
    };
    let mut more: Vec<(String, Weights)> = of(2, 0).chain(of(1, 1)).collect();
    for (name, shape) in
        [("0.enorm", vec![64]), ("0.hnorm", vec![64]), ("0.eh_proj", vec![64, 128]), ("1.final_layernorm", vec![64])]
    {
        let numbers = vec![0.5; shape.iter().product()];
        more.push((format!("mtp.layers.{name}.weight"), Weights { shape, numbers }));
    }
    let count = more.len() - 14; // eight experts of two layers are two tensors
    golden.checkpoint.tensors.extend(more);
    golden.checkpoint.config["num_nextn_predict_layers"] = json!(1);
    let out = folder();
    let [model, file, without] = ["model", "model.gguf", "without.gguf"].map(|name| out.path().join(name));
    golden.checkpoint.write(&model);
    llmq!["quantize", &model, "-o", &file, "--type", "Q8_0", "--method", "rtn"].ok();
    llmq!["quantize", &model, "-o", &without, "--type", "Q8_0", "--method", "rtn", "--no-mtp"].ok();
    let names = |file: &Path| -> Vec<String> {
        tensors(file).iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
    };
    let own: Vec<String> = names(&file).into_iter().filter(|name| name.starts_with("blk.5.")).collect();
    assert_eq!(own.len(), count, "{own:?}");
    for name in [
        "nextn.eh_proj.weight",
        "nextn.shared_head_norm.weight",
        "post_attention_norm.weight",
        "attn_q.weight",
        "exp_probs_b.bias",
    ] {
        assert!(own.contains(&format!("blk.5.{name}")), "{name} of {own:?}");
    }
    assert!(!names(&without).iter().any(|name| name.starts_with("blk.5.")));
    let metadata = open_gguf(&file).unwrap().metadata;
    let list = |key: &str| -> Vec<u64> {
        let value = &metadata.iter().find(|(own, _)| own == &format!("nemotron_h_moe.{key}")).unwrap().1;
        let list = value.as_array();
        list.map_or_else(
            || vec![value.as_u64().unwrap()],
            |list| (0..list.len()).map(|i| list.get(i).unwrap().as_u64().unwrap()).collect(),
        )
    };
    assert_eq!((list("block_count"), list("nextn_predict_layers")), (vec![6], vec![1]));
    assert_eq!(
        (list("feed_forward_length"), list("attention.head_count_kv")),
        (vec![0, 64, 0, 0, 64, 64], vec![0, 0, 2, 0, 0, 2])
    );
    let [with, without] = [&file, &without].map(|file| common::perplexity(file, &["--chunks", "2", "-c", "64"]));
    assert_eq!(with, without);
}

#[test]
fn what_llama_cpp_does_not_have_is_refused_by_name() {
    let cases: &[(&str, &str, Value, &str)] = &[
        ("mamba2", "time_step_limit", json!([0.0, 0.1]), "time_step_limit"),
        ("mamba2", "use_conv_bias", json!(false), "use_conv_bias"),
        ("mamba2", "num_heads", json!(3), "num_heads"),
        ("nemotron_h", "mamba_hidden_act", json!("gelu"), "mamba_hidden_act"),
        ("nemotron_h", "mlp_hidden_act", json!("silu"), "mlp_hidden_act"),
        ("nemotron_h", "use_bias", json!(true), "use_bias"),
        ("nemotron_h", "layers_block_type", json!(["mlp", "moe"]), "MLP beside"),
        ("nemotron_h", "hybrid_override_pattern", json!("M?"), "'?'"),
        ("granitemoehybrid", "mamba_expand", json!(4), "mamba_expand"),
        ("granitemoehybrid", "layer_types", json!(["attention", "attention", "attention"]), "without Mamba"),
        ("falcon_h1", "mlp_bias", json!(true), "mlp_bias"),
        ("falcon_h1-normed", "mamba_norm_before_gate", json!(true), "mamba_norm_before_gate"),
        ("jamba", "mamba_conv_bias", json!(false), "mamba_conv_bias"),
    ];
    for (name, key, value, wanted) in cases {
        let mut golden = golden::read(name);
        golden.checkpoint.config[*key] = value.clone();
        let out = folder();
        let model = out.path().join("model");
        golden.checkpoint.write(&model);
        refused(&model, &["--type", "Q8_0"], 1, &["config.json", wanted]);
    }
}

/// The letters of older configurations say what the words of newer ones do.
#[test]
fn patterns_of_letters_are_read() {
    let mut golden = golden::read("nemotron_h-dense");
    let config = golden.checkpoint.config.as_object_mut().unwrap();
    config.remove("layers_block_type");
    let heads = config.remove("head_dim").unwrap();
    config.insert("attention_head_dim".into(), heads);
    config.insert("hybrid_override_pattern".into(), json!("M-*-"));
    config.insert("num_hidden_layers".into(), json!(4));
    let out = folder();
    let letters = write(&golden, &out.path().join("letters"));
    let words = write(&golden::read("nemotron_h-dense"), &out.path().join("words"));
    assert_eq!(letters.model.blocks, words.model.blocks);
    assert_eq!(letters.model.keys, words.model.keys);
}
