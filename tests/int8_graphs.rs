//! `llmq int8 dynamic` and `static` on graphs as exporters write them: one weight with many readers, old opsets, branches, recurrent
//! layers, single numbers as inputs.

mod common;

use common::npz::{floats, npz};
use common::onnx::{self, Builder};
use common::{Run, folder, llmq};
use llmq::int8::engine::{Engine, Value};
use llmq::int8::onnx::node::{int, ints, node};
use llmq::int8::onnx::proto::attribute_proto::AttributeType;
use llmq::int8::onnx::proto::tensor_proto::DataType;
use llmq::int8::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use llmq::int8::onnx::shape::declare;
use llmq::int8::onnx::{OnnxFile, Tensor};
use std::path::PathBuf;
use tempfile::TempDir;

/// Rows of numbers, other ones for each seed.
fn rows(count: usize, width: usize, seed: usize) -> Vec<f32> {
    (0..count * width).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

struct Case {
    folder: TempDir,
    model: ModelProto,
}

impl Case {
    fn new(model: ModelProto) -> Case {
        let case = Case { folder: folder(), model };
        onnx::write(&case.model, &case.path("float.onnx"));
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dynamic(&self) -> Run {
        llmq!["int8", "dynamic", self.path("float.onnx"), "-o", self.path("out.onnx"), "--json", "--force"]
    }

    fn statically(&self, arrays: &[(&str, Vec<u8>)]) -> Run {
        npz(&self.path("calib.npz"), arrays);
        let [float, calib, out] = ["float.onnx", "calib.npz", "out.onnx"].map(|name| self.path(name));
        llmq!["int8", "static", float, "--calib", calib, "-o", out, "--json", "--force"]
    }

    fn out(&self) -> OnnxFile {
        OnnxFile::open(&self.path("out.onnx")).unwrap()
    }

    fn ops(&self, op: &str) -> usize {
        self.out().model.graph.unwrap().node.iter().filter(|node| node.op_type() == op).count()
    }

    /// The signal-to-noise ratio of the first output, in dB.
    fn sqnr(&self, inputs: &[(&str, Value)]) -> f64 {
        let run = |model: &ModelProto| Engine::new(model).unwrap().run(inputs).unwrap()[0].floats().unwrap().clone();
        let (a, b) = (run(&self.model), run(&self.out().model));
        assert_eq!(a.dims, b.dims);
        let square = |x: f32| f64::from(x).powi(2);
        let noise: f64 = a.data.iter().zip(&b.data).map(|(a, b)| square(a - b)).sum();
        10.0 * (a.data.iter().map(|&x| square(x)).sum::<f64>() / noise).log10()
    }
}

fn x(count: usize, width: usize) -> (&'static str, Value) {
    ("x", Value::F32(Tensor::new([count, width], rows(count, width, 3))))
}

fn calib(count: usize, width: usize) -> Vec<u8> {
    floats(&[count, width], &rows(count, width, 5))
}

/// Four layers that read one matrix, each through an `Identity` of its own.
fn shared() -> ModelProto {
    let mut b = Builder::new(3);
    b.input("x", DataType::Float, &[-1, 256]);
    let w = b.weight("w", &[256, 256], 0.0, 0.06);
    let mut x = "x".to_owned();
    for layer in 0..4 {
        let same = b.op("Identity", &format!("same{layer}"), &[&w], vec![]);
        let product = b.op("MatMul", &format!("product{layer}"), &[&x, &same], vec![]);
        x = b.op("Relu", &format!("relu{layer}"), &[&product], vec![]);
    }
    b.output(&x, &[-1, 256]);
    b.model()
}

#[test]
fn a_weight_that_many_nodes_read_is_stored_once() {
    let case = Case::new(shared());
    let float = OnnxFile::open(&case.path("float.onnx")).unwrap().bytes;
    case.dynamic().ok();
    assert!(3 * case.out().bytes < float, "{} of {float} bytes", case.out().bytes);
    assert!(case.sqnr(&[x(3, 256)]) > 25.0, "{}", case.sqnr(&[x(3, 256)]));
    case.statically(&[("x", calib(32, 256))]).ok();
    assert!(3 * case.out().bytes < float, "{} of {float} bytes", case.out().bytes);
    assert!(case.sqnr(&[x(3, 256)]) > 25.0, "{}", case.sqnr(&[x(3, 256)]));
}

#[test]
fn a_file_that_grew_is_said_to_have() {
    let mut b = Builder::new(3);
    b.input("x", DataType::Float, &[-1, 2]);
    let w = b.weight("w", &[2, 2], 0.0, 1.0);
    let y = b.op("MatMul", "y", &["x", &w], vec![]);
    b.output(&y, &[-1, 2]);
    let case = Case::new(b.model());
    let run = case.dynamic().ok();
    let warning = run.lines("warning")[0]["text"].as_str().unwrap().to_owned();
    assert!(warning.contains("larger than the original"), "{warning}");
    assert!(case.out().bytes > OnnxFile::open(&case.path("float.onnx")).unwrap().bytes);
}

#[test]
fn old_opsets_are_converted_and_that_is_said() {
    let mut b = Builder::new(4);
    b.input("x", DataType::Float, &[-1, 32]);
    let w = b.weight("w", &[32, 16], 0.0, 0.2);
    let product = b.op("MatMul", "product", &["x", &w], vec![]);
    let more = b.op("Unsqueeze", "more", &[&product], vec![ints("axes", &[1])]);
    let y = b.op("Softmax", "y", &[&more], vec![]);
    b.output(&y, &[-1, 1, 16]);
    let mut model = b.model();
    model.opset_import[0].version = Some(11);
    let case = Case::new(model);
    let run = case.statically(&[("x", calib(32, 32))]).ok();
    assert_eq!(run.summary()["prepared"][0], "converted from opset 11 to 13");
    assert_eq!(case.out().opset(), 13);
    assert!(case.sqnr(&[x(5, 32)]) > 30.0, "{}", case.sqnr(&[x(5, 32)]));
}

#[test]
fn two_products_that_are_added_are_no_gemm() {
    let mut b = Builder::new(5);
    for name in ["x", "h"] {
        b.input(name, DataType::Float, &[-1, 64]);
    }
    let [w, u] = ["w", "u"].map(|name| b.weight(name, &[64, 48], 0.0, 0.1));
    let [a, c] = [("a", "x", w), ("c", "h", u)].map(|(name, x, w)| b.op("MatMul", name, &[x, &w], vec![]));
    let y = b.op("Add", "y", &[&a, &c], vec![]);
    b.output(&y, &[-1, 48]);
    let case = Case::new(b.model());
    case.statically(&[("x", calib(32, 64)), ("h", calib(32, 64))]).ok();
    assert_eq!((case.ops("Sum"), case.ops("Add")), (1, 0));
    let h = ("h", x(2, 64).1);
    assert!(case.sqnr(&[x(2, 64), h.clone()]) > 30.0, "{}", case.sqnr(&[x(2, 64), h]));
}

fn graph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..Default::default()
    }
}

/// One of two products, whose weights have one name; the second branch reads one from outside besides.
fn branches() -> ModelProto {
    let mut b = Builder::new(6);
    b.input("x", DataType::Float, &[-1, 64]);
    b.input("c", DataType::Bool, &[]);
    b.weight("outer", &[64, 64], 0.0, 0.1);
    let mut branch = |nodes: Vec<NodeProto>| {
        b.weight("w", &[64, 64], 0.0, 0.1);
        let weight = b.graph.initializer.pop().unwrap();
        GraphProto {
            node: nodes,
            initializer: vec![weight],
            output: vec![declare("inner", DataType::Float, &Builder::dims(&[-1, 64]))],
            ..Default::default()
        }
    };
    let then = branch(vec![node("MatMul", "then", &["x", "w"], &["inner"], vec![])]);
    let other = branch(vec![
        node("MatMul", "else", &["x", "w"], &["hidden"], vec![]),
        node("MatMul", "from outside", &["hidden", "outer"], &["inner"], vec![]),
    ]);
    b.op("If", "y", &["c"], vec![graph("then_branch", then), graph("else_branch", other)]);
    b.output("y", &[-1, 64]);
    b.model()
}

#[test]
fn products_in_branches_are_quantized() {
    let case = Case::new(branches());
    let run = case.dynamic().ok();
    assert_eq!((run.summary()["quantized"].as_u64(), run.summary()["left_float"].as_u64()), (Some(3), Some(0)));
    let file = case.out();
    let inside = file.model.graph.as_ref().unwrap().node.iter().flat_map(NodeProto::subgraphs);
    // Floats are gone, and codes are those of the main graph.
    assert!(inside.into_iter().all(|graph| graph.initializer.is_empty()));
    assert!(2 * file.bytes < OnnxFile::open(&case.path("float.onnx")).unwrap().bytes, "{}", file.bytes);
    for truth in [0, 1] {
        let c = ("c", Value::I32(Tensor::scalar(truth)));
        let sqnr = case.sqnr(&[x(4, 64), c]);
        assert!(sqnr > 28.0, "{truth}: {sqnr}");
    }
    // Nothing else is there for static quantization, and it says where they are.
    let mask = common::npz::npy("|b1", &[], vec![1]);
    let refused = case.statically(&[("x", calib(8, 64)), ("c", mask)]);
    refused.failed(1, &["'then' (MatMul): it is inside an If", "int8 dynamic"]);
}

#[test]
fn recurrent_layers_have_int8_weights() {
    let mut b = Builder::new(7);
    b.input("x", DataType::Float, &[-1, 1, 24]);
    let layer = |b: &mut Builder, op: &str, x: &str, gates: usize, inputs: usize| {
        let names = ["w", "r", "b"].map(|part| format!("{op}.{part}"));
        let dims = [vec![2, gates * 32, inputs], vec![2, gates * 32, 32], vec![2, 2 * gates * 32]];
        names.iter().zip(&dims).for_each(|(name, dims)| drop(b.weight(name, dims, 0.0, 0.2)));
        let [w, r, bias] = &names;
        let mut direction = int("hidden_size", 32);
        (direction.name, direction.r#type) = (Some("direction".into()), Some(AttributeType::String as i32));
        (direction.i, direction.s) = (None, Some(b"bidirectional".to_vec()));
        let mut attributes = vec![int("hidden_size", 32), direction];
        if op == "GRU" {
            // As PyTorch's are.
            attributes.push(int("linear_before_reset", 1));
        }
        let y = b.op(op, &format!("{op}.y"), &[x, w, r, bias], attributes);
        let turned = b.op("Transpose", &format!("{op}.turned"), &[&y], vec![ints("perm", &[0, 2, 1, 3])]);
        let shape = b.shape(&format!("{op}.shape"), &[0, 0, -1]);
        b.op("Reshape", &format!("{op}.joined"), &[&turned, &shape], vec![])
    };
    let lstm = layer(&mut b, "LSTM", "x", 4, 24);
    let gru = layer(&mut b, "GRU", &lstm, 3, 64);
    b.output(&gru, &[-1, 1, 64]);
    let case = Case::new(b.model());
    let run = case.dynamic().ok();
    let computed = |op: &str| {
        let lines = run.lines("quantized");
        lines.iter().find(|line| line["op"] == op).unwrap()["computed"].as_str().unwrap().to_owned()
    };
    assert_eq!([computed("LSTM"), computed("GRU")], ["int8", "float"]);
    assert_eq!((case.ops("DynamicQuantizeLSTM"), case.ops("GRU"), case.ops("LSTM")), (1, 1, 0));
    let float = OnnxFile::open(&case.path("float.onnx")).unwrap().bytes;
    assert!(5 * case.out().bytes < 2 * float, "{} of {float} bytes", case.out().bytes);
    let input = ("x", Value::F32(Tensor::new([9, 1, 24], rows(9, 24, 8))));
    assert!(case.sqnr(std::slice::from_ref(&input)) > 28.0, "{}", case.sqnr(&[input]));
}

#[test]
fn single_numbers_and_tables_are_calibrated_with() {
    let mut b = Builder::new(8);
    b.input("x", DataType::Float, &[-1, 64]);
    b.input("scale", DataType::Float, &[]);
    b.graph.input.push(declare("table", DataType::Float, &[llmq::int8::onnx::shape::Dim::Fixed(48)]));
    let w = b.weight("w", &[64, 48], 0.0, 0.1);
    let product = b.op("MatMul", "product", &["x", &w], vec![]);
    let scaled = b.op("Mul", "scaled", &[&product, "scale"], vec![]);
    let y = b.op("Add", "y", &[&scaled, "table"], vec![]);
    b.output(&y, &[-1, 48]);
    let case = Case::new(b.model());
    let table = floats(&[48], &rows(1, 48, 9));
    for scale in [floats(&[], &[2.0]), floats(&[20], &[2.0; 20])] {
        let run = case.statically(&[("x", calib(20, 64)), ("scale", scale), ("table", table.clone())]).ok();
        assert_eq!(run.summary()["samples"], 20);
        let warnings = run.summary()["warnings"].to_string();
        assert!(!warnings.contains("hardly differ") && !warnings.contains("equal"), "{warnings}");
        let scale = ("scale", Value::F32(Tensor::scalar(2.0)));
        let table = ("table", Value::F32(Tensor::vector(rows(1, 48, 9))));
        let sqnr = case.sqnr(&[x(2, 64), scale, table]);
        assert!(sqnr > 30.0, "{sqnr}");
    }
    // As many rows as the table has numbers, but not its shape.
    case.statically(&[("x", calib(20, 64)), ("scale", floats(&[], &[2.0])), ("table", floats(&[47], &[0.0; 47]))])
        .failed(1, &["'table' has the shape [47]"]);
}

#[test]
fn a_first_axis_that_is_no_batch_is_noticed() {
    let mut b = Builder::new(9);
    b.graph.input.push(declare("x", DataType::Float, &Builder::dims(&[-1, 64])));
    let w = b.weight("w", &[64, 48], 0.0, 0.1);
    let product = b.op("MatMul", "product", &["x", &w], vec![]);
    let y = b.op("ReduceMean", "y", &[&product], vec![ints("axes", &[0])]);
    b.output(&y, &[1, 48]);
    let case = Case::new(b.model());
    let warnings = case.statically(&[("x", calib(20, 64))]).ok().summary()["warnings"].to_string();
    assert!(warnings.contains("of one row of 'x' and of two"), "{warnings}");
    // With an axis more, each sample is run as it is.
    let run = case.statically(&[("x", floats(&[20, 3, 64], &rows(60, 64, 5)))]).ok().summary();
    assert_eq!(run["samples"], 20);
    assert!(!run["warnings"].to_string().contains("of two"), "{run}");
}
