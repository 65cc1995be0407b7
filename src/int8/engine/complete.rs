//! What ONNX lets exporters leave out, and rten needs.

use crate::error::Result;
use crate::int8::onnx::Tensor;
use crate::int8::onnx::file::opset;
use crate::int8::onnx::node::{float, ints, node};
use crate::int8::onnx::proto::attribute_proto::AttributeType;
use crate::int8::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use crate::int8::prepare::microsoft::{self, MICROSOFT};
use std::borrow::Cow;
use std::collections::HashMap;

const CONVOLUTIONS: [&str; 3] = ["Conv", "ConvInteger", "ConvTranspose"];

/// What ONNX Runtime's normalizations take where no epsilon is given.
const EPSILON: f32 = 1e-12;

/// Operators whose output has the shape of their first input.
const SAME_SHAPE: [&str; 4] = ["DequantizeLinear", "QuantizeLinear", "Identity", "Cast"];

/// The same model with a `kernel_shape` for the convolutions of its main graph that have none: it is that of their weights, where these
/// are constants, quantized or not.
pub fn with_kernel_shapes(model: &ModelProto) -> Cow<'_, ModelProto> {
    let Some(graph) = &model.graph else { return Cow::Borrowed(model) };
    let mut dims: HashMap<&str, &[i64]> = graph.initializer.iter().map(|t| (t.name(), &t.dims[..])).collect();
    let mut kernels = Vec::new();
    for (at, node) in graph.node.iter().enumerate() {
        let constant = node.attribute("value").filter(|_| node.is("Constant")).and_then(|value| value.t.as_ref());
        let same = node.input_at(0).filter(|_| SAME_SHAPE.iter().any(|op| node.is(op)));
        let shape = constant.map(|tensor| &tensor.dims[..]).or_else(|| dims.get(same?).copied());
        if let (Some(shape), Some(output)) = (shape, node.output.first()) {
            dims.insert(output, shape);
        }
        let lacks = CONVOLUTIONS.iter().any(|op| node.is(op)) && node.attribute("kernel_shape").is_none();
        let weight = node.input_at(1).filter(|_| lacks).and_then(|name| dims.get(name));
        if let Some([_, _, kernel @ ..]) = weight {
            kernels.push((at, ints("kernel_shape", kernel)));
        }
    }
    if kernels.is_empty() {
        return Cow::Borrowed(model);
    }
    let mut model = model.clone();
    let nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    let mut kernels = kernels.into_iter().peekable();
    for (at, node) in nodes.enumerate() {
        node.attribute.extend(kernels.next_if(|(next, _)| *next == at).map(|(_, kernel)| kernel));
    }
    Cow::Owned(model)
}

/// Writes what rten does not read in another way: optional inputs that are left out at the end of a list, and some of ONNX Runtime's own
/// operators.
///
/// # Errors
/// The graph cannot run.
pub fn known(model: &mut ModelProto) -> Result<()> {
    microsoft::expand(model, opset(model).unwrap_or_default())?;
    model.graph.iter_mut().for_each(in_graph);
    Ok(())
}

fn in_graph(graph: &mut GraphProto) {
    for mut old in std::mem::take(&mut graph.node) {
        old.subgraphs_mut().for_each(in_graph);
        while old.input.last().is_some_and(String::is_empty) {
            old.input.pop();
        }
        if old.is("Dropout") && old.input.len() < 3 && old.output.len() == 1 {
            // Without training it does nothing.
            old.op_type = Some("Identity".into());
            old.attribute.clear();
            old.input.truncate(1);
        }
        let normalizes = ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"].contains(&old.op_type());
        if normalizes && old.attribute("epsilon").is_none() {
            old.attribute.push(float("epsilon", EPSILON));
        }
        match old.op_type() == "FusedMatMul" && old.domain() == MICROSOFT {
            true => graph.node.extend(fused_product(&old, &mut graph.initializer)),
            false => graph.node.push(old),
        }
    }
}

/// `alpha` times a product whose factors may be transposed.
fn fused_product(old: &NodeProto, constants: &mut Vec<crate::int8::onnx::proto::TensorProto>) -> Vec<NodeProto> {
    if old.input.len() != 2 || ["transBatchA", "transBatchB"].iter().any(|name| old.int_or(name, 0) != 0) {
        return vec![old.clone()];
    }
    let turned = |name| old.int_or(name, 0) != 0;
    let [a, b] = [&old.input[0], &old.input[1]];
    let label = old.label();
    let [product, factor] = ["product", "alpha"].map(|what| format!("{label}/llmq {what}"));
    let equation = match (turned("transA"), turned("transB")) {
        (false, false) => None,
        (true, false) => Some("...ji,...jk->...ik"),
        (false, true) => Some("...ij,...kj->...ik"),
        (true, true) => Some("...ji,...kj->...ik"),
    };
    let attribute = equation.map(|equation| AttributeProto {
        name: Some("equation".into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(equation.as_bytes().to_vec()),
        ..Default::default()
    });
    let op = if attribute.is_some() { "Einsum" } else { "MatMul" };
    constants.push(Tensor::scalar(old.float_or("alpha", 1.0)).proto(&factor));
    vec![
        node(op, format!("{label}/llmq {op}"), &[a, b], &[&product], attribute.into_iter().collect()),
        node("Mul", label, &[&product, &factor], &[&old.output[0]], vec![]),
    ]
}
