//! Folders of GPTQ, AWQ and compressed-tensors, unpacked with numpy from the formats' public descriptions, hold the numbers that llmq
//! reads in them.

use crate::ask;
use crate::common::{folder, llmq, tiny};
use llmq::source::checkpoint::Checkpoint;

#[test]
fn folders_hold_the_same_numbers_for_others() {
    for (format, kind, group) in [
        ("gptq", "Q4_0", 32),
        ("gptq", "W4A16_ASYM", 64),
        ("gptq", "W8A16", 128),
        ("awq", "W4A16_ASYM", 128),
        ("awq", "Q4_0", 32),
        ("compressed-tensors", "W4A16", 128),
        ("compressed-tensors", "W4A16_ASYM", 32),
        ("compressed-tensors", "W8A16", 64),
    ] {
        let out = folder();
        let (made, dumped) = (out.path().join("made"), out.path().join("dumped"));
        let more = ["--format", format, "--type", kind, "--group-size", &group.to_string(), "--method", "rtn"];
        llmq!["quantize", tiny(), "-o", &made; more].ok();
        ask::folder(&made, &dumped);
        let checkpoint = Checkpoint::open(&made).unwrap();
        let layers: Vec<_> = checkpoint.tensors().filter(|t| checkpoint.quantized(t.name).is_some()).collect();
        assert_eq!(layers.len(), 4 * 7, "{format} {kind}");
        for layer in layers {
            let ours = checkpoint.read(layer.name, layer.shape).unwrap();
            let theirs = std::fs::read(dumped.join(format!("{}.f32", layer.name))).unwrap();
            let theirs = theirs.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            assert!(theirs.eq(ours), "{format} {kind}: {} has other numbers", layer.name);
        }
    }
}
