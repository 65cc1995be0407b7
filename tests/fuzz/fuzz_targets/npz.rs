//! Calibration inputs: a whole `.npz`, or the `.npy` alone, around which the zip is made. A graph wants `x`, `[n, 2]`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::int8::onnx::shape::Dim;
use llmq::int8::samples::{Samples, Wanted};
use llmq_fuzz::{Given, zip};
use std::sync::LazyLock;

static FILE: LazyLock<Given> = LazyLock::new(|| Given::new("x.npz", &[]));

fuzz_target!(|bytes: &[u8]| {
    let path = match bytes.starts_with(b"PK") {
        true => FILE.holds(bytes),
        false => FILE.holds(&zip(&[("x.npy", bytes)])),
    };
    for float in [true, false] {
        let shape = Some(vec![Dim::Dynamic("n".into()), Dim::Dynamic("m".into())]);
        let wanted = Wanted { name: "x".into(), float, shape };
        let Ok(samples) = Samples::open(&[path.to_path_buf()], vec![wanted]) else { continue };
        // All of them, as calibration does. No compression that NumPy knows makes more than 1032 bytes of one.
        assert!(samples.iter().take_while(Result::is_ok).count() <= 1032 * bytes.len(), "samples out of nothing");
    }
});
