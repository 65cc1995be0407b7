//! ONNX operators on tensors that remember how they were made, so that gradients can flow back through them.
//!
//! What exported transformer encoders and convolutional networks use, for one sample at a time. Results are those of the engine;
//! the tests beside each group compare both, and gradients with differences of results.

mod conv;
mod elementwise;
mod product;
mod reduce;
mod shape;
mod window;

use super::operand::{Inputs, Operand};
use crate::error::{Context, Error, Result};
use crate::int8::onnx::proto::NodeProto;
use candle_core::Tensor;

/// What to do about a node that training cannot go through.
pub const HINT: &str = "leave out --qat: without training the node does no harm, and --refine improves the others";

/// Computes the outputs of a node.
type Rule = fn(&Inputs) -> Result<Vec<Tensor>>;

/// Operators whose results are whole numbers or depend on shapes alone: no gradient flows through them, and the float model
/// decides about what they give.
const CUTS: [&str; 17] = [
    "Shape",
    "Size",
    "ConstantOfShape",
    "Range",
    "ArgMax",
    "ArgMin",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Not",
    "And",
    "Or",
    "IsNaN",
    "IsInf",
    "NonZero",
];

/// Whether an operator's results are taken from the float model.
pub fn cuts(node: &NodeProto) -> bool {
    use crate::int8::onnx::proto::tensor_proto::DataType;
    let to_float = || node.int_or("to", 0) == DataType::Float as i64;
    CUTS.iter().any(|op| node.is(op)) || (node.is("Cast") && !to_float())
}

/// Whether training can go through an operator.
pub fn is_known(node: &NodeProto) -> bool {
    rule(node).is_some()
}

fn rule(node: &NodeProto) -> Option<Rule> {
    if !matches!(node.domain(), "" | "ai.onnx") {
        return None;
    }
    let found = elementwise::rule(node.op_type()).or_else(|| product::rule(node.op_type()));
    let found = found.or_else(|| conv::rule(node.op_type())).or_else(|| reduce::rule(node.op_type()));
    found.or_else(|| shape::rule(node.op_type()))
}

/// Runs a node.
///
/// # Errors
/// The operator or one of its options is not known, or its inputs do not fit.
pub fn apply(node: &NodeProto, values: Vec<Option<Operand>>) -> Result<Vec<Tensor>> {
    let what = || format!("training cannot go through node '{}' ({})", node.label(), node.op_type());
    let Some(rule) = rule(node) else { return Err(Error::new(what()).hint(HINT)) };
    rule(&Inputs { node, values }).context(what).map_err(|error| error.hint(HINT))
}

#[cfg(test)]
mod tests;
