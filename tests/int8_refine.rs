//! `llmq int8 static --refine`: losses provoked on purpose are partly recovered, and what comes out is a graph like any other.
//!
//! The packages onnx and onnxruntime (scripts/setup-consumers.sh) are asked about the results; without them, that test fails.

mod common;

use common::npz::{agreement, floats, images, npz, sentences};
use common::onnx::{self, LAYERS, LINEARS, cnn, encoder};
use common::{Run, folder, llmq};
use llmq::int8::onnx::proto::{ModelProto, TensorProto};
use llmq::int8::onnx::{OnnxFile, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A folder with a model and inputs to calibrate and to test with.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(model: &ModelProto, calib: (&str, Vec<u8>), test: (&str, Vec<u8>)) -> Case {
        let case = Case { folder: folder() };
        onnx::write(model, &case.path("float.onnx"));
        npz(&case.path("calib.npz"), &[calib]);
        npz(&case.path("test.npz"), &[test]);
        case
    }

    fn cnn(model: &ModelProto) -> Case {
        Case::new(model, ("image", images(40, 1)), ("image", images(24, 2)))
    }

    /// With images of one loudness.
    fn even(model: &ModelProto) -> Case {
        Case::new(model, ("image", even(40, 1)), ("image", even(24, 2)))
    }

    fn encoder() -> Case {
        Case::new(&encoder(), ("ids", sentences(20, 1)), ("ids", sentences(4, 2)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn quantize(&self, out: &str, options: &[&str]) -> Run {
        let [float, calib, out] = ["float.onnx", "calib.npz", out].map(|name| self.path(name));
        let run = llmq!["int8", "static", float, "--calib", calib, "-o", out, "--force", "--json", "--target", "vnni"; options];
        // What is no use is written, and said to be none.
        let useless = run.stderr.contains("below 10, a model is not usable");
        assert_eq!(run.code, Some(i32::from(useless)), "{}", run.stderr);
        run
    }

    /// The signal-to-noise ratio of the first output on samples that nothing has seen.
    fn sqnr(&self, out: &str) -> f64 {
        let [float, test, out] = ["float.onnx", "test.npz", out].map(|name| self.path(name));
        let run = llmq!["int8", "validate", float, out, "--data", test, "--json"];
        run.summary()["outputs"][0]["sqnr"].as_f64().unwrap()
    }

    /// The ratio without and with refinement, and what that tells.
    fn both(&self, options: &[&str]) -> (f64, f64, Json) {
        self.quantize("plain.onnx", options);
        let run = self.quantize("out.onnx", &[options, &["--refine"]].concat());
        let (plain, refined) = (self.sqnr("plain.onnx"), self.sqnr("out.onnx"));
        println!("{plain:.2} dB, refined {refined:.2} dB: {}", run.summary()["refined"]);
        (plain, refined, run.summary()["refined"].clone())
    }

    fn model(&self, name: &str) -> ModelProto {
        OnnxFile::open(&self.path(name)).unwrap().model
    }
}

/// Images that are as loud as each other, for [`cnn`].
fn even(count: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut x = Vec::new();
    for _ in 0..count {
        let [a, b]: [f32; 2] = std::array::from_fn(|_| random.random_range(0.3..1.5));
        for at in 0..3 * 16 * 16 {
            let wave = (a * (at % 16) as f32).sin() + (b * (at / 16 % 16) as f32 + (at / 256) as f32).cos();
            x.push(wave + random.random_range(-0.5..0.5));
        }
    }
    floats(&[count, 3, 16, 16], &x)
}

/// The report on a step.
fn step<'a>(refined: &'a Json, name: &str) -> &'a Json {
    refined["steps"].as_array().unwrap().iter().find(|step| step["step"] == name).unwrap()
}

fn tensor<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
    model.graph.as_mut().unwrap().initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap()
}

/// Changes the numbers of an initializer, each by its place.
fn change(model: &mut ModelProto, name: &str, of: impl Fn(usize, f32) -> f32) {
    let found = tensor(model, name);
    let mut x = Tensor::<f32>::read(found).unwrap();
    x.data.iter_mut().enumerate().for_each(|(at, x)| *x = of(at, *x));
    *found = x.proto(name);
}

/// The same function, with channels of very different size between its second and third convolution.
fn unbalanced() -> ModelProto {
    let factor = |channel: usize| [1.0, 0.05, 12.0, 0.3, 40.0][channel % 5];
    let mut model = cnn();
    change(&mut model, "one.scale", |c, x| x * factor(c));
    change(&mut model, "one.shift", |c, x| x * factor(c));
    change(&mut model, "two.weight", |at, x| x / factor(at / 9 % 32));
    model
}

#[test]
fn coarse_weights_are_rounded_better() {
    let case = Case::cnn(&cnn());
    let (plain, refined, report) = case.both(&["--reduce-range", "on"]);
    assert_eq!(step(&report, "rounding")["kept"], true, "{report}");
    assert!(refined > plain + 3.0, "{plain} {refined}");
}

#[test]
fn means_that_a_range_cuts_off_come_back() {
    let case = Case::even(&cnn());
    let (plain, refined, report) = case.both(&["--calibrator", "percentile", "--percentile", "97"]);
    let bias = step(&report, "bias");
    assert_eq!((&bias["kept"], &bias["changed"], &bias["of"]), (&true.into(), &4.into(), &4.into()), "{report}");
    assert!(refined > plain + 1.0, "{plain} {refined}");
}

#[test]
fn channels_of_different_size_are_balanced() {
    let (even, case) = (Case::cnn(&cnn()), Case::cnn(&unbalanced()));
    even.quantize("plain.onnx", &[]);
    let (plain, refined, report) = case.both(&[]);
    let balance = step(&report, "balance");
    assert_eq!((&balance["kept"], &balance["changed"]), (&true.into(), &1.into()), "{report}");
    let whole = even.sqnr("plain.onnx");
    assert!(plain < whole - 2.0, "nothing was lost: {plain} {whole}");
    assert!(refined > plain + 0.5 * (whole - plain), "{plain} {refined} {whole}");
}

#[test]
fn every_step_says_what_it_brought_and_what_does_not_help_is_dropped() {
    let case = Case::cnn(&cnn());
    let (_, _, report) = case.both(&[]);
    assert_eq!((&report["samples"], &report["held_out"], &report["too_few"]), (&32.into(), &8.into(), &false.into()));
    let mut before = None;
    for step in report["steps"].as_array().unwrap() {
        if let Some(before) = before {
            assert_eq!(step["sqnr_before"], before, "{report}");
        }
        let kept = step["kept"] == true;
        before = Some(step[if kept { "sqnr_after" } else { "sqnr_before" }].clone());
        if kept {
            assert!(step["sqnr_after"].as_f64() > step["sqnr_before"].as_f64(), "{report}");
        }
    }
    // There is a balance already: the random weights' channels are alike.
    assert_eq!((&step(&report, "balance")["kept"], &step(&report, "balance")["of"]), (&false.into(), &1.into()));
    let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| case.path(name));
    let told = llmq!["int8", "static", float, "--calib", calib, "-o", out, "--force", "--refine"].ok();
    assert!(told.stdout.contains("from 32 samples, judged by 8 others"), "{}", told.stdout);
    assert!(told.stdout.contains("rounding with error feedback of 4 of 4 layers"), "{}", told.stdout);
    assert!(told.stdout.contains(" dB ("), "{}", told.stdout);
}

#[test]
fn with_too_few_samples_nothing_changes() {
    let case = Case::new(&cnn(), ("image", images(19, 1)), ("image", images(4, 2)));
    let (_, _, report) = case.both(&["--reduce-range", "on"]);
    assert_eq!((&report["too_few"], &report["steps"]), (&true.into(), &Json::Array(Vec::new())));
    let read = |name: &str| std::fs::read(case.path(name)).unwrap();
    assert!(read("plain.onnx") == read("out.onnx"));
    let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| case.path(name));
    let told = llmq!["int8", "static", float, "--calib", calib, "-o", out, "--force", "--refine"].ok();
    assert!(told.stdout.contains("not at all: 19 samples are too few") && told.stdout.contains("20 are needed"));
}

#[test]
fn threads_change_nothing_and_excluded_layers_stay_float() {
    let case = Case::cnn(&unbalanced());
    let options = ["--refine", "--reduce-range", "on", "--exclude", "/logits"];
    let one = case.quantize("one.onnx", &[&options[..], &["--threads", "1"]].concat()).summary();
    let two = case.quantize("two.onnx", &[&options[..], &["--threads", "2"]].concat()).summary();
    assert_eq!(one["refined"], two["refined"]);
    assert_eq!(step(&one["refined"], "rounding")["of"], 3, "{one}");
    let read = |name: &str| std::fs::read(case.path(name)).unwrap();
    assert!(read("one.onnx") == read("two.onnx"), "other bytes with another number of threads");
    let graph = case.model("one.onnx").graph.unwrap();
    let gemm = graph.node.iter().find(|node| node.op_type() == "Gemm").unwrap();
    assert_eq!(gemm.input[1], "classifier.weight");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let case = Case::cnn(&cnn());
    let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| case.path(name));
    llmq!["int8", "static", &float, "--list", "--refine"].failed(2, &["--refine", "cannot be used with", "--list"]);
    let both = llmq!["int8", "static", &float, "--calib", &calib, "--refine", "--qat", "-o", &out];
    both.failed(2, &["--refine", "cannot be used with", "--qat"]);
    llmq!["int8", "static", &float, "--refine", "-o", &out].failed(2, &["--calib"]);
    llmq!["int8", "dynamic", &float, "--refine", "-o", &out].failed(2, &["--refine"]);
    llmq!["int8", "static", &float, "--calib", &calib, "--refine", "--exclude", ".*", "-o", &out]
        .failed(1, &["every layer is excluded"]);
    assert!(!out.exists());
}

#[test]
fn onnx_runtime_runs_what_was_refined_in_integers_and_agrees() {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.consumers/python/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/consumers/onnx_static.py");
    // Without biases, which layers then get.
    let mut bare = unbalanced();
    let nodes = &mut bare.graph.as_mut().unwrap().node;
    nodes.iter_mut().filter(|node| node.op_type() == "Gemm").for_each(|node| node.input.truncate(2));
    for (case, convs) in [(Case::even(&unbalanced()), 3), (Case::even(&bare), 3), (Case::encoder(), 0)] {
        // Without VNNI, ONNX Runtime computes in 16 bits what 8 bits make too large.
        let (plain, refined, report) =
            case.both(&["--reduce-range", "on", "--calibrator", "percentile", "--percentile", "99"]);
        // Random sentences have nothing in common that rounding could use, and the residual stream leaves no place to balance.
        let (least, sites) = if convs > 0 { (1.0, 1) } else { (-0.05, 0) };
        assert!(refined > plain + least, "{plain} {refined} {report}");
        let layers = if convs > 0 { 4 } else { LAYERS * LINEARS + 1 };
        assert_eq!(
            (&step(&report, "balance")["of"], &step(&report, "bias")["changed"]),
            (&sites.into(), &layers.into())
        );
        assert!(convs == 0 || step(&report, "bias")["kept"] == true, "{report}");
        let [float, out, calib, test] = ["float.onnx", "out.onnx", "calib.npz", "test.npz"].map(|name| case.path(name));
        let told = common::run(Command::new(python).arg(script).args([&float, &out, &calib, &test]).arg("1")).ok();
        let told: Json = serde_json::from_str(&told.stdout).unwrap();
        let count = |op: &str| told["ops"][op].as_u64().unwrap_or(0);
        assert_eq!((count("QLinearConv"), count("Conv"), count("FusedConv")), (convs, 0, 0), "{}", told["ops"]);
        assert_eq!((count("Gemm"), count("QGemm")), (0, 1), "{}", told["ops"]);
        let ours = told["sqnr"].as_f64().unwrap();
        assert!((ours - refined).abs() < 0.5, "{ours} dB by ONNX Runtime, {refined} dB by the engine");

        let theirs: Vec<f32> = serde_json::from_value(told["outputs"].clone()).unwrap();
        let agree = agreement(&case.model("out.onnx"), &test, &theirs);
        println!("rten and ONNX Runtime agree to {agree:.2} dB");
        assert!(agree > ours + 6.0, "{agree} dB");
    }
}
