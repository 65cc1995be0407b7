use super::*;
use crate::int8::onnx::node::{ints, node};
use crate::int8::onnx::proto::attribute_proto::AttributeType;
use crate::int8::onnx::proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto};
use crate::int8::onnx::shape::declare;

/// `y = relu(x @ w + x)`, and `ids` in 64 bits as they came.
fn model() -> ModelProto {
    let batch = Dim::Dynamic("batch".into());
    let floats = [batch.clone(), Dim::Fixed(2)];
    let graph = GraphProto {
        node: vec![
            node("MatMul", "", &["x", "w"], &["product"], vec![]),
            node("Add", "", &["product", "x"], &["sum"], vec![]),
            node("Relu", "", &["sum"], &["y"], vec![]),
            node("Identity", "", &["ids"], &["same"], vec![]),
        ],
        initializer: vec![Tensor::new([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).proto("w")],
        input: vec![
            declare("x", DataType::Float, &floats),
            declare("ids", DataType::Int64, std::slice::from_ref(&batch)),
        ],
        output: vec![declare("y", DataType::Float, &floats), declare("same", DataType::Int64, &[batch])],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn x() -> Value {
    Value::F32(Tensor::new([1, 2], vec![1.0, -2.0]))
}

fn ids() -> Value {
    Value::integers(vec![3], &[5, -6, 7]).unwrap()
}

#[test]
fn outputs_and_values_in_between() {
    let engine = Engine::new(&model()).unwrap();
    let inputs = [("x", x()), ("ids", ids())];
    let y = Value::F32(Tensor::new([1, 2], vec![0.0, 0.0]));
    assert_eq!(engine.run(&inputs).unwrap(), [y.clone(), ids()]);
    assert_eq!(engine.outputs(), ["y", "same"]);

    let engine = Engine::with_intermediates(&model()).unwrap();
    let found = engine.run_for(&inputs, &["sum", "y", "product", "sum"]).unwrap();
    let [sum, product] = [[-4.0, -8.0], [-5.0, -6.0]].map(|data| Value::F32(Tensor::new([1, 2], data.to_vec())));
    assert_eq!(found, [sum.clone(), y, product, sum]);
}

#[test]
fn extremes_instead_of_values() {
    let inputs = [("x", x()), ("ids", ids())];
    let both = |least: f32, largest: f32| Value::F32(Tensor::vector(vec![least, largest]));
    let engine = Engine::with_extremes(&model(), &["sum", "x"]).unwrap();
    assert_eq!(engine.extremes(&inputs, &["x", "sum"]).unwrap(), [both(-2.0, 1.0), both(-8.0, -4.0)]);
    // The values are still there, and say what is wrong where something is.
    assert_eq!(engine.run_for(&inputs, &["sum"]).unwrap()[0].floats().unwrap().data, [-4.0, -8.0]);
    assert_eq!(engine.extremes(&inputs, &["product"]), None);
    for odd in [f32::NAN, f32::INFINITY] {
        let inputs = [("x", Value::F32(Tensor::new([1, 2], vec![1.0, odd]))), ("ids", ids())];
        assert_eq!(engine.extremes(&inputs, &["sum"]), None);
    }
    assert_eq!(Engine::with_intermediates(&model()).unwrap().extremes(&inputs, &["sum"]), None);
}

#[test]
fn values_of_every_type_that_lie_beside_the_graph() {
    let mut model = model();
    let graph = model.graph.as_mut().unwrap();
    let many: Vec<f32> = (0..600).map(|i| i as f32).collect();
    let rows: Vec<i64> = (0..300).rev().collect();
    graph.initializer.push(Tensor::new([300, 2], many.clone()).proto("table"));
    graph.initializer.push(Tensor::new([300], rows).proto("rows"));
    graph.initializer.push(Tensor::new([1100], vec![-3i8; 1100]).proto("bytes"));
    graph.node.extend([
        node("Gather", "", &["table", "rows"], &["turned"], vec![]),
        node("Identity", "", &["bytes"], &["same bytes"], vec![]),
    ]);
    let engine = Engine::with_intermediates(&model).unwrap();
    let found = engine.run_for(&[("x", x()), ("ids", ids())], &["turned", "same bytes"]).unwrap();
    let turned: Vec<f32> = many.chunks(2).rev().flatten().copied().collect();
    assert_eq!(found, [Value::F32(Tensor::new([300, 2], turned)), Value::I8(Tensor::new([1100], vec![-3; 1100]))]);
}

/// `a = x·u`, `b = a·v`, `y = if choice then b else a + x`, where `u` and `v` are a stage each.
fn two_stages() -> ModelProto {
    let n = (LARGEST / 4).isqrt() + 1;
    let matrix = |seed: usize| (0..n * n).map(|i| ((i * 7919 + seed) % 97) as f32 / 97.0 - 0.5).collect();
    let branch = |name: &str, made: NodeProto| {
        let output = vec![declare(&made.output[0], DataType::Float, &[])];
        let graph = GraphProto { name: Some(name.into()), node: vec![made], output, ..Default::default() };
        let kind = Some(AttributeType::Graph as i32);
        AttributeProto { name: Some(name.into()), r#type: kind, g: Some(graph), ..Default::default() }
    };
    let branches = vec![
        branch("then_branch", node("Identity", "", &["b"], &["then"], vec![])),
        branch("else_branch", node("Add", "", &["a", "x"], &["else"], vec![])),
    ];
    let graph = GraphProto {
        // Out of order, and with a shape that is not true.
        node: vec![
            node("If", "", &["choice"], &["y"], branches),
            node("MatMul", "", &["a", "v"], &["b"], vec![]),
            node("MatMul", "", &["x", "u"], &["a"], vec![]),
        ],
        value_info: vec![declare("a", DataType::Float, &[Dim::Fixed(3)])],
        initializer: vec![Tensor::new([n, n], matrix(0)).proto("u"), Tensor::new([n, n], matrix(5)).proto("v")],
        input: vec![
            declare("x", DataType::Float, &[Dim::Fixed(1), Dim::Fixed(n)]),
            declare("choice", DataType::Bool, &[]),
        ],
        output: vec![declare("y", DataType::Float, &[])],
        ..Default::default()
    };
    ModelProto { graph: Some(graph), ..model() }
}

#[test]
fn stages_give_what_the_whole_gives() {
    let model = two_stages();
    let n = model.graph.as_ref().unwrap().initializer[0].dims[0] as usize;
    let [whole, parts] = [Engine::new(&model).unwrap(), Engine::with_extremes(&model, &["x", "a", "b"]).unwrap()];
    assert_eq!(parts.stages.as_ref().unwrap().count(), 2);
    for choice in [0, 1] {
        let x = Value::F32(Tensor::new([1, n], (0..n).map(|i| (i % 13) as f32 - 6.0).collect()));
        let inputs = [("x", x.clone()), ("choice", Value::I32(Tensor::scalar(choice)))];
        let y = whole.run(&inputs).unwrap();
        assert_eq!(parts.run(&inputs).unwrap(), y);
        let found = parts.run_for(&inputs, &["x", "b", "a", "y", "a"]).unwrap();
        assert_eq!((&found[0], &found[2], &found[3]), (&x, &found[4], &y[0]));
        assert_eq!(found[1] == y[0], choice == 1);
        let of = |value: &Value| {
            let least = |f: fn(f32, f32) -> f32| value.floats().unwrap().data.iter().copied().reduce(f).unwrap();
            Value::F32(Tensor::vector(vec![least(f32::min), least(f32::max)]))
        };
        let extremes = parts.extremes(&inputs, &["b", "x", "a"]).unwrap();
        assert_eq!(extremes, [of(&found[1]), of(&found[0]), of(&found[2])]);
        // A constant is a value, too.
        let v = parts.run_for(&inputs, &["v"]).unwrap();
        assert_eq!(v[0].dims(), [n, n]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn constants_of_one_stage_at_a_time_are_in_memory() {
    let model = two_stages();
    let n = model.graph.as_ref().unwrap().initializer[0].dims[0] as usize;
    let engine = Engine::with_intermediates(&model).unwrap();
    let x = Value::F32(Tensor::new([1, n], vec![1.0; n]));
    engine.run(&[("x", x), ("choice", Value::I32(Tensor::scalar(1)))]).unwrap();
    // The pages that were read are given back, and as long as the engine lives they can be read again.
    let left = mapped::resident(&engine.constants);
    assert!(left < 64, "{left} KiB");
    assert!(engine.constants.len() > 2 * LARGEST && engine.constants[..4] == (-0.5f32).to_le_bytes());
}

#[test]
fn inputs_that_do_not_fit() {
    let engine = Engine::new(&model()).unwrap();
    let refused = |inputs: &[(&str, Value)]| engine.run(inputs).unwrap_err().to_string();
    assert_eq!(refused(&[("x", x())]), "input 'ids' is missing; the graph's inputs are x, ids");
    assert_eq!(refused(&[("z", x())]), "the graph has no input 'z'; its inputs are x, ids");
    assert_eq!(refused(&[("x", ids()), ("ids", ids())]), "input 'x' takes floats, not integers");
    let wide = Value::F32(Tensor::new([1, 3], vec![0.0; 3]));
    assert_eq!(refused(&[("x", wide), ("ids", ids())]), "input 'x' has shape [batch, 2], but was given [1, 3]");
    let large = Value::integers(vec![1], &[1 << 40]).unwrap_err().to_string();
    assert_eq!(large, "1099511627776 does not fit into 32 bits");
    let unknown = engine.run_for(&[("x", x()), ("ids", ids())], &["nothing"]).unwrap_err().to_string();
    assert_eq!(unknown, "the graph has no value 'nothing'");
}

#[test]
fn a_graph_with_an_unknown_operator() {
    let mut model = model();
    model.graph.as_mut().unwrap().node[2].op_type = Some("Wonder".into());
    let error = Engine::new(&model).unwrap_err();
    assert!(error.chain().join(": ").contains("Wonder"), "{error:?}");
}

/// `y = conv(x)` of ones, `[1, 1, 3, 3]` by `[1, 1, 2, 2]`.
fn convolution(attributes: Vec<AttributeProto>) -> ModelProto {
    let image = |n| [1, 1, n, n].map(Dim::Fixed);
    let graph = GraphProto {
        node: vec![node("Conv", "conv", &["x", "w"], &["y"], attributes)],
        initializer: vec![Tensor::new([1, 1, 2, 2], vec![1.0f32; 4]).proto("w")],
        input: vec![declare("x", DataType::Float, &image(3))],
        output: vec![declare("y", DataType::Float, &[])],
        ..Default::default()
    };
    ModelProto { graph: Some(graph), ..model() }
}

fn convolved(model: &ModelProto) -> Result<Vec<Value>> {
    Engine::new(model)?.run(&[("x", Value::F32(Tensor::new([1, 1, 3, 3], vec![1.0; 9])))])
}

#[test]
fn a_convolution_has_the_kernel_of_its_weights() {
    let y = [Value::F32(Tensor::new([1, 1, 2, 2], vec![4.0; 4]))];
    assert_eq!(convolved(&convolution(vec![])).unwrap(), y);
    assert_eq!(convolved(&convolution(vec![ints("kernel_shape", &[2, 2])])).unwrap(), y);
    // Weights that come out of other operators.
    let mut indirect = convolution(vec![]);
    let graph = indirect.graph.as_mut().unwrap();
    graph.initializer[0].name = Some("stored".into());
    graph.node.insert(0, node("Identity", "same", &["stored"], &["w"], vec![]));
    assert_eq!(convolved(&indirect).unwrap(), y);
}

#[test]
fn what_the_engine_cannot_compute_is_an_error() {
    let error = convolved(&convolution(vec![ints("strides", &[0, 0])])).unwrap_err();
    assert!(error.chain().concat().contains("Strides must be > 0"), "{error}");
}
