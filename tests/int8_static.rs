//! `llmq int8 static`, `validate` and `sensitivity`: what they make, what they say, and bad input.
//!
//! The packages onnx and onnxruntime (scripts/setup-consumers.sh) are asked about the results; without them, that test fails.

mod common;

use common::npz::{agreement, floats, images, integers, npz, sentences};
use common::onnx::{self, LAYERS, LINEARS, cnn, encoder};
use common::{Run, folder, llmq, names};
use llmq::int8::calibration_inputs;
use llmq::int8::engine::Engine;
use llmq::int8::onnx::OnnxFile;
use llmq::int8::onnx::node::node;
use llmq::int8::onnx::proto::ModelProto;
use llmq::int8::onnx::proto::tensor_proto::DataType;
use serde_json::Value as Json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A folder with a model and inputs to calibrate and to test with.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(model: &ModelProto, calib: &[(&str, Vec<u8>)], test: &[(&str, Vec<u8>)]) -> Case {
        let case = Case { folder: folder() };
        onnx::write(model, &case.path("float.onnx"));
        npz(&case.path("calib.npz"), calib);
        npz(&case.path("test.npz"), test);
        case
    }

    fn cnn() -> Case {
        Case::new(&cnn(), &[("image", images(24, 1))], &[("image", images(16, 2))])
    }

    fn encoder() -> Case {
        Case::new(&encoder(), &[("ids", sentences(8, 1))], &[("ids", sentences(6, 2))])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn quantize(&self, options: &[&str]) -> Run {
        let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "static", float, "--calib", calib, "-o", out, "--force", "--json"; options]
    }

    fn validate(&self, options: &[&str]) -> Run {
        let [float, test, out] = ["float.onnx", "test.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "validate", float, out, "--data", test; options]
    }

    fn out(&self) -> ModelProto {
        OnnxFile::open(&self.path("out.onnx")).unwrap().model
    }

    /// The signal-to-noise ratio of the first output.
    fn sqnr(&self) -> f64 {
        self.validate(&["--json"]).ok().summary()["outputs"][0]["sqnr"].as_f64().unwrap()
    }
}

fn ops(model: &ModelProto, op: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type() == op).count()
}

#[test]
fn a_convolutional_network_runs_in_integers_from_end_to_end() {
    let case = Case::cnn();
    let run = case.quantize(&["--target", "vnni"]).ok();
    let summary = run.summary();
    assert_eq!(summary["layers"], serde_json::json!({ "Conv": 3, "Gemm": 1 }));
    // The residual sum, the pool, and the Flatten behind it.
    assert_eq!(
        (&summary["other_nodes"], &summary["folded"], &summary["left_float"]),
        (&3.into(), &3.into(), &0.into())
    );
    assert!(summary["warnings"][0].as_str().unwrap().contains("24 calibration samples are few"), "{summary}");
    let out = case.out();
    assert_eq!(ops(&out, "BatchNormalization"), 0);
    // The input, three convolutions, the sum, the pool and the Flatten.
    assert_eq!(ops(&out, "QuantizeLinear"), 7);
    assert!(case.sqnr() > 38.0, "{}", case.sqnr());
    let bytes = fs::read(case.path("out.onnx")).unwrap();
    case.quantize(&["--target", "vnni", "--threads", "1"]).ok();
    assert!(bytes == fs::read(case.path("out.onnx")).unwrap(), "other bytes with another number of threads");

    let arm = case.quantize(&["--target", "arm"]).ok();
    assert!(arm.summary()["integers"].as_str().unwrap().starts_with("S8 activations"));
    assert!(case.sqnr() > 38.0, "{}", case.sqnr());
}

#[test]
fn every_calibrator_gives_a_working_model() {
    let case = Case::cnn();
    // The images are quiet and loud: the mean of their extremes cuts the loud ones off.
    for (calibrator, least) in
        [("minmax", 38.0), ("average", 10.0), ("percentile", 38.0), ("entropy", 36.0), ("mse", 38.0)]
    {
        case.quantize(&["--target", "vnni", "--calibrator", calibrator]).ok();
        let sqnr = case.sqnr();
        println!("{calibrator}: {sqnr:.2} dB");
        assert!(sqnr > least, "{calibrator}: {sqnr}");
    }
}

#[test]
fn an_encoder_keeps_its_residual_stream_and_attention_in_floats() {
    let case = Case::encoder();
    let run = case.quantize(&["--target", "vnni"]).ok();
    let summary = run.summary();
    assert_eq!(summary["layers"], serde_json::json!({ "Gemm": 1, "MatMul": LAYERS * LINEARS }));
    assert_eq!((&summary["other_nodes"], &summary["embeddings"]), (&0.into(), &1.into()));
    // Query times key and weights times values.
    assert_eq!(summary["left_float"], 2 * LAYERS);
    assert!(run.lines("float").iter().any(|left| left["why"] == "both factors are computed"), "{}", run.stdout);
    let out = case.out();
    assert_eq!(ops(&out, "Add"), ops(&encoder(), "Add"));
    // Biases are integers, too: with fixed shapes ONNX Runtime makes a Gemm of a product and the sum behind it.
    let graph = out.graph.as_ref().unwrap();
    let integer =
        |name: &str| graph.initializer.iter().any(|t| t.name() == name && t.data_type() == DataType::Int32 as i32);
    let biases = graph.node.iter().filter(|node| node.op_type() == "DequantizeLinear" && integer(&node.input[0]));
    // Those of the classifier besides.
    assert_eq!(biases.count(), LAYERS * LINEARS + 1);
    // Query, key and value read the same quantized activations.
    assert_eq!(ops(&out, "QuantizeLinear"), LAYERS * 4 + 1);
    assert!(case.sqnr() > 28.0, "{}", case.sqnr());
}

/// The class that the float model gives each test image.
fn labels(case: &Case) -> Vec<i64> {
    let engine = Engine::new(&OnnxFile::open(&case.path("float.onnx")).unwrap().model).unwrap();
    let samples = calibration_inputs::open(&[case.path("test.npz")], &engine).unwrap();
    let class = |sample: llmq::error::Result<llmq::int8::samples::Sample>| {
        let outputs = engine.run(&calibration_inputs::inputs(&engine, &sample.unwrap()).unwrap()).unwrap();
        llmq::int8::statistics::largest(&outputs[0].floats().unwrap().data) as i64
    };
    samples.iter().map(class).collect()
}

#[test]
fn a_verdict_needs_labels_and_enough_samples() {
    let case = Case::cnn();
    case.quantize(&["--target", "vnni"]).ok();
    let unlabelled = case.validate(&[]).ok();
    assert!(unlabelled.stdout.contains("none about accuracy"), "{}", unlabelled.stdout);
    case.validate(&["--max-loss", "1"]).failed(2, &["have no labels"]);
    let labels = labels(&case);
    npz(&case.path("test.npz"), &[("image", images(16, 2)), ("labels", integers(&[16], &labels))]);
    let judged = case.validate(&["--json", "--max-loss", "50"]).ok().summary();
    let verdict = &judged["verdict"];
    assert_eq!((&verdict["grade"], &verdict["original_accuracy"]), (&"inconclusive".into(), &1.0.into()));
    assert!(verdict["more_samples"].as_f64().unwrap() > 50.0, "{verdict}");
    // A quantized model that is another one loses.
    let mut other = case.out();
    let graph = other.graph.as_mut().unwrap();
    let last = graph.node.iter_mut().find(|node| node.op_type() == "Gemm").unwrap();
    last.output[0] = "turned".into();
    graph.node.push(node("Neg", "neg", &["turned"], &["logits"], vec![]));
    onnx::write(&other, &case.path("out.onnx"));
    let lost = case.validate(&["--max-loss", "1"]).failed(1, &["more than the 1 of --max-loss", "int8 sensitivity"]);
    assert!(lost.stdout.contains("unsuitable"), "{}", lost.stdout);
    // That is plain without labels, too.
    npz(&case.path("test.npz"), &[("image", images(16, 2))]);
    let ruined = case.validate(&[]).failed(1, &["output 'logits' has an SQNR of", "below 10", "int8 sensitivity"]);
    assert!(ruined.stdout.contains("verdict        unsuitable"), "{}", ruined.stdout);
}

#[test]
fn sensitivity_writes_a_list_that_static_takes() {
    let case = Case::cnn();
    let list = case.path("list.txt");
    let sensitivity = |target: &str| {
        let [float, calib] = ["float.onnx", "calib.npz"].map(|name| case.path(name));
        let options = ["--target", "vnni", "--json", "--samples", "4", "--force", "--target-sqnr", target];
        llmq!["int8", "sensitivity", float, "--calib", calib, "-o", &list; options]
    };
    case.quantize(&["--target", "vnni"]).ok();
    let all = case.sqnr();
    let run = sensitivity("45").ok();
    let ranked: Vec<f64> = run.lines("layer").iter().map(|layer| layer["sqnr"].as_f64().unwrap()).collect();
    assert!(ranked.len() == 4 && ranked.is_sorted() && ranked[0] > all - 3.0, "{ranked:?} {all}");
    let excluded = run.summary()["excluded"].as_array().unwrap().len();
    assert!((1..4).contains(&excluded), "{}", run.stdout);
    let run = case.quantize(&["--target", "vnni", "--exclude-file", list.to_str().unwrap()]).ok();
    assert_eq!(run.lines("float").iter().filter(|left| left["why"] == "excluded").count(), excluded);
    assert!(case.sqnr() > all, "{} {all}", case.sqnr());
    sensitivity("500").failed(1, &["only with all 4 layers in floats"]);
}

#[test]
fn what_is_excluded_or_listed() {
    let case = Case::cnn();
    let run = llmq!["int8", "static", case.path("float.onnx"), "--list", "--json"].ok();
    let layers = run.lines("layer");
    assert_eq!(layers.iter().map(|layer| layer["name"].as_str().unwrap()).collect::<Vec<_>>().len(), 4);
    let run = case.quantize(&["--exclude", "/logits", "--exclude", ".*two.*"]).ok();
    assert_eq!(run.summary()["layers"], serde_json::json!({ "Conv": 2 }));
    case.quantize(&["--exclude", "/nothing"]).failed(2, &["no layer '/nothing'", "--list"]);
    case.quantize(&["--exclude", ".*"]).failed(1, &["every layer is excluded"]);
}

#[test]
fn bad_input_is_refused_and_nothing_is_left() {
    let image = |x: Vec<u8>| vec![("image", x)];
    let mut nan = vec![0.5f32; 2 * 768];
    nan[768 + 300] = f32::NAN;
    let overflowing = vec![3e38f32; 768];
    let mut old = cnn();
    old.opset_import[0].version = Some(10);
    let mut unknown = cnn();
    unknown.graph.as_mut().unwrap().node[2].op_type = Some("Wonder".into());
    let mut nothing = cnn();
    nothing.graph.as_mut().unwrap().node.retain(|node| node.op_type() == "Relu");
    nothing.graph.as_mut().unwrap().node.truncate(1);
    nothing.graph.as_mut().unwrap().node[0].input[0] = "image".into();
    nothing.graph.as_mut().unwrap().node[0].output[0] = "logits".into();
    let done = Case::cnn();
    done.quantize(&[]).ok();
    // A model, files of samples, and what is told.
    type Bad<'a> = (ModelProto, Vec<(&'a str, Vec<u8>)>, &'a [&'a str]);
    let cases: [Bad; 9] = [
        (cnn(), vec![("picture", images(1, 1))], &["no array 'image'", "it holds 'picture'", "np.savez"]),
        (cnn(), image(floats(&[1, 3, 8, 8], &[0.0; 192])), &["shape [1, 3, 8, 8]", "[batch, 3, 16, 16]"]),
        (cnn(), image(floats(&[2, 3, 16, 16], &nan)), &["calib.npz, sample 1: 'image' holds NaN at [1, 1, 2, 12]"]),
        (cnn(), image(floats(&[1, 3, 16, 16], &overflowing)), &["the model makes", "of it, in value"]),
        (cnn(), image(floats(&[3, 3, 16, 16], &[0.0; 768])), &["sample 1: 'image' ends before"]),
        (old, image(images(1, 1)), &["opset 10", "opset 11 or newer"]),
        (done.out(), image(images(1, 1)), &["already quantized"]),
        (unknown, image(images(1, 1)), &["cannot load this graph", "Wonder"]),
        (nothing, image(images(1, 1)), &["nothing in", "no Conv, Gemm or MatMul"]),
    ];
    for (model, calib, wanted) in cases {
        let case = Case::new(&model, &calib, &calib);
        case.quantize(&[]).failed(1, wanted);
        assert_eq!(names(case.folder.path()), ["calib.npz", "float.onnx", "test.npz"]);
    }
    let case = Case::cnn();
    let missing = case.path("nowhere.npz");
    llmq!["int8", "static", case.path("float.onnx"), "--calib", &missing, "-o", case.path("out.onnx")]
        .failed(1, &["nowhere.npz"]);
    // Another model's outputs.
    onnx::write(&encoder(), &case.path("out.onnx"));
    case.validate(&[]).failed(1, &["the original's inputs are", "made from this original"]);
}

#[test]
fn onnx_runtime_fuses_all_and_loses_no_more_than_with_its_own_quantizer() {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.consumers/python/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/consumers/onnx_static.py");
    for (case, convs) in [(Case::cnn(), 3), (Case::encoder(), 0)] {
        case.quantize(&["--reduce-range", "on"]).ok();
        let [float, out, calib, test] = ["float.onnx", "out.onnx", "calib.npz", "test.npz"].map(|name| case.path(name));
        let told = common::run(Command::new(python).arg(script).args([&float, &out, &calib, &test]).arg("1")).ok();
        let told: Json = serde_json::from_str(&told.stdout).unwrap();
        let count = |op: &str| told["ops"][op].as_u64().unwrap_or(0);
        assert_eq!((count("QLinearConv"), count("Conv"), count("FusedConv")), (convs, 0, 0), "{}", told["ops"]);
        let ours = told["sqnr"].as_f64().unwrap();
        println!("{ours:.2} dB; quantize_static: {}", told["theirs"]);
        let theirs = told["theirs"]["MinMax"].as_f64().unwrap_or_else(|| panic!("{}", told["theirs"]));
        assert!(ours >= theirs, "{ours} dB, but quantize_static has {theirs} dB");

        // The same by the built-in engine, but for what rounds to another side.
        let theirs: Vec<f32> = serde_json::from_value(told["outputs"].clone()).unwrap();
        let agree = agreement(&case.out(), &test, &theirs);
        println!("rten and ONNX Runtime agree to {agree:.2} dB");
        assert!(agree > ours + 6.0, "{agree} dB");
    }
}
