//! Each operator against the engine, and its gradient against differences.

use super::super::operand::{Operand, float};
use super::*;
use crate::int8::engine::{Engine, Value};
use crate::int8::onnx::Tensor as Array;
use crate::int8::onnx::node::{self, int, ints};
use crate::int8::onnx::proto::attribute_proto::AttributeType;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{AttributeProto, GraphProto, ModelProto, OperatorSetIdProto};
use crate::int8::onnx::shape::{Dim, declare};
use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An input of an operator under test.
#[derive(Clone, Copy)]
enum TestInput {
    /// Floats between these, with a gradient.
    X(&'static [usize], f32, f32),
    /// Floats that are constant.
    C(&'static [usize], &'static [f32]),
    /// Whole numbers: a vector.
    I(&'static [i64]),
    /// A single whole number.
    One(i64),
    /// Truth values.
    B(&'static [usize], &'static [u8]),
    /// Left out.
    Missing,
}
use TestInput::{B, C, I, Missing, One, X};

fn text(name: &str, value: &str) -> AttributeProto {
    let kind = Some(AttributeType::String as i32);
    AttributeProto { name: Some(name.into()), r#type: kind, s: Some(value.as_bytes().to_vec()), ..Default::default() }
}

fn number(name: &str, value: f32) -> AttributeProto {
    node::float(name, value)
}

/// Compares all outputs with the engine's, and the gradient along some directions with differences.
fn check(op: &str, attributes: Vec<AttributeProto>, given: &[TestInput], outputs: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let names: Vec<String> = (0..given.len()).map(|at| format!("x{at}")).collect();
    let inputs: Vec<&str> =
        names.iter().zip(given).map(|(name, given)| if matches!(given, Missing) { "" } else { name }).collect();
    let made: Vec<String> = (0..outputs).map(|at| format!("y{at}")).collect();
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    let node = node::node(op, "tested", &inputs, &made, attributes);
    let mut graph = GraphProto { node: vec![node.clone()], ..Default::default() };
    graph.output = made.iter().map(|name| declare(*name, DataType::Float, &[])).collect();
    graph.output.iter_mut().for_each(|output| output.r#type = None);
    let (mut fed, mut operands, mut points) = (Vec::new(), Vec::new(), Vec::new());
    for (name, given) in names.iter().zip(given) {
        let constant = match *given {
            Missing => {
                operands.push(None);
                continue;
            }
            X(dims, from, to) => {
                let x: Vec<f32> = (0..dims.iter().product()).map(|_| random.random_range(from..to)).collect();
                let x = Array::new(dims, x);
                let fixed: Vec<Dim> = dims.iter().map(|&n| Dim::Fixed(n)).collect();
                graph.input.push(declare(name, DataType::Float, &fixed));
                fed.push((name.as_str(), Value::F32(x.clone())));
                points.push((operands.len(), x.clone()));
                operands.push(Some(Operand::Float(float(x).unwrap())));
                continue;
            }
            C(dims, x) => Array::new(dims, x.to_vec()).proto(name),
            I(x) => Array::vector(x.to_vec()).proto(name),
            One(x) => Array::scalar(x).proto(name),
            B(dims, x) => {
                let mut tensor = Array::new(dims, x.to_vec()).proto(name);
                tensor.data_type = Some(DataType::Bool as i32);
                tensor
            }
        };
        operands.push(Operand::constant(&constant).unwrap());
        graph.initializer.push(constant);
    }
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    };
    let wanted = Engine::new(&model).unwrap().run(&fed).unwrap();
    let found = apply(&node, operands.clone()).unwrap();
    for (wanted, found) in wanted.iter().zip(&found) {
        assert_eq!(wanted.dims(), found.dims(), "{op}");
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in wanted.floats().unwrap().data.iter().zip(&found) {
            assert!((a - b).abs() <= 2e-5 * a.abs().max(1.0), "{op}: {a} by the engine, {b} here");
        }
    }
    assert_eq!(wanted.len(), found.len());
    gradient(op, &node, &operands, &points, &mut random);
}

/// Random weights make one number of all outputs; its slope is measured along random directions.
fn gradient(
    op: &str,
    node: &NodeProto,
    operands: &[Option<Operand>],
    points: &[(usize, Array<f32>)],
    random: &mut ChaCha8Rng,
) {
    let sizes: Vec<usize> = apply(node, operands.to_vec()).unwrap().iter().map(Tensor::elem_count).collect();
    let weights: Vec<Vec<f32>> =
        sizes.iter().map(|&n| (0..n).map(|_| random.random_range(-1.0f32..1.0)).collect()).collect();
    let total = |operands: Vec<Option<Operand>>| -> f64 {
        let outputs = apply(node, operands).unwrap();
        let one = |(y, w): (&Tensor, &Vec<f32>)| -> f64 {
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            y.iter().zip(w).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
        };
        outputs.iter().zip(&weights).map(one).sum()
    };
    let mut traced = operands.to_vec();
    let mut leaves = Vec::new();
    for (at, x) in points {
        let var = Var::from_tensor(&float(x.clone()).unwrap()).unwrap();
        traced[*at] = Some(Operand::Float(var.as_tensor().clone()));
        leaves.push(var);
    }
    let mut loss = Tensor::new(0f32, &Device::Cpu).unwrap();
    for (y, w) in apply(node, traced).unwrap().iter().zip(&weights) {
        let w = Tensor::new(&w[..], &Device::Cpu).unwrap();
        loss = loss.add(&y.flatten_all().unwrap().mul(&w).unwrap().sum_all().unwrap()).unwrap();
    }
    let gradients = loss.backward().unwrap();
    for ((at, x), leaf) in points.iter().zip(&leaves) {
        let slope = gradients.get(leaf).unwrap_or_else(|| panic!("{op}: input {at} has no gradient"));
        let slope = slope.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let length = slope.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        for _ in 0..3 {
            let direction: Vec<f32> = x.data.iter().map(|_| random.random_range(-1.0f32..1.0)).collect();
            let step = 1e-3;
            let moved = |sign: f32| {
                let data = x.data.iter().zip(&direction).map(|(x, d)| x + sign * step * d).collect();
                let mut operands = operands.to_vec();
                operands[*at] = Some(Operand::Float(float(Array::new(x.dims.clone(), data)).unwrap()));
                total(operands)
            };
            let measured = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
            let told: f64 = slope.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            assert!((measured - told).abs() < 0.02 * length + 5e-3, "{op}, input {at}: {told} instead of {measured}");
        }
    }
}

#[test]
fn elementwise() {
    let x = X(&[2, 3, 4], -2.0, 2.0);
    let positive = X(&[2, 3, 4], 0.5, 3.0);
    for op in
        ["Erf", "Tanh", "Sigmoid", "Relu", "Neg", "Abs", "Exp", "Gelu", "HardSwish", "Identity", "Elu", "Softplus"]
    {
        check(op, vec![], &[x], 1);
    }
    for op in ["Sqrt", "Log", "Reciprocal"] {
        check(op, vec![], &[positive], 1);
    }
    check("Gelu", vec![text("approximate", "tanh")], &[x], 1);
    check("PRelu", vec![], &[x, X(&[3, 1], 0.1, 0.5)], 1);
    for op in ["Min", "Max", "Sum"] {
        check(op, vec![], &[x, X(&[3, 1], -1.0, 1.0), X(&[4], -1.0, 1.0)], 1);
    }
    check("LeakyRelu", vec![number("alpha", 0.2)], &[x], 1);
    check("HardSigmoid", vec![number("alpha", 0.3), number("beta", 0.4)], &[x], 1);
    check("Clip", vec![], &[x, C(&[], &[-0.5]), C(&[], &[1.25])], 1);
    check("Clip", vec![], &[x, Missing, C(&[], &[0.5])], 1);
    for exponent in [&[2.0f32] as &[f32], &[0.5], &[3.0], &[-1.5]] {
        check("Pow", vec![], &[positive, C(&[], exponent)], 1);
    }
    check("Where", vec![], &[B(&[3, 1], &[1, 0, 1]), x, C(&[], &[-7.0])], 1);
    check(
        "Where",
        vec![],
        &[B(&[2, 3, 4], &[1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1]), C(&[1], &[0.0]), x],
        1,
    );
}

#[test]
fn sums_and_products_of_shapes_that_are_broadcast() {
    for op in ["Add", "Sub", "Mul", "Div"] {
        check(op, vec![], &[X(&[2, 3, 4], -2.0, 2.0), X(&[2, 3, 4], 0.5, 2.0)], 1);
        check(op, vec![], &[X(&[3, 1], -2.0, 2.0), X(&[2, 1, 4], 0.5, 2.0)], 1);
        check(op, vec![], &[X(&[4], -2.0, 2.0), X(&[], 0.5, 2.0)], 1);
    }
}

#[test]
fn products_of_matrices() {
    let a = |dims| X(dims, -1.0, 1.0);
    check("MatMul", vec![], &[a(&[3, 4]), a(&[4, 5])], 1);
    check("MatMul", vec![], &[a(&[2, 3, 4]), a(&[4, 5])], 1);
    check("MatMul", vec![], &[a(&[2, 2, 3, 4]), a(&[2, 2, 4, 5])], 1);
    check("MatMul", vec![], &[a(&[2, 3, 4]), a(&[1, 4, 5])], 1);
    check("MatMul", vec![], &[a(&[4]), a(&[4, 5])], 1);
    check("MatMul", vec![], &[a(&[3, 4]), a(&[4])], 1);
    check("Gemm", vec![], &[a(&[3, 4]), a(&[4, 5]), a(&[5])], 1);
    check("Gemm", vec![int("transB", 1)], &[a(&[3, 4]), a(&[5, 4])], 1);
    let scaled = vec![int("transA", 1), number("alpha", 0.5), number("beta", -2.0)];
    check("Gemm", scaled, &[a(&[4, 3]), a(&[4, 5]), a(&[3, 1])], 1);
}

#[test]
fn norms_and_reductions() {
    let x = X(&[2, 3, 4], -2.0, 2.0);
    check("Softmax", vec![int("axis", -1)], &[x], 1);
    check("Softmax", vec![int("axis", 1)], &[x], 1);
    check("LogSoftmax", vec![int("axis", 1)], &[x], 1);
    check("ReduceL2", vec![ints("axes", &[-1]), int("keepdims", 0)], &[x], 1);
    check("LayerNormalization", vec![int("axis", -1)], &[x, X(&[4], 0.5, 2.0), X(&[4], -1.0, 1.0)], 1);
    check("LayerNormalization", vec![number("epsilon", 0.1)], &[x, X(&[4], 0.5, 2.0)], 1);
    let image = X(&[1, 3, 2, 2], -2.0, 2.0);
    let (mean, variance) = (C(&[3], &[0.1, -0.2, 0.3]), C(&[3], &[0.5, 1.5, 2.5]));
    check("BatchNormalization", vec![], &[image, X(&[3], 0.5, 2.0), X(&[3], -1.0, 1.0), mean, variance], 1);
    check("GlobalAveragePool", vec![], &[image], 1);
    check("GlobalMaxPool", vec![], &[image], 1);
    check("ReduceMax", vec![ints("axes", &[-1])], &[x], 1);
    check("ReduceMax", vec![ints("axes", &[0, 2]), int("keepdims", 0)], &[x], 1);
    check("ReduceMean", vec![ints("axes", &[-1])], &[x], 1);
    check("ReduceMean", vec![ints("axes", &[0, 2]), int("keepdims", 0)], &[x], 1);
    check("ReduceMean", vec![], &[x], 1);
    check("ReduceSum", vec![int("keepdims", 0)], &[x, I(&[1])], 1);
}

#[test]
fn numbers_that_are_moved() {
    let x = X(&[2, 3, 4], -2.0, 2.0);
    check("Reshape", vec![], &[x, I(&[0, -1, 2])], 1);
    check("Flatten", vec![], &[x], 1);
    check("Flatten", vec![int("axis", 2)], &[x], 1);
    check("Transpose", vec![ints("perm", &[1, 2, 0])], &[x], 1);
    check("Transpose", vec![], &[x], 1);
    check("Squeeze", vec![], &[X(&[1, 3, 1], -1.0, 1.0), I(&[-1])], 1);
    check("Unsqueeze", vec![], &[x, I(&[-1, 1])], 1);
    check("Concat", vec![int("axis", 1)], &[x, X(&[2, 1, 4], -1.0, 1.0)], 1);
    check("Gather", vec![int("axis", 1)], &[x, One(-1)], 1);
    check("Gather", vec![int("axis", 2)], &[x, I(&[3, 0, 3])], 1);
    check("Slice", vec![], &[x, I(&[1]), I(&[i64::MAX]), I(&[-1])], 1);
    check("Slice", vec![], &[x, I(&[-1, 3]), I(&[-4, 0]), I(&[1, 2]), I(&[-1, -2])], 1);
    check("Slice", vec![], &[x, I(&[0]), I(&[4]), I(&[2]), I(&[3])], 1);
    check("Split", vec![int("axis", 2)], &[x, I(&[1, 3])], 2);
    check("Split", vec![int("axis", 2)], &[x], 2);
    check("Pad", vec![], &[x, I(&[0, 1, 0, 2, 0, 3]), C(&[], &[-1.5])], 1);
    check("Pad", vec![], &[x, I(&[0, 0, 1, 0, 0, 0])], 1);
    check("Expand", vec![], &[X(&[3, 1], -1.0, 1.0), I(&[2, 1, 4])], 1);
}

/// The engine wants to be told strides and sizes of windows, though ONNX lets one leave them out.
fn window(kernel: &[i64], strides: &[i64], more: Vec<AttributeProto>) -> Vec<AttributeProto> {
    [vec![ints("kernel_shape", kernel), ints("strides", strides)], more].concat()
}

#[test]
fn convolutions() {
    let x = X(&[1, 4, 6, 5], -1.0, 1.0);
    let weights = |dims| X(dims, -1.0, 1.0);
    let bias = X(&[6], -1.0, 1.0);
    check("Conv", window(&[1, 1], &[1, 1], vec![]), &[x, weights(&[6, 4, 1, 1]), bias], 1);
    let padded = || vec![ints("pads", &[1; 4])];
    check("Conv", window(&[3, 3], &[1, 1], padded()), &[x, weights(&[6, 4, 3, 3]), bias], 1);
    let uneven = vec![ints("pads", &[0, 1, 2, 1])];
    check("Conv", window(&[3, 2], &[2, 1], uneven), &[x, weights(&[6, 4, 3, 2])], 1);
    let apart = vec![ints("dilations", &[2, 1]), int("group", 2)];
    check("Conv", window(&[2, 3], &[1, 1], apart), &[x, weights(&[6, 2, 2, 3]), bias], 1);
    let depthwise = [padded(), vec![int("group", 4)]].concat();
    check("Conv", window(&[3, 3], &[1, 1], depthwise), &[x, weights(&[4, 1, 3, 3])], 1);
    let two = X(&[2, 4, 3, 3], -1.0, 1.0);
    check("Conv", window(&[1, 1], &[2, 2], vec![]), &[two, weights(&[6, 4, 1, 1]), bias], 1);
    let same = window(&[3, 3], &[2, 2], vec![text("auto_pad", "SAME_UPPER")]);
    check("Conv", same, &[x, weights(&[6, 4, 3, 3])], 1);
    let sequence = X(&[1, 4, 9], -1.0, 1.0);
    check("Conv", window(&[3], &[2], vec![ints("pads", &[2, 1])]), &[sequence, weights(&[6, 4, 3]), bias], 1);
}

/// The engine takes the one for the other, so that there is nothing to compare with but widths in numbers.
#[test]
fn same_lower_has_the_odd_row_above() {
    let ones =
        |dims: &[usize]| Some(Operand::Float(Tensor::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap()));
    let convolved = |attribute| {
        let node = node::node("Conv", "conv", &["x", "w"], &["y"], window(&[3, 3], &[2, 2], vec![attribute]));
        let y = apply(&node, vec![ones(&[1, 1, 6, 5]), ones(&[1, 1, 3, 3])]).unwrap();
        y[0].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let lower = convolved(text("auto_pad", "SAME_LOWER"));
    assert_eq!(lower, convolved(ints("pads", &[1, 1, 0, 1])));
    assert_ne!(lower, convolved(text("auto_pad", "SAME_UPPER")));
}

#[test]
fn pools() {
    let x = X(&[1, 3, 6, 7], -1.0, 1.0);
    let kernel = |n: &[i64], strides: &[i64], pads: &[i64]| window(n, strides, vec![ints("pads", pads)]);
    check("MaxPool", kernel(&[3, 3], &[2, 2], &[1; 4]), &[x], 1);
    check("MaxPool", kernel(&[2, 2], &[2, 2], &[0; 4]), &[x], 1);
    check("MaxPool", [kernel(&[3, 3], &[2, 2], &[0; 4]), vec![int("ceil_mode", 1)]].concat(), &[x], 1);
    check("AveragePool", kernel(&[2, 3], &[1, 1], &[0; 4]), &[x], 1);
    check("AveragePool", kernel(&[3, 3], &[2, 2], &[1; 4]), &[x], 1);
    let all = [kernel(&[3, 3], &[1, 1], &[1; 4]), vec![int("count_include_pad", 1)]].concat();
    check("AveragePool", all, &[x], 1);
}

#[test]
fn what_is_equal_shares_no_gradient() {
    // Both numbers of the window are the largest; the first gets all.
    let x = Var::new(&[[[[2f32, 2.0]]]], &Device::Cpu).unwrap();
    let node = node::node("MaxPool", "pool", &["x"], &["y"], vec![ints("kernel_shape", &[1, 2])]);
    let y = apply(&node, vec![Some(Operand::Float(x.as_tensor().clone()))]).unwrap();
    let gradients = y[0].sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(gradient, [1.0, 0.0]);
}

#[test]
fn what_is_not_supported_names_the_node() {
    let refused = |op: &str, attributes| {
        let node = node::node(op, "the node", &["x"], &["y"], attributes);
        let x = Operand::Float(Tensor::zeros((1, 1, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap());
        apply(&node, vec![Some(x)]).unwrap_err().chain().join(": ")
    };
    assert!(refused("Wonder", vec![]).starts_with("training cannot go through node 'the node' (Wonder)"));
    let ceil = vec![ints("kernel_shape", &[3, 3]), int("ceil_mode", 1), int("count_include_pad", 1)];
    let told = refused("AveragePool", ceil);
    assert!(told.ends_with("'the node' (AveragePool): ceil_mode with count_include_pad is not supported"), "{told}");
    assert!(refused("MatMul", vec![]).ends_with("input 1 is missing"));
}
