//! Nodes that reduce values to their extremes, so that an engine need not give the values.

use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::{GraphProto, NodeProto};
use std::collections::HashSet;

/// What the least and the largest number of a value are called.
pub fn names(value: &str) -> [String; 2] {
    ["least", "largest"].map(|which| format!("{value}/llmq {which}"))
}

/// Adds the extremes of some values, each behind the node that makes it: the value need not stay.
pub fn add(graph: &mut GraphProto, values: &[&str]) {
    let mut left: HashSet<&str> = values.iter().copied().collect();
    let nodes = std::mem::take(&mut graph.node);
    let made: HashSet<&str> = nodes.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    // What no node makes is there from the start.
    let given: Vec<&str> = values.iter().copied().filter(|value| !made.contains(value) && left.remove(value)).collect();
    graph.node = given.into_iter().flat_map(of).collect();
    for node in nodes {
        let values = node.output.iter().filter_map(|output| left.take(output.as_str()));
        let extremes: Vec<NodeProto> = values.flat_map(of).collect();
        graph.node.push(node);
        graph.node.extend(extremes);
    }
}

/// The nodes that find a value's extremes.
fn of(value: &str) -> [NodeProto; 2] {
    let names = names(value);
    [("ReduceMin", &names[0]), ("ReduceMax", &names[1])].map(|(operator, name)| {
        // Without axes, all of them are reduced.
        node(operator, name.as_str(), &[value], &[name.as_str()], vec![int("keepdims", 0)])
    })
}
