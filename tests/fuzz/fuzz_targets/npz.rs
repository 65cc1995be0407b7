//! Calibration inputs: an `.npy`, or a zip of several. A graph wants `x`, `[n, m]`; of which type, the length of the input says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::int8::onnx::shape::Dim;
use llmq::int8::samples::{InputSpec, Samples};
use llmq_fuzz::InputFile;
use std::sync::LazyLock;

static FILES: LazyLock<[InputFile; 2]> = LazyLock::new(|| ["x.npz", "x.npy"].map(|name| InputFile::new(name, &[])));

fuzz_target!(|bytes: &[u8]| {
    let path = FILES[usize::from(!bytes.starts_with(b"PK"))].holds(bytes);
    let shape = Some(vec![Dim::Dynamic("n".into()), Dim::Dynamic("m".into())]);
    let wanted = InputSpec { name: "x".into(), float: bytes.len() % 2 == 0, shape };
    let Ok(samples) = Samples::open(&[path.to_path_buf()], vec![wanted]) else { return };
    // All of them, as calibration does. No compression that NumPy knows makes more than 1032 bytes of one.
    assert!(samples.iter().take_while(Result::is_ok).count() <= 1032 * bytes.len(), "samples out of nothing");
});
