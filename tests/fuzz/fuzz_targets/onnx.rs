//! An ONNX file, with values beside it, through all that happens to it before it is run or written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::int8::op_counts::OpCounts;
use llmq::int8::dynamic::{self, Options};
use llmq::int8::onnx::OnnxFile;
use llmq::int8::qdq::Float;
use llmq::int8::weights::Levels;
use llmq_fuzz::{InputFile, alone};
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| {
    alone();
    InputFile::new("model.onnx", &[("w", &[63; 64])])
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = OnnxFile::open(FILE.holds(bytes)) else { return };
    let _ = OpCounts::of(file.model.clone());
    let _ = Float::new(&file);
    let _ = dynamic::quantize(&mut file.model.clone(), &Options { levels: Levels::Full, exclude: &[] });
});
