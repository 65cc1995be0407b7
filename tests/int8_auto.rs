//! `llmq int8 auto`: what it tries, what it takes, and when it takes nothing; and calibrators that are chosen by held-out error.

mod common;

use common::npz::{floats, images, npz};
use common::onnx::{self, Builder, cnn};
use common::{Run, folder, llmq, names};
use llmq::int8::onnx::proto::ModelProto;
use llmq::int8::onnx::proto::tensor_proto::DataType;
use llmq::int8::onnx::{OnnxFile, Tensor};
use std::path::PathBuf;
use tempfile::TempDir;

struct Case {
    folder: TempDir,
}

impl Case {
    fn new(model: &ModelProto, arrays: &[(&str, Vec<u8>)]) -> Case {
        let case = Case { folder: folder() };
        onnx::write(model, &case.path("float.onnx"));
        npz(&case.path("samples.npz"), arrays);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// No Python of that name times anything: what is chosen does not depend on the machine.
    fn auto(&self, options: &[&str]) -> Run {
        let [float, samples, out] = ["float.onnx", "samples.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "auto", float, "--samples", samples, "-o", out, "--force", "--target", "vnni", "--python", "no-python"; options]
    }

    fn bytes(&self, name: &str) -> u64 {
        OnnxFile::open(&self.path(name)).unwrap().bytes
    }
}

/// Rows of numbers of which few are large: those of the first column, which the layer behind multiplies with next to nothing.
fn ruined() -> (ModelProto, Vec<u8>) {
    let mut b = Builder::new(5);
    b.input("x", DataType::Float, &[-1, 64]);
    let first = b.linear("first", "x", 64, 64);
    let a = b.op("Relu", "relu", &[&first], vec![]);
    let mut scale = vec![1.0f32; 64];
    scale[0] = 4000.0;
    b.graph.initializer.push(Tensor::new([1, 64], scale).proto("up"));
    let large = b.op("Mul", "large", &[&a, "up"], vec![]);
    // [64, 64], its first row as small as the first column is large.
    let w = b.weight("second.weight", &[64, 64], 0.0, 0.125);
    let tensor = b.graph.initializer.iter_mut().find(|tensor| tensor.name() == "second.weight").unwrap();
    let mut weights = Tensor::<f32>::read(tensor).unwrap();
    weights.data[..64].iter_mut().for_each(|w| *w /= 4000.0);
    *tensor = weights.proto("second.weight");
    let second = b.op("MatMul", "second", &[&large, &w], vec![]);
    let third = b.linear("third", &second, 64, 64);
    b.output(&third, &[-1, 64]);
    let x: Vec<f32> = (0..24 * 64).map(|i| ((i * 7919 + 31) % 1009) as f32 / 504.5 - 1.0).collect();
    (b.model(), floats(&[24, 64], &x))
}

#[test]
fn the_curve_is_tried_and_its_knee_written() {
    let case = Case::new(&cnn(), &[("image", images(24, 1))]);
    let run = case.auto(&["--json"]).ok();
    let candidates = run.lines("candidate");
    let of = |name: &str| candidates.iter().find(|candidate| candidate["name"] == name).unwrap();
    // Weights alone are nearest; what is static runs in integers.
    assert!(of("weights")["sqnr"].as_f64() > of("static")["sqnr"].as_f64());
    assert!(of("static")["sqnr"].as_f64().unwrap() > 30.0);
    assert!(candidates.iter().all(|candidate| candidate["time"].is_null()));
    assert_eq!(run.lines("calibrator").len(), 5);
    let summary = run.summary();
    assert_eq!(
        (&summary["chosen"], &summary["held_out"], &summary["judges"]),
        (&"static".into(), &true.into(), &8.into())
    );
    assert_eq!(summary["bytes"].as_u64(), Some(case.bytes("out.onnx")));
    assert!(2 * case.bytes("out.onnx") < case.bytes("float.onnx"));
    npz(&case.path("test.npz"), &[("image", images(16, 2))]);
    let [float, out, test] = ["float.onnx", "out.onnx", "test.npz"].map(|name| case.path(name));
    let judged = llmq!["int8", "validate", float, out, "--data", test, "--json"].ok().summary();
    assert!(judged["outputs"][0]["sqnr"].as_f64().unwrap() > 30.0);
    let shown = case.auto(&[]).ok().stdout;
    for wanted in ["candidate", "weights", "static", " <", "chosen         static", "not measured"] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
}

#[test]
fn what_ruins_a_graph_computes_in_floats() {
    let (model, x) = ruined();
    let case = Case::new(&model, &[("x", x)]);
    let run = case.auto(&["--json"]).ok();
    let candidates = run.lines("candidate");
    let sqnr = |name: &str| candidates.iter().find(|candidate| candidate["name"] == name).unwrap()["sqnr"].as_f64();
    assert!(sqnr("static").unwrap() < 20.0 && sqnr("mixed 1").unwrap() > 20.0, "{candidates:?}");
    let summary = run.summary();
    assert_eq!((&summary["chosen"], &summary["left_float"]), (&"mixed 1".into(), &serde_json::json!(["/second"])));
    // Its weights are in 8 bits all the same.
    assert!(2 * case.bytes("out.onnx") < case.bytes("float.onnx"));
    assert!(case.auto(&[]).ok().stdout.contains("left float     /second"));
}

#[test]
fn nothing_is_written_where_nothing_is_useful() {
    let mut b = Builder::new(3);
    b.input("x", DataType::Float, &[-1, 2]);
    let w = b.weight("w", &[2, 2], 0.0, 1.0);
    let y = b.op("MatMul", "y", &["x", &w], vec![]);
    b.output(&y, &[-1, 2]);
    let case = Case::new(&b.model(), &[("x", floats(&[4, 2], &[0.5, -1.0, 0.25, 2.0, 1.5, -0.5, 1.0, 1.0]))]);
    case.auto(&[]).failed(1, &["nothing useful is left", "leave the model as it is"]);
    assert_eq!(names(case.folder.path()), ["float.onnx", "samples.npz"]);
}

#[test]
fn the_calibrator_is_the_best_of_all_on_samples_held_out() {
    let case = Case::new(&cnn(), &[("image", images(24, 1))]);
    let run = case.auto(&["--json"]).ok();
    let best = run.lines("calibrator").iter().map(|line| line["sqnr"].as_f64().unwrap()).fold(0.0, f64::max);
    let [float, samples, out] = ["float.onnx", "samples.npz", "static.onnx"].map(|name| case.path(name));
    let statically = |options: &[&str]| llmq!["int8", "static", &float, "--calib", &samples, "-o", &out, "--force", "--json", "--target", "vnni"; options];
    let chosen = statically(&[]).ok().summary();
    assert!(chosen["sqnr"].as_f64().unwrap() >= best, "{} {best}", chosen["sqnr"]);
    // The images are quiet and loud: the mean of their extremes cuts the loud ones off.
    assert!(!chosen["calibrator"].as_str().unwrap().starts_with("average"), "{}", chosen["calibrator"]);
    let named = statically(&["--percentile", "99.9"]).ok().summary();
    assert_eq!((&named["calibrator"], &named["sqnr"]), (&"percentile".into(), &serde_json::Value::Null));
}
