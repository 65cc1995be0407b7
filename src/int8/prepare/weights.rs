//! Weights that reach the node that multiplies with them through nodes that only move or convert numbers, as exporters without constant
//! folding write them: they are moved and converted once, here.

use crate::error::Result;
use crate::int8::engine::constants::Constants;
use crate::int8::onnx::file::external::Values;
use crate::int8::onnx::graph::VIEWS;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{ModelProto, NodeProto, TensorProto};
use crate::int8::onnx::tensor::{self, Element, type_of};
use crate::int8::onnx::{Graph, Tensor};
use half::{bf16, f16};
use std::collections::{BTreeMap, HashMap};

/// How many such nodes are looked through, one behind the other.
const MOST: usize = 64;

/// The inputs of a node that are weights and biases.
fn places(node: &NodeProto) -> &'static [usize] {
    let of: [(&[&str], &[usize]); 4] = [
        (&["MatMul"], &[1]),
        (&["Gemm", "Conv", "ConvTranspose"], &[1, 2]),
        (&["LSTM", "GRU", "RNN"], &[1, 2, 3]),
        (&["Gather"], &[0]),
    ];
    of.iter().find(|(ops, _)| ops.iter().any(|op| node.is(op))).map_or(&[], |(_, places)| places)
}

/// Gives each node its weights directly. What is only renamed on the way stays one tensor, whoever reads it.
///
/// # Errors
/// The graph cannot run, a tensor is damaged, or there is no room for a temporary file: values that are moved go there, not into memory.
pub fn fold(model: &mut ModelProto) -> Result<()> {
    Graph::edit_all(model, &mut |graph| {
        let mut folded = Folded::default();
        for at in 0..graph.nodes().len() {
            let places = places(&graph.nodes()[at]);
            for &place in places {
                let Some(name) = graph.nodes()[at].input_at(place).map(str::to_owned) else { continue };
                if let Some(other) = folded.resolve(graph, &name)? {
                    folded.nodes.entry(at).or_insert_with(|| graph.nodes()[at].clone()).input[place] = other;
                }
            }
        }
        folded.put(graph)
    })
}

#[derive(Default)]
struct Folded {
    /// What each value is read from instead, if from anything.
    known: HashMap<String, Option<String>>,
    /// The nodes that read something else now.
    nodes: BTreeMap<usize, NodeProto>,
    values: Option<Constants>,
    /// Where the values of new initializers are: by name, from which byte on, and how many.
    places: Vec<(String, usize, usize)>,
}

impl Folded {
    fn resolve(&mut self, graph: &mut Graph, value: &str) -> Result<Option<String>> {
        if let Some(known) = self.known.get(value) {
            return Ok(known.clone());
        }
        let found = match chain(graph, value) {
            None => None,
            Some((root, steps)) if steps.iter().all(|&at| graph.nodes()[at].is("Identity")) => {
                Some(root).filter(|root| root != value)
            }
            Some((root, steps)) => match moved(graph, &root, &steps)? {
                Some(tensor) => Some(self.add(graph, value, tensor)?),
                None => None,
            },
        };
        self.known.insert(value.to_owned(), found.clone());
        Ok(found)
    }

    fn add(&mut self, graph: &mut Graph, value: &str, tensor: Tensor<f32>) -> Result<String> {
        let values = match &mut self.values {
            Some(values) => values,
            None => self.values.insert(Constants::create()?),
        };
        let bytes = f32::to_bytes(&tensor.data);
        let first = values.written() as usize;
        values.write(&bytes)?;
        let empty = Tensor::<f32>::new([0], vec![]);
        let name = graph.add(&format!("{value}_folded"), |name| TensorProto {
            dims: tensor.dims.iter().map(|&n| n as i64).collect(),
            ..empty.proto(name)
        });
        self.places.push((name.clone(), first, bytes.len()));
        Ok(name)
    }

    /// Puts nodes in place, and the values, which lie in a file.
    fn put(self, graph: &mut Graph) -> Result<()> {
        self.nodes.into_iter().for_each(|(at, node)| graph.replace(at, vec![node]));
        let Some(values) = self.values else { return Ok(()) };
        let bytes = values.map()?;
        for (name, first, length) in self.places {
            graph.set_values(&name, bytes.slice(first..first + length));
        }
        Ok(())
    }
}

/// The constant that a value comes from through [`VIEWS`] alone, and these, the last first.
fn chain(graph: &Graph, value: &str) -> Option<(String, Vec<usize>)> {
    let (mut value, mut steps) = (value, Vec::new());
    while let Some(at) = graph.producer(value) {
        let node = &graph.nodes()[at];
        if node.is("Constant") {
            break;
        }
        if !VIEWS.iter().any(|op| node.is(op)) || steps.len() == MOST {
            return None;
        }
        steps.push(at);
        value = node.input_at(0)?;
    }
    graph.constant(value).map(|_| (value.to_owned(), steps))
}

/// What such nodes make of a constant, in single precision; none where that is not known or not what they make.
fn moved(graph: &Graph, root: &str, steps: &[usize]) -> Result<Option<Tensor<f32>>> {
    let Some(constant) = graph.constant(root) else { return Ok(None) };
    let mut single = type_of(constant) == Some(DataType::Float);
    let Some(mut tensor) = floats(constant)? else { return Ok(None) };
    for &at in steps.iter().rev() {
        let node = &graph.nodes()[at];
        if node.is("Cast") {
            if node.int_or("to", 0) != DataType::Float as i64 {
                return Ok(None);
            }
            single = true;
        }
        let Some(next) = step(graph, node, tensor)? else { return Ok(None) };
        tensor = next;
    }
    Ok(Some(tensor).filter(|_| single))
}

/// A tensor of floats, whatever their precision.
fn floats(tensor: &TensorProto) -> Result<Option<Tensor<f32>>> {
    let (dims, elements) = tensor::shape(tensor)?;
    let halves = |of: fn(u16) -> f32| {
        let raw = tensor.raw_data.as_ref().filter(|raw| raw.len() == 2 * elements);
        raw.map(|raw| raw.as_chunks().0.iter().map(|&pair| of(u16::from_le_bytes(pair))).collect())
            .or_else(|| {
                let typed = tensor.int32_data.iter().map(|&n| of(n as u16));
                (tensor.int32_data.len() == elements).then(|| typed.collect())
            })
            .map(|data: Vec<f32>| Tensor::new(dims.clone(), data))
    };
    Ok(match type_of(tensor) {
        Some(DataType::Float) => Some(Tensor::read(tensor)?),
        Some(DataType::Float16) => halves(|bits| f16::from_bits(bits).to_f32()),
        Some(DataType::Bfloat16) => halves(|bits| bf16::from_bits(bits).to_f32()),
        Some(DataType::Double) => {
            let Tensor { dims, data } = Tensor::<f64>::read(tensor)?;
            Some(Tensor::new(dims, data.into_iter().map(|x| x as f32).collect()))
        }
        _ => None,
    })
}

/// What one node makes of a tensor.
fn step(graph: &Graph, node: &NodeProto, tensor: Tensor<f32>) -> Result<Option<Tensor<f32>>> {
    let rank = tensor.dims.len();
    let Tensor { dims, data } = &tensor;
    let at = |axis: i64, rank: usize| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok();
    let numbers = || -> Result<Option<Vec<i64>>> {
        let given = node.input_at(1).map(|name| graph.constant(name).map(Tensor::<i64>::read).transpose());
        given.transpose().map(|given| given.flatten().map(|given| given.data))
    };
    let axes =
        || -> Result<Option<Vec<i64>>> { node.ints_of("axes").map_or_else(numbers, |axes| Ok(Some(axes.to_vec()))) };
    let dims = match node.op_type() {
        "Transpose" => {
            let reversed: Vec<i64> = (0..rank as i64).rev().collect();
            let perm = node.ints_of("perm").unwrap_or(&reversed);
            let perm: Option<Vec<usize>> =
                perm.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n < rank)).collect();
            return Ok(perm.filter(|perm| perm.len() == rank).map(|perm| permuted(dims, data, &perm)));
        }
        "Reshape" => {
            let Some(wanted) = numbers()? else { return Ok(None) };
            let copied = |(at, &n): (usize, &i64)| match n {
                0 if node.int_or("allowzero", 0) == 0 => dims.get(at).map(|&n| n as i64),
                n => Some(n),
            };
            let Some(wanted) = wanted.iter().enumerate().map(copied).collect::<Option<Vec<i64>>>() else {
                return Ok(None);
            };
            let known: usize = wanted.iter().filter(|&&n| n >= 0).map(|&n| n as usize).product();
            wanted.iter().map(|&n| if n < 0 { data.len() / known.max(1) } else { n as usize }).collect()
        }
        "Flatten" => {
            let Some(axis) = at(node.int_or("axis", 1), rank).filter(|&axis| axis <= rank) else { return Ok(None) };
            vec![dims[..axis].iter().product(), dims[axis..].iter().product()]
        }
        "Squeeze" => {
            let gone: Option<Vec<usize>> = axes()?.map(|axes| axes.iter().filter_map(|&axis| at(axis, rank)).collect());
            let stays = |(axis, n): &(usize, &usize)| gone.as_ref().map_or(**n != 1, |gone| !gone.contains(axis));
            dims.iter().enumerate().filter(stays).map(|(_, &n)| n).collect()
        }
        "Unsqueeze" => {
            let Some(axes) = axes()? else { return Ok(None) };
            let rank = rank + axes.len();
            let new: Vec<usize> = axes.iter().filter_map(|&axis| at(axis, rank)).collect();
            let mut old = dims.iter();
            (0..rank).filter_map(|axis| if new.contains(&axis) { Some(1) } else { old.next().copied() }).collect()
        }
        _ => return Ok(Some(tensor)),
    };
    // A node whose numbers do not fit is one that cannot run; the engine says so better.
    let fits = dims.iter().product::<usize>() == data.len();
    Ok(fits.then(|| Tensor::new(dims, tensor.data)))
}

/// The axes of a tensor in another order.
fn permuted(dims: &[usize], data: &[f32], perm: &[usize]) -> Tensor<f32> {
    let steps: Vec<usize> = (0..dims.len()).map(|axis| dims[axis + 1..].iter().product()).collect();
    let to: Vec<usize> = perm.iter().map(|&axis| dims[axis]).collect();
    let mut index = vec![0; to.len()];
    let mut moved = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        moved.push(data[index.iter().zip(perm).map(|(i, &axis)| i * steps[axis]).sum::<usize>()]);
        for (i, &n) in index.iter_mut().zip(&to).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Tensor::new(to, moved)
}

#[cfg(test)]
mod tests;
