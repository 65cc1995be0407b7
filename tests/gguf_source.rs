//! `llmq quantize` from a GGUF: the same model in another dress, shards, what is refused, and keys that are replaced.

mod common;

use common::checkpoint::Shape;
use common::{folder, kind, llmq, names, perplexity, tensors, tiny};
use llmq::pipeline::weights::open_gguf;
use llmq::source::gguf::Gguf;
use llmq::source::value::Value;
use llmq::writer::gguf::{GgufWriter, TensorPlan};
use std::fs;
use std::path::{Path, PathBuf};

const LITTLE: [&str; 4] = ["--samples", "8", "--seq-len", "128"];

/// A checkpoint as a GGUF of a floating-point type, called `model.gguf`.
fn converted(checkpoint: &Path, kind: &str, folder: &Path) -> PathBuf {
    let file = folder.join("model.gguf");
    llmq!["quantize", checkpoint, "-o", &file, "--type", kind, "--force"].ok();
    file
}

/// The bytes of every tensor, by name.
fn contents(file: &Path) -> Vec<(String, Vec<u8>)> {
    let gguf = open_gguf(file).unwrap();
    gguf.tensors.iter().map(|info| (info.name.clone(), gguf.data(info).to_vec())).collect()
}

#[test]
fn a_gguf_gives_the_bytes_that_its_checkpoint_gives() {
    let out = folder();
    // Queries and keys are in another order there, and biases, untied matrices and rotary factors are there, too.
    let llama3 = serde_json::json!({ "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64 });
    for shape in [
        Shape::default(),
        Shape { tied: false, attention_bias: true, mlp_bias: true, rope: llama3, ..Shape::default() },
    ] {
        let checkpoint = out.path().join("checkpoint");
        shape.write(&checkpoint);
        let source = converted(&checkpoint, "F32", out.path());
        for options in [
            &["-m", "rtn", "--type", "Q4_0"][..],
            &["--type", "Q8_0", "-m", "gptq", "--no-gptaq", "--seq-len", "64", "--samples", "4"],
        ] {
            let [one, two] = ["one.gguf", "two.gguf"].map(|name| out.path().join(name));
            llmq!["quantize", &checkpoint, "-o", &one, "--force"; options].ok();
            llmq!["quantize", &source, "-o", &two, "--force"; options].ok();
            let (one, two) = (contents(&one), contents(&two));
            assert_eq!(one.len(), two.len());
            for ((name, a), (other, b)) in one.iter().zip(&two) {
                // Calibration adds up the heads' numbers in another order, so that some codes differ by one.
                let differing = a.iter().zip(b).filter(|(a, b)| a != b).count();
                let allowed = if options.contains(&"rtn") { 0 } else { a.len() / 10 };
                assert!(
                    name == other && a.len() == b.len() && differing <= allowed,
                    "{name}: {differing} of {}",
                    a.len()
                );
            }
        }
    }
}

#[test]
fn the_tokenizer_and_other_keys_go_along_and_can_be_replaced() {
    let out = folder();
    let source = converted(&tiny(), "F16", out.path());
    let file = out.path().join("out.gguf");
    let keys = ["--override-kv", "general.name=str:another", "--override-kv", "llmq.test=int:-3"];
    llmq!["quantize", &source, "-o", &file, "--type", "Q4_0", "-m", "rtn"; keys].ok();
    let (before, after) = (open_gguf(&source).unwrap(), open_gguf(&file).unwrap());
    for (key, value) in &before.metadata {
        match key.as_str() {
            "general.name" => assert_eq!(after.get(key), Some(&Value::from("another"))),
            "general.file_type" => assert_eq!(after.get(key), Some(&Value::U32(2))),
            // How a file was made is its own.
            own if own.starts_with("llmq.") => {}
            _ => assert_eq!(after.get(key), Some(value), "{key}"),
        }
    }
    assert_eq!(after.get("llmq.test"), Some(&Value::I32(-3)));
    assert_eq!(after.get("llmq.options"), Some(&Value::from("--method rtn")));
    let others = |file: &Gguf| file.metadata.iter().filter(|(key, _)| !key.starts_with("llmq.")).count();
    assert_eq!(others(&after), others(&before));
    let own = after.metadata.iter().filter(|(key, _)| key.starts_with("llmq.")).count();
    assert_eq!(own, 3, "nothing is left of how the source was made");
    llmq!["quantize", &source, "-o", &file, "--override-kv", "a=u8:3"].failed(2, &["a=u8:3", "KEY=TYPE:VALUE"]);
}

#[test]
fn what_is_quantized_already_is_refused_unless_asked_for_and_the_same_type_stays_to_the_bit() {
    let out = folder();
    let source = out.path().join("q8.gguf");
    llmq!["quantize", tiny(), "-o", &source, "--type", "Q8_0", "-m", "rtn"].ok();
    let file = out.path().join("out.gguf");
    let options = ["--type", "Q4_0", "-m", "rtn"];
    llmq!["quantize", &source, "-o", &file; options].failed(1, &["is Q8_0 already", "--allow-requantize"]);
    assert!(!file.exists());
    llmq!["quantize", &source, "-o", &file, "--allow-requantize"; options].ok();
    assert_eq!(kind(&file, "blk.0.attn_q.weight"), "Q4_0");
    // Nothing is rounded twice where nothing changes.
    let again = out.path().join("again.gguf");
    llmq!["quantize", &source, "-o", &again, "--type", "Q8_0", "-m", "rtn"].ok();
    assert!(contents(&source) == contents(&again));
}

#[test]
fn values_that_are_on_a_grid_already_keep_their_bits_whatever_carries_them() {
    let out = folder();
    let [model, first, single, back] =
        ["model", "first.gguf", "single.gguf", "back.gguf"].map(|name| out.path().join(name));
    Shape { hidden: 256, ffn: 256, blocks: 1, ..Shape::default() }.write(&model);
    for kind in
        ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_NL", "IQ4_XS"]
    {
        llmq!["quantize", &model, "-o", &first, "--type", kind, "--force", "--samples", "4", "--seq-len", "64"].ok();
        llmq!["quantize", &first, "-o", &single, "--type", "F32", "--allow-requantize", "--force"].ok();
        llmq!["quantize", &single, "-o", &back, "--type", kind, "-m", "rtn", "--force"].ok();
        let decoded = |file: &Path| -> Vec<Vec<f32>> {
            let gguf = open_gguf(file).unwrap();
            let types = gguf.tensors.iter().map(|info| llmq::format::by_id(info.type_id).unwrap());
            gguf.tensors.iter().zip(types).map(|(info, kind)| kind.decode_all(gguf.data(info))).collect()
        };
        assert!(decoded(&first) == decoded(&back), "{kind}");
    }
}

#[test]
fn an_architecture_that_llmq_cannot_run_is_rounded_to_nearest() {
    let out = folder();
    let source = converted(&tiny(), "F16", out.path());
    // The same file under another flag; the names of its keys no longer fit, as with any unknown architecture.
    let mut bytes = fs::read(&source).unwrap();
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"camel");
    let camel = out.path().join("camel.gguf");
    fs::write(&camel, bytes).unwrap();
    let file = out.path().join("out.gguf");
    llmq!["quantize", &camel, "-o", &file, "--type", "Q4_0"]
        .failed(1, &["cannot run this one", "'camel'", "--method rtn"]);
    llmq!["quantize", &camel, "-o", &file, "--type", "Q4_0", "-m", "rtn"].ok();
    assert_eq!(kind(&file, "blk.1.ffn_up.weight"), "Q4_0");
    assert_eq!(kind(&file, "blk.1.ffn_norm.weight"), "F32");
    assert_eq!(tensors(&file).len(), tensors(&source).len());
}

#[test]
fn weights_with_scales_beside_them_are_no_model_that_llmq_runs() {
    let out = folder();
    let source = open_gguf(&converted(&tiny(), "F16", out.path())).unwrap();
    let plan = |name: &str, dims: &[u64], type_id: u32, bytes: u64| {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        TensorPlan { name, dims, type_id, bytes }
    };
    let mut plans: Vec<TensorPlan> =
        source.tensors.iter().map(|t| plan(&t.name, &t.dims, t.type_id, t.bytes)).collect();
    plans.push(plan("blk.0.attn_q.scale", &[1], 0, 4));
    let scaled = out.path().join("scaled.gguf");
    let mut writer = GgufWriter::create(&scaled, &source.metadata, plans).unwrap();
    for info in &source.tensors {
        writer.write(&info.name, source.data(info)).unwrap();
    }
    writer.write("blk.0.attn_q.scale", &2f32.to_le_bytes()).unwrap();
    writer.finish().unwrap();
    llmq!["eval", &scaled, "--perplexity"].failed(1, &["'blk.0.attn_q.scale'", "not supported"]);
    // Tensor by tensor, the scales go along.
    let file = out.path().join("out.gguf");
    llmq!["quantize", &scaled, "-o", &file, "-m", "rtn"].ok();
    assert_eq!(kind(&file, "blk.0.attn_q.scale"), "F32");
}

#[test]
fn shards_hold_what_one_file_holds_and_are_read_by_every_command() {
    let out = folder();
    let [whole, sharded] = ["whole.gguf", "sharded.gguf"].map(|name| out.path().join(name));
    let options = ["--type", "F16"];
    llmq!["quantize", tiny(), "-o", &whole; options].ok();
    let run = llmq!["quantize", tiny(), "-o", &sharded, "--max-shard-size", "2M", "--json"; options].ok();
    let files = names(out.path());
    let shards: Vec<&String> = files.iter().filter(|name| name.starts_with("sharded-0000")).collect();
    assert!(shards.len() > 2 && files.len() == shards.len() + 1, "{files:?}");
    assert_eq!(run.summary()["files"].as_array().unwrap().len(), shards.len());
    for shard in &shards {
        let size = fs::metadata(out.path().join(shard)).unwrap().len();
        assert!(size < 2_300_000, "{shard}: {size}");
    }
    let first = out.path().join(shards[0]);
    assert!(contents(&whole) == contents(&first));
    let options = ["-c", "128", "--chunks", "2"];
    assert_eq!(perplexity(&whole, &options), perplexity(&first, &options));
    assert_eq!(tensors(&whole), tensors(&first));
    let [one, two] = ["one.gguf", "two.gguf"].map(|name| out.path().join(name));
    llmq!["quantize", &whole, "-o", &one, "--type", "Q4_K_M"; LITTLE].ok();
    llmq!["quantize", &first, "-o", &two, "--type", "Q4_K_M"; LITTLE].ok();
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "nothing of the shards is left in the file");

    // Existing shards are not overwritten, a shard is no place for the output, and what is not whole is refused.
    llmq!["quantize", tiny(), "-o", &sharded, "--max-shard-size", "2M"; ["--type", "F16"]].failed(2, &["--force"]);
    llmq!["quantize", &first, "-o", out.path().join(shards[1]), "--force"; ["-m", "rtn"]]
        .failed(2, &[shards[1].as_str()]);
    llmq!["inspect", out.path().join(shards[1])].failed(1, &["is shard 2 of", shards[0].as_str()]);
    fs::remove_file(out.path().join(shards[2])).unwrap();
    llmq!["inspect", &first].failed(1, &["shard 3 of", "is missing"]);
    llmq!["quantize", tiny(), "-o", &sharded, "--max-shard-size", "100K"; ["--type", "F16"]].failed(2, &["of a shard"]);
    llmq!["quantize", tiny(), "-o", &sharded, "--max-shard-size", "0"].failed(2, &["for example 45G"]);
}
