//! What a graph consists of, as far as INT8 is concerned.

use super::onnx::proto::{ModelProto, NodeProto, TensorProto};
use super::onnx::shape::Dim;
use super::onnx::{Graph, tensor};
use super::operators::{Kind, is_quantized};
use crate::error::Result;
use crate::source::checkpoint::Checkpoint;
use std::collections::{BTreeMap, HashSet};

/// One kind of node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many nodes.
    pub nodes: usize,
    /// How many weights; shared ones once.
    pub weights: u64,
    /// Multiplications for one sample, of nodes whose output shape is known but for the number of samples.
    pub products: u64,
    /// Nodes of which that is not known.
    pub unknown: usize,
}

/// A model in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// By kind of node.
    pub kinds: BTreeMap<Kind, Share>,
    /// Weights that no such node reads: norms, biases.
    pub other: u64,
    /// Convolutions with as many groups as channels, a few weights each: these suffer most from INT8.
    pub depthwise: usize,
    /// Nodes that are quantized already.
    pub quantized: usize,
    /// Weights in half precision.
    pub half: u64,
    /// All nodes.
    pub nodes: usize,
}

impl OpCounts {
    /// Counts.
    ///
    /// # Errors
    /// The graph cannot run.
    pub fn of(mut model: ModelProto) -> Result<Self> {
        let graph = Graph::take(&mut model)?;
        let mut counts = Self { nodes: graph.nodes().len(), ..Self::default() };
        counts.quantized = graph.nodes().iter().filter(|node| is_quantized(node)).count();
        let mut counted = HashSet::new();
        for node in graph.nodes() {
            let Some(kind) = Kind::of(node, &graph) else { continue };
            let share = counts.kinds.entry(kind).or_default();
            share.nodes += 1;
            for weight in weights(node, kind, &graph) {
                if counted.insert(weight.name().to_owned()) {
                    share.weights += elements(weight);
                }
            }
            if kind != Kind::Embedding {
                match products(node, kind, &graph) {
                    Some(products) => share.products += products,
                    None => share.unknown += 1,
                }
            }
            counts.depthwise += usize::from(is_depthwise(node, &graph));
        }
        for tensor in &graph.proto().initializer {
            if !counted.contains(tensor.name()) {
                counts.other += elements(tensor);
            }
            let half = matches!(tensor.data_type(), 10 | 16);
            counts.half += if half { elements(tensor) } else { 0 };
        }
        Ok(counts)
    }

    /// Counts a checkpoint without a graph, by shapes and names: four dimensions are a convolution, two are an embedding if the name says
    /// so, and a linear layer else.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Self {
        let mut counts = Self::default();
        for tensor in checkpoint.tensors() {
            let weights = tensor.shape.iter().map(|&n| n as u64).product::<u64>();
            let kind = match tensor.shape.len() {
                2 if tensor.name.contains("embed") => Kind::Embedding,
                2 => Kind::MatMul,
                3.. => Kind::Conv,
                _ => {
                    counts.other += weights;
                    continue;
                }
            };
            let share = counts.kinds.entry(kind).or_default();
            *share = Share { nodes: share.nodes + 1, weights: share.weights + weights, unknown: 1, ..*share };
        }
        counts
    }

    /// The numbers of one kind.
    pub fn share(&self, kind: Kind) -> Share {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }

    /// All weights.
    pub fn weights(&self) -> u64 {
        self.other + self.kinds.values().map(|share| share.weights).sum::<u64>()
    }

    /// The part of all weights that one kind has, from 0 to 1.
    pub fn part(&self, kind: Kind) -> f64 {
        self.share(kind).weights as f64 / self.weights().max(1) as f64
    }

    /// The part of all multiplications that one kind makes, from 0 to 1; none if a shape is not known.
    pub fn work(&self, kind: Kind) -> Option<f64> {
        let known = self.kinds.values().all(|share| share.unknown == 0);
        let all: u64 = self.kinds.values().map(|share| share.products).sum();
        (known && all > 0).then(|| self.share(kind).products as f64 / all as f64)
    }
}

fn elements(tensor: &TensorProto) -> u64 {
    tensor::shape(tensor).map_or(0, |(_, elements)| elements as u64)
}

/// The constants of a node that are its weights; biases are not counted.
fn weights<'a>(node: &'a NodeProto, kind: Kind, graph: &'a Graph) -> Vec<&'a TensorProto> {
    let places: &[usize] = match kind {
        Kind::Conv => &[1],
        Kind::MatMul => &[0, 1],
        Kind::Embedding => &[0],
        Kind::Recurrent => &[1, 2],
    };
    let found = places.iter().filter_map(|&at| {
        let name = node.input_at(at)?;
        graph.constant(name).or_else(|| {
            let turned = &graph.nodes()[graph.producer(name)?];
            graph.constant(turned.input_at(0).filter(|_| turned.is("Transpose"))?)
        })
    });
    found.filter(|tensor| tensor.dims.len() >= 2).collect()
}

/// Multiplications for one sample: the elements of the output times the length of each sum. Only the first dimension may be open.
fn products(node: &NodeProto, kind: Kind, graph: &Graph) -> Option<u64> {
    let output = graph.shape(node.output.first()?)?;
    let fixed = |(at, dim): (usize, &Dim)| match dim.fixed() {
        Some(n) => Some(n as u64),
        None => (at == 0).then_some(1),
    };
    let output = output.iter().enumerate().try_fold(1u64, |all, dim| all.checked_mul(fixed(dim)?))?;
    let length = match kind {
        Kind::Conv => {
            let weight = graph.shape(node.input_at(1)?)?;
            let skip = if node.is("Conv") { 1 } else { 2 };
            weight.iter().skip(skip).try_fold(1u64, |all, dim| all.checked_mul(dim.fixed()? as u64))?
        }
        Kind::MatMul => {
            let turned = node.is("Gemm") && node.int_or("transA", 0) != 0;
            let left = graph.shape(node.input_at(0)?)?;
            let along = if turned { left.first() } else { left.last() };
            let right = || graph.shape(node.input_at(1)?)?.first()?.fixed();
            let known = along.and_then(Dim::fixed);
            known.or_else(|| if node.is("MatMul") { right() } else { None })? as u64
        }
        Kind::Embedding => 0,
        Kind::Recurrent => return None,
    };
    output.checked_mul(length)
}

fn is_depthwise(node: &NodeProto, graph: &Graph) -> bool {
    let groups = node.int_or("group", 1);
    let outputs = node.input_at(1).and_then(|weight| graph.constant(weight)).and_then(|tensor| tensor.dims.first());
    node.is("Conv") && groups > 1 && outputs.is_some_and(|&outputs| outputs == groups)
}
