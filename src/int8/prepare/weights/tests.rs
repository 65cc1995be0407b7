use super::*;
use crate::int8::engine::{Engine, Value};
use crate::int8::onnx::node::{int, ints};
use crate::int8::onnx::proto::{GraphProto, OperatorSetIdProto};
use crate::int8::onnx::shape::{Dim, declare};

/// `x [2, 6]` times what the nodes make of `v`, a tensor of 24 numbers, called `w`.
fn model(v: TensorProto, nodes: Vec<NodeProto>) -> ModelProto {
    let mut all = nodes;
    all.push(node_of("MatMul", &["x", "w"], "y", vec![]));
    let graph = GraphProto {
        node: all,
        initializer: vec![v, Tensor::vector(vec![6i64, -1]).proto("shape"), Tensor::vector(vec![0i64]).proto("first")],
        input: vec![declare("x", DataType::Float, &[2, 6].map(Dim::Fixed))],
        output: vec![declare("y", DataType::Float, &[2, 4].map(Dim::Fixed))],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn node_of(
    op: &str,
    inputs: &[&str],
    output: &str,
    attributes: Vec<crate::int8::onnx::proto::AttributeProto>,
) -> NodeProto {
    crate::int8::onnx::node::node(op, output, inputs, &[output], attributes)
}

fn numbers() -> Vec<f32> {
    (0..24).map(|i| (i as f32 * 0.9).sin()).collect()
}

fn run(model: &ModelProto) -> Vec<f32> {
    let x = Value::F32(Tensor::new([2, 6], (0..12).map(|i| i as f32 - 5.0).collect()));
    Engine::new(model).unwrap().run(&[("x", x)]).unwrap()[0].floats().unwrap().data.clone()
}

#[test]
fn what_only_moves_or_converts_is_done_once() {
    let v = |dims: &[usize]| Tensor::new(dims, numbers()).proto("v");
    let half = TensorProto {
        data_type: Some(DataType::Float16 as i32),
        raw_data: Some(numbers().iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>().into()),
        ..v(&[6, 4])
    };
    let cast = || node_of("Cast", &["v"], "w", vec![int("to", DataType::Float as i64)]);
    let cases = [
        (v(&[4, 6]), vec![node_of("Transpose", &["v"], "w", vec![])]),
        (v(&[3, 8]), vec![node_of("Reshape", &["v", "shape"], "w", vec![])]),
        (half, vec![cast()]),
        (v(&[1, 6, 4]), vec![node_of("Squeeze", &["v", "first"], "w", vec![])]),
        (
            v(&[2, 4, 3]),
            vec![
                node_of("Identity", &["v"], "a", vec![]),
                node_of("Transpose", &["a"], "b", vec![ints("perm", &[0, 2, 1])]),
                node_of("Unsqueeze", &["b", "first"], "c", vec![]),
                node_of("Reshape", &["c", "shape"], "w", vec![]),
            ],
        ),
        (
            v(&[2, 3, 4]),
            vec![node_of("Flatten", &["v"], "a", vec![int("axis", 2)]), node_of("Identity", &["a"], "w", vec![])],
        ),
    ];
    for (v, nodes) in cases {
        let mut model = model(v, nodes);
        let before = run(&model);
        fold(&mut model).unwrap();
        let graph = model.graph.as_ref().unwrap();
        assert_eq!(graph.node.len(), 1, "{:?}", graph.node);
        assert_eq!(graph.initializer.iter().filter(|tensor| tensor.name() == "v").count(), 0);
        assert_eq!(before, run(&model));
    }
}

#[test]
fn a_weight_that_is_only_renamed_stays_one() {
    let v = Tensor::new([6, 4], numbers()).proto("v");
    let mut model = model(v.clone(), vec![node_of("Identity", &["v"], "w", vec![])]);
    fold(&mut model).unwrap();
    let graph = model.graph.unwrap();
    assert_eq!((graph.node[0].input[1].as_str(), &graph.initializer[0]), ("v", &v));
}

#[test]
fn what_is_not_known_stays() {
    // To half precision and back: the rounding in between is part of the model.
    let half = node_of("Cast", &["v"], "a", vec![int("to", DataType::Float16 as i64)]);
    let back = node_of("Cast", &["a"], "w", vec![int("to", DataType::Float as i64)]);
    let computed = node_of("Neg", &["v"], "w", vec![]);
    for nodes in [vec![half, back], vec![computed]] {
        let mut model = model(Tensor::new([6, 4], numbers()).proto("v"), nodes);
        let before = model.clone();
        fold(&mut model).unwrap();
        assert_eq!(model, before);
    }
}
