//! How many axes values have, as far as a graph tells.

use super::graph::Graph;
use super::proto::NodeProto;
use std::collections::HashMap;

/// Operators whose output has as many axes as their first input.
const SAME: [&str; 38] = [
    "Identity",
    "Cast",
    "Clip",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Gelu",
    "Elu",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Neg",
    "Abs",
    "Floor",
    "Round",
    "Softmax",
    "LogSoftmax",
    "Softplus",
    "Dropout",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "BatchNormalization",
    "LayerNormalization",
    "InstanceNormalization",
    "Transpose",
    "Slice",
    "Pad",
    "Concat",
    "Split",
    "Resize",
];

/// Operators whose output has as many axes as that of their inputs with most.
const WIDEST: [&str; 10] = ["Add", "Sub", "Mul", "Div", "Pow", "Sum", "Min", "Max", "Where", "MatMul"];

/// The number of axes of each value for which it is known. A value is not looked for where its shape is declared.
pub fn ranks(graph: &Graph) -> HashMap<String, usize> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let inputs = graph.proto().input.iter().map(|input| input.name().to_owned());
    let inputs: Vec<String> = inputs.collect();
    for name in
        inputs.iter().map(String::as_str).chain(graph.nodes().iter().flat_map(|node| &node.output).map(String::as_str))
    {
        if let Some(dims) = graph.shape(name) {
            known.insert(name.to_owned(), dims.len());
        }
    }
    for node in graph.nodes() {
        let Some(output) = node.output.first().filter(|output| !known.contains_key(*output)) else { continue };
        if let Some(rank) = of(graph, node, &known) {
            known.insert(output.clone(), rank);
        }
    }
    known
}

fn of(graph: &Graph, node: &NodeProto, known: &HashMap<String, usize>) -> Option<usize> {
    let rank = |place: usize| {
        let name = node.input_at(place)?;
        known.get(name).copied().or_else(|| graph.constant(name).map(|tensor| tensor.dims.len()))
    };
    let length = |place: usize| usize::try_from(*graph.constant(node.input_at(place)?)?.dims.first()?).ok();
    let axes = || node.ints_of("axes").map(<[i64]>::len).or_else(|| length(1));
    let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
    if is(&SAME) {
        rank(0)
    } else if is(&WIDEST) {
        (0..node.input.len()).map(rank).collect::<Option<Vec<_>>>()?.into_iter().max()
    } else if is(&["Gemm", "Flatten"]) {
        Some(2)
    } else if is(&["Reshape"]) {
        length(1)
    } else if is(&["Unsqueeze"]) {
        Some(rank(0)? + axes()?)
    } else if is(&["Squeeze"]) {
        rank(0)?.checked_sub(axes()?)
    } else if is(&["Gather"]) {
        (rank(0)? + rank(1)?).checked_sub(1)
    } else if is(&["ReduceMean", "ReduceSum", "ReduceMax"]) {
        if node.int_or("keepdims", 1) != 0 { rank(0) } else { rank(0)?.checked_sub(axes()?) }
    } else {
        None
    }
}
