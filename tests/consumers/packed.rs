//! The package gguf reads in a file that was made from another quantizer's codes the numbers that these codes stand for.

use crate::ask;
use crate::common::packing::{Layout, Model, Zeros};
use crate::common::{folder, llmq};

#[test]
fn codes_of_other_quantizers_keep_their_numbers() {
    for (layout, group, zeros, kind) in [
        (Layout::Gptq(1), 32, Zeros::Eight, "Q4_0"),
        (Layout::Gptq(2), 64, Zeros::Power, "Q4_1"),
        (Layout::Awq, 128, Zeros::Any, "Q5_0"),
        (Layout::Compressed, 128, Zeros::Any, "Q5_1"),
        (Layout::CompressedBytes, 32, Zeros::Any, "Q8_0"),
    ] {
        let out = folder();
        let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
        let model = Model::packed(layout, group, zeros);
        model.write(&source);
        llmq!["quantize", &source, "-o", &file, "--type", kind, "--method", "rtn"].ok();
        let theirs = ask::gguf(&file, out.path());
        for (name, values) in model.in_gguf() {
            let tensor = theirs.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            assert_eq!(tensor.kind, kind, "{layout:?} {name}");
            let found = std::fs::read(out.path().join(format!("{name}.f32"))).unwrap();
            let found = found.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            // Zero has a sign in one of them at most.
            let bits = |x: f32| (x + 0.0).to_bits();
            assert!(found.map(bits).eq(values.into_iter().map(bits)), "{layout:?} {kind} {name} has other numbers");
        }
    }
}
