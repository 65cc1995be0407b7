use super::*;
use crate::int8::engine::Value;
use crate::int8::onnx::node::{int, ints, node};
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{GraphProto, OperatorSetIdProto};
use crate::int8::onnx::shape::{Dim, declare};
use std::path::Path;

/// Factors of very different size.
fn uneven(at: usize) -> f32 {
    [1.0, 30.0, 0.1, 4.0, 0.02][at % 5]
}

fn numbers(dims: &[usize], seed: f32) -> Tensor<f32> {
    let data = (0..dims.iter().product()).map(|at| (seed + at as f32 * 1.7).sin()).collect();
    Tensor::new(dims, data)
}

/// Channels along the first axis of very different size.
fn uneven_rows(dims: &[usize], seed: f32) -> Tensor<f32> {
    let mut tensor = numbers(dims, seed);
    let row = tensor.data.len() / dims[0];
    tensor.data.iter_mut().enumerate().for_each(|(at, x)| *x *= uneven(at / row));
    tensor
}

/// The same along the second of two axes.
fn uneven_columns(dims: &[usize], seed: f32) -> Tensor<f32> {
    let mut tensor = numbers(dims, seed);
    tensor.data.iter_mut().enumerate().for_each(|(at, x)| *x *= uneven(at % dims[1]));
    tensor
}

fn model(graph: GraphProto) -> ModelProto {
    let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(17) }];
    ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() }
}

/// Norm, product and sum, `Gemm`, product, and a factor for each channel.
fn products() -> ModelProto {
    let dims = |n| [Dim::Dynamic("batch".into()), Dim::Fixed(n)];
    model(GraphProto {
        node: vec![
            node("LayerNormalization", "norm", &["x", "gamma", "beta"], &["a"], vec![]),
            node("MatMul", "one", &["a", "w1"], &["p"], vec![]),
            node("Add", "sum", &["b1", "p"], &["s"], vec![]),
            node("Relu", "relu", &["s"], &["b"], vec![]),
            node("Gemm", "two", &["b", "w2", "b2"], &["g"], vec![int("transB", 1)]),
            node("LeakyRelu", "leaky", &["g"], &["c"], vec![]),
            node("MatMul", "three", &["c", "w3"], &["d"], vec![]),
            node("Sigmoid", "bend", &["d"], &["e"], vec![]),
            node("Mul", "scale", &["e", "m"], &["f"], vec![]),
            node("MatMul", "four", &["f", "w4"], &["y"], vec![]),
        ],
        initializer: vec![
            uneven_rows(&[6], 1.0).proto("gamma"),
            uneven_rows(&[6], 2.0).proto("beta"),
            uneven_columns(&[6, 8], 3.0).proto("w1"),
            uneven_rows(&[8], 4.0).proto("b1"),
            uneven_rows(&[5, 8], 5.0).proto("w2"),
            uneven_rows(&[5], 6.0).proto("b2"),
            numbers(&[5, 7], 7.0).proto("w3"),
            uneven_rows(&[7], 8.0).proto("m"),
            numbers(&[7, 3], 9.0).proto("w4"),
        ],
        input: vec![declare("x", DataType::Float, &dims(6))],
        output: vec![declare("y", DataType::Float, &dims(3))],
        ..Default::default()
    })
}

/// Convolutions in groups of every kind, pools between them.
fn convolutions() -> ModelProto {
    let pool = || vec![ints("kernel_shape", &[2, 2]), ints("strides", &[1, 1])];
    let open = |c| [Dim::Dynamic("batch".into()), Dim::Fixed(c), Dim::Fixed(6), Dim::Dynamic("width".into())];
    let group = |n| vec![int("group", n), ints("pads", &[1; 4]), ints("kernel_shape", &[3, 3])];
    model(GraphProto {
        node: vec![
            node("Conv", "one", &["x", "w1"], &["a"], group(2)),
            node("Relu", "relu", &["a"], &["b"], vec![]),
            node("MaxPool", "max", &["b"], &["c"], pool()),
            node("Conv", "depthwise", &["c", "w2", "b2"], &["d"], group(8)),
            node("AveragePool", "mean", &["d"], &["e"], pool()),
            node("Conv", "three", &["e", "w3"], &["y"], group(4)),
        ],
        initializer: vec![
            uneven_rows(&[8, 2, 3, 3], 1.0).proto("w1"),
            uneven_rows(&[8, 1, 3, 3], 2.0).proto("w2"),
            uneven_rows(&[8], 3.0).proto("b2"),
            numbers(&[4, 2, 3, 3], 4.0).proto("w3"),
        ],
        input: vec![declare("x", DataType::Float, &open(4))],
        output: vec![declare("y", DataType::Float, &open(4))],
        ..Default::default()
    })
}

/// As `np.save` writes it.
fn save(path: &Path, x: &Tensor<f32>) {
    let axes: String = x.dims.iter().map(|n| format!("{n}, ")).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({axes}), }}\n");
    let data: Vec<u8> = x.data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let length = (header.len() as u16).to_le_bytes();
    std::fs::write(path, [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &data].concat()).unwrap();
}

fn plan(model: &ModelProto) -> (Plan, Vec<Site>) {
    let graph = Graph::take(&mut model.clone()).unwrap();
    let plan = Plan::of(&graph, &|_| false);
    let sites = sites(&graph, &plan);
    (plan, sites)
}

/// The balanced model, after a check that it is the same function.
fn balanced(model: &ModelProto, x: &Tensor<f32>) -> (ModelProto, Done) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.npy");
    save(&file, x);
    let engine = Engine::new(model).unwrap();
    let samples = calibration_inputs::open(&[file], &engine).unwrap();
    let chosen: Vec<usize> = (0..x.dims[0]).collect();
    let mut told = 0;
    let show = &mut |done, total| told += usize::from(done <= total);
    let (new, done) = balance(model, &plan(model).0, Levels::Full, &samples, &chosen, show).unwrap();
    let run = |model: &ModelProto| {
        let outputs = Engine::new(model).unwrap().run(&[("x", Value::F32(x.clone()))]).unwrap();
        outputs[0].floats().unwrap().data.clone()
    };
    let (before, after) = (run(model), run(&new));
    let largest = before.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() < 1e-4 * largest, "{a} {b}");
    }
    assert!(told > 0 || done.sites == 0);
    (new, done)
}

/// By how much the largest channel of a value is larger than the smallest.
fn spread(model: &ModelProto, x: &Tensor<f32>, site: &Site) -> f64 {
    let found =
        Engine::with_intermediates(model).unwrap().run_for(&[("x", Value::F32(x.clone()))], &[&site.value]).unwrap();
    let value = found[0].floats().unwrap();
    let none = Channel { low: 0.0, high: 0.0, squares: 0.0 };
    let mut channels = Channels { all: vec![none; site.channels], count: 0.0 };
    channels.add(&value.data, value.dims[if site.second { 2 } else { value.dims.len() }..].iter().product());
    let sizes: Vec<f64> = channels.all.iter().map(|c| c.high.max(-c.low)).filter(|size| *size > 0.0).collect();
    sizes.iter().fold(0.0f64, |a, &b| a.max(b)) / sizes.iter().fold(f64::INFINITY, |a, &b| a.min(b))
}

#[test]
fn the_function_stays_and_channels_come_nearer() {
    let cases = [
        (products(), numbers(&[12, 6], 0.5), &["a", "b", "c", "f"][..], 4),
        // The depthwise weights are uneven as their input is: there, no factor helps.
        (convolutions(), numbers(&[4, 4, 6, 7], 0.5), &["c", "e"][..], 1),
    ];
    for (model, x, values, changed) in cases {
        let (_, sites) = plan(&model);
        let names: Vec<&str> = sites.iter().map(|site| site.value.as_str()).collect();
        assert_eq!(names, values);
        let (new, done) = balanced(&model, &x);
        assert_eq!((done.changed, done.sites), (changed, values.len()));
        let nearer = |site: &&Site| spread(&new, &x, site) < 0.5 * spread(&model, &x, site);
        assert_eq!(sites.iter().filter(nearer).count(), changed);
        let nodes = |model: &ModelProto| {
            model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(nodes(&model), nodes(&new));
    }
}

#[test]
fn what_someone_else_reads_cannot_be_scaled() {
    let names = |model: &ModelProto| plan(model).1.into_iter().map(|site| site.value).collect::<Vec<_>>();
    // A residual sum reads the norm's output.
    let mut residual = products();
    residual.graph.as_mut().unwrap().node.push(node("Neg", "other", &["a"], &["z"], vec![]));
    assert_eq!(names(&residual), ["b", "c", "f"]);
    // What comes before the activation leaves the graph.
    let mut leaves = products();
    leaves.graph.as_mut().unwrap().output.push(declare("s", DataType::Float, &[Dim::Fixed(1), Dim::Fixed(8)]));
    assert_eq!(names(&leaves), ["a", "c", "f"]);
    // A sigmoid minds factors; a norm over other axes has other channels.
    let mut bent = products();
    bent.graph.as_mut().unwrap().node[3].op_type = Some("Sigmoid".into());
    bent.graph.as_mut().unwrap().node[0].attribute = vec![int("axis", 0)];
    assert_eq!(names(&bent), ["c", "f"]);
}

#[test]
fn channels_that_are_alike_or_empty_stay() {
    let mut even = products();
    for tensor in &mut even.graph.as_mut().unwrap().initializer {
        let dims: Vec<usize> = tensor.dims.iter().map(|&n| n as usize).collect();
        *tensor = Tensor::new(dims.clone(), vec![0.5; dims.iter().product()]).proto(tensor.name());
    }
    let (new, done) = balanced(&even, &numbers(&[8, 6], 0.5));
    assert_eq!((done.changed, new == even), (0, true));
    assert_eq!(candidate(&[0.0, 2.0, 2.0], &[1.0, 0.0, 1.0], 0.5, 0.5), [1.0; 3]);
    let s = candidate(&[1.0, 4.0], &[1.0, 1.0], 0.5, 0.5);
    assert!((s[1] / s[0] - 2.0).abs() < 1e-9 && (s[0] * s[1] - 1.0).abs() < 1e-9, "{s:?}");
}
