//! A safetensors file in a checkpoint folder; the first byte chooses how the folder says that it is quantized.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::source::checkpoint::Checkpoint;
use llmq_fuzz::{InputFile, alone};
use std::sync::LazyLock;

const DESCRIPTIONS: [&str; 6] = [
    "{}",
    r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}}"#,
    r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 8}}"#,
    r#"{"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}"#,
    r#"{"quantization_config": {"quant_method": "mxfp4"}}"#,
    r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}"#,
];

static FILES: LazyLock<[InputFile; 6]> = LazyLock::new(|| {
    alone();
    DESCRIPTIONS.map(|config| InputFile::new("model.safetensors", &[("config.json", config.as_bytes())]))
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let folder = FILES[usize::from(first) % FILES.len()].folder_holds(rest);
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        llmq_fuzz::read_all(&checkpoint);
    }
});
