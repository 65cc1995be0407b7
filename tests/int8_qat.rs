//! `llmq int8 static --qat`: training gets back a part of a loss that was provoked, and says what it cannot do.
//!
//! The packages onnx and onnxruntime (scripts/setup-consumers.sh) are asked about a result; without them, that test fails.

mod common;

use common::npz::{images, npz, sentences};
use common::onnx::{self, cnn, encoder};
use common::{Run, folder, llmq, names};
use llmq::int8::onnx::OnnxFile;
use llmq::int8::onnx::node::{int, ints, node};
use llmq::int8::onnx::proto::ModelProto;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A calibrator that cuts off what is rarer than one in twenty: ranges are far too narrow.
const NARROW: [&str; 4] = ["--calibrator", "percentile", "--percentile", "95"];

/// A folder with a model, inputs to calibrate and train with, and others to judge by.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(model: &ModelProto, name: &str, inputs: fn(usize, u64) -> Vec<u8>, count: usize) -> Case {
        let case = Case { folder: folder() };
        onnx::write(model, &case.path("float.onnx"));
        npz(&case.path("calib.npz"), &[(name, inputs(count, 1))]);
        npz(&case.path("test.npz"), &[(name, inputs(16, 2))]);
        case
    }

    fn cnn() -> Case {
        Case::new(&cnn(), "image", images, 30)
    }

    fn encoder() -> Case {
        Case::new(&encoder(), "ids", sentences, 12)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn quantize(&self, options: &[&str]) -> Run {
        let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| self.path(name));
        let target = ["--force", "--json", "--target", "vnni"];
        llmq!["int8", "static", float, "--calib", calib, "-o", out; target.iter().chain(options)]
    }

    /// The signal-to-noise ratio of the first output, on samples that neither calibration nor training has seen.
    fn sqnr(&self) -> f64 {
        let [float, test, out] = ["float.onnx", "test.npz", "out.onnx"].map(|name| self.path(name));
        let judged = llmq!["int8", "validate", float, out, "--data", test, "--json"].ok().summary();
        judged["outputs"][0]["sqnr"].as_f64().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("out.onnx")).unwrap()
    }

    /// How many nodes of each operator there are.
    fn ops(&self) -> BTreeMap<String, usize> {
        let model = OnnxFile::open(&self.path("out.onnx")).unwrap().model;
        let mut counts = BTreeMap::new();
        for node in model.graph.unwrap().node {
            *counts.entry(node.op_type().to_owned()).or_default() += 1;
        }
        counts
    }
}

fn with<'a>(options: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [options, more].concat()
}

#[test]
fn a_network_gets_back_what_ranges_too_narrow_cost_and_keeps_its_nodes() {
    let case = Case::cnn();
    case.quantize(&NARROW).ok();
    let (lost, nodes) = (case.sqnr(), case.ops());
    let training = with(&NARROW, &["--qat", "--steps", "25", "--learning-rate", "0.005"]);
    let run = case.quantize(&training).ok();
    let found = case.sqnr();
    let trained = &run.summary()["trained"];
    println!("{lost:.2} dB without training, {found:.2} dB with: {trained}");
    assert!(found > lost + 6.0, "{found} dB, and {lost} without training");
    assert_eq!(case.ops(), nodes);
    assert_eq!((&trained["samples"], &trained["held_out"], &trained["steps"]), (&24.into(), &6.into(), &25.into()));
    let number = |key: &str| trained[key].as_f64().unwrap();
    assert!(number("error") < number("error_before") && number("kept") > 0.0, "{trained}");

    // Every convolution is still an integer kernel's.
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.consumers/python/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/consumers/onnx_fused.py");
    let told = common::run(Command::new(python).arg(script).arg(case.path("out.onnx"))).ok();
    let told: Json = serde_json::from_str(&told.stdout).unwrap();
    assert!(told["QLinearConv"] == 3 && told.get("Conv").is_none(), "{told}");
}

#[test]
fn the_number_of_threads_changes_nothing_and_the_seed_does() {
    let case = Case::cnn();
    let bytes = |more: &[&str]| {
        let run = case.quantize(&with(&with(&NARROW, &["--qat", "--steps", "5"]), more)).ok();
        assert_eq!(run.summary()["trained"]["kept"], 5);
        case.bytes()
    };
    let three = bytes(&["--threads", "3"]);
    assert!(three == bytes(&["--threads", "1"]), "other bytes with another number of threads");
    assert!(three != bytes(&["--seed", "1"]), "the same bytes with another seed");
}

#[test]
fn an_encoder_gets_back_what_ranges_too_narrow_cost() {
    let case = Case::encoder();
    case.quantize(&NARROW).ok();
    let lost = case.sqnr();
    let run = case.quantize(&with(&NARROW, &["--qat", "--steps", "10", "--learning-rate", "0.003"])).ok();
    let found = case.sqnr();
    println!("{lost:.2} dB without training, {found:.2} dB with: {}", run.summary()["trained"]);
    assert!(found > lost + 1.0, "{found} dB, and {lost} without training");
}

#[test]
fn what_is_not_better_is_not_kept() {
    let case = Case::cnn();
    case.quantize(&[]).ok();
    let bytes = case.bytes();
    let run = case.quantize(&["--qat", "--steps", "3", "--learning-rate", "1"]).ok();
    let trained = &run.summary()["trained"];
    assert!(trained["kept"] == 0 && trained["error"] == trained["error_before"], "{trained}");
    assert!(bytes == case.bytes(), "other bytes than without training");
}

#[test]
fn what_training_cannot_do_is_told_and_nothing_is_left() {
    let refused = |case: &Case, options: &[&str], code: i32, wanted: &[&str]| {
        case.quantize(options).failed(code, wanted);
        assert_eq!(names(case.folder.path()), ["calib.npz", "float.onnx", "test.npz"]);
    };
    let case = Case::cnn();
    refused(&case, &["--steps", "5"], 2, &["--qat"]);
    refused(&case, &["--qat", "--steps", "0"], 2, &["--steps 0 would train nothing"]);
    refused(&case, &["--qat", "--learning-rate", "0"], 2, &["--learning-rate 0 is not above 0"]);
    refused(&case, &["--qat", "--learning-rate", "1.5"], 2, &["--learning-rate 1.5"]);
    let few = Case::new(&cnn(), "image", images, 9);
    refused(&few, &["--qat"], 1, &["--qat needs 10 calibration samples, and there are 9", "100 and more"]);

    // An operator that the engine knows and training does not.
    let mut model = cnn();
    let graph = model.graph.as_mut().unwrap();
    let last = graph.node.last_mut().unwrap();
    last.output[0] = "bent".into();
    graph.node.push(node("Sin", "the bend", &["bent"], &["logits"], vec![]));
    let unknown = Case::new(&model, "image", images, 12);
    let wanted = ["training cannot go through these operators: Sin (node 'the bend')", "--refine"];
    refused(&unknown, &["--qat"], 1, &wanted);
    // Before anyone looks at the samples.
    let [float, none, out] = ["float.onnx", "none.npz", "out.onnx"].map(|name| unknown.folder.path().join(name));
    llmq!["int8", "static", float, "--calib", none, "-o", out, "--qat"].failed(1, &wanted);
    unknown.quantize(&[]).ok();

    // An option of one that it does know.
    let mut model = cnn();
    let nodes = &mut model.graph.as_mut().unwrap().node;
    let pool = nodes.iter_mut().find(|node| node.op_type() == "GlobalAveragePool").unwrap();
    let sizes = vec![ints("kernel_shape", &[3, 3]), ints("strides", &[16, 16])];
    let options = [sizes, vec![int("ceil_mode", 1), int("count_include_pad", 1)]].concat();
    *pool = node("AveragePool", "/pool", &["two.relu"], &["pooled"], options);
    let ceil = Case::new(&model, "image", images, 12);
    refused(&ceil, &["--qat"], 1, &["node '/pool' (AveragePool)", "ceil_mode with count_include_pad", "--refine"]);
}
