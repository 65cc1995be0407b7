//! What a model is, by a folder's `config.json` or by the keys of a GGUF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::model::Model;
use llmq::pipeline::loaded_model::gguf_model;
use llmq::pipeline::weights::open_gguf;
use llmq::source::config::Config;
use llmq_fuzz::InputFile;
use std::hint::black_box;
use std::sync::LazyLock;

static FILES: LazyLock<[InputFile; 2]> = LazyLock::new(|| ["config.json", "model.gguf"].map(|name| InputFile::new(name, &[])));

fuzz_target!(|bytes: &[u8]| {
    let is_gguf = bytes.starts_with(b"GGUF");
    let path = FILES[usize::from(is_gguf)].holds(bytes);
    let model = match is_gguf {
        true => open_gguf(path).and_then(|file| gguf_model(&file)),
        false => Config::open(path).and_then(|config| Model::read(&config)),
    };
    let Ok(model) = model else { return };
    // A program that checks them against the file stops at the first that is missing.
    black_box(model.tensors().take(100).map(|spec| spec.shape).collect::<Vec<_>>());
    black_box(model.keys);
});
