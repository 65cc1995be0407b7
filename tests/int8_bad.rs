//! `llmq int8` on graphs and inputs that are odd or wrong: what is refused and how, and what is done all the same.

mod common;

use common::npz::{floats, images, integers, npz};
use common::onnx::{self, Builder, cnn, encoder};
use common::{BINARY, Run, folder, llmq, names, run};
use llmq::int8::onnx::node::{ints, node};
use llmq::int8::onnx::proto::tensor_proto::DataType;
use llmq::int8::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use llmq::int8::onnx::shape::declare;
use llmq::int8::onnx::{OnnxFile, Tensor};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A folder with a model, and inputs for it if it is calibrated.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(model: &ModelProto, arrays: &[(&str, Vec<u8>)]) -> Case {
        let case = Case { folder: folder() };
        onnx::write(model, &case.path("float.onnx"));
        npz(&case.path("calib.npz"), arrays);
        case
    }

    fn cnn(change: impl FnOnce(&mut ModelProto)) -> Case {
        let mut model = cnn();
        change(&mut model);
        Case::new(&model, &[("image", images(2, 1))])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn fixed(&self) -> Run {
        let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "static", float, "--calib", calib, "-o", out, "--target", "vnni", "--json"]
    }

    fn dynamic(&self) -> Run {
        llmq!["int8", "dynamic", self.path("float.onnx"), "-o", self.path("out.onnx"), "--json"]
    }

    /// Neither way of quantizing takes it, and nothing is left behind.
    #[track_caller]
    fn refused(&self, told: &[&str]) {
        let before = names(self.folder.path());
        for run in [self.fixed(), self.dynamic()] {
            run.failed(1, told);
            assert_eq!(names(self.folder.path()), before);
        }
    }

    #[track_caller]
    fn refused_statically(&self, told: &[&str]) {
        let before = names(self.folder.path());
        self.fixed().failed(1, told);
        assert_eq!(names(self.folder.path()), before);
    }

    fn validated(&self) -> Run {
        let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "validate", float, out, "--data", calib, "--json"]
    }

    fn sqnr(&self) -> f64 {
        self.validated().ok().summary()["outputs"][0]["sqnr"].as_f64().unwrap()
    }
}

fn tensor<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
    model.graph.as_mut().unwrap().initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap()
}

#[test]
fn versions_of_operators_that_are_too_old_or_too_new() {
    let opset = |version| Case::cnn(|model| model.opset_import[0].version = Some(version));
    opset(6).refused(&["float.onnx", "opset 6, and 7 to 28 are supported", "version_converter"]);
    opset(29).refused(&["float.onnx", "opset 29, and 7 to 28 are supported"]);
    opset(10).refused(&["float.onnx has opset 10", "convert_version(model, 1"]);
    // What is a little older is converted.
    assert!(opset(12).fixed().ok().stderr.contains("converted from opset 12 to 13"));
    Case::cnn(|model| model.opset_import.clear()).refused(&["float.onnx", "names no version"]);
}

#[test]
fn values_that_should_lie_beside_the_model() {
    let case = Case::cnn(|model| {
        let tensor = tensor(model, "one.weight");
        tensor.raw_data = None;
        tensor.data_location = Some(1);
        let entry = StringStringEntryProto { key: Some("location".into()), value: Some("weights.bin".into()) };
        tensor.external_data = vec![entry];
    });
    case.refused(&["float.onnx", "tensor 'one.weight'", "weights.bin", "all in one folder"]);
    fs::write(case.path("weights.bin"), [0; 100]).unwrap();
    case.refused(&["float.onnx", "tensor 'one.weight'", "has 100 bytes, but they are 36864 bytes", "truncated"]);
}

#[cfg(unix)]
#[test]
fn a_folder_for_temporary_files_that_is_not_there() {
    let case = Case::cnn(|_| ());
    let before = names(case.folder.path());
    let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| case.path(name));
    let mut command = Command::new(BINARY);
    command.args(["int8", "static"]).arg(float).arg("--calib").arg(calib).arg("-o").arg(out);
    let told = ["float.onnx", "cannot keep the model's constants", "gone", "TMPDIR"];
    run(command.env("TMPDIR", case.path("gone"))).failed(1, &told);
    assert_eq!(names(case.folder.path()), before);
}

#[test]
fn weights_that_are_no_numbers() {
    let case = Case::cnn(|model| {
        let weight = tensor(model, "classifier.weight");
        let mut w = Tensor::<f32>::read(weight).unwrap();
        w.data[33] = f32::INFINITY;
        *weight = w.proto("classifier.weight");
    });
    case.refused(&["float.onnx", "'classifier.weight'", "inf at element 33"]);
    case.refused_statically(&["Gemm node '/logits'", "damaged"]);
}

#[test]
fn graphs_that_are_quantized_already_even_if_only_inside_of_a_branch() {
    let case = Case::cnn(|model| {
        let mut branch = cnn().graph.unwrap();
        branch.node = vec![node("QLinearConv", "inner", &[], &["inner"], vec![])];
        let mut branching = node("If", "if", &["image"], &["chosen"], vec![ints("then_branch", &[])]);
        branching.attribute[0].g = Some(branch);
        model.graph.as_mut().unwrap().node.push(branching);
    });
    case.refused(&["float.onnx", "already quantized: QLinearConv node 'inner'", "float model"]);
    for dynamic in [true, false] {
        let case = Case::cnn(|_| ());
        if dynamic { case.dynamic() } else { case.fixed() }.ok();
        fs::rename(case.path("out.onnx"), case.path("float.onnx")).unwrap();
        case.refused(&["float.onnx", "already quantized", "start from the float model"]);
    }
}

/// `y = (a + b) W`, both `[batch, length, 4]`.
fn sum() -> ModelProto {
    let mut b = Builder::new(4);
    for name in ["a", "b"] {
        b.input(name, DataType::Float, &[-1, -1, 4]);
    }
    let weight = b.weight("w", &[4, 8], 0.0, 0.5);
    b.op("Add", "sum", &["a", "b"], vec![]);
    b.op("MatMul", "y", &["sum", &weight], vec![]);
    b.output("y", &[-1, -1, 8]);
    b.model()
}

#[test]
fn open_dimensions_go_by_their_names() {
    let x = |rows: usize, length: usize| floats(&[rows, length, 4], &vec![0.5; rows * length * 4]);
    let with = |a, b| Case::new(&sum(), &[("a", a), ("b", b)]);
    with(x(2, 3), x(2, 5))
        .refused_statically(&["calib.npz", "the graph's dimension 'length' would be 3 in 'a', but 5 in 'b'"]);
    with(x(2, 3), floats(&[2, 3], &[0.5; 6])).refused_statically(&["'b' has the shape", "[batch, length, 4]"]);
    // Files may differ in it.
    let case = with(x(2, 3), x(2, 3));
    npz(&case.path("longer.npz"), &[("a", x(3, 7)), ("b", x(3, 7))]);
    let [float, calib, out] = ["float.onnx", ".", "out.onnx"].map(|name| case.path(name));
    assert_eq!(llmq!["int8", "static", float, "--calib", calib, "-o", out, "--json"].ok().summary()["samples"], 5);
}

#[test]
fn a_sample_that_the_graph_cannot_be_run_on() {
    let mut model = sum();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.push(Tensor::vector(vec![1i64, 3, 4]).proto("three"));
    graph.node[1].input[0] = "three_rows".into();
    graph.node.insert(1, node("Reshape", "/fixed", &["sum", "three"], &["three_rows"], vec![]));
    let x = || floats(&[2, 5, 4], &[0.5; 40]);
    Case::new(&model, &[("a", x()), ("b", x())]).refused_statically(&[
        "cannot calibrate",
        "float.onnx",
        "calib.npz, sample 0 cannot be run",
        "operator \"/fixed\" failed",
    ]);
}

#[test]
fn operators_that_nobody_knows() {
    let case = Case::cnn(|model| {
        let graph = model.graph.as_mut().unwrap();
        let mut wonder = node("Wonder", "/wonder", &["pooled"], &["wondered"], vec![]);
        wonder.domain = Some("com.example".into());
        graph.node.iter_mut().find(|node| node.is("Flatten")).unwrap().input[0] = "wondered".into();
        graph.node.push(wonder);
    });
    case.refused_statically(&[
        "cannot calibrate",
        "float.onnx",
        "/wonder",
        "com.example",
        "Wonder",
        "llmq int8 dynamic",
    ]);
    // Nothing has to be run for this.
    let summary = case.dynamic().ok().summary();
    assert_eq!((&summary["others"]["com.example.Wonder"], &summary["quantized"]), (&1.into(), &1.into()), "{summary}");
    case.validated().failed(1, &["cannot run", "float.onnx", "Wonder"]);
}

#[test]
fn operators_without_an_integer_form_stay_float_and_are_listed() {
    let mut b = Builder::new(5);
    b.input("x", DataType::Float, &[-1, 3, 8, 8]);
    let [conv, turned] = [("conv.w", [4, 3, 3, 3]), ("turned.w", [4, 4, 2, 2])].map(|(n, d)| b.weight(n, &d, 0.0, 0.3));
    let y = b.op("Conv", "conv", &["x", &conv], vec![ints("kernel_shape", &[3; 2])]);
    let y = b.op("Softplus", "soft", &[&y], vec![]);
    let attributes = vec![ints("kernel_shape", &[2; 2]), ints("strides", &[2; 2])];
    let y = b.op("ConvTranspose", "up", &[&y, &turned], attributes);
    let flat = b.op("Flatten", "flat", &[&y], vec![]);
    let wide = b.weight("wide", &[2, 576, 5], 0.0, 0.1);
    b.op("MatMul", "y", &[&flat, &wide], vec![]);
    b.output("y", &[2, -1, 5]);
    let image = floats(&[1, 3, 8, 8], &(0..192).map(|n| (n as f32 * 0.7).sin()).collect::<Vec<_>>());
    let case = Case::new(&b.model(), &[("x", image)]);
    let run = case.fixed().ok();
    let why = |node: &str| run.lines("float").into_iter().find(|left| left["name"] == node).unwrap()["why"].clone();
    assert_eq!(run.summary()["layers"], serde_json::json!({ "Conv": 1 }));
    assert_eq!(why("/up"), "there is no integer kernel for it");
    assert_eq!(why("/y"), "its weights are no matrix");
    assert_eq!(run.summary()["others"], serde_json::json!({ "Flatten": 1, "Softplus": 1 }));
    assert!(case.sqnr() > 30.0, "{}", case.sqnr());
    let text = llmq![
        "int8",
        "static",
        case.path("float.onnx"),
        "--calib",
        case.path("calib.npz"),
        "-o",
        case.path("text.onnx")
    ];
    let text = text.ok().stdout;
    assert!(text.contains("1 ConvTranspose, there is no integer kernel for it: /up"), "{text}");
    assert!(text.contains("as before      1 Flatten, 1 Softplus"), "{text}");
}

#[test]
fn weights_that_a_caller_may_replace() {
    let case = Case::cnn(|model| {
        let graph = model.graph.as_mut().unwrap();
        let inputs = graph.initializer.iter().map(|t| {
            let dims: Vec<i64> = t.dims.clone();
            declare(t.name(), DataType::Float, &Builder::dims(&dims))
        });
        let inputs: Vec<_> = inputs.collect();
        graph.input.extend(inputs);
    });
    // Exporters of old list all of them: nobody replaces those.
    assert!(
        case.fixed().ok().stderr.contains("17 initializers were inputs of the graph as well; they are constants now")
    );
}

#[test]
fn a_convolution_that_leaves_its_kernel_to_its_weights() {
    let with = Case::cnn(|_| ());
    let without = Case::cnn(|model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        nodes.iter_mut().for_each(|node| node.attribute.retain(|attribute| attribute.name() != "kernel_shape"));
    });
    let summaries = [&with, &without].map(|case| case.fixed().ok().summary()["layers"].clone());
    assert_eq!(summaries, [summaries[0].clone(), serde_json::json!({ "Conv": 3, "Gemm": 1 })]);
    assert_eq!(with.sqnr(), without.sqnr());
}

#[test]
fn graphs_that_the_engine_cannot_compute() {
    let odd = |model: &mut ModelProto| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let conv = nodes.iter_mut().find(|node| node.name() == "/one.conv").unwrap();
        conv.attribute.push(ints("strides", &[0, 0]));
    };
    let case = Case::cnn(odd);
    case.refused_statically(&["cannot calibrate", "float.onnx", "calib.npz, sample 0", "Strides must be > 0"]);
    // What was sound when it was quantized, and is not any more.
    let case = Case::cnn(|_| ());
    case.fixed().ok();
    let mut out = OnnxFile::open(&case.path("out.onnx")).unwrap().model;
    odd(&mut out);
    onnx::write(&out, &case.path("out.onnx"));
    case.validated().failed(1, &["the quantized model cannot be run", "Strides must be > 0"]);
}

#[test]
fn calibration_inputs_for_another_graph() {
    let words = || integers(&[1, 12], &[3; 12]);
    Case::new(&encoder(), &[("words", words()), ("mask", words())]).refused_statically(&[
        "calib.npz: there is no array 'ids': it holds 'words', 'mask'",
        "inputs are 'ids' (integer [batch, length])",
        "np.savez",
    ]);
    let floats = floats(&[1, 12], &[3.0; 12]);
    Case::new(&encoder(), &[("ids", floats)])
        .refused_statically(&["'ids' holds float32, but the graph wants integers"]);
    Case::new(&encoder(), &[]).refused_statically(&["calib.npz: there is no array 'ids': it holds none"]);
}
