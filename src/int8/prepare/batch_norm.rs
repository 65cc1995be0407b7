//! BatchNormalization folded into the convolution in front of it: at inference both are linear, and one integer kernel then
//! does the work of both (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", section 3.2).
//!
//! `γ·(Wx + b − μ)/√(σ² + ε) + β` is `W'x + b'` with `W' = γ/√(σ² + ε)·W` and `b' = γ/√(σ² + ε)·(b − μ) + β`.

use crate::error::Result;
use crate::int8::onnx::proto::{ModelProto, NodeProto};
use crate::int8::onnx::{Graph, Tensor};

/// The default of the operator's `epsilon`.
const EPSILON: f32 = 1e-5;

/// Folds what can be folded, and says how many.
///
/// # Errors
/// A tensor is damaged, or the graph is.
pub fn fold(model: &mut ModelProto) -> Result<usize> {
    let mut graph = Graph::take(model)?;
    let mut folded = 0;
    for at in 0..graph.nodes().len() {
        let Some((conv, norm)) = pair(&graph, at) else { continue };
        if let Some(new) = both(&mut graph, conv, norm)? {
            graph.replace(conv, vec![new]);
            graph.replace(norm, Vec::new());
            folded += 1;
        }
    }
    graph.finish(model)?;
    Ok(folded)
}

/// The convolution in front of a normalization whose output nothing else reads.
fn pair(graph: &Graph, norm: usize) -> Option<(usize, usize)> {
    let node = &graph.nodes()[norm];
    // In training mode it normalizes by the batch at hand, and more outputs are statistics that someone wants.
    if !node.is("BatchNormalization") || node.int_or("training_mode", 0) != 0 || node.output.len() > 1 {
        return None;
    }
    let between = node.input_at(0)?;
    let conv = graph.producer(between)?;
    let alone = graph.consumers(between) == [norm] && !graph.is_output(between);
    (graph.nodes()[conv].is("Conv") && alone).then_some((conv, norm))
}

/// The convolution that does both; none where something is no constant in single precision.
fn both(graph: &mut Graph, conv: usize, norm: usize) -> Result<Option<NodeProto>> {
    let constant = |name: Option<&str>| -> Result<Option<Tensor<f32>>> {
        let Some(tensor) = name.and_then(|name| graph.constant(name)) else { return Ok(None) };
        // Another type than single precision is left alone; a damaged tensor is an error.
        if tensor.data_type() != crate::int8::onnx::proto::tensor_proto::DataType::Float as i32 {
            return Ok(None);
        }
        Tensor::read(tensor).map(Some)
    };
    let (conv, norm) = (&graph.nodes()[conv], &graph.nodes()[norm]);
    let Some(mut w) = constant(conv.input_at(1))? else { return Ok(None) };
    let mut parts = Vec::new();
    for i in 1..5 {
        let Some(part) = constant(norm.input_at(i))? else { return Ok(None) };
        parts.push(part.data);
    }
    let channels = w.dims.first().copied().unwrap_or(0);
    let bias = match conv.input_at(2) {
        Some(name) => match constant(Some(name))? {
            Some(bias) => bias.data,
            None => return Ok(None),
        },
        None => vec![0.0; channels],
    };
    let [gamma, beta, mean, variance] = &parts[..] else { return Ok(None) };
    if channels == 0 || parts.iter().chain([&bias]).any(|part| part.len() != channels) {
        return Ok(None);
    }
    let epsilon = f64::from(norm.float_or("epsilon", EPSILON));
    let row = w.data.len() / channels;
    let mut shifted = Vec::with_capacity(channels);
    for c in 0..channels {
        let factor = f64::from(gamma[c]) / (f64::from(variance[c]) + epsilon).sqrt();
        for w in &mut w.data[c * row..(c + 1) * row] {
            *w = (f64::from(*w) * factor) as f32;
        }
        shifted.push(((f64::from(bias[c]) - f64::from(mean[c])) * factor + f64::from(beta[c])) as f32);
    }
    // A variance that is negative or not a number makes both so; the float model is broken as well, but not by us.
    if w.data.iter().chain(&shifted).any(|x| !x.is_finite()) {
        return Ok(None);
    }
    let (mut new, output) = (conv.clone(), norm.output.clone());
    let names = [new.input[1].clone(), format!("{}_bias", new.input[1])];
    let w = graph.add(&format!("{}_folded", names[0]), |name| w.proto(name));
    let b = graph.add(&names[1], |name| Tensor::vector(shifted).proto(name));
    new.input = vec![new.input[0].clone(), w, b];
    new.output = output;
    Ok(Some(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::node::{float, ints, node};
    use crate::int8::onnx::proto::tensor_proto::DataType;
    use crate::int8::onnx::proto::{GraphProto, OperatorSetIdProto};
    use crate::int8::onnx::shape::{Dim, declare};

    /// Two channels in, three out, a kernel of one; with a bias or without.
    fn model(bias: bool) -> ModelProto {
        let vector = |name: &str, x: [f32; 3]| Tensor::vector(x.to_vec()).proto(name);
        let image = |c| [Dim::Fixed(1), Dim::Fixed(c), Dim::Fixed(2), Dim::Fixed(1)];
        let inputs: &[&str] = if bias { &["x", "w", "b"] } else { &["x", "w"] };
        let mut graph = GraphProto {
            node: vec![
                node("Conv", "conv", inputs, &["c"], vec![ints("kernel_shape", &[1, 1])]),
                node(
                    "BatchNormalization",
                    "bn",
                    &["c", "gamma", "beta", "mean", "var"],
                    &["y"],
                    vec![float("epsilon", 1e-3)],
                ),
            ],
            initializer: vec![
                Tensor::new([3, 2, 1, 1], vec![1.0f32, -2.0, 0.5, 4.0, -1.0, 0.25]).proto("w"),
                vector("b", [1.0, -1.0, 3.0]),
                vector("gamma", [2.0, -0.5, 1.0]),
                vector("beta", [0.1, 0.2, 0.3]),
                vector("mean", [1.0, 2.0, -3.0]),
                vector("var", [0.5, 4.0, 1e-6]),
            ],
            input: vec![declare("x", DataType::Float, &image(2))],
            output: vec![declare("y", DataType::Float, &image(3))],
            ..Default::default()
        };
        // What nothing reads in the first place would stay.
        graph.initializer.retain(|tensor| bias || tensor.name() != "b");
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            graph: Some(graph),
            ..Default::default()
        }
    }

    fn run(model: &ModelProto) -> Vec<f32> {
        let x = Value::F32(Tensor::new([1, 2, 2, 1], vec![1.0, -2.0, 3.0, 0.5]));
        let outputs = Engine::new(model).unwrap().run(&[("x", x)]).unwrap();
        outputs[0].floats().unwrap().data.clone()
    }

    #[test]
    fn the_function_stays_and_one_node_is_left() {
        for bias in [true, false] {
            let mut model = model(bias);
            let before = run(&model);
            assert_eq!(fold(&mut model).unwrap(), 1);
            let graph = model.graph.as_ref().unwrap();
            assert_eq!(graph.node.len(), 1);
            assert_eq!(graph.initializer.len(), 2);
            for (a, b) in before.iter().zip(run(&model)) {
                assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} {b}");
            }
        }
    }

    #[test]
    fn what_someone_else_reads_or_trains_stays() {
        let mut read = model(true);
        read.graph.as_mut().unwrap().output.push(declare("c", DataType::Float, &[]));
        assert_eq!(fold(&mut read).unwrap(), 0);
        let mut training = model(true);
        let norm = &mut training.graph.as_mut().unwrap().node[1];
        norm.attribute.push(crate::int8::onnx::node::int("training_mode", 1));
        assert_eq!(fold(&mut training).unwrap(), 0);
        let mut negative = model(true);
        negative.graph.as_mut().unwrap().initializer[5] = Tensor::vector(vec![-1.0f32; 3]).proto("var");
        assert_eq!(fold(&mut negative).unwrap(), 0);
        assert_eq!(negative.graph.unwrap().node.len(), 2);
    }
}
