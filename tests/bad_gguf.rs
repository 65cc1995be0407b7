//! Corrupt GGUF files, given to `eval` and `inspect`: an error with names and numbers and exit code 1, never a panic, and
//! never more memory than a small file can need (the address space is limited to 2 GB).
#![cfg(unix)]

mod common;

use common::checkpoint::Shape;
use common::{BINARY, Run, folder, llmq, run};
use llmq::pipeline::weights::open_gguf;
use llmq::source::gguf::TensorInfo;
use llmq::source::value::{Array, Metadata, Value};
use llmq::writer::gguf::{GgufWriter, TensorPlan};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// A sound file: one block of random weights, F32 and Q8_0.
fn sound() -> &'static [u8] {
    static SOUND: OnceLock<Vec<u8>> = OnceLock::new();
    SOUND.get_or_init(|| {
        let root = folder();
        let [model, file] = ["model", "sound.gguf"].map(|name| root.path().join(name));
        Shape { blocks: 1, ..Shape::default() }.write(&model);
        llmq!["quantize", &model, "-o", &file, "--type", "Q8_0", "--method", "rtn"].ok();
        fs::read(&file).unwrap()
    })
}

fn limited(command: &str, file: &Path) -> Run {
    let limited = "ulimit -v 2000000; exec \"$0\" \"$@\"";
    let options: &[&str] = if command == "eval" { &["--perplexity", "-c", "32", "--chunks", "2"] } else { &[] };
    run(std::process::Command::new("sh").args(["-c", limited, BINARY, command]).arg(file).args(options))
}

/// Neither command accepts these bytes, and both say why.
#[track_caller]
fn corrupt(bytes: &[u8], wanted: &[&str]) {
    let root = folder();
    let file = root.path().join("corrupt.gguf");
    fs::write(&file, bytes).unwrap();
    for command in ["inspect", "eval"] {
        limited(command, &file).failed(1, &[wanted, &["corrupt.gguf"]].concat());
    }
}

/// The sound file with some bytes replaced.
fn patched(at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = sound().to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Where the bytes of `text` end in the sound file.
fn behind(text: &str) -> usize {
    let at = sound().windows(text.len()).position(|bytes| bytes == text.as_bytes());
    at.unwrap_or_else(|| panic!("no {text} in the file")) + text.len()
}

/// A well-formed file whose content was changed: what `eval` says to it. `inspect` shows it as it is.
fn evaluated(change: impl FnOnce(&mut Metadata, &mut Vec<(TensorInfo, Vec<u8>)>)) -> Run {
    let root = folder();
    let [old, new] = ["old.gguf", "changed.gguf"].map(|name| root.path().join(name));
    fs::write(&old, sound()).unwrap();
    let file = open_gguf(&old).unwrap();
    let mut metadata = file.metadata.clone();
    let mut tensors: Vec<_> = file.tensors.iter().map(|info| (info.clone(), file.data(info).to_vec())).collect();
    change(&mut metadata, &mut tensors);
    let plan = |(info, bytes): &(TensorInfo, Vec<u8>)| TensorPlan {
        name: info.name.clone(),
        dims: info.dims.clone(),
        type_id: info.type_id,
        bytes: bytes.len() as u64,
    };
    let mut writer = GgufWriter::create(&new, &metadata, tensors.iter().map(plan).collect()).unwrap();
    tensors.iter().for_each(|(info, bytes)| writer.write(&info.name, bytes).unwrap());
    writer.finish().unwrap();
    limited("inspect", &new).ok();
    limited("eval", &new)
}

/// What `eval` says to the sound file with one key changed.
fn with(key: &str, value: Value) -> Run {
    evaluated(|metadata, _| {
        metadata.iter_mut().find(|(name, _)| name == key).unwrap_or_else(|| panic!("no key {key}")).1 = value;
    })
}

/// One tensor of the sound file.
fn tensor<'a>(tensors: &'a mut [(TensorInfo, Vec<u8>)], name: &str) -> &'a mut (TensorInfo, Vec<u8>) {
    tensors.iter_mut().find(|(info, _)| info.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
}

#[test]
fn the_sound_file_is_accepted() {
    evaluated(|_, _| ()).ok();
}

#[test]
fn other_formats_and_versions() {
    corrupt(b"", &["GGUF"]);
    corrupt(&patched(0, b"GGML"), &["does not start with \"GGUF\"", "\nhint: "]);
    corrupt(&patched(4, &9u32.to_le_bytes()), &["version 9", "\nhint: "]);
}

#[test]
fn truncated_anywhere() {
    let length = sound().len();
    for length in [3, 7, 20, 30, 1000, length / 8, length / 2, length - 1] {
        corrupt(&sound()[..length], &["\nhint: "]);
    }
}

#[test]
fn counts_and_lengths_beyond_the_file() {
    for count in [1_000_000u64, 1 << 40, u64::MAX] {
        let shown = count.to_string();
        corrupt(&patched(8, &count.to_le_bytes()), &[&format!("{shown} tensors"), "at most", "\nhint: "]);
        corrupt(&patched(16, &count.to_le_bytes()), &[&format!("{shown} metadata entries"), "at most"]);
        corrupt(&patched(24, &count.to_le_bytes()), &["metadata entry 1", &format!("{shown} bytes should follow")]);
        // Behind the key: the array's type, its elements' type, their number, the length of the first.
        let tokens = behind("tokenizer.ggml.tokens");
        corrupt(&patched(tokens + 8, &count.to_le_bytes()), &["tokenizer.ggml.tokens", &shown, "array elements"]);
        corrupt(&patched(tokens + 16, &count.to_le_bytes()), &["tokenizer.ggml.tokens", &shown]);
    }
}

#[test]
fn alignment_that_is_none() {
    for alignment in [0u32, 3, u32::MAX] {
        let key = "general.alignment";
        let length = (key.len() as u64).to_le_bytes();
        let entry = [&length, key.as_bytes(), &4u32.to_le_bytes(), &alignment.to_le_bytes()].concat();
        let keys = u64::from_le_bytes(sound()[16..24].try_into().unwrap()) + 1;
        let bytes = [&sound()[..16], &keys.to_le_bytes(), &entry, &sound()[24..]].concat();
        corrupt(&bytes, &[&format!("general.alignment is {alignment}"), "power of two"]);
    }
}

#[test]
fn descriptions_of_tensors_that_are_wrong() {
    // Behind the name: the number of dimensions, each of them, the type, the offset.
    let at = behind("blk.0.attn_q.weight");
    let name = "blk.0.attn_q.weight";
    corrupt(&patched(at, &7u32.to_le_bytes()), &[name, "7 dimensions"]);
    corrupt(&patched(at + 4, &65u64.to_le_bytes()), &[name, "65", "blocks of 32"]);
    corrupt(&patched(at + 4, &(1u64 << 40).to_le_bytes()), &[name, "the file ends at byte"]);
    corrupt(&patched(at + 4, &(u64::MAX - 31).to_le_bytes()), &[name, "too many elements"]);
    corrupt(&patched(at + 20, &777u32.to_le_bytes()), &[name, "type 777 is not known", "\nhint: "]);
    corrupt(&patched(at + 24, &(1u64 << 40).to_le_bytes()), &[name, "offset 1099511627776", "the file ends at byte"]);
    corrupt(&patched(at + 24, &(u64::MAX - 31).to_le_bytes()), &[name, "the file ends at byte"]);
    corrupt(&patched(at + 24, &1u64.to_le_bytes()), &[name, "offset 1, which is no multiple of 32"]);
    corrupt(&patched(at + 24, &0u64.to_le_bytes()), &[name, "overlap"]);
}

#[test]
fn keys_that_are_missing() {
    let whole = {
        let root = folder();
        let file = root.path().join("sound.gguf");
        fs::write(&file, sound()).unwrap();
        open_gguf(&file).unwrap().metadata
    };
    const NEEDED: [&str; 12] = [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        // add_bos_token asks for it.
        "tokenizer.ggml.bos_token_id",
        "llama.attention.head_count_kv",
    ];
    for (key, _) in &whole {
        let run = evaluated(|metadata, _| metadata.retain(|(name, _)| name != key));
        match key.as_str() {
            // llama.cpp would guess; here the user may say.
            "tokenizer.ggml.pre" => run.failed(1, &["changed.gguf", "no pre-tokenizer is named", "--pre NAME"]),
            // Without it there are as many as heads, and the shapes do not fit.
            "llama.attention.head_count_kv" => run.failed(1, &["changed.gguf: tensor 'blk.0.attn_k.weight'"]),
            needed if NEEDED.contains(&needed) => run.failed(1, &["changed.gguf", needed]),
            _ => run.ok(),
        };
    }
    assert!(NEEDED.iter().all(|needed| whole.iter().any(|(key, _)| key == needed)));
}

#[test]
fn a_missing_pre_tokenizer_can_be_named() {
    let root = folder();
    let file = root.path().join("unnamed.gguf");
    fs::write(&file, patched(behind("tokenizer.ggml.pr"), b"?")).unwrap();
    llmq!["eval", &file, "--perplexity", "-c", "32"].failed(1, &["unnamed.gguf", "--pre NAME", "llama-bpe"]);
    llmq!["eval", &file, "--perplexity", "-c", "32", "--chunks", "2", "--pre", "llama-bpe"].ok();
}

#[test]
fn keys_that_do_not_fit_the_tensors() {
    for (key, value, told) in [
        ("general.architecture", "mamba".into(), "architecture 'mamba' is not supported"),
        ("llama.embedding_length", 128u32.into(), "'token_embd.weight' has shape [2048, 64]"),
        ("llama.feed_forward_length", 128u32.into(), "'blk.0.ffn_gate.weight' has shape [96, 64]"),
        ("llama.block_count", 2u32.into(), "there is no tensor 'blk.1.attn_norm.weight'"),
        ("llama.block_count", u32::MAX.into(), "4294967295 blocks in a file of 11 tensors"),
        ("llama.block_count", 0u32.into(), "'llama.block_count'"),
        ("llama.attention.head_count", u32::MAX.into(), "changed.gguf"),
        ("llama.attention.head_count_kv", 3u32.into(), "3 key-value heads"),
        ("llama.rope.dimension_count", u32::MAX.into(), "make no attention"),
        ("llama.rope.freq_base", f32::NAN.into(), "'llama.rope.freq_base'"),
        ("llama.attention.layer_norm_rms_epsilon", "small".into(), "'llama.attention.layer_norm_rms_epsilon'"),
        ("tokenizer.ggml.model", "bert".into(), "`bert`"),
        ("tokenizer.ggml.pre", "nonsense".into(), "nonsense"),
        ("tokenizer.ggml.bos_token_id", 5000u32.into(), "bos_token_id is 5000"),
        ("tokenizer.ggml.tokens", Value::Array(Array::U32(vec![1; 2048])), "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.merges", Value::Array(Array::U32(vec![1])), "tokenizer.ggml.merges"),
    ] {
        println!("{key} is {value}"); // shown if it fails
        with(key, value).failed(1, &["changed.gguf", told]);
    }
}

#[test]
fn more_tokens_than_rows_of_the_embedding() {
    let run = evaluated(|_, tensors| {
        let (info, bytes) = tensor(tensors, "token_embd.weight");
        bytes.truncate(bytes.len() / 2);
        info.dims[1] /= 2;
    });
    run.failed(1, &["changed.gguf", "2048 tokens", "1024 rows"]);
}

#[test]
fn a_tensor_that_is_missing_or_holds_no_numbers() {
    let run = evaluated(|_, tensors| tensors.retain(|(info, _)| info.name != "blk.0.ffn_up.weight"));
    run.failed(1, &["changed.gguf: there is no tensor 'blk.0.ffn_up.weight'"]);
    let run = evaluated(|_, tensors| {
        tensor(tensors, "blk.0.ffn_norm.weight").1[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    run.failed(1, &["changed.gguf: tensor 'blk.0.ffn_norm.weight' holds NaN at element 1"]);
}
