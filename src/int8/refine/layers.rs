//! The layers of a quantized graph beside those of the float graph that it was made from.

use super::columns::Columns;
use crate::error::{Error, Result};
use crate::int8::onnx::proto::{ModelProto, NodeProto, TensorProto, tensor_proto::DataType};
use crate::int8::onnx::{Graph, Tensor};
use crate::int8::qdq::Quantized;
use crate::int8::qdq::plan::Role;

/// A node with weights that runs in integers.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its number in the quantized graph.
    pub node: usize,
    /// The quantized value that it reads, in floats.
    pub input: String,
    /// What it gives in the quantized graph.
    pub output: String,
    /// What it gives in the float graph.
    pub float: String,
    /// The tensor with the codes of its weights.
    pub codes: String,
    /// The tensor with their scales.
    pub scales: String,
    /// The axis of its weights that counts outputs.
    pub axis: usize,
    /// How it reads its input; none if that is not understood.
    pub columns: Option<Columns>,
    /// Its weights in floats.
    pub weights: TensorProto,
}

/// The layers in the order of the graph.
///
/// # Errors
/// The quantized graph is not one of this float graph.
pub fn layers(float: &ModelProto, quantized: &Quantized) -> Result<Vec<Layer>> {
    let (original, graph) = (Graph::take(&mut float.clone())?, Graph::take(&mut quantized.model.clone())?);
    let nodes = graph.nodes().iter().enumerate();
    let mut found = nodes.filter_map(|(at, node)| Some((at, node, source(&graph, node, 1, DataType::Int8)?)));
    let mut layers = Vec::new();
    for (&at, &role) in quantized.plan.roles.iter().filter(|(_, role)| role.weighted()) {
        let node = &original.nodes()[at];
        let weights = node.input_at(1).and_then(|name| original.constant(name));
        let same = |(_, other, (codes, _)): &(usize, &NodeProto, (String, String))| {
            let dims = graph.constant(codes).map(|codes| &codes.dims);
            other.op_type() == node.op_type() && dims == weights.map(|weights| &weights.dims)
        };
        let (Some((place, other, (codes, scales))), Some(weights)) = (found.next().filter(same), weights) else {
            return Err(Error::new(format!("layer '{}' is not where it is expected", node.label())));
        };
        let dims: Vec<usize> = weights.dims.iter().map(|&n| n as usize).collect();
        let (axis, columns) = match role {
            Role::Product { axis } => (axis, Some(Columns::product(dims[1 - axis]))),
            _ => (0, Columns::convolution(node, &dims)),
        };
        layers.push(Layer {
            node: place,
            input: other.input[0].clone(),
            output: other.output[0].clone(),
            float: node.output[0].clone(),
            codes,
            scales,
            axis,
            columns,
            weights: weights.clone(),
        });
    }
    Ok(layers)
}

/// The constant codes and scales that an input of a node is made of by DequantizeLinear.
pub fn source(graph: &Graph, node: &NodeProto, input: usize, kind: DataType) -> Option<(String, String)> {
    if !["Conv", "Gemm", "MatMul", "Add"].iter().any(|op| node.is(op)) {
        return None;
    }
    let maker = &graph.nodes()[graph.producer(node.input_at(input)?)?];
    let (codes, scales) = (maker.input_at(0)?, maker.input_at(1)?);
    let known = graph.constant(codes).is_some_and(|codes| codes.data_type() == kind as i32);
    (maker.is("DequantizeLinear") && known).then(|| (codes.to_owned(), scales.to_owned()))
}

/// An initializer of a model.
///
/// # Errors
/// There is none of that name.
pub fn initializer<'a>(model: &'a mut ModelProto, name: &str) -> Result<&'a mut TensorProto> {
    let all = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    let mut named = all.filter(|tensor| tensor.name() == name);
    named.next().ok_or_else(|| Error::new(format!("the model has no tensor '{name}'")))
}

/// Weights with the outputs first: `[outputs, inputs…]`. `axis`: the one that counts outputs, which is the first unless there
/// are two.
pub fn by_output<T: Copy + Default + Send + Sync>(dims: &[usize], data: Vec<T>, axis: usize) -> Vec<T> {
    if axis == 0 { data } else { crate::int8::weights::transpose(&data, dims[0], dims[1]) }
}

/// The other way round.
pub fn by_shape<T: Copy + Default + Send + Sync>(dims: &[usize], rows: Vec<T>, axis: usize) -> Vec<T> {
    if axis == 0 { rows } else { crate::int8::weights::transpose(&rows, dims[1], dims[0]) }
}

impl Layer {
    /// How many outputs it has.
    pub fn outputs(&self) -> usize {
        self.weights.dims[self.axis] as usize
    }

    /// Its weights: `[outputs, inputs…]`.
    ///
    /// # Errors
    /// The tensor is damaged.
    pub fn rows(&self) -> Result<Vec<f32>> {
        let Tensor { dims, data } = Tensor::read(&self.weights)?;
        Ok(by_output(&dims, data, self.axis))
    }
}
