//! What is known about operators: which carry weights worth quantizing, and which are quantized already.

use super::onnx::Graph;
use super::onnx::proto::tensor_proto::DataType;
use super::onnx::proto::{GraphProto, ModelProto, NodeProto};
use super::onnx::tensor::type_of;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Operators that occur only in graphs that someone has quantized; those of other domains included.
const QUANTIZED: [&str; 14] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLSTM",
    "QAttention",
    "QGemm",
    "EmbedLayerNormalizationQuantized",
];

/// Whether a node computes with quantized numbers, or converts to or from them.
pub fn is_quantized(node: &NodeProto) -> bool {
    QUANTIZED.contains(&node.op_type()) || node.op_type().starts_with("QLinear") || node.op_type().starts_with("QEmbed")
}

/// Refuses a graph that is quantized already, at least in part.
///
/// # Errors
/// It is.
pub fn check_is_float(model: &ModelProto) -> Result<()> {
    let main = model.graph.iter().flat_map(within);
    let functions = model.functions.iter().flat_map(|function| &function.node);
    let mut found = main.chain(functions).filter(|node| is_quantized(node));
    let Some(first) = found.next() else { return Ok(()) };
    let (op, label, more) = (first.op_type(), first.label(), found.count());
    let others = if more > 0 { format!(" and {more} other nodes") } else { String::new() };
    Err(Error::new(format!("the graph is already quantized: {op} node '{label}'{others}"))
        .hint("start from the float model that it was made from"))
}

/// All nodes of a graph and of those inside it.
pub fn within<'a>(graph: &'a GraphProto) -> Box<dyn Iterator<Item = &'a NodeProto> + 'a> {
    let and_inside = |node: &'a NodeProto| std::iter::once(node).chain(node.subgraphs().flat_map(within));
    Box::new(graph.node.iter().flat_map(and_inside))
}

/// How many nodes there are of each operator.
pub type Counts = BTreeMap<String, usize>;

/// Counts a node; one of another domain than ONNX's own under both names. Constants do not count.
pub fn count(counts: &mut Counts, node: &NodeProto) {
    if !node.is("Constant") {
        let domain = Some(node.domain()).filter(|domain| !matches!(*domain, "" | "ai.onnx"));
        let name = domain.map_or(node.op_type().into(), |domain| format!("{domain}.{}", node.op_type()));
        *counts.entry(name).or_default() += 1;
    }
}

/// As messages list them: `2 Add, 1 Softmax`.
pub fn listed(counts: &Counts) -> String {
    counts.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", ")
}

/// The types that weights have before they are quantized.
pub const FLOATS: [DataType; 4] = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];

/// A kind of node that multiplies with weights, and so could run in INT8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Conv` and `ConvTranspose`.
    Conv,
    /// `MatMul` and `Gemm`.
    MatMul,
    /// `Gather` from a table of floats.
    Embedding,
    /// `LSTM`, `GRU` and `RNN`.
    Recurrent,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Conv, Self::MatMul, Self::Embedding, Self::Recurrent];

    /// How messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv => "convolutions",
            Self::MatMul => "matrix products",
            Self::Embedding => "embeddings",
            Self::Recurrent => "recurrent layers",
        }
    }

    /// The kind of a node. A `Gather` from what is no constant picks from activations and is of none.
    pub fn of(node: &NodeProto, graph: &Graph) -> Option<Self> {
        let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
        if is(&["Conv", "ConvTranspose"]) {
            Some(Self::Conv)
        } else if is(&["MatMul", "Gemm"]) {
            Some(Self::MatMul)
        } else if is(&["LSTM", "GRU", "RNN"]) {
            Some(Self::Recurrent)
        } else {
            let table = node.input_at(0).filter(|_| is(&["Gather"])).and_then(|name| graph.constant(name))?;
            let float = type_of(table).is_some_and(|kind| FLOATS.contains(&kind));
            (float && table.dims.len() == 2).then_some(Self::Embedding)
        }
    }
}
