//! Nodes that reduce values to their extremes, so that an engine need not give the values.

use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::GraphProto;

/// What the least and the largest number of a value are called.
pub fn names(value: &str) -> [String; 2] {
    ["least", "largest"].map(|which| format!("{value}/llmq {which}"))
}

/// Adds the extremes of some values.
pub fn add(graph: &mut GraphProto, values: &[&str]) {
    for value in values {
        for (operator, name) in ["ReduceMin", "ReduceMax"].into_iter().zip(names(value)) {
            // Without axes, all of them are reduced.
            graph.node.push(node(operator, name.as_str(), &[*value], &[name.as_str()], vec![int("keepdims", 0)]));
        }
    }
}
