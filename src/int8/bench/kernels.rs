//! Which nodes run in INT8.

use crate::error::Result;
use crate::int8::onnx::Graph;
use crate::int8::onnx::proto::{ModelProto, NodeProto};
use std::collections::BTreeMap;

/// Nodes that multiply with weights or activations, by operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernels {
    /// Those that multiply bytes.
    pub int8: BTreeMap<String, usize>,
    /// Those that multiply floats.
    pub float: BTreeMap<String, usize>,
}

/// Operators that multiply bytes, in ONNX and in what ONNX Runtime makes of a graph.
const INT8: [&str; 8] = [
    "MatMulInteger",
    "ConvInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "QAttention",
    "QLinearConv",
    "QLinearMatMul",
];

/// Operators that multiply, and on what depends.
const EITHER: [&str; 9] =
    ["Conv", "ConvTranspose", "MatMul", "Gemm", "FusedConv", "FusedMatMul", "FusedGemm", "Attention", "NhwcFusedConv"];

/// Looks at each node of a graph. For a file in QDQ form this says what an engine *may* run in INT8; for the graph that ONNX Runtime
/// saved, what it does.
///
/// # Errors
/// The graph cannot run.
pub fn kernels(mut model: ModelProto) -> Result<Kernels> {
    let graph = Graph::take(&mut model)?;
    let mut kernels = Kernels::default();
    for node in graph.nodes() {
        let op = node.op_type();
        let of = match op {
            _ if INT8.contains(&op) => &mut kernels.int8,
            _ if EITHER.contains(&op) && is_between_conversions(node, &graph) => &mut kernels.int8,
            _ if EITHER.contains(&op) => &mut kernels.float,
            _ => continue,
        };
        *of.entry(op.into()).or_default() += 1;
    }
    Ok(kernels)
}

/// Both factors come from `DequantizeLinear`, and the result goes to `QuantizeLinear`, at most through what clips it.
fn is_between_conversions(node: &NodeProto, graph: &Graph) -> bool {
    let made_by = |at: usize| Some(&graph.nodes()[graph.producer(node.input_at(at)?)?]);
    let from = |at: usize| made_by(at).is_some_and(|node| node.is("DequantizeLinear"));
    let mut result = node.output.first();
    while let Some(value) = result {
        let [reader] = graph.consumers(value)[..] else { return false };
        let reader = &graph.nodes()[reader];
        if reader.is("QuantizeLinear") {
            return from(0) && from(1);
        }
        result = reader.output.first().filter(|_| reader.is("Relu") || reader.is("Clip"));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::node::node;
    use crate::int8::onnx::proto::{GraphProto, ValueInfoProto};

    #[test]
    fn only_what_is_between_conversions_runs_in_int8() {
        let info = |name: &&str| ValueInfoProto { name: Some((*name).into()), ..Default::default() };
        let dequantize = |from: &str, to: &str| node("DequantizeLinear", "", &[from, "s"], &[to], vec![]);
        let graph = GraphProto {
            node: vec![
                dequantize("x8", "x"),
                dequantize("w8", "w"),
                node("Conv", "", &["x", "w"], &["a"], vec![]),
                node("Relu", "", &["a"], &["b"], vec![]),
                node("QuantizeLinear", "", &["b", "s"], &["c"], vec![]),
                // Only its weight is stored in INT8.
                node("MatMul", "", &["b", "w"], &["d"], vec![]),
                node("MatMulInteger", "", &["x8", "w8"], &["e"], vec![]),
            ],
            input: ["x8", "w8", "s"].iter().map(info).collect(),
            output: ["c", "d", "e"].iter().map(info).collect(),
            ..Default::default()
        };
        let mut fused = graph.clone();
        fused.node.remove(5);
        fused.output.remove(1);
        let found = |graph| kernels(ModelProto { graph: Some(graph), ..Default::default() }).unwrap();
        let count = |ops: &[&str]| ops.iter().map(|op| (op.to_string(), 1)).collect();
        // The float product reads what the convolution gives, so that no kernel can give bytes alone.
        assert_eq!(found(graph), Kernels { int8: count(&["MatMulInteger"]), float: count(&["Conv", "MatMul"]) });
        assert_eq!(found(fused), Kernels { int8: count(&["Conv", "MatMulInteger"]), float: count(&[]) });
    }
}
