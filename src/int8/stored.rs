//! Weights in 8 bits that are computed with in floats: codes times scales, which ONNX Runtime makes floats of once, when it folds
//! constants as it loads the graph. A file of a fourth of the size that is as fast as before, and no activation is rounded.

use super::onnx::node::{int, node};
use super::onnx::proto::tensor_proto::DataType;
use super::onnx::proto::{ModelProto, NodeProto};
use super::onnx::tensor::type_of;
use super::onnx::{Graph, Tensor};
use super::qdq::weights::quantize;
use super::weights::Levels;
use crate::error::{Error, Result};
use crate::interrupt;
use llmq_kernels::elementwise::first_non_finite;
use std::collections::HashMap;
use std::ops::Range;

/// Weights of fewer numbers stay floats: two more nodes would cost more than they save.
const SMALLEST: i64 = 1 << 10;

/// Operators that rearrange numbers.
const REARRANGE: [&str; 6] = ["Slice", "Concat", "Split", "Transpose", "Unsqueeze", "Squeeze"];

/// Stores the weights of all nodes that are still in floats, those inside other nodes, too, and says how many. Those that `excluded` names
/// stay as they are.
///
/// # Errors
/// The graph cannot run, a weight is damaged, or Ctrl-C.
pub fn store(model: &mut ModelProto, excluded: &dyn Fn(&str) -> bool) -> Result<usize> {
    let mut stored = 0;
    Graph::edit_all(model, &mut |graph| {
        // By name and axes: shared weights stay shared.
        let mut made: HashMap<(String, Range<usize>), String> = HashMap::new();
        for at in 0..graph.nodes().len() {
            interrupt::check()?;
            let mut new = graph.nodes()[at].clone();
            let before = stored;
            for (place, axes) in if excluded(new.label()) { vec![] } else { weights(graph, &new) } {
                let name = new.input[place].clone();
                let floats = match made.get(&(name.clone(), axes.clone())) {
                    Some(floats) => floats.clone(),
                    None => store_one(graph, at, &name, axes.clone())?,
                };
                new.input[place].clone_from(&floats);
                made.insert((name, axes), floats);
                stored += 1;
            }
            if stored > before {
                graph.replace(at, vec![new]);
            }
        }
        Ok(())
    })?;
    Ok(stored)
}

/// The inputs of a node that are large constants to multiply with, and the axes along which these have scales.
fn weights(graph: &Graph, node: &NodeProto) -> Vec<(usize, Range<usize>)> {
    let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
    let rank = |place: usize| {
        let tensor = graph.constant(node.input_at(place)?)?;
        let large = tensor.dims.iter().product::<i64>() >= SMALLEST;
        (type_of(tensor) == Some(DataType::Float) && large && tensor.dims.len() > 1).then_some(tensor.dims.len())
    };
    let turned = |name: &str| node.int_or(name, 0) != 0;
    let at = |axis: usize| axis..axis + 1;
    let places: Vec<(usize, Range<usize>)> = if is(&["Conv"]) {
        vec![(1, at(0))]
    } else if is(&["ConvTranspose"]) {
        vec![(1, at(1))]
    } else if is(&["Gemm"]) {
        vec![(0, at(usize::from(turned("transA")))), (1, at(usize::from(!turned("transB"))))]
    } else if is(&["MatMul"]) {
        vec![(0, at(rank(0).map_or(0, |rank| rank - 2))), (1, at(rank(1).map_or(0, |rank| rank - 1)))]
    } else if is(&["LSTM", "GRU", "RNN"]) {
        // Each gate of each hidden unit of each direction.
        vec![(1, 0..2), (2, 0..2)]
    } else if is(&REARRANGE) {
        // A weight on its way: exporters put the gates of a layer in another order, for instance.
        (0..node.input.len()).map(|place| (place, at(0))).collect()
    } else {
        vec![]
    };
    places.into_iter().filter(|(place, _)| rank(*place).is_some()).collect()
}

/// Puts codes, scales and their product in front of a node, and gives the name of the latter.
fn store_one(graph: &mut Graph, at: usize, name: &str, axes: Range<usize>) -> Result<String> {
    let tensor = graph.constant(name).ok_or_else(|| Error::new(format!("'{name}' is no constant")))?;
    let weight = Tensor::<f32>::read(tensor)?;
    if let Some(at) = first_non_finite(&weight.data) {
        let x = weight.data[at];
        return Err(Error::new(format!("weight '{name}' holds {x} at element {at}"))
            .hint("the model is damaged; export it again"));
    }
    let dims = weight.dims;
    let size = |axes: Range<usize>| dims[axes].iter().product::<usize>();
    // [before, channels, behind]
    let flat = Tensor::new([size(0..axes.start), size(axes.clone()), size(axes.end..dims.len())], weight.data);
    // Nothing is added up in integers: all 8 bits can be used, on any CPU.
    let quantized = quantize(&flat, 1, Levels::Full, None, 1.0);
    let one = |(axis, &n): (usize, &usize)| if axes.contains(&axis) { n } else { 1 };
    let scales = Tensor::new(dims.iter().enumerate().map(one).collect::<Vec<_>>(), quantized.scales);
    Ok(decoded(graph, at, name, &Tensor::new(dims, quantized.codes.data), &scales))
}

/// The same with what the weights were quantized to. `scales`: of a shape that stretches to that of `codes`.
pub(super) fn decoded(graph: &mut Graph, at: usize, name: &str, codes: &Tensor<i8>, scales: &Tensor<f32>) -> String {
    let codes = graph.add(&format!("{name}_int8"), |name| codes.proto(name));
    let scales = graph.add(&format!("{name}_scales"), |name| scales.proto(name));
    let [floats, scaled, cast, scale] =
        ["float", "scaled", "Cast", "Scale"].map(|what| graph.fresh(&format!("{name}_{what}")));
    graph.insert_before(
        at,
        [
            node("Cast", cast, &[&codes], &[&floats], vec![int("to", DataType::Float as i64)]),
            node("Mul", scale, &[&floats, &scales], &[&scaled], vec![]),
        ],
    );
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::engine::{Engine, Value};
    use crate::int8::onnx::node::ints;
    use crate::int8::onnx::proto::GraphProto;
    use crate::int8::onnx::shape::{Dim, declare};

    /// A graph of one node with weights of these dimensions, those of each channel as large as its number. Gives what it computes, before
    /// and after, and how many weights were stored.
    fn both(
        op: &str,
        dims: &[usize],
        axis: usize,
        x: &[usize],
        attributes: &[(&str, i64)],
    ) -> (Vec<f32>, Vec<f32>, usize) {
        let inner: usize = dims[axis + 1..].iter().product();
        let number = |i: usize| ((i * 7919 + 13) % 251) as f32 / 125.0 - 1.0;
        let weight = |i: usize| number(i) * 1.7f32.powi((i / inner % dims[axis] % 16) as i32);
        let w = Tensor::new(dims, (0..dims.iter().product()).map(weight).collect());
        let mut one = node(op, "one", &["x", "w"], &["y"], attributes.iter().map(|(name, n)| int(name, *n)).collect());
        if op.starts_with("Conv") {
            one.attribute.push(ints("kernel_shape", &[3, 3]));
        }
        let fixed: Vec<Dim> = x.iter().map(|&n| Dim::Fixed(n)).collect();
        let graph = GraphProto {
            node: vec![one],
            initializer: vec![w.proto("w")],
            input: vec![declare("x", DataType::Float, &fixed)],
            output: vec![crate::int8::onnx::proto::ValueInfoProto { name: Some("y".into()), ..Default::default() }],
            ..Default::default()
        };
        let set = crate::int8::onnx::proto::OperatorSetIdProto { domain: None, version: Some(17) };
        let mut model =
            ModelProto { ir_version: Some(8), opset_import: vec![set], graph: Some(graph), ..Default::default() };
        let given = Value::F32(Tensor::new(x, (0..x.iter().product()).map(|i| number(i + 5)).collect()));
        let run = |model: &ModelProto| {
            let found = Engine::new(model).unwrap().run(&[("x", given.clone())]).unwrap();
            found[0].floats().unwrap().data.clone()
        };
        let before = run(&model);
        let stored = store(&mut model, &|_| false).unwrap();
        (before, run(&model), stored)
    }

    #[test]
    fn each_channel_keeps_its_scale_whatever_its_axis() {
        for (op, dims, axis, x, attributes) in [
            ("Conv", &[32, 4, 3, 3][..], 0, &[1, 4, 5, 5][..], &[][..]),
            ("ConvTranspose", &[4, 32, 3, 3], 1, &[1, 4, 5, 5], &[]),
            ("MatMul", &[40, 32], 1, &[3, 40], &[]),
            ("MatMul", &[2, 40, 32], 2, &[2, 3, 40], &[]),
            ("Gemm", &[40, 32], 1, &[3, 40], &[]),
            ("Gemm", &[32, 40], 0, &[3, 40], &[("transB", 1)]),
        ] {
            let (before, after, stored) = both(op, dims, axis, x, attributes);
            assert_eq!(stored, 1, "{op}");
            // Along a wrong axis, the smallest channel, 1.7^-15 of the largest, would be lost.
            let width = if op.starts_with("Conv") { before.len() / 32 } else { 1 };
            for channel in 0..16 {
                let of = |y: &[f32]| -> Vec<f32> {
                    let mine = |(i, &y): (usize, &f32)| (i / width % 32 == channel).then_some(y);
                    y.iter().enumerate().filter_map(mine).collect()
                };
                let (a, b) = (of(&before), of(&after));
                let signal: f32 = a.iter().map(|a| a * a).sum();
                let noise: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
                assert!(noise < 1e-2 * signal, "{op} {dims:?} channel {channel}: {noise} of {signal}");
            }
        }
    }

    #[test]
    fn small_weights_stay_floats() {
        let (before, after, stored) = both("MatMul", &[8, 8], 1, &[3, 8], &[]);
        assert_eq!((stored, before), (0, after));
    }
}
