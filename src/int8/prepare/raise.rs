//! Operators of opsets 11 and 12 as those of opset 13, the first in which QuantizeLinear has a scale for each channel.
//!
//! Between these, a few attributes became inputs, and Softmax no longer flattens what it is given. All else is read as before.

use crate::int8::onnx::Tensor;
use crate::int8::onnx::graph::order;
use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::{GraphProto, ModelProto, NodeProto};
use crate::int8::onnx::shape;
use std::collections::{HashMap, HashSet};

/// The oldest opset that can be converted.
pub const OLDEST: i64 = 11;

/// The opset that it becomes.
pub const NEW: i64 = 13;

/// The version of the format that came with it.
const IR: i64 = 7;

/// Attributes that became inputs: of which operator, which, and at which place.
const INPUTS: [(&str, &str, usize); 4] =
    [("Squeeze", "axes", 1), ("Unsqueeze", "axes", 1), ("ReduceSum", "axes", 1), ("Split", "split", 1)];

/// Converts a model, if it is older. Gives the opset that it had.
pub fn raise(model: &mut ModelProto) -> Option<i64> {
    let own = model.opset_import.iter_mut().find(|set| matches!(set.domain(), "" | "ai.onnx"))?;
    let old = own.version();
    if !(OLDEST..NEW).contains(&old) {
        return None;
    }
    own.version = Some(NEW);
    model.ir_version = model.ir_version.max(Some(IR));
    let graph = model.graph.as_mut()?;
    let mut names = order::names(graph);
    in_graph(graph, &mut names);
    Some(old)
}

fn in_graph(graph: &mut GraphProto, names: &mut HashSet<String>) {
    let infos = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
    let ranks: HashMap<String, usize> =
        infos.filter_map(|info| Some((info.name().to_owned(), shape::of(info).1?.len()))).collect();
    for mut old in std::mem::take(&mut graph.node) {
        old.subgraphs_mut().for_each(|graph| in_graph(graph, names));
        if let Some((_, name, place)) = INPUTS.iter().find(|(op, ..)| old.is(op)) {
            let values = old.ints_of(name).map(<[i64]>::to_vec);
            old.attribute.retain(|attribute| attribute.name() != *name);
            if let Some(values) = values.filter(|_| old.input.len() == *place) {
                let constant = fresh(names, &format!("{}_{name}", old.label()));
                old.input.push(constant.clone());
                graph.initializer.push(Tensor::vector(values).proto(constant));
            }
        }
        if old.is("Dropout") {
            // Without training, which is an input now and false where it is missing, the ratio means nothing.
            old.attribute.clear();
        }
        match ["Softmax", "LogSoftmax", "Hardmax"].iter().any(|op| old.is(op)) {
            true => graph.node.extend(softmax(old, &ranks, names)),
            false => graph.node.push(old),
        }
    }
}

/// A Softmax over all axes from one on, by one over a single axis.
fn softmax(mut old: NodeProto, ranks: &HashMap<String, usize>, names: &mut HashSet<String>) -> Vec<NodeProto> {
    let axis = old.int_or("axis", 1);
    let rank =
        old.input_at(0).into_iter().chain(old.output.first().map(String::as_str)).find_map(|name| ranks.get(name));
    old.attribute.retain(|attribute| attribute.name() != "axis");
    old.attribute.push(int("axis", -1));
    if axis == -1 || rank.is_some_and(|&rank| axis == rank as i64 - 1) {
        return vec![old];
    }
    let (input, output) = (old.input[0].clone(), old.output[0].clone());
    let label = old.label().to_owned();
    let [shape, flat, result] = ["shape", "flat", "rows"].map(|what| fresh(names, &format!("{label}_{what}")));
    let [first, second, last] = ["Shape", "Flatten", "Reshape"].map(|op| fresh(names, &format!("{label}_{op}")));
    (old.input[0], old.output[0]) = (flat.clone(), result.clone());
    vec![
        node("Shape", first, &[&input], &[&shape], vec![]),
        node("Flatten", second, &[&input], &[&flat], vec![int("axis", axis)]),
        old,
        node("Reshape", last, &[&result, &shape], &[&output], vec![]),
    ]
}

fn fresh(names: &mut HashSet<String>, base: &str) -> String {
    let mut name = base.to_owned();
    for n in 1.. {
        if !name.is_empty() && names.insert(name.clone()) {
            break;
        }
        name = format!("{base}_{n}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::node::{float, ints};
    use crate::int8::onnx::proto::OperatorSetIdProto;
    use crate::int8::onnx::proto::tensor_proto::DataType;
    use crate::int8::onnx::shape::{Dim, declare};

    fn model(nodes: Vec<NodeProto>, dims: &[usize], opset: i64) -> ModelProto {
        let dims: Vec<Dim> = dims.iter().map(|&n| Dim::Fixed(n)).collect();
        let graph = GraphProto {
            node: nodes,
            input: vec![declare("x", DataType::Float, &dims)],
            output: vec![Default::default()],
            ..Default::default()
        };
        let mut model = ModelProto {
            ir_version: Some(6),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
            graph: Some(graph),
            ..Default::default()
        };
        model.graph.as_mut().unwrap().output[0].name = Some("y".into());
        model
    }

    fn run(model: &ModelProto, dims: &[usize]) -> (Vec<usize>, Vec<f32>) {
        let data = (0..dims.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
        let outputs = Engine::new(model).unwrap().run(&[("x", Value::F32(Tensor::new(dims, data)))]).unwrap();
        (outputs[0].dims().to_vec(), outputs[0].floats().unwrap().data.clone())
    }

    #[test]
    fn attributes_become_inputs() {
        let nodes = vec![
            node("Unsqueeze", "u", &["x"], &["a"], vec![ints("axes", &[0])]),
            node("Split", "s", &["a"], &["b", "c"], vec![int("axis", 2), ints("split", &[1, 3])]),
            node("ReduceSum", "r", &["c"], &["d"], vec![ints("axes", &[2]), int("keepdims", 1)]),
            node("Dropout", "o", &["d"], &["e"], vec![float("ratio", 0.5)]),
            node("Squeeze", "q", &["e"], &["y"], vec![ints("axes", &[0])]),
        ];
        let mut model = model(nodes, &[2, 4], 11);
        assert_eq!(raise(&mut model), Some(11));
        assert_eq!(raise(&mut model), None);
        assert_eq!((model.opset_import[0].version, model.ir_version), (Some(13), Some(7)));
        let nodes = &model.graph.as_ref().unwrap().node;
        assert!(
            nodes.iter().all(|node| node.attribute.iter().all(|a| !["axes", "split", "ratio"].contains(&a.name())))
        );
        let x = |i: usize| (i as f32 * 0.7).sin();
        let (dims, sums) = run(&model, &[2, 4]);
        assert_eq!((dims, sums.len()), (vec![2, 1], 2));
        assert!((sums[1] - (x(5) + x(6) + x(7))).abs() < 1e-5, "{sums:?}");
    }

    #[test]
    fn a_softmax_still_flattens() {
        let softmax = |axis: Option<i64>| {
            node("Softmax", "s", &["x"], &["y"], axis.map(|n| int("axis", n)).into_iter().collect())
        };
        for (axis, width) in [(None, 6), (Some(0), 12), (Some(2), 3), (Some(-1), 3), (Some(-2), 6)] {
            let mut model = model(vec![softmax(axis)], &[2, 2, 3], 11);
            raise(&mut model);
            let (dims, y) = run(&model, &[2, 2, 3]);
            assert_eq!(dims, [2, 2, 3]);
            for row in y.chunks(width) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{axis:?} {y:?}");
            }
            // What is known to be the last axis needs no detour.
            let nodes = model.graph.unwrap().node.len();
            assert_eq!(nodes, if matches!(axis, Some(2 | -1)) { 1 } else { 4 });
        }
    }

    #[test]
    fn what_lies_in_a_branch_is_converted_too() {
        use crate::int8::onnx::proto::AttributeProto;
        let inner = model(vec![node("Squeeze", "q", &["x"], &["y"], vec![ints("axes", &[0])])], &[1, 2], 12);
        let branch = AttributeProto { name: Some("then_branch".into()), g: inner.graph, ..Default::default() };
        let mut outer = model(vec![node("If", "if", &["c"], &["z"], vec![branch])], &[1], 12);
        assert_eq!(raise(&mut outer), Some(12));
        let inside = outer.graph.unwrap().node[0].attribute[0].g.clone().unwrap();
        assert_eq!((inside.node[0].input.len(), inside.initializer.len()), (2, 1));
    }
}
