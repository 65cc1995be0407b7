//! What ONNX lets exporters leave out, and rten needs.

use crate::int8::onnx::node::ints;
use crate::int8::onnx::proto::ModelProto;
use std::borrow::Cow;
use std::collections::HashMap;

const CONVOLUTIONS: [&str; 3] = ["Conv", "ConvInteger", "ConvTranspose"];

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
